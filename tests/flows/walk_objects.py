"""For walks over many datasets: tiny datasets, manifests without results, and a stand-in worker that ends runs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection
from contextvars import copy_context
from pathlib import Path
from typing import Any
from uuid import UUID

import reconflow
from reconflow.datasets.sources import canonical_location, describe_source, location_mark
from reconflow.nvdiffrec.model import NvdiffrecModel
from reconflow.outputs.files import write_json
from reconflow.outputs.package import Manifest, RunSource, RunStatus
from reconflow.request import RunRequest

VIEWS = ("front", "back", "left", "right", "top", "bottom")


def write_datasets(root: Path, *names: str) -> Path:
    """Write folders that look like datasets in a listing."""
    for name in names:
        for view in VIEWS:
            path = root / name / "multi_views" / f"{view}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} {view}".encode())
    return root


def manifest_of(request: RunRequest, status: RunStatus, **changes: Any) -> Manifest:
    """Return the manifest that a run of this request leaves, as far as reprocessing reads it."""
    source = RunSource(
        location=location_mark(canonical_location(request.dataset)),
        listing=describe_source(request.dataset).listing,
        options=request.model_dump(mode="json", exclude={"dataset", "out"}),
        model_versions={"nvdiffrec": NvdiffrecModel.version},
    )
    return Manifest(
        status=status,
        source=source.model_copy(update=changes),
        facts=None,
        unit="unknown",
        colour_spaces={},
        versions={"reconflow": reconflow.__version__},
        files=(),
    )


def publish(out: Path, run_id: str, manifest: Manifest) -> None:
    """Write a run that consists of its manifest."""
    write_json(out / "runs" / run_id / "manifest.json", manifest.model_dump(mode="json"))


class StandInWorker:
    """Takes the scheduled runs of one deployment and ends each as told, with the manifest that it would leave.

    Args:
        deployment: Whose runs it takes.
        out: Where manifests go.
        ending: Returns the state of the run of a dataset, by the dataset's name.
        block: What a block in a dataset's location stands for.
        first_when: So many runs have to wait before the first is taken.
    """

    def __init__(
        self,
        deployment: UUID,
        out: Path,
        ending: Callable[[str], Any],
        block: Path = Path("/nowhere"),
        first_when: int = 1,
    ) -> None:
        self._deployment, self._out, self._ending, self._block = deployment, out, ending, block
        self._first_when = first_when
        self._stop = threading.Event()
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,))
        self.most_at_once = 0

    def __enter__(self) -> StandInWorker:
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        from prefect.client.orchestration import get_client

        with get_client(sync_client=True) as client:
            while not self._stop.wait(0.05):
                waiting = [run for run in runs_of(client, self._deployment) if not run.state.is_final()]
                self.most_at_once = max(self.most_at_once, len(waiting))
                for run in waiting if self.most_at_once >= self._first_when else ():
                    self._end(client, run)

    def _end(self, client: Any, run: Any) -> None:
        from prefect.states import Running

        from flows.run_ids import run_id_of

        request = RunRequest.model_validate(run.parameters["params"])
        place = re.sub(r"^block://[^/]*", str(self._block), request.dataset)
        request = request.model_copy(update={"dataset": place})
        state = self._ending(Path(request.dataset).name)
        client.set_flow_run_state(run.id, Running(), force=True)
        if not state.is_crashed():
            status = RunStatus.COMPLETED if state.is_completed() else RunStatus.FAILED
            publish(self._out, str(run_id_of(run)), manifest_of(request, status))
        client.set_flow_run_state(run.id, state, force=True)


def make_deployment(name: str, *, without: Collection[str] = ()) -> UUID:
    """Register a deployment of `reconstruct` that no worker serves.

    Args:
        name: Of the deployment.
        without: Fields of a request that its version of the flow does not have yet.
    """
    from prefect.client.orchestration import get_client
    from prefect.utilities.callables import parameter_schema

    from flows.reconstruct import reconstruct

    form = parameter_schema(reconstruct).model_dump_for_openapi()
    fields = form["definitions"]["RunRequest"]["properties"]
    for field in without:
        del fields[field]
    with get_client(sync_client=True) as client:
        return client.create_deployment(
            flow_id=client.create_flow(reconstruct),
            name=name,
            parameter_openapi_schema=form,
            enforce_parameter_schema=True,
        )


def runs_of(client: Any, deployment: UUID) -> list[Any]:
    """Return all runs of a deployment."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId

    own = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    return list(client.read_flow_runs(flow_run_filter=own))

"""The flow `reconstruct`: the order of the stages, and how a run ends. Decides no geometry; what stages do is in tasks.

Run it as `python -m flows.reconstruct DATASET --out DIR --preset standard`, which is `reconflow run`.
"""

from __future__ import annotations

if __name__ == "__main__":  # the embedded server's settings have to stand before Prefect is imported below
    from flows.cli import run_from_module

    raise SystemExit(run_from_module())

from pathlib import Path
from typing import Any
from uuid import UUID

import prefect.runtime.flow_run
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled as CancelledState
from prefect.states import Failed

from blocks.quality import load_thresholds
from flows.cancellation_records import forget_own_cancellation
from flows.run_ids import RUN_TAG
from reconflow import pipeline
from reconflow.errors import Cancelled
from reconflow.outputs.runs import new_run_id
from reconflow.pipeline import RunRef, StageOutcomes
from reconflow.request import RunRequest
from tasks import artifacts, stages
from tasks.reporting import reporting_run
from tasks.run_state import AttemptSuperseded, asked_to_stop, cancelled_before_start, undisturbed


def name_run() -> str:
    """Name a run by its dataset, model and preset."""
    request = RunRequest.model_validate(prefect.runtime.flow_run.parameters["params"])
    return f"{Path(request.dataset).name} · {request.model} · {request.preset}"


@flow(
    name="reconstruct",
    flow_run_name=name_run,
    description="Six views and depth renders in, a measured, textured mesh out.",
    result_serializer="json",
    persist_result=False,
)
def reconstruct(params: RunRequest) -> dict[str, Any] | State[Any]:
    """Reconstruct one object: validate, transforms, load, infer, quality, preview, package.

    Args:
        params: What to reconstruct, how, and where to put it.

    Returns:
        The run's summary: `run_id`, `location`, `status`, measures. A failure is a failed state whose message holds
        code, message and suggestion; `error.json` stands beside the results.
    """
    flow_run_id = UUID(prefect.runtime.flow_run.id)
    with get_client(sync_client=True) as client:
        if (cancelled := cancelled_before_start(client, flow_run_id)) is not None:
            return CancelledState(message=cancelled.message, data=cancelled)
    run = RunRef(run_id=_tagged_run_id(params.model), request=params)
    pipeline.prepare(run)
    outcomes = StageOutcomes()
    try:
        with reporting_run(params, f"{params.model} on its way"):
            return _unless_cancelled(flow_run_id, _run_stages(run, outcomes))
    except (KeyboardInterrupt, TerminationSignal):
        with undisturbed():
            reason = asked_to_stop(flow_run_id) or pipeline.interruption()
            pipeline.record_failure(run, outcomes, reason, _orchestration())
        raise
    except AttemptSuperseded as error:
        return CancelledState(message=error.message, data=error)
    except Cancelled as error:
        with undisturbed():
            pipeline.record_failure(run, outcomes, error, _orchestration())
        return CancelledState(message=error.message, data=error)
    except Exception as error:
        known = pipeline.as_known_error(error)
        pipeline.record_failure(run, outcomes, known, _orchestration())
        artifacts.show_failure(params.model, known)
        failed: State[Any] = Failed(message=f"{known.code}: {known.message} {known.suggestion}", data=known)
        return _unless_cancelled(flow_run_id, failed)
    finally:
        pipeline.close_run(run)
        forget_own_cancellation(flow_run_id)


def _unless_cancelled(flow_run_id: UUID, ending: dict[str, Any] | State[Any]) -> dict[str, Any] | State[Any]:
    """Return how the run ends; one that is being cancelled can only end as cancelled, or it never ends."""
    cancelled = asked_to_stop(flow_run_id)
    if cancelled is None or isinstance(cancelled, AttemptSuperseded):
        return ending
    return CancelledState(message=cancelled.message, data=cancelled)


def _run_stages(run: RunRef, outcomes: StageOutcomes) -> dict[str, Any]:
    run = run.model_copy(update={"thresholds": load_thresholds(run.request.quality_thresholds)})
    outcomes.validate = dataset = stages.validate(run)
    outcomes.transforms = cameras = stages.transforms(run, dataset)
    outcomes.load = model = stages.load(run, dataset)
    outcomes.infer = inferred = stages.infer(run, dataset, cameras, model)
    outcomes.quality = stages.quality(run, dataset, cameras, inferred)
    outcomes.preview = stages.preview(run, inferred)
    outcomes.package = stages.package(run, outcomes, _orchestration())
    pipeline.raise_quality_failure(run, outcomes)
    return pipeline.summarise(run, outcomes).model_dump(mode="json")


def _tagged_run_id(model: str) -> str:
    """Return the run's own identifier, which is a tag of the Prefect run and stays across its retries."""
    tags: list[str] = list(prefect.runtime.flow_run.tags or [])
    known = [tag.removeprefix(RUN_TAG) for tag in tags if tag.startswith(RUN_TAG)]
    if known:
        return known[0]
    run_id = new_run_id()
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(prefect.runtime.flow_run.id), tags=[*tags, f"{RUN_TAG}{run_id}", model])
    return run_id


def _orchestration() -> dict[str, Any]:
    return {
        "flow_run_id": prefect.runtime.flow_run.id,
        "flow_run_name": prefect.runtime.flow_run.name,
        "deployment_id": prefect.runtime.deployment.id,
        "prefect_version": prefect.__version__,
    }

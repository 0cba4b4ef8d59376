"""Walks over many datasets on a real Prefect server: what is submitted, how often, and what is told of it."""

from __future__ import annotations

import json
import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import walk_objects
from pydantic import ValidationError
from server_objects import begin_after_cancellation, latest_artifact

from reconflow.outputs.package import RunStatus
from reconflow.request import RunRequest
from tests.support.faulty_proxy import Fault, FaultyProxy, running_faulty_proxy

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import reprocess, submissions

    monkeypatch.setattr(reprocess, "POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr(submissions, "CRASH_GRACE_S", 0.3)
    monkeypatch.setattr(submissions, "PAUSE_S", 0.05)


@pytest.fixture
def deployment(request: pytest.FixtureRequest) -> Any:
    """A deployment of this test alone."""
    return walk_objects.make_deployment(request.node.name[:60])


@pytest.fixture
def walked(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Three datasets, and how they are walked."""
    data = walk_objects.write_datasets(tmp_path / "data", "boot", "cup", "lamp")
    deployment = f"reconstruct/{request.node.name[:60]}"
    return {"datasets": str(data), "out": str(tmp_path / "out"), "deployment": deployment}


def walk(**params: Any) -> dict[str, Any]:
    """Walk once, in this process."""
    from flows.reprocess import reprocess
    from flows.reprocess_request import ReprocessRequest

    report = reprocess(ReprocessRequest(**params))
    assert isinstance(report, dict)
    return report


def column(report: dict[str, Any], name: str) -> dict[str, str]:
    """Return one column of a report by the dataset's name."""
    return {Path(row["dataset"]).name: row[name] for row in report["rows"]}


def submitted(deployment: Any) -> list[Any]:
    """Return all runs of the deployment."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return walk_objects.runs_of(client, deployment)


def completed(name: str) -> Any:
    """End every run well."""
    from prefect.states import Completed

    return Completed()


def test_a_dry_run_decides_shows_a_table_and_starts_nothing(
    deployment: Any, walked: dict[str, Any], client: SyncPrefectClient
) -> None:
    report = walk(**walked, dry_run=True)
    assert column(report, "decision") == {"boot": "new", "cup": "new", "lamp": "new"}
    assert report["chosen"] == 3
    assert submitted(deployment) == []
    table = latest_artifact(client, "reprocess-decisions")
    assert [Path(row["dataset"]).name for row in json.loads(table["data"])] == ["boot", "cup", "lamp"]
    assert table["description"] == "3 datasets: 3 new; 3 to run (dry run)."


def test_a_failing_dataset_stops_no_other_and_is_tried_again_by_the_next_walks_up_to_the_limit(
    deployment: Any, walked: dict[str, Any], tmp_path: Path
) -> None:
    from prefect.states import Completed, Failed

    def ending(name: str) -> Any:
        return Failed(message="VALIDATION_FAILED: no") if name == "cup" else Completed()

    with walk_objects.StandInWorker(deployment, tmp_path / "out", ending):
        first = walk(**walked, attempts=2)
        second = walk(**walked, attempts=2)
        third = walk(**walked, attempts=2)
    assert column(first, "state") == {"boot": "Completed", "cup": "Failed", "lamp": "Completed"}
    assert column(first, "message")["cup"] == "VALIDATION_FAILED: no"
    assert column(second, "decision") == {"boot": "up to date", "cup": "failed", "lamp": "up to date"}
    assert column(second, "state") == {"boot": "", "cup": "Failed", "lamp": ""}
    assert column(third, "decision")["cup"] == "given up"
    assert len(submitted(deployment)) == 4
    assert {row["run_id"] for row in first["rows"]} <= {path.name for path in (tmp_path / "out" / "runs").iterdir()}


def test_no_more_runs_are_under_way_than_allowed(deployment: Any, walked: dict[str, Any], tmp_path: Path) -> None:
    with walk_objects.StandInWorker(deployment, tmp_path / "out", completed) as worker:
        walk(**walked, in_flight=1)
    assert worker.most_at_once == 1
    assert len(submitted(deployment)) == 3


def test_a_walk_starts_at_most_the_limit_and_the_next_one_the_rest(
    deployment: Any, walked: dict[str, Any], tmp_path: Path
) -> None:
    with walk_objects.StandInWorker(deployment, tmp_path / "out", completed):
        first, second = walk(**walked, limit=2), walk(**walked, limit=2)
    assert (first["chosen"], second["chosen"]) == (2, 1)
    assert column(second, "decision") == {"boot": "up to date", "cup": "up to date", "lamp": "new"}


def test_a_walk_that_was_broken_off_is_taken_up_without_a_second_submission(
    deployment: Any, walked: dict[str, Any], tmp_path: Path
) -> None:
    broken_off = walk(**walked, in_flight=2, wait_hours=0.5 / 3600)
    assert sorted(broken_off["states"]) == ["Not submitted", "Scheduled"]
    with walk_objects.StandInWorker(deployment, tmp_path / "out", completed, first_when=3):
        taken_up = walk(**walked)
    assert column(taken_up, "state") == dict.fromkeys(["boot", "cup", "lamp"], "Completed")
    assert len(submitted(deployment)) == 3


def test_two_walks_at_once_submit_every_dataset_once(deployment: Any, walked: dict[str, Any], tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []
    walks = [
        threading.Thread(target=copy_context().run, args=(lambda: reports.append(walk(**walked)),)) for _ in range(2)
    ]
    with walk_objects.StandInWorker(deployment, tmp_path / "out", completed):
        for thread in walks:
            thread.start()
        for thread in walks:
            thread.join()
    assert len(reports) == 2
    assert len(submitted(deployment)) == 3


def test_a_run_that_crashed_without_a_trace_is_followed_by_another_attempt(
    deployment: Any, walked: dict[str, Any], tmp_path: Path
) -> None:
    from prefect.states import Crashed

    with walk_objects.StandInWorker(deployment, tmp_path / "out", lambda name: Crashed(message="killed")):
        first = walk(**walked, redo_changed=False)
    with walk_objects.StandInWorker(deployment, tmp_path / "out", completed):
        second = walk(**walked)
    assert first["states"] == {"Crashed": 3}
    assert second["states"] == {"Completed": 3}
    assert len(submitted(deployment)) == 6


def test_a_dataset_of_an_older_version_and_one_with_other_files_are_run_again_unless_switched_off(
    deployment: Any, walked: dict[str, Any], tmp_path: Path
) -> None:
    requests = [RunRequest(dataset=f"{walked['datasets']}/{name}") for name in ("boot", "cup", "lamp")]
    older = {"model_versions": {"nvdiffrec": "0"}}
    changes: list[dict[str, Any]] = [older, {"listing": "before"}, {}]
    for number, (request, changed) in enumerate(zip(requests, changes, strict=True)):
        manifest = walk_objects.manifest_of(request, RunStatus.COMPLETED, **changed)
        walk_objects.publish(tmp_path / "out", f"run{number:05}", manifest)
    report = walk(**walked, dry_run=True)
    assert column(report, "decision") == {"boot": "outdated", "cup": "changed", "lamp": "up to date"}
    assert report["chosen"] == 2
    assert walk(**walked, dry_run=True, redo_changed=False, redo_outdated=False)["chosen"] == 0


def test_a_deployment_that_does_not_exist_is_named(walked: dict[str, Any]) -> None:
    from reconflow.errors import ValidationFailedError

    with pytest.raises(ValidationFailedError, match="reconstruct/nowhere"):
        walk(**walked | {"deployment": "reconstruct/nowhere"})


def test_a_deployment_of_an_older_version_gets_the_fields_that_it_needs_and_no_others(
    walked: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    older = walk_objects.make_deployment(
        request.node.name[:60], without=("random_weights", "structure_steps", "guidance", "weights")
    )
    with walk_objects.StandInWorker(older, tmp_path / "out", completed):
        report = walk(**walked, options={"seed": 0, "fov_deg": 60})
    assert report["states"] == {"Completed": 3}
    (first, *_) = (run.parameters["params"] for run in submitted(older))
    assert first.keys() == {"dataset", "out", "model", "preset", "seed", "fov_deg"}


def test_a_walk_whose_every_run_is_refused_fails_and_says_why(
    walked: dict[str, Any], request: pytest.FixtureRequest, client: SyncPrefectClient
) -> None:
    from reconflow.errors import ServerRefusedError

    walk_objects.make_deployment(request.node.name[:60], without=("fov_deg",))
    with pytest.raises(ServerRefusedError, match="fov_deg") as caught:
        walk(**walked, options={"fov_deg": 60})
    assert "reconflow deploy" in caught.value.suggestion
    refused = caught.value.details["refused"]
    assert isinstance(refused, dict)
    assert [Path(dataset).name for dataset in refused] == ["boot", "cup", "lamp"]
    assert all("409" in reason and "fov_deg" in reason for reason in refused.values())
    table = json.loads(latest_artifact(client, "reprocess-runs")["data"])
    assert {row["state"] for row in table} == {"Refused"}
    assert all("fov_deg" in row["message"] for row in table)


def test_a_walk_over_a_block_submits_the_block_and_compares_its_place(
    deployment: Any, walked: dict[str, Any], tmp_path: Path
) -> None:
    from blocks.artifact_store import ArtifactStoreBlock

    ArtifactStoreBlock(uri=str(tmp_path)).save("walked", overwrite=True)
    in_block = walked | {"datasets": "block://walked/data", "out": "block://walked/out"}
    with walk_objects.StandInWorker(deployment, tmp_path / "out", completed, tmp_path):
        walk(**in_block)
    datasets = {run.parameters["params"]["dataset"] for run in submitted(deployment)}
    assert datasets == {f"block://walked/data/{name}" for name in ("boot", "cup", "lamp")}
    assert {run.parameters["params"]["out"] for run in submitted(deployment)} == {"block://walked/out"}
    assert walk(**walked, dry_run=True)["decisions"]["up to date"] == 3


def test_a_cancelled_walk_submits_nothing_more_and_leaves_its_runs_at_work(
    deployment: Any, walked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client

    from flows.cancellation import CancellationDesk
    from flows.run_ids import find_flow_run
    from reconflow.errors import Cancelled
    from tasks import run_state

    monkeypatch.setattr(run_state.StatePoller.__init__, "__defaults__", (0.1,))
    answers: list[Any] = []

    def cancel() -> None:
        with get_client(sync_client=True, httpx_settings={"timeout": 34.0}) as client:
            while not walk_objects.runs_of(client, deployment):
                time.sleep(0.1)
            runs = [run for run in client.read_flow_runs() if walked["datasets"] in str(run.parameters)]
            (own,) = (run for run in runs if run.deployment_id is None)
            desk = CancellationDesk(client)
            desk.request(find_flow_run(client, str(own.id)), "ada", "wrong night")
            answers.append(desk.confirm(own, "bob"))

    thread = threading.Thread(target=copy_context().run, args=(cancel,))
    thread.start()
    with pytest.raises(Cancelled, match="Cancelled by bob: wrong night"):
        walk(**walked, in_flight=1, wait_hours=0.02)
    thread.join()
    assert answers[0].outcome == "cancelled"
    (left,) = submitted(deployment)
    assert left.state.is_scheduled()


def test_a_walk_that_is_cancelled_while_it_decides_submits_nothing(
    deployment: Any, walked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run
    from prefect.states import Cancelling

    from flows import reprocess
    from reconflow.errors import Cancelled
    from tasks import run_state

    monkeypatch.setattr(run_state.StatePoller.__init__, "__defaults__", (0.05,))
    find = reprocess.find_datasets

    def find_slowly(place: str) -> Any:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelling(message="Enough."))
        time.sleep(1.0)
        return find(place)

    monkeypatch.setattr(reprocess, "find_datasets", find_slowly)
    with pytest.raises(Cancelled, match="Enough"):
        walk(**walked, wait_hours=0.005)
    assert submitted(deployment) == []


def test_a_walk_that_begins_after_its_cancellation_decides_nothing(
    deployment: Any, walked: dict[str, Any], client: SyncPrefectClient
) -> None:
    from flows.reprocess import reprocess
    from flows.reprocess_request import ReprocessRequest

    state = begin_after_cancellation(client, reprocess, ReprocessRequest(**walked, wait_hours=0.005))
    assert (state.type.value, state.message) == ("CANCELLED", "Not needed.")
    assert submitted(deployment) == []


def test_the_form_is_closed_titled_and_begins_with_the_datasets() -> None:
    from prefect.utilities.callables import parameter_schema

    from flows.reprocess import reprocess
    from flows.reprocess_request import ReprocessRequest

    (form,) = (
        part for part in parameter_schema(reprocess).definitions.values() if "datasets" in part.get("properties", {})
    )
    assert list(form["properties"])[:3] == ["datasets", "out", "dry_run"]
    assert form["additionalProperties"] is False
    assert all("description" in field for field in form["properties"].values())
    for wrong in ({"colour": 1}, {"options": {"colour": 1}}, {"options": {"preset": "high"}}, {"attempts": 0}):
        with pytest.raises(ValidationError):
            ReprocessRequest(datasets="data", **wrong)


def test_a_server_that_fails_a_third_of_all_requests_gets_every_run_once(
    deployment: Any, walked: dict[str, Any], tmp_path: Path
) -> None:
    from datetime import UTC, datetime

    from prefect.client.orchestration import get_client
    from prefect.logging import disable_run_logger
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from flows.reprocess import Walk
    from flows.reprocess_request import ReprocessRequest
    from reconflow.datasets.sources import find_datasets
    from reconflow.reprocessing import decide_all, wanted_of

    names = [f"object-{number}" for number in range(12)]
    walk_objects.write_datasets(Path(walked["datasets"]), *names)
    request = ReprocessRequest(**walked, in_flight=5)
    wanted = wanted_of(request.request_for(request.datasets))
    decisions = decide_all(find_datasets(request.datasets), [], wanted)
    server = str(PREFECT_API_URL.value()).removesuffix("/api")
    faults = (Fault.SLOW_DOWN, Fault.INTERNAL_ERROR, Fault.RESET, Fault.LOST_ANSWER)
    with (
        running_faulty_proxy(FaultyProxy(server, rate=0.33, faults=faults)) as proxy,
        walk_objects.StandInWorker(deployment, tmp_path / "out", completed),
        temporary_settings({PREFECT_API_URL: f"{proxy.endpoint_url}/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
        disable_run_logger(),
        get_client(sync_client=True) as client,
    ):
        outcomes = Walk(client, request, wanted, datetime.now(UTC), request.datasets).run_all(decisions)
    assert {outcome.state for outcome in outcomes.values()} == {"Completed"}
    assert len(outcomes) == len(submitted(deployment)) == 15
    assert proxy.counts["LOST_ANSWER"] > 0
    assert proxy.spoiled > 10


def test_a_server_that_stays_away_ends_the_walk_with_a_code(
    deployment: Any, walked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    from flows import submissions
    from reconflow.errors import ServerUnreachableError

    monkeypatch.setattr(submissions, "PATIENCE_S", 0.2)
    server = str(PREFECT_API_URL.value()).removesuffix("/api")
    with (
        running_faulty_proxy(FaultyProxy(server, rate=1.0, faults=(Fault.SLOW_DOWN,))) as proxy,
        temporary_settings({PREFECT_API_URL: f"{proxy.endpoint_url}/api", PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True) as client,
        pytest.raises(ServerUnreachableError),
    ):
        submissions.find_deployment(client, walked["deployment"])


def test_a_crash_that_is_recovered_as_a_new_run_is_followed_to_its_end(
    deployment: Any, walked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Completed, Crashed

    from flows import submissions

    monkeypatch.setattr(submissions, "CRASH_GRACE_S", 30.0)
    recovered: list[str] = []

    def ending(name: str) -> Any:
        if name != "cup" or recovered:
            return Completed()
        recovered.append(name)
        with get_client(sync_client=True) as client:
            (run,) = (run for run in walk_objects.runs_of(client, deployment) if "dataset-cup" in run.tags)
            client.create_flow_run_from_deployment(deployment, parameters=run.parameters, tags=run.tags)
        return Crashed(message="killed")

    with walk_objects.StandInWorker(deployment, tmp_path / "out", ending):
        report = walk(**walked)
    assert report["states"] == {"Completed": 3}
    assert len(submitted(deployment)) == 4

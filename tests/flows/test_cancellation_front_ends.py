"""The form and the command for cancelling, on a real Prefect server: both steps, and what becomes of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flow_objects
import pytest
from server_objects import latest_artifact, make_run, state_of

from reconflow.outputs.package import RunStatus
from tests.support.s3_server import running_s3_server

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import State

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


def run_step(**params: Any) -> State[Any]:
    """Run the flow `cancel` for one step."""
    from prefect.logging.handlers import APILogHandler

    from flows.cancel import CancelRequest, cancel

    state: State[Any] = cancel(CancelRequest(by="ada", **params), return_state=True)
    APILogHandler().flush()
    return state


def test_the_form_does_both_steps_and_shows_what_came_of_them(client: SyncPrefectClient) -> None:
    from prefect.states import Scheduled

    run = make_run(client, Scheduled(), tags=("run-form0001",))
    first = run_step(run="form0001", reason="not needed")
    assert first.result()["outcome"] == "requested"
    assert (first.type.value, first.name) == ("COMPLETED", "requested")
    assert "Confirm it before" in str(client.read_flow_run(first.state_details.flow_run_id).state.message)
    assert "**requested**: " in latest_artifact(client, "cancellation")["data"]
    assert client.read_flow_run(first.state_details.flow_run_id).name == "request cancellation · form0001"
    second = run_step(run=str(run.id), confirm=True)
    assert second.result()["outcome"] == "cancelled"
    told = client.read_flow_run(second.state_details.flow_run_id).state
    assert (told.name, told.message) == ("cancelled", "The run is cancelled.")
    assert "| reason | not needed |" in latest_artifact(client, "cancellation")["data"]
    assert state_of(client, run).is_cancelled()


def test_a_step_that_cannot_be_done_is_a_failed_state_with_code_and_way_out(client: SyncPrefectClient) -> None:
    run = make_run(client)
    state = run_step(run=str(run.id), confirm=True)
    assert state.is_failed()
    assert state.message is not None
    assert state.message.startswith("CANCELLATION_NOT_REQUESTED: ")
    assert "**What to do:** Request it first" in latest_artifact(client, "cancellation")["data"]


def test_the_command_does_both_steps_and_lists_what_waits(client: SyncPrefectClient) -> None:
    from prefect.states import Scheduled
    from typer.testing import CliRunner

    from flows.cli import app

    def command(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["cancel", *arguments, "--json"])

    run = make_run(client, Scheduled(), tags=("run-term0001",))
    assert json.loads(command("term0001", "--by", "ada", "--reason", "late").stdout)["outcome"] == "requested"
    assert ("term0001", "late") in {(row["run"], row["reason"]) for row in json.loads(command("--list").stdout)}
    assert json.loads(command("term0001", "--confirm").stdout)["outcome"] == "cancelled"
    refused = command("term0001", "--confirm")
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["error"]["code"] == "JOB_ALREADY_FINISHED"
    assert json.loads(command().stdout)["error"]["code"] == "VALIDATION_FAILED"
    assert state_of(client, run).is_cancelled()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a run to stop."""
    from flows.cancellation import CancellationDesk, utc_now

    monkeypatch.setattr(CancellationDesk.__init__, "__defaults__", (utc_now, 0.5, 0.5, 0.0))


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.parametrize(("state", "outcome"), [("Scheduled", "cancelled"), ("Running", "forced")])
def test_finished_results_of_a_cancelled_run_stay_unless_asked_otherwise(
    client: SyncPrefectClient, finished_store: tuple[Path, str], discard: bool, state: str, outcome: str
) -> None:
    from prefect import states

    from reconflow.errors import JobExpiredError
    from reconflow.storage import open_store

    out, run_id = finished_store
    run = client.create_flow_run(
        _reconstruct_flow(),
        parameters={"params": {"dataset": "d", "out": str(out)}},
        state=getattr(states, state)(),
        tags=[f"run-{run_id}"],
    )
    (out / "runs" / run_id / ".mesh.glb.0.part").write_bytes(b"half")
    run_step(run=str(run.id), reason="wrong", discard_results=discard)
    assert run_step(run=str(run.id), confirm=True).result()["outcome"] == outcome
    assert not list(out.rglob("*.part"))
    if discard:
        with pytest.raises(JobExpiredError, match="Cancelled by ada: wrong"):
            open_store(out).read_manifest(run_id)
    else:
        assert open_store(out).read_manifest(run_id).status is RunStatus.COMPLETED


@pytest.mark.usefixtures("_impatient")
def test_what_a_machine_that_is_gone_had_sent_of_its_results_goes(
    client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Running

    with running_s3_server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("RECONFLOW_CACHE", str(tmp_path / "cache"))
        bucket = server.new_bucket()
        run = client.create_flow_run(
            _reconstruct_flow(),
            parameters={"params": {"dataset": "d", "out": f"s3://{bucket}/results"}},
            state=Running(),
            tags=["run-gone0001"],
        )
        server.put(bucket, "results/runs/gone0001/nvdiffrec/mesh.obj", b"half of the results")
        server.client().create_multipart_upload(Bucket=bucket, Key="results/runs/gone0001/nvdiffrec/mesh.glb")
        run_step(run="gone0001", reason="machine gone")
        told = run_step(run="gone0001", confirm=True)
        assert (told.name, state_of(client, run).name) == ("forced", "Cancelled")
        assert server.keys(bucket, "results/runs/") == []
        assert server.unfinished_uploads(bucket) == 0


def _reconstruct_flow() -> Any:
    from flows.reconstruct import reconstruct

    return reconstruct


@pytest.fixture
def finished_store(dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path) -> tuple[Path, str]:
    """A store with one finished run, and that run's id."""
    from reconflow import reconstruct_folder

    summary = reconstruct_folder(dataset, tmp_path, preset="draft")
    return tmp_path, summary.run_id

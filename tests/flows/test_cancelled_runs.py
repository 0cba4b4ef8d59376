"""Runs that are really stopped on a real Prefect server: what stops when, and what starts no more."""

from __future__ import annotations

import json
import threading
import time
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flow_objects
import pytest
from server_objects import begin_after_cancellation, state_of

from reconflow.errors import (
    Cancelled,
)
from reconflow.nvdiffrec.options import Preset
from reconflow.outputs.package import RunStatus, read_manifest
from reconflow.request import RunRequest

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


def test_a_run_in_this_process_stops_at_its_next_step(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run

    from flows.cancellation import CancellationDesk
    from flows.in_process import call_flow
    from flows.run_ids import find_flow_run
    from tasks import run_state

    monkeypatch.setattr(run_state.StatePoller.__init__, "__defaults__", (0.2,))
    answers: list[Any] = []
    steps: list[int] = []

    def cancel(either_id: str) -> None:
        with get_client(sync_client=True, httpx_settings={"timeout": 31.0}) as own:
            desk = CancellationDesk(own)
            desk.request(find_flow_run(own, either_id), "ada", "wrong pictures")
            answers.append(desk.confirm(find_flow_run(own, either_id), "bob"))

    def work(step: int) -> None:
        steps.append(step)
        if step == 0:
            thread = threading.Thread(target=copy_context().run, args=(cancel, flow_run.id))
            threads.append(thread)
            thread.start()
        time.sleep(1.0)

    threads: list[threading.Thread] = []
    stand_in.during = work
    with pytest.raises(Cancelled, match="Cancelled by bob: wrong pictures"):
        call_flow(RunRequest(dataset=str(dataset), out=str(tmp_path)))
    threads[0].join()
    assert len(steps) < flow_objects.STEPS
    assert answers[0].outcome == "cancelled"
    (run,) = (tmp_path / "runs").iterdir()
    assert answers[0].run == run.name
    assert read_manifest(run).status is RunStatus.FAILED
    assert json.loads((run / "error.json").read_text("utf-8"))["code"] == "CANCELLED"
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / ".work").exists()


def test_a_run_that_ends_while_it_is_being_stopped_ends_as_cancelled(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run
    from prefect.states import Cancelling

    from flows.in_process import call_flow

    def cancel_late(step: int) -> None:
        if step == flow_objects.STEPS - 1:
            with get_client(sync_client=True) as own:
                own.set_flow_run_state(flow_run.id, Cancelling(message="Enough."))

    stand_in.during = cancel_late
    with pytest.raises(Cancelled, match="Enough"):
        call_flow(RunRequest(dataset=str(dataset), out=str(tmp_path), preset=Preset.DRAFT))


def test_a_process_that_starts_after_its_cancellation_touches_nothing(
    dataset: Path, stand_in: flow_objects.StandInModel, tmp_path: Path, client: SyncPrefectClient
) -> None:
    from prefect.flow_engine import run_flow
    from prefect.states import Cancelled as CancelledState
    from prefect.states import Pending, Running

    from flows.reconstruct import reconstruct

    request = RunRequest(dataset=str(dataset), out=str(tmp_path / "out"))
    run = client.create_flow_run(reconstruct, parameters={"params": request.model_dump(mode="json")}, state=Pending())
    client.set_flow_run_state(run.id, CancelledState(message="Not needed."), force=True)
    client.set_flow_run_state(run.id, Running(), force=True)
    state = run_flow(
        reconstruct, flow_run=client.read_flow_run(run.id), parameters={"params": request}, return_type="state"
    )
    assert state.is_cancelled()
    assert state_of(client, run).message == "Not needed."
    assert not (tmp_path / "out").exists()


def test_an_examination_that_begins_after_its_cancellation_looks_at_nothing(
    tmp_path: Path, client: SyncPrefectClient
) -> None:
    from flows.doctor_flow import DoctorRequest, doctor

    state = begin_after_cancellation(client, doctor, DoctorRequest(out=str(tmp_path / "out"), disk_gb=1e9))
    assert (state.type.value, state.message) == ("CANCELLED", "Not needed.")
    assert not (tmp_path / "out").exists()

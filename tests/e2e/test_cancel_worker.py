"""Cancelling runs whose processes are real: a worker's, an orphan's, a command's. Nothing of them may be left."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from benchmarks._prefect_processes import FITTING, PrefectProcesses, submit, wait_for_fit, wait_until
from reconflow.outputs.package import RunStatus, read_manifest

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),  # with the start of the installation
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]

ROOT = Path(__file__).resolve().parents[2]
LONG = {"preset": "draft", "steps": 20_000, "resolution": 96, "texture_size": 128, "target_faces": 2000}
"""Options that keep the fit busy for far longer than a test waits."""


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectProcesses]:
    with PrefectProcesses(tmp_path_factory.mktemp("prefect")) as processes:
        yield processes


@pytest.fixture(scope="module")
def client(prefect: PrefectProcesses) -> Iterator[SyncPrefectClient]:
    with prefect.client() as client:
        yield client


@pytest.fixture(scope="module")
def deployment(prefect: PrefectProcesses, client: SyncPrefectClient) -> UUID:
    from flows.reconstruct import reconstruct

    return prefect.deploy(client, reconstruct, "flows/reconstruct.py:reconstruct")


def start_fitting(prefect: PrefectProcesses, client: SyncPrefectClient, deployment: UUID, out: Path) -> FlowRun:
    """Submit a run and return it when its fit is under way."""
    run = submit(client, deployment, {"dataset": str(ROOT / "samples" / "lantern"), "out": str(out), **LONG})
    wait_for_fit(prefect, client, run.id, 300)
    return client.read_flow_run(run.id)


def cancel(client: SyncPrefectClient, run: FlowRun) -> Any:
    """Do both steps."""
    from flows.cancel import CancelRequest, do_step

    do_step(client, CancelRequest(run=str(run.id), by="ada", reason="wrong pictures"))
    current = client.read_flow_run(run.id).state
    assert current is not None
    assert current.is_running()
    return do_step(client, CancelRequest(run=str(run.id), by="bob", confirm=True))


def expect_nothing_left(prefect: PrefectProcesses, client: SyncPrefectClient, run: FlowRun, out: Path) -> None:
    """Expect no process, no unfinished file, no variable, and a record of the cancellation."""
    wait_until(lambda: not prefect.alive_of(run.id), 10)
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_cancelled()
    assert not list(out.rglob("*.part"))
    assert not (out / ".work").exists()
    (folder,) = (out / "runs").iterdir()
    assert read_manifest(folder).status is RunStatus.FAILED
    error = json.loads((folder / "error.json").read_text("utf-8"))
    assert error["code"] == "CANCELLED"
    assert error["message"] == "Cancelled by bob: wrong pictures"
    assert [variable.name for variable in client.read_variables() if str(run.id) in variable.name] == []


def test_a_workers_run_is_gone_when_its_cancellation_is_answered(
    prefect: PrefectProcesses, client: SyncPrefectClient, deployment: UUID, tmp_path: Path
) -> None:
    worker = prefect.start_worker(client)
    run = start_fitting(prefect, client, deployment, tmp_path)
    assert prefect.alive_of(run.id)
    answer = cancel(client, run)
    assert answer.outcome == "cancelled"
    expect_nothing_left(prefect, client, run, tmp_path)
    assert worker.poll() is None
    worker.terminate()
    worker.wait(120)  # Prefect asks its server a few things more


def test_an_orphan_whose_worker_died_stops_by_itself(
    prefect: PrefectProcesses, client: SyncPrefectClient, deployment: UUID, tmp_path: Path
) -> None:
    worker = prefect.start_worker(client, "dying")
    run = start_fitting(prefect, client, deployment, tmp_path)
    worker.kill()
    worker.wait()
    assert prefect.alive_of(run.id)
    answer = cancel(client, run)
    assert answer.outcome == "cancelled"
    assert answer.seconds < 20
    expect_nothing_left(prefect, client, run, tmp_path)


def test_a_command_against_a_server_stops_by_itself(
    prefect: PrefectProcesses, client: SyncPrefectClient, tmp_path: Path
) -> None:
    options = [f"--{name.replace('target_', '').replace('_', '-')}={value}" for name, value in LONG.items()]
    dataset = str(ROOT / "samples" / "lantern")
    command = prefect.start("command", "-m", "flows.reconstruct", dataset, "--out", str(tmp_path), *options)

    def fitting() -> list[FlowRun]:
        return [
            run
            for run in client.read_flow_runs(limit=200)
            if is_mine(run) and FITTING in prefect.progress_of(client, run.id)
        ]

    def is_mine(run: FlowRun) -> bool:
        return str(tmp_path) in str(run.parameters)

    wait_until(fitting, 180)
    (run,) = fitting()
    assert cancel(client, run).outcome == "cancelled"
    assert command.wait(30) == 130
    expect_nothing_left(prefect, client, run, tmp_path)


def test_a_run_claimed_by_nobody_ends_at_once_when_it_is_started_after_its_cancellation(
    prefect: PrefectProcesses, client: SyncPrefectClient, deployment: UUID, tmp_path: Path
) -> None:
    from prefect.states import Pending

    from flows.cancellation import CancellationDesk

    run = submit(client, deployment, {"dataset": "unheard-of", "out": str(tmp_path / "out")})
    client.set_flow_run_state(run.id, Pending(name="Submitting"))
    desk = CancellationDesk(client, start_patience_s=1.0)
    desk.request(run, "ada", "not needed")
    assert desk.confirm(run, "ada").outcome == "forced"
    late = prefect.start("late", "-m", "prefect", "flow-run", "execute", str(run.id))
    assert late.wait(120) == 0
    state = client.read_flow_run(run.id).state
    assert state is not None
    assert state.is_cancelled()
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_killed_leaves_nothing_that_its_cancellation_does_not_remove(
    prefect: PrefectProcesses, client: SyncPrefectClient, deployment: UUID, tmp_path: Path
) -> None:
    worker = prefect.start_worker(client, "killing")
    run = start_fitting(prefect, client, deployment, tmp_path)
    from flows.cancel import CancelRequest, do_step

    do_step(client, CancelRequest(run=str(run.id), by="ada", reason="hangs"))
    for pid in prefect.alive_of(run.id):
        os.kill(pid, signal.SIGSTOP)  # like a call into a driver that never returns
    answer = do_step(client, CancelRequest(run=str(run.id), by="ada", confirm=True))
    assert answer.outcome == "cancelled"
    assert 25 < answer.seconds < 60
    wait_until(lambda: not prefect.alive_of(run.id), 10)
    assert not list(tmp_path.rglob("*.part"))
    assert not (tmp_path / ".work").exists()
    worker.terminate()
    worker.wait(120)  # Prefect asks its server a few things more

"""A server that is away for longer than a run may be silent: who is alive is left alone, and who died is found."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks._prefect_processes import ROOT, PrefectProcesses, wait_until

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]
SLEEPING = """
import sys, time
from prefect import flow, tags

@flow(name="reconstruct", flow_run_name=sys.argv[1])
def sleeping():
    time.sleep(1000)

with tags("reconflow"):
    sleeping()
"""
AWAY_S = 75


def test_after_an_outage_of_the_server_only_runs_that_died_are_ended(tmp_path: Path) -> None:
    from deployments.heartbeats import HEARTBEAT_S, HEARTBEAT_VARIABLE, SILENT_AFTER_S

    assert AWAY_S > SILENT_AFTER_S
    with PrefectProcesses(tmp_path / "prefect", {HEARTBEAT_VARIABLE: str(HEARTBEAT_S)}) as prefect:
        out = str(tmp_path / "out")
        command = [sys.executable, "-m", "flows.cli", "deploy", "--device", "cpu", "--out", out]
        subprocess.run(command, cwd=ROOT, env=prefect.environment, check=True)
        prefect.start("workers", "-m", "flows.cli", "worker", "--device", "cpu", "--out", out)
        prefect.start("living", "-c", SLEEPING, "living")
        dying = prefect.start("dying", "-c", SLEEPING, "dying")

        def runs() -> dict[str, FlowRun]:
            with prefect.client() as client:
                return {run.name: run for run in client.read_flow_runs(limit=200)}

        def states(names: tuple[str, ...]) -> set[str | None]:
            return {run.state_name for name, run in runs().items() if name.startswith(names)}

        wait_until(lambda: {"living", "dying"} <= runs().keys() and states(("living", "dying")) == {"Running"}, 60)
        time.sleep(5)  # until their first heartbeats are stored
        prefect.server.terminate()
        prefect.server.wait()
        dying.kill()
        time.sleep(AWAY_S)
        prefect.start_server()
        wait_until(lambda: states(("dying",)) == {"Crashed"}, 300)
        wait_until(lambda: states(("silence",)) <= {"LeftAlone", "Ended"}, 120)
        assert states(("living",)) == {"Running"}

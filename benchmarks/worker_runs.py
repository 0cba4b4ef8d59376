"""What a run through a worker costs beyond its stages, and how long it takes to recover when its process is killed.

    python -m benchmarks.worker_runs [--rounds 5]

A server, the deployments and the CPU workers are started as an operator would start them. In each round a run goes
through undisturbed; then the process of another one is killed in the middle of its fit, and the automation's new run
has to bring the results. Wall times mean something on a quiet machine only; the load average is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun

from benchmarks._prefect_processes import (
    ROOT,
    PrefectProcesses,
    installation,
    submit,
    wait_for_end,
    wait_for_fit,
    wait_until,
)

SMALL: Final = {"preset": "draft", "steps": 60, "resolution": 128, "texture_size": 256, "target_faces": 4000}
LONGER: Final = {**SMALL, "steps": 1500}
TIMEOUT_S: Final = 600.0


@dataclass(frozen=True)
class Round:
    """Seconds; from the creation of a run, and from the kill."""

    started: float
    """Until the run was running."""
    beyond_stages: float
    """In the flow, without what its stages took."""
    ended: float
    """Until the undisturbed run was complete."""
    crashed: float
    """From the kill until the state said so."""
    taken_up: float
    """From the kill until the new run was running."""
    recovered: float
    """From the kill until the new run was complete."""


class Bench:
    """Runs of one installation.

    Args:
        processes: Server and workers.
        client: Of the server.
        out: Where the results go.
    """

    def __init__(self, processes: PrefectProcesses, client: SyncPrefectClient, out: Path) -> None:
        self._processes, self._client, self._out = processes, client, out
        self._deployment = client.read_deployment_by_name("reconstruct/nvdiffrec").id

    def measure_round(self) -> Round:
        """Measure an undisturbed run and one that is killed."""
        run = self.ended(self._submit(SMALL).id)
        killed = self._submit(LONGER)
        wait_for_fit(self._processes, self._client, killed.id, TIMEOUT_S)
        killed_s = time.time()
        for pid in self._processes.alive_of(killed.id):
            os.kill(pid, signal.SIGKILL)
        crashed = self.ended(killed.id, "CRASHED")
        wait_until(lambda: self._successor(killed.id) is not None, TIMEOUT_S)
        successor = self._successor(killed.id)
        assert successor is not None
        new = self.ended(successor.id)
        return Round(
            started=_seconds(run.start_time) - _seconds(run.created),
            beyond_stages=_seconds(run.end_time) - _seconds(run.start_time) - self._stages_s(run.id),
            ended=_seconds(run.end_time) - _seconds(run.created),
            crashed=_seconds(crashed.end_time) - killed_s,
            taken_up=_seconds(new.start_time) - killed_s,
            recovered=_seconds(new.end_time) - killed_s,
        )

    def ended(self, flow_run_id: UUID, expected: str = "COMPLETED") -> FlowRun:
        """Return a run when it has ended.

        Raises:
            RuntimeError: In another way than expected.
        """
        run = wait_for_end(self._client, flow_run_id, TIMEOUT_S)
        if run.state_type is None or run.state_type.value != expected:
            raise RuntimeError(f"A run ended as {run.state_name}: {run.state and run.state.message}")
        return run

    def _submit(self, options: dict[str, Any]) -> FlowRun:
        """Create a run of work that no earlier one has done."""
        params = {
            **options,
            "dataset": str(ROOT / "samples" / "lantern"),
            "out": str(self._out),
            "seed": time.time_ns() % 2**31,
        }
        return submit(self._client, self._deployment, params)

    def _stages_s(self, flow_run_id: UUID) -> float:
        tag = self._run_tag(flow_run_id)
        stored = json.loads((self._out / "runs" / tag.removeprefix("run-") / "run.json").read_text("utf-8"))
        return sum(stage["seconds"] for stage in stored["stages"])

    def _run_tag(self, flow_run_id: UUID) -> str:
        (tag,) = (tag for tag in self._client.read_flow_run(flow_run_id).tags if tag.startswith("run-"))
        return tag

    def _successor(self, flow_run_id: UUID) -> FlowRun | None:
        """Return the run that took up another one's work, if there is one."""
        same_work = FlowRunFilter.model_validate({"tags": {"all_": [self._run_tag(flow_run_id)]}})
        found = (run for run in self._client.read_flow_runs(flow_run_filter=same_work) if run.id != flow_run_id)
        return next(found, None)


def _seconds(moment: datetime | None) -> float:
    assert moment is not None
    return moment.timestamp()


def main(argv: list[str] | None = None) -> None:
    """Print median and 95th percentile of every column."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory(prefix="worker-runs-") as folder,
        installation(Path(folder)) as (processes, client),
    ):
        bench = Bench(processes, client, Path(folder) / "out")
        found = []
        for number in range(options.rounds):
            found.append(bench.measure_round())
            shown = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f}" for name, seconds in asdict(found[-1]).items())
            print(f"{number + 1:3}: {shown}", flush=True)
    print(f"{'seconds':16}{'p50':>8}{'p95':>8}")
    for column in fields(Round):
        values = [getattr(one, column.name) for one in found]
        p95 = statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]
        print(f"{column.name.replace('_', ' '):16}{statistics.median(values):8.1f}{p95:8.1f}")
    print(f"rounds {options.rounds}, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()

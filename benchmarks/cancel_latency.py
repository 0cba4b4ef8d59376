"""How long a confirmed cancellation takes: from the confirmation to the final state, and to the last process gone.

    python -m benchmarks.cancel_latency [--rounds 20] [--by worker|poll]

Runs of the deployed flow on the bundled sample, cancelled at random moments of their fit. `worker`: a worker stops
them. `poll`: the worker was killed before, so that each run has to notice by itself. Times mean something on a quiet
machine only; the load average is printed.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient

from benchmarks._prefect_processes import ROOT, PrefectProcesses, submit, wait_for_fit

LONG: Final = {"preset": "draft", "steps": 20_000, "resolution": 128, "texture_size": 256, "target_faces": 4000}


@dataclass(frozen=True)
class Latency:
    """Seconds from a confirmation on."""

    ended_s: float
    """Until the run's state was final."""
    gone_s: float
    """Until no process of the run was left."""


def measure_one(
    processes: PrefectProcesses, client: SyncPrefectClient, deployment: UUID, dying: str | None, out: Path
) -> Latency:
    """Start a run, cancel it at a random moment of its fit, and take the time; `dying` names a worker to be killed."""
    from flows.cancellation import CancellationDesk

    worker = processes.start_worker(client, dying) if dying else None
    run = submit(client, deployment, {"dataset": str(ROOT / "samples" / "lantern"), "out": str(out), **LONG})
    wait_for_fit(processes, client, run.id, 600)
    if worker:
        worker.kill()
        worker.wait()
    time.sleep(random.uniform(0.5, 4.0))
    desk = CancellationDesk(client)
    desk.request(run, "benchmark", "to be measured")
    gone: list[float] = []
    started_s = time.perf_counter()

    def watch() -> None:
        while processes.alive_of(run.id):
            time.sleep(0.05)
        gone.append(time.perf_counter() - started_s)

    watching = threading.Thread(target=watch)
    watching.start()
    answer = desk.confirm(run, "benchmark")
    watching.join()
    if answer.outcome != "cancelled":
        raise RuntimeError(f"Not cancelled: {answer.message}")
    return Latency(answer.seconds, gone[0])


def measure(rounds: int, by: str) -> list[Latency]:
    """Cancel that many runs, one after another, on one server."""
    from flows.reconstruct import reconstruct

    found: list[Latency] = []
    with (
        tempfile.TemporaryDirectory(prefix="cancel-") as folder,
        PrefectProcesses(Path(folder) / "home") as processes,
        processes.client() as client,
    ):
        deployment = processes.deploy(client, reconstruct, "flows/reconstruct.py:reconstruct")
        if by == "worker":
            processes.start_worker(client)
        for number in range(rounds):
            dying = f"worker-{number}" if by == "poll" else None
            found.append(measure_one(processes, client, deployment, dying, Path(folder) / f"{number}"))
            print(
                f"{number + 1:3}: final after {found[-1].ended_s:.1f} s, gone after {found[-1].gone_s:.1f} s",
                flush=True,
            )
    return found


def percentile(values: list[float], percent: int) -> float:
    """Return the value that `percent` of all do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def main(argv: list[str] | None = None) -> None:
    """Print the percentiles of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--by", choices=("worker", "poll"), default="worker")
    options = parser.parse_args(argv)
    found = measure(options.rounds, options.by)
    for what, values in (
        ("state final", [latency.ended_s for latency in found]),
        ("process gone", [latency.gone_s for latency in found]),
    ):
        p50, p95 = percentile(values, 50), percentile(values, 95)
        print(f"{what:14} p50 {p50:5.1f} s   p95 {p95:5.1f} s   max {max(values):5.1f} s")
    load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    print(f"stopped by {options.by}, {options.rounds} rounds, {load}")


if __name__ == "__main__":
    main()

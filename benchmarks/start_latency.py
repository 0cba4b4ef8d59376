"""How long a run waits for its first line of flow code: `reconflow worker` idle, a new run, until it is running.

    python -m benchmarks.start_latency [--runs 12]

A server and the CPU workers are started as an operator would start them. Each run asks for a dataset that does not
exist, so that it ends at once. CPU seconds are those of the run's own process.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks._prefect_processes import PrefectProcesses, installation, submit, wait_for_end, wait_until

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAUSE_S = 1.7
"""Between two runs; not a multiple of the worker's polling interval."""


def children_cpu_s(pid: int) -> float:
    """Return the CPU time of the children that a process has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(")", 1)[1].split()
    return (int(fields[13]) + int(fields[14])) / TICKS_PER_S


def find_worker(processes: PrefectProcesses) -> int:
    """Return the process of the worker that takes reconstructions."""
    workers = [pid for pid, command in processes.alive().items() if "worker start" in command and "default" in command]
    (pid,) = workers
    return pid


def measure_run(client: Any, deployment: UUID, worker: int, out: Path) -> tuple[float, float]:
    """Create a run and return seconds until it was running, and the CPU seconds of its process."""
    before_cpu_s, created_s = children_cpu_s(worker), time.time()
    run = submit(client, deployment, {"dataset": "no/such/dataset", "out": str(out), "preset": "draft"})
    wait_for_end(client, run.id, 120)
    wait_until(lambda: children_cpu_s(worker) > before_cpu_s, 30)
    started = client.read_flow_run(run.id).start_time
    return started.timestamp() - created_s, children_cpu_s(worker) - before_cpu_s


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=12)
    options = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory(prefix="latency-") as folder,
        installation(Path(folder)) as (prefect, client),
    ):
        out = Path(folder) / "out"
        deployment = client.read_deployment_by_name("reconstruct/on-demand").id
        worker = find_worker(prefect)
        measure_run(client, deployment, worker, out)  # the first one fills the disk cache
        found = []
        for _ in range(options.runs):
            time.sleep(PAUSE_S)
            found.append(measure_run(client, deployment, worker, out))
    waits, cpu = sorted(wait for wait, _ in found), [cpu for _, cpu in found]
    p95 = statistics.quantiles(waits, n=20, method="inclusive")[-1]
    print(f"runs {len(waits)}: p50 {statistics.median(waits):.2f} s, p95 {p95:.2f} s, max {waits[-1]:.2f} s")
    print(
        f"CPU of a run's process: {statistics.median(cpu):.2f} s; load {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs"
    )


if __name__ == "__main__":
    main()

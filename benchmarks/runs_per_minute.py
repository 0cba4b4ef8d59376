"""How many runs per minute a Prefect server takes in, and how many get through a worker: on SQLite and on PostgreSQL.

    python -m benchmarks.runs_per_minute [--submissions 200] [--callers 4] [--runs 30] [--limit 2]

`submitted`: runs created through the REST API for a later time, by several callers at once, each asking again when the
server is too busy. `carried out`: runs of a flow that does nothing, from the start of the first to the end of the last,
by one worker with so many at once, each in a process of its own. Server, worker and runs share the machine. PostgreSQL
is a fresh cluster with its usual settings; without one on the machine its part is left out.
"""

from __future__ import annotations

import argparse
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient

from benchmarks._postgres import find_postgres, running_postgres, version_of
from benchmarks._prefect_processes import PrefectProcesses, wait_until

SQLITE: Final = "SQLite"
POSTGRES: Final = "PostgreSQL"
RUN_TIMEOUT_S: Final = 60.0
"""How long one run may take before the series is given up."""


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    submissions: int
    callers: int
    runs: int
    limit: int


@dataclass(frozen=True)
class Throughput:
    """What one database carries."""

    submitted_per_min: float
    busy_answers: int
    """How often the server said during submission that it was too busy."""
    carried_per_min: float


def measure_submission(processes: PrefectProcesses, deployment: UUID, extent: Extent) -> tuple[float, int]:
    """Return how many runs per minute were created, and how often the server was too busy."""
    later = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": later}}
    user, _, password = processes.password.partition(":")

    def call(count: int) -> int:
        busy = 0
        with httpx.Client(base_url=processes.url, auth=(user, password), timeout=60, trust_env=False) as http:
            for _ in range(count):
                body = {"state": state, "idempotency_key": secrets.token_hex(8)}
                while not (answer := http.post(f"/deployments/{deployment}/create_flow_run", json=body)).is_success:
                    if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                        answer.raise_for_status()
                    busy += 1
                    time.sleep(0.1)
        return busy

    each = extent.submissions // extent.callers
    with ThreadPoolExecutor(extent.callers) as callers:
        started_s = time.perf_counter()
        busy = sum(callers.map(call, [each] * extent.callers))
        return 60 * each * extent.callers / (time.perf_counter() - started_s), busy


def measure_carrying(processes: PrefectProcesses, client: SyncPrefectClient, deployment: UUID, extent: Extent) -> float:
    """Return how many runs per minute a worker carried out, after one that fills the disk cache.

    Raises:
        RuntimeError: A run did not complete.
    """
    worker = processes.start_worker(client, limit=extent.limit)
    ids = [client.create_flow_run_from_deployment(deployment).id]
    _wait_for(client, ids)
    ids = [client.create_flow_run_from_deployment(deployment).id for _ in range(extent.runs)]
    _wait_for(client, ids)
    runs = [client.read_flow_run(flow_run_id) for flow_run_id in ids]
    lost = [run for run in runs if run.state is None or not run.state.is_completed()]
    if lost:
        raise RuntimeError(f"{len(lost)} of {len(runs)} runs did not complete: {lost[0].state}")
    worker.terminate()
    worker.wait()
    first = min(run.start_time for run in runs if run.start_time)
    last = max(run.end_time for run in runs if run.end_time)
    return 60 * len(runs) / (last - first).total_seconds()


def _wait_for(client: SyncPrefectClient, ids: list[UUID]) -> None:
    waiting = list(ids)

    def ended() -> bool:
        while waiting:
            state = client.read_flow_run(waiting[0]).state
            if state is None or not state.is_final():
                return False
            del waiting[0]
        return True

    wait_until(ended, RUN_TIMEOUT_S * len(ids), interval_s=1.0)


def measure(settings: Mapping[str, str], extent: Extent) -> Throughput:
    """Measure one server, started with further settings."""
    from benchmarks._nothing_flow import nothing

    with (
        tempfile.TemporaryDirectory(prefix="throughput-") as folder,
        PrefectProcesses(Path(folder) / "home", settings) as processes,
        processes.client() as client,
    ):
        deployment = processes.deploy(client, nothing, "benchmarks/_nothing_flow.py:nothing")
        submitted, busy = measure_submission(processes, deployment, extent)
        return Throughput(submitted, busy, measure_carrying(processes, client, deployment, extent))


def show(found: Mapping[str, Throughput], extent: Extent) -> None:
    """Print a row per figure; PostgreSQL's over SQLite's in the last column."""
    print(f"{'runs per minute':40}" + "".join(f"{name:>14}" for name in found) + f"{'ratio':>10}")
    rows = {
        f"submitted by {extent.callers} callers": [one.submitted_per_min for one in found.values()],
        f"carried out, {extent.limit} at once": [one.carried_per_min for one in found.values()],
    }
    for name, values in rows.items():
        ratio = f"{values[1] / values[0]:10.2f}" if len(values) > 1 else f"{'-':>10}"
        print(f"{name:40}" + "".join(f"{value:14.1f}" for value in values) + ratio)
    print(f"{'answers 503 to the submissions':40}" + "".join(f"{one.busy_answers:14}" for one in found.values()))


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--submissions", type=int, default=200)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--limit", type=int, default=2, help="runs at once")
    options = parser.parse_args(argv)
    extent = Extent(options.submissions, options.callers, options.runs, options.limit)
    found, binaries = {SQLITE: measure({}, extent)}, find_postgres()
    with ExitStack() as stack:
        if binaries is None:
            print("PostgreSQL is not on this machine; its part is left out.")
        else:
            url = stack.enter_context(running_postgres(binaries))
            found[POSTGRES] = measure({"PREFECT_SERVER_DATABASE_CONNECTION_URL": url}, extent)
            print(version_of(binaries))
    show(found, extent)
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


if __name__ == "__main__":
    main()

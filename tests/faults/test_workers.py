"""Runs of a real worker whose processes are killed: the flow's, the worker's, both; and runs that operators cancel.

The order matters only for the time that it takes: machines that are lost are noticed last, so they are lost first.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from reconflow.outputs.package import RunStatus, verify_package
from tests.support.s3_server import S3Server

if TYPE_CHECKING:
    from conftest import Extent

    from tests.support.installation import Api, Installation
    from tests.support.series_table import SeriesTable

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(3600),  # a series, not a run
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]

RECONSTRUCT = "reconstruct/nvdiffrec"
LIMIT = 2
RECOVERED_S = 900.0
"""Longer than it takes until a crash that the automation has missed is looked for."""


@pytest.fixture(scope="module")
def installation(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Server, object store and workers, everything deployed."""
    from tests.support.installation import Installation

    with Installation(tmp_path_factory.mktemp("installation"), s3, {}) as installation:
        installation.apply()
        workers = installation.start_workers(LIMIT)
        yield installation
        installation.stop_process(workers)


@pytest.fixture(scope="module")
def api(installation: Installation) -> Iterator[Api]:
    from tests.support.installation import Api

    with Api(installation) as api:
        yield api


@pytest.fixture(scope="module")
def params(installation: Installation, boxes: Path) -> dict[str, Any]:
    """What a run is asked for whose fit takes a while."""
    from tests.support.installation import SMALL

    dataset = installation.upload_dataset(boxes, "datasets/boxes")
    return {"dataset": dataset, "out": installation.results, **SMALL, "steps": 1500}


@pytest.fixture(scope="module")
def verify(api: Api, installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Expects a run's results to be whole; returns the checksum of its mesh."""
    from reconflow.storage import open_store

    def verify(run_id: str) -> str:
        folder = open_store(installation.results).fetch_run(run_id, tmp_path_factory.mktemp("fetched"))
        manifest = verify_package(folder)
        assert manifest.status is RunStatus.COMPLETED
        (mesh,) = (entry.sha256 for entry in manifest.files if entry.path == "nvdiffrec/mesh.glb")
        return mesh

    return verify


def wait_until(condition: Callable[[], object], timeout_s: float) -> None:
    from benchmarks._prefect_processes import wait_until

    wait_until(condition, timeout_s)


@pytest.fixture(scope="module")
def start_fits(api: Api, installation: Installation, params: dict[str, Any], boxes: Path) -> Callable[[], list[str]]:
    """Starts as many runs as are at work at once, and returns them when all of them fit."""

    def start() -> list[str]:
        ids = [api.start_run(RECONSTRUCT, installation.unlike_others(params, boxes)) for _ in range(LIMIT)]
        for flow_run_id in ids:
            api.wait_for_fit(flow_run_id)
        return ids

    return start


def worker_of_runs(installation: Installation) -> int:
    """Return the process of the worker that takes reconstructions."""
    (pid,) = (pid for pid, line in installation.workers_alive().items() if "--work-queue default" in line)
    return pid


def await_recovery(api: Api, verify: Callable[[str], str], flow_run_id: str, killed_s: float) -> float:
    """Return how long after the kill the run's results were there, made by a new run with its run id."""
    run_id = api.run_id(flow_run_id)
    wait_until(lambda: len(api.runs_with(f"run-{run_id}")) == 2, RECOVERED_S)
    (new,) = (run["id"] for run in api.runs_with(f"run-{run_id}") if run["id"] != flow_run_id)
    ended = api.wait(new, timeout_s=RECOVERED_S)["end_time"]
    seconds = datetime.fromisoformat(ended).timestamp() - killed_s
    states = api.task_states(new)
    assert (states["validate"], states["transforms"]) == ("Cached", "Cached")
    assert api.run(flow_run_id)["state_type"] == "CRASHED"
    verify(run_id)
    return seconds


@pytest.fixture(scope="module")
def lost_machine(installation: Installation, start_fits: Callable[[], list[str]]) -> tuple[list[str], float]:
    """Runs whose worker and processes are all killed at once, and when that was; what kept the worker alive starts it
    again.
    """
    from tests.support.installation import kill_hard

    ids = start_fits()
    killed_s = time.time()
    for pid in (worker_of_runs(installation), *(installation.flow_process(flow_run_id) for flow_run_id in ids)):
        kill_hard(pid)
    wait_until(lambda: any("--work-queue default" in line for line in installation.workers_alive().values()), 60)
    return ids, killed_s


def test_a_flow_process_that_is_killed_is_recovered_by_a_new_run(
    api: Api,
    installation: Installation,
    start_fits: Callable[[], list[str]],
    verify: Callable[[str], str],
    lost_machine: object,
    table: SeriesTable,
) -> None:
    from tests.support.installation import kill_hard

    killed = []
    for flow_run_id in start_fits():
        killed.append((flow_run_id, time.time()))
        kill_hard(installation.flow_process(flow_run_id))
    series = table.series("kill -9 of a worker's flow", "from the kill until its results are there")
    series.run([partial(await_recovery, api, verify, *run) for run in killed], 1)
    assert not series.lost


def test_a_run_whose_worker_is_killed_completes_and_the_worker_comes_back(
    api: Api,
    installation: Installation,
    params: dict[str, Any],
    start_fits: Callable[[], list[str]],
    verify: Callable[[str], str],
    lost_machine: object,
    table: SeriesTable,
) -> None:
    from tests.support.installation import kill_hard

    ids = start_fits()
    killed_s, worker = time.time(), worker_of_runs(installation)
    kill_hard(worker)

    def complete(flow_run_id: str) -> float:
        ended = api.wait(flow_run_id)["end_time"]
        seconds = datetime.fromisoformat(ended).timestamp() - killed_s
        verify(api.run_id(flow_run_id))
        return seconds

    series = table.series("kill -9 of the worker, flow alive", "from the kill until the flow completed")
    series.run([partial(complete, flow_run_id) for flow_run_id in ids], 1)
    next_run = api.start_run(RECONSTRUCT, {**params, "steps": 12})
    api.wait(next_run)
    assert worker_of_runs(installation) != worker
    assert not series.lost


def test_a_run_cancelled_by_an_operator_at_any_moment_leaves_nothing(
    api: Api,
    installation: Installation,
    params: dict[str, Any],
    boxes: Path,
    lost_machine: object,
    table: SeriesTable,
    extent: Extent,
    s3: S3Server,
) -> None:
    chance = random.Random(f"operator {extent.seed}")

    def cancel_once() -> float:
        flow_run_id = api.start_run(RECONSTRUCT, {**installation.unlike_others(params, boxes), "steps": 20_000})
        wait_until(lambda: api.run(flow_run_id)["state_type"] == "RUNNING", 120)
        time.sleep(chance.uniform(0, 12))
        form = {"run": flow_run_id, "by": "ada"}
        api.wait(api.start_run("cancel/operator", form))
        confirmed = api.wait(api.start_run("cancel/operator", {**form, "confirm": True}))
        run = api.wait(flow_run_id, "CANCELLED", 60)
        wait_until(lambda: not installation.alive_of(UUID(flow_run_id)), 10)
        assert api.variables(flow_run_id) == []
        for tag in (tag for tag in run["tags"] if tag.startswith("run-")):
            keys = s3.keys(installation.bucket, f"results/runs/{tag[4:]}/")
            assert not keys or f"results/runs/{tag[4:]}/manifest.json" in keys
        return float(confirmed["total_run_time"])

    series = table.series("cancelled by an operator", "the confirming flow, which waits for the end")
    series.run([cancel_once] * extent.share(7), 1)
    assert s3.unfinished_uploads(installation.bucket) == 0
    assert not series.lost


def test_runs_of_a_machine_that_is_lost_are_found_and_recovered(
    api: Api, verify: Callable[[str], str], lost_machine: tuple[list[str], float], table: SeriesTable
) -> None:
    ids, killed_s = lost_machine
    series = table.series("kill -9 of worker and flow", "from the kill until its results are there")
    series.run([partial(await_recovery, api, verify, flow_run_id, killed_s) for flow_run_id in ids], 1)
    assert not series.lost

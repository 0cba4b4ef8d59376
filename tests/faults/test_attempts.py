"""Runs that are killed, cancelled or cut off from their store at random moments, and the attempts that follow.

Whatever happens: no process is left, readers see a whole run or none, and the next attempt makes the same files.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

from reconflow.errors import ErrorCode
from reconflow.outputs.package import RunStatus
from tests.support.attempt_process import CANCELLED, FAILED
from tests.support.faulty_proxy import Fault, FaultyProxy, running_faulty_proxy
from tests.support.s3_server import S3Server

if TYPE_CHECKING:
    from conftest import Extent, Undisturbed

    from tests.support.attempts import Attempt, Trial
    from tests.support.series_table import Series, SeriesTable

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(3600),  # a series, not a run
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]

STORES = ("local", "s3")
STORAGE_CODES = {ErrorCode.STORAGE_UNREACHABLE, ErrorCode.STORAGE_REFUSED}
_PATIENCE = {"RECONFLOW_STORAGE_TIMEOUT_S": "2"}


def disturb(
    make_trial: Callable[[], Trial], isolation: str, undisturbed: Undisturbed, chance: random.Random
) -> tuple[Trial, Attempt]:
    """Return an attempt that has come to a random moment, and its trial; one that was faster is made again."""
    while True:
        trial = make_trial()
        attempt = trial.start(isolation)
        if attempt.wait_for(undisturbed.time_line.at(chance.random())):
            return trial, attempt
        attempt.finish()


def isolation_of(number: int) -> str:
    """Let every other trial have its model in a process of its own."""
    return "process" if number % 2 else "none"


def expect_no_uploads(s3: S3Server, trial: Trial) -> None:
    """Expect no multipart upload that is neither completed nor aborted."""
    if trial.out.startswith("s3://"):
        assert s3.unfinished_uploads(trial.out.split("/")[2]) == 0, "A multipart upload is left."


@pytest.mark.parametrize("kind", STORES)
def test_a_run_killed_at_any_moment_ends_with_the_same_files(
    kind: str,
    table: SeriesTable,
    extent: Extent,
    new_trial: Callable[[str], Trial],
    undisturbed: Undisturbed,
    s3: S3Server,
) -> None:
    def kill_once(number: int) -> float:
        chance = random.Random(f"kill {kind} {extent.seed} {number}")
        trial, attempt = disturb(partial(new_trial, kind), isolation_of(number), undisturbed, chance)
        attempt.kill()
        if trial.published() is not None:
            series.note("killed when it was published")
        seconds = trial.complete(isolation_of(number // 2))
        assert trial.hashes() == undisturbed.hashes, "The files differ from those of an undisturbed run."
        trial.expect_clean()
        expect_no_uploads(s3, trial)
        return seconds

    series = table.series(f"kill -9 of the run, {kind} store", "the next attempt")
    series.run([partial(kill_once, number) for number in range(extent.share(2))], extent.jobs)
    assert not series.lost


@pytest.mark.parametrize("kind", STORES)
def test_a_run_cancelled_at_any_moment_leaves_nothing_and_can_be_repeated(
    kind: str,
    table: SeriesTable,
    extent: Extent,
    new_trial: Callable[[str], Trial],
    undisturbed: Undisturbed,
    s3: S3Server,
) -> None:
    def cancel_once(number: int) -> float:
        chance = random.Random(f"cancel {kind} {extent.seed} {number}")
        trial, attempt = disturb(partial(new_trial, kind), isolation_of(number), undisturbed, chance)
        asked_s = time.perf_counter()
        attempt.stop_file.touch()
        status = attempt.finish()
        seconds = time.perf_counter() - asked_s
        trial.expect_ended(attempt, status)
        manifest = trial.published()
        if status == CANCELLED:
            assert attempt.code == ErrorCode.CANCELLED
            assert manifest is not None
            assert manifest.status is RunStatus.FAILED
        else:
            series.note("done before it noticed")
            assert status == 0
        expect_no_uploads(s3, trial)
        trial.expect_clean()
        trial.complete(isolation_of(number // 2))
        assert trial.hashes() == undisturbed.hashes, "The files differ from those of an undisturbed run."
        return seconds

    series = table.series(f"cancelled run, {kind} store", "from the request until no process is left")
    series.run([partial(cancel_once, number) for number in range(extent.share(4))], extent.jobs)
    assert not series.lost


def attempt_through(
    trial: Trial, proxy: FaultyProxy, series: Series, undisturbed: Undisturbed, attempt: Attempt
) -> float:
    """Judge an attempt whose store failed, and let another one complete it; return the seconds of the first."""
    started_s = time.perf_counter()
    status = attempt.finish()
    seconds = time.perf_counter() - started_s
    trial.expect_ended(attempt, status)
    manifest = trial.published()
    if status == 0:
        assert trial.hashes() == undisturbed.hashes, "The files differ from those of an undisturbed run."
        series.note("completed")
    else:
        assert status == FAILED
        assert attempt.code in STORAGE_CODES, f"Failed with {attempt.code}."
        assert manifest is None or manifest.status is RunStatus.FAILED
        series.note(f"failed with {attempt.code}")
        trial.complete("none")
        assert trial.hashes() == undisturbed.hashes, "The files differ from those of an undisturbed run."
    trial.expect_clean()
    return seconds


@pytest.mark.parametrize(("rate", "part"), [(0.3, 2), (0.7, 10)])
def test_a_store_that_fails_often_gets_a_whole_run_or_none(
    rate: float,
    part: int,
    table: SeriesTable,
    extent: Extent,
    new_trial: Callable[[str], Trial],
    undisturbed: Undisturbed,
    s3: S3Server,
) -> None:
    def run_once(number: int) -> float:
        trial = new_trial("s3")
        proxy = FaultyProxy(s3.endpoint_url, rate, tuple(Fault), extent.seed + number)
        with running_faulty_proxy(proxy):
            attempt = trial.start(isolation_of(number), AWS_ENDPOINT_URL=proxy.endpoint_url, **_PATIENCE)
            seconds = attempt_through(trial, proxy, series, undisturbed, attempt)
        assert proxy.spoiled > 3
        return seconds

    series = table.series(f"S3 failing for {rate:.0%} of requests", "the run")
    series.run([partial(run_once, number) for number in range(extent.share(part))], 4 * extent.jobs)
    assert not series.lost


def test_a_store_that_is_gone_in_the_middle_of_a_run_is_told_by_its_code(
    table: SeriesTable, extent: Extent, new_trial: Callable[[str], Trial], undisturbed: Undisturbed, s3: S3Server
) -> None:
    def run_once(number: int) -> float:
        trial, proxy = new_trial("s3"), FaultyProxy(s3.endpoint_url, 0.0, (Fault.RESET,), number)
        chance = random.Random(f"outage {extent.seed} {number}")
        with ExitStack() as stack:
            stack.enter_context(running_faulty_proxy(proxy))
            attempt = trial.start(isolation_of(number), AWS_ENDPOINT_URL=proxy.endpoint_url, **_PATIENCE)
            attempt.wait_for(undisturbed.time_line.at(chance.random()))
            proxy.rate = 1.0
            return attempt_through(trial, proxy, series, undisturbed, attempt)

    series = table.series("S3 gone from a random moment on", "from the loss to the end")
    series.run([partial(run_once, number) for number in range(extent.share(5))], 4 * extent.jobs)
    assert not series.lost

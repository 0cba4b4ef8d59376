"""What the series share: how long they are, the store, the undisturbed run to compare with, and the table."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.s3_server import S3Server, running_s3_server
from tests.support.series_table import SeriesTable

if TYPE_CHECKING:
    from tests.support.attempts import TimeLine, Trial

TABLE = SeriesTable()
DEFAULT_COUNT = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--count", type=int, default=DEFAULT_COUNT, help="Runs that are killed; other series follow it.")
    group.addoption("--jobs", type=int, default=os.cpu_count() or 1, help="Trials at once.")
    group.addoption("--seed", type=int, default=7, help="Of the random moments.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    TABLE.show(terminalreporter)


@pytest.fixture(scope="session")
def table() -> SeriesTable:
    """The table that is printed in the end."""
    return TABLE


@dataclass(frozen=True)
class Extent:
    """How much is tried."""

    count: int
    jobs: int
    seed: int

    def share(self, part: int) -> int:
        """Return the count of a series that is so many times shorter; two at least."""
        return max(2, self.count // part)


@pytest.fixture(scope="session")
def extent(pytestconfig: pytest.Config) -> Extent:
    """As asked for on the command line."""
    option = pytestconfig.getoption
    return Extent(option("count", DEFAULT_COUNT), option("jobs", 1), option("seed", 7))


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3-speaking server over HTTP, found through the environment, that takes parts of any size."""
    with pytest.MonkeyPatch.context() as patch, running_s3_server() as server:
        patch.setattr("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A six-view folder, 128 px."""
    from tests.flows.flow_objects import write_dataset

    return write_dataset(tmp_path_factory.mktemp("data") / "boxes", 128)


@pytest.fixture(scope="session")
def new_trial(s3: S3Server, boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trial]:
    """Makes trials in stores of their own, of the kind that is named: `local` or `s3`."""
    from tests.support.attempts import Trial

    numbers, root = itertools.count(), tmp_path_factory.mktemp("trials")

    def make(kind: str) -> Trial:
        number = next(numbers)
        folder = root / f"trial-{number}"
        folder.mkdir()
        environment, run_id = {"RECONFLOW_CACHE": str(folder / "cache")}, f"trial{number:03d}"
        if kind == "local":
            return Trial(str(boxes), str(folder / "store"), folder, environment, run_id)
        bucket = s3.new_bucket()
        for path in boxes.rglob("*.*"):
            s3.put(bucket, f"data/boxes/{path.relative_to(boxes).as_posix()}", path.read_bytes())
        return Trial(f"s3://{bucket}/data/boxes", f"s3://{bucket}/results", folder, environment, run_id)

    return make


@dataclass(frozen=True)
class Undisturbed:
    """The run that nothing happens to: when it does what, and what comes out."""

    time_line: TimeLine
    hashes: dict[str, str]


@pytest.fixture(scope="session")
def undisturbed(new_trial: Callable[[str], Trial]) -> Undisturbed:
    """Measured at the second run, when everything is compiled."""
    from tests.support.attempts import TimeLine

    new_trial("local").complete("none")
    trial = new_trial("local")
    started_s, attempt = time.perf_counter(), trial.start("none")
    assert attempt.process.stdout is not None
    heard = tuple(time.perf_counter() - started_s for _ in attempt.process.stdout)
    assert attempt.finish() == 0
    return Undisturbed(TimeLine(heard, time.perf_counter() - started_s), trial.hashes())

"""Attempts at one small run, disturbed at chosen moments, and a look at what they leave. What is disturbed how, and
what has to follow from it, is the business of the fault suite.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks._prefect_processes import MARK, processes_with, wait_until
from reconflow.errors import JobNotFoundError, JobNotReadyError
from reconflow.outputs.package import Manifest, RunStatus, verify_package
from reconflow.storage import open_store
from tests.support.attempt_process import CANCELLED, FAILED

ROOT = Path(__file__).resolve().parents[2]
_GONE_S = 15.0
"""How long what a killed process has started may outlive it."""


@dataclass(frozen=True)
class Moment:
    """A place on the time line of a run, whatever the speed of the machine.

    Attributes:
        lines: So many messages have been heard.
        delay_s: So long ago was the last of them.
    """

    lines: int
    delay_s: float


@dataclass(frozen=True)
class TimeLine:
    """When each message of an undisturbed run came, seconds from its start, and when it ended."""

    messages_s: tuple[float, ...]
    end_s: float

    def at(self, share: float) -> Moment:
        """Return the moment after a share of the whole time."""
        at_s = share * self.end_s
        heard = [message_s for message_s in self.messages_s if message_s <= at_s]
        return Moment(len(heard), at_s - (heard[-1] if heard else 0.0))


@dataclass
class Attempt:
    """A process at work on a run."""

    process: subprocess.Popen[str]
    mark: str
    stop_file: Path
    lines: list[str] = field(default_factory=list)

    def wait_for(self, moment: Moment) -> bool:
        """Return at a moment; False when the attempt has ended before."""
        assert self.process.stdout is not None
        while len(self.lines) < moment.lines:
            line = self.process.stdout.readline()
            if not line:
                return False
            self.lines.append(line.strip())
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(moment.delay_s)
            return False
        return True

    def kill(self) -> None:
        """End the process, and nothing but it, as the kernel does; what it has started has to notice."""
        self.process.kill()
        self.finish()

    def finish(self, timeout_s: float = 300) -> int:
        """Return the exit status, when no process of the attempt is left."""
        with self.process as process:
            assert process.stdout is not None
            self.lines += [line.strip() for line in process.stdout]
            process.wait(timeout_s)
        wait_until(lambda: not processes_with(f"{MARK}={self.mark}"), _GONE_S)
        return self.process.returncode

    @property
    def code(self) -> str | None:
        """The code of the error that the attempt ended with; None when it told none."""
        return next((line.removeprefix("code: ") for line in self.lines if line.startswith("code: ")), None)


@dataclass(frozen=True)
class Trial:
    """One run in a store of its own.

    Attributes:
        dataset: Its location.
        out: The store.
        folder: For everything of this trial that is on this machine.
        environment: Of its attempts.
        run_id: Under which it is attempted.
    """

    dataset: str
    out: str
    folder: Path
    environment: Mapping[str, str]
    run_id: str

    def start(self, isolation: str, **more: str) -> Attempt:
        """Start an attempt.

        Args:
            isolation: Where the model runs: `none` or `process`.
            **more: Changes of the environment.
        """
        mark, stop_file = secrets.token_hex(8), self.folder / "stop"
        stop_file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.support.attempt_process"]
        with (self.folder / "errors.log").open("a") as errors:
            process = subprocess.Popen(
                [*command, self.dataset, self.out, self.run_id, str(stop_file)],
                cwd=ROOT,
                env={**os.environ, **self.environment, "RECONFLOW_ISOLATION": isolation, MARK: mark, **more},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        return Attempt(process, mark, stop_file)

    def complete(self, isolation: str) -> float:
        """Make an attempt that nothing disturbs and return its seconds; it has to complete."""
        started_s = time.perf_counter()
        attempt = self.start(isolation)
        status = attempt.finish()
        assert status == 0, f"An undisturbed attempt ended with {status}, {attempt.code}: {self.complaints()}"
        return time.perf_counter() - started_s

    def complaints(self) -> str:
        """Return the end of what the attempts have said on their standard error."""
        return (self.folder / "errors.log").read_text("utf-8")[-400:]

    def expect_ended(self, attempt: Attempt, status: int) -> None:
        """Expect an end in an orderly way: done, or an error with a code."""
        known = status in (0, FAILED, CANCELLED) and (status == 0) == (attempt.code is None)
        assert known, f"The attempt ended with {status} without a code: {self.complaints()}"
        assert attempt.code != "UNKNOWN_ERROR", f"The attempt did not know what happened to it: {attempt.lines[-3:]}"

    def published(self) -> Manifest | None:
        """Return the manifest of what readers see, every file of it verified; None when they see no run."""
        store = open_store(self.out)
        if self.run_id not in store.run_ids():
            with pytest.raises((JobNotFoundError, JobNotReadyError)):
                store.read_manifest(self.run_id)
            return None
        into = self.folder / f"fetched-{secrets.token_hex(4)}"
        return verify_package(store.fetch_run(self.run_id, into))

    def hashes(self) -> dict[str, str]:
        """Return the checksums of all that has to be equal in equal runs: mesh, texture, quality, the rest."""
        manifest = self.published()
        assert manifest is not None, "There is no run after an attempt that completed."
        assert manifest.status is RunStatus.COMPLETED
        return {entry.path: entry.sha256 for entry in manifest.files if not entry.varies and entry.path[-4:] != ".zip"}

    def expect_clean(self) -> None:
        """Expect nothing on this machine but results: no unfinished file, no scratch folder."""
        left = [path for path in self.folder.rglob("*") if path.name.endswith(".part") or path.name == ".work"]
        left += (self.folder / "cache").glob("scratch/*/*/*")
        assert not left, f"Left behind: {left[:5]}"

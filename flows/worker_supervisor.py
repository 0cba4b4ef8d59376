"""Keeping worker processes alive, and ending them together. Knows processes and signals, not Prefect.

Every worker leads a process group of its own, in which its runs are. A worker that dies is started again, with growing
pauses, once its group is empty: a run that outlives its worker may finish, and nothing else gets its GPU meanwhile.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

STOP_TIMEOUT_S: Final = 45.0
"""A worker gives its runs 30 s to end."""
HEALTHY_AFTER_S: Final = 60.0
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
_CHECK_INTERVAL_S: Final = 0.25


@dataclass(frozen=True)
class WorkerSpec:
    """How one worker is started.

    Attributes:
        name: For people.
        command: What is executed.
        environment: The whole environment of the process.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass
class _Worker:
    spec: WorkerSpec
    process: subprocess.Popen[bytes] | None = None
    group: int | None = None
    started_s: float = 0.0
    failures: int = 0
    start_at_s: float = 0.0
    told_of_runs: bool = field(default=False)


class Supervisor:
    """Runs workers until it is told to stop.

    Args:
        specs: The workers.
        tell: Told what happens, one line at a time.
        stop_timeout_s: How long workers may take to stop before they are killed.
    """

    def __init__(
        self, specs: Sequence[WorkerSpec], tell: Callable[[str], None], stop_timeout_s: float = STOP_TIMEOUT_S
    ) -> None:
        self._workers = [_Worker(spec) for spec in specs]
        self._tell = tell
        self._stop_timeout_s = stop_timeout_s
        self._stopping = threading.Event()
        self._at_once = False

    def run(self) -> None:
        """Start the workers, keep them running, and return when all have ended after a signal.

        The first SIGTERM or SIGINT asks the workers to stop, the second one kills them.
        """
        with self._listening():
            try:
                while not self._stopping.wait(_CHECK_INTERVAL_S):
                    for worker in self._workers:
                        self._look_after(worker)
                self._stop()
            finally:
                for worker in self._workers:
                    _kill_group(worker)

    def _look_after(self, worker: _Worker) -> None:
        now_s = time.monotonic()
        if worker.process is not None and worker.process.poll() is not None:
            self._note_end(worker, now_s)
        if worker.process is not None or now_s < worker.start_at_s:
            return
        if worker.group is not None and _is_group_alive(worker.group):
            if not worker.told_of_runs:
                self._tell(f"{worker.spec.name}: its run goes on; waiting for that before starting again.")
            worker.told_of_runs = True
            return
        self._start(worker, now_s)

    def _note_end(self, worker: _Worker, now_s: float) -> None:
        assert worker.process is not None
        worker.failures = 1 if now_s - worker.started_s >= HEALTHY_AFTER_S else worker.failures + 1
        pause_s = min(FIRST_PAUSE_S * 2 ** (worker.failures - 1), LONGEST_PAUSE_S)
        self._tell(f"{worker.spec.name}: ended with {worker.process.returncode}; starting again in {pause_s:.0f} s.")
        worker.process, worker.start_at_s, worker.told_of_runs = None, now_s + pause_s, False

    def _start(self, worker: _Worker, now_s: float) -> None:
        worker.process = subprocess.Popen(  # noqa: S603 - our own command
            worker.spec.command, env=dict(worker.spec.environment), stdin=subprocess.DEVNULL, start_new_session=True
        )
        worker.group, worker.started_s = worker.process.pid, now_s
        self._tell(f"{worker.spec.name}: started, process {worker.process.pid}.")

    def _stop(self) -> None:
        self._tell("Stopping the workers and their runs; a second signal kills them at once.")
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        ends_s = time.monotonic() + self._stop_timeout_s
        while any(process.poll() is None for process in running):
            if self._at_once or time.monotonic() >= ends_s:
                self._tell("Killing what has not stopped.")
                return
            time.sleep(_CHECK_INTERVAL_S)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Hear signals. A handler also undoes an inherited "ignore SIGINT", under which no worker could be stopped."""

        def ask(_number: int, _frame: FrameType | None) -> None:
            self._at_once = self._stopping.is_set()
            self._stopping.set()

        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _is_group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _kill_group(worker: _Worker) -> None:
    if worker.group is None:
        return
    with suppress(ProcessLookupError):
        os.killpg(worker.group, signal.SIGKILL)
    if worker.process is not None:
        worker.process.wait()

"""How a running stage is seen from outside: one progress artifact per run, and whoever listens on this machine.

Both hear the progress of the whole run. Artifact updates cost some 50 ms each and are sent at most once a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from reconflow.nvdiffrec.options import Preset
from reconflow.progress import OnProgress, part_of
from reconflow.request import RunRequest
from reconflow.stage_spans import stage_span
from tasks.run_state import StatePoller, own_flow_run_ids

UPDATE_INTERVAL_S: Final = 1.0

_listener: ContextVar[OnProgress | None] = ContextVar("listener", default=None)
_reporter: ContextVar[RunReporter | None] = ContextVar("reporter", default=None)


class RunReporter:
    """Receiver of one run's progress; see the module.

    Args:
        artifact_id: The run's progress artifact.
        preset: How much work the run spends.
        listener: Hears every step in this process; may raise `Cancelled`.
        clock: Seconds, monotonic.
        poller: Knows whether the run was cancelled on the server.
        models: The names of the models that run one after another.
    """

    def __init__(
        self,
        artifact_id: UUID,
        preset: Preset,
        listener: OnProgress | None = None,
        clock: Callable[[], float] = time.monotonic,
        poller: StatePoller | None = None,
        models: tuple[str, ...] = (),
    ) -> None:
        self.preset = preset
        self.models = models
        self._artifact_id = artifact_id
        self._listener = listener
        self._poller = poller
        self._clock = clock
        self._sent_at_s = -UPDATE_INTERVAL_S

    def __call__(self, step: int, total: int, message: str) -> None:
        """Pass on that `step` of `total` steps of the whole run are done.

        Raises:
            Cancelled: The run is to stop.
        """
        if self._poller is not None:
            self._poller.raise_if_stopped()
        if self._listener is not None:
            self._listener(step, total, message)
        if self._clock() - self._sent_at_s >= UPDATE_INTERVAL_S or step >= total:
            update_progress_artifact(self._artifact_id, progress=100.0 * step / total, description=message)
            self._sent_at_s = self._clock()


@contextmanager
def listening(listener: OnProgress | None) -> Iterator[None]:
    """Let `listener` hear the progress of the runs that are started in this block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def reporting_run(request: RunRequest, description: str) -> Iterator[RunReporter]:
    """Report the progress of the run whose flow enters this block.

    Args:
        request: What the run does; its model names the progress artifact.
        description: For people.
    """
    artifact_id = create_progress_artifact(progress=0.0, key=f"{request.model}-progress", description=description)
    assert isinstance(artifact_id, UUID)
    with StatePoller(own_flow_run_ids()) as poller:
        reporter = RunReporter(artifact_id, request.preset, _listener.get(), poller=poller, models=request.models())
        token = _reporter.set(reporter)
        try:
            yield reporter
        finally:
            _reporter.reset(token)


def stage_progress(stage: str, model: str | None = None) -> OnProgress:
    """Return the receiver of one stage's progress, which moves the whole run's.

    Args:
        stage: The stage's name.
        model: Which model the stage is about, if any.
    """
    reporter = _reporter.get()
    if reporter is None:
        return _listener.get() or _ignore
    place = reporter.models.index(model) if model in reporter.models else 0
    start, stop = stage_span(stage, reporter.preset, place, max(1, len(reporter.models)))
    receive = part_of(reporter, start, stop)
    receive(0, 1, stage)
    return receive


def _ignore(step: int, total: int, message: str) -> None:
    """Nobody listens: a task was called outside of a run."""

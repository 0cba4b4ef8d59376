"""How a running stage is seen from outside: one progress artifact per run, and whoever listens on this machine.

Both hear the progress of the whole run. Artifact updates are sent at most once a second; one that does not arrive is
made up for by the next. What the artifact says is in `tasks.forecast`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Final, Protocol
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import create_progress_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.logging import get_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from reconflow.errors import Cancelled, ReconflowError
from reconflow.nvdiffrec.options import Preset
from reconflow.progress import OnProgress
from reconflow.request import RunRequest
from reconflow.stage_spans import PROGRESS_STEPS
from tasks.forecast import Forecast
from tasks.run_state import REQUEST_TIMEOUT_S, StatePoller, own_flow_run_ids, undisturbed

UPDATE_INTERVAL_S: Final = 1.0
MOST_BEFORE_THE_END: Final = 0.99
"""The whole is reached only when the run has ended well."""


class Send(Protocol):
    """Shows people how far the run is."""

    def __call__(self, percent: float, page: str, *, insisting: bool = False) -> None:
        """Show a number and a page; a failure is tried again only when `insisting`."""


_listener: ContextVar[OnProgress | None] = ContextVar("listener", default=None)
_reporter: ContextVar[RunReporter | None] = ContextVar("reporter", default=None)


class RunReporter:
    """Receiver of one run's progress; see the module.

    Args:
        send: Shows it to people.
        preset: How much work the run spends.
        listener: Hears every step in this process; may raise `Cancelled`.
        clock: Seconds, monotonic.
        poller: Knows whether the run was cancelled on the server.
        models: The names of the run's models.
    """

    def __init__(
        self,
        send: Send,
        preset: Preset,
        listener: OnProgress | None = None,
        clock: Callable[[], float] = time.monotonic,
        poller: StatePoller | None = None,
        models: tuple[str, ...] = (),
    ) -> None:
        self.forecast = Forecast(preset, models, clock)
        self._send = send
        self._listener = listener
        self._poller = poller
        self._clock = clock
        self._several = len(models) > 1
        self._telling, self._sending = threading.Lock(), threading.Lock()
        self._sent_at_s = -UPDATE_INTERVAL_S

    def of_stage(self, stage: str, model: str | None = None) -> OnProgress:
        """Return the receiver of one stage's progress, which begins now.

        Args:
            stage: The stage's name.
            model: Which model the stage is about, if any.
        """
        with self._telling:
            self.forecast.begin(stage, model)
        named = self._several and model is not None

        def report(step: int, total: int, message: str) -> None:
            self._pass_on(stage, model, step / max(total, 1), message, f"{model} {message}" if named else message)

        return report

    @contextmanager
    def of_model(self, model: str) -> Iterator[None]:
        """Note how one model's stages, which are the block, have ended; of a run's only model the run's end tells.

        Args:
            model: Its name.
        """
        try:
            yield
        except Cancelled:  # the run's end
            raise
        except Exception:
            if self._several:
                self._end_model(model, completed=False)
            raise
        self._end_model(model, completed=True)

    def _end_model(self, model: str, *, completed: bool) -> None:
        with self._telling:
            self.forecast.end_model(model, completed=completed)

    def _pass_on(self, stage: str, model: str | None, fraction: float, message: str, heading: str) -> None:
        """Tell how far a stage is; called by the threads of models that compute side by side.

        Raises:
            Cancelled: The run is to stop.
        """
        if self._poller is not None:
            self._poller.raise_if_stopped()
        with self._telling:
            self.forecast.move_to(stage, model, fraction, message)
            if self._listener is not None:
                self._listener(round(PROGRESS_STEPS * self.forecast.fraction), PROGRESS_STEPS, heading)
        if self._sending.acquire(blocking=False):
            try:
                self._send_when_due()
            finally:
                self._sending.release()

    def _send_when_due(self) -> None:
        if self._clock() - self._sent_at_s >= UPDATE_INTERVAL_S:
            shown = min(self.forecast.fraction, MOST_BEFORE_THE_END)
            self._send(round(100.0 * shown, 1), self.forecast.page())
            self._sent_at_s = self._clock()

    def close(self, error: BaseException | None) -> None:
        """Show how the run has ended.

        Args:
            error: Why its stages were not all done; None when they were.
        """
        if error is None:
            self._send(100.0, self.forecast.closing_page("Done", completed=True), insisting=True)
            return
        shown = round(100.0 * min(self.forecast.fraction, MOST_BEFORE_THE_END), 1)
        page = self.forecast.closing_page(*_ending(error), completed=False)
        self._send(shown, page, insisting=isinstance(error, Exception))  # else there are seconds left before a kill


def _ending(error: BaseException) -> tuple[str, str]:
    """Return how a run has ended in a word, and what there is to say about it."""
    if isinstance(error, Cancelled):
        return "Cancelled", error.message
    if isinstance(error, KeyboardInterrupt | TerminationSignal):
        return "Stopped", "The run was told to stop; its state says why."
    if isinstance(error, ReconflowError):
        return "Failed", f"{error.code}: {error.message}"
    return "Failed", "The run's state says why."


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
        description: For people, until the first stage begins.
    """
    artifact_id = create_progress_artifact(progress=0.0, key=f"{request.model}-progress", description=description)
    assert isinstance(artifact_id, UUID)
    with (
        get_client(sync_client=True, httpx_settings={"timeout": REQUEST_TIMEOUT_S}) as client,
        StatePoller(own_flow_run_ids()) as poller,
    ):
        send = _sender(client, artifact_id)
        reporter = RunReporter(send, request.preset, _listener.get(), poller=poller, models=request.models())
        token = _reporter.set(reporter)
        try:
            yield reporter
        except BaseException as error:
            with undisturbed():
                reporter.close(error)
            raise
        else:
            reporter.close(None)
        finally:
            _reporter.reset(token)


def _sender(client: SyncPrefectClient, artifact_id: UUID) -> Send:
    def send(percent: float, page: str, *, insisting: bool = False) -> None:
        try:
            with nullcontext() if insisting else temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                client.update_artifact(artifact_id, ArtifactUpdate(data=percent, description=page))
        except (HTTPError, PrefectException) as error:
            get_logger(__name__).info("The progress could not be shown (%s).", type(error).__name__)

    return send


def stage_progress(stage: str, model: str | None = None) -> OnProgress:
    """Return the receiver of one stage's progress, which moves the whole run's.

    Args:
        stage: The stage's name.
        model: Which model the stage is about, if any.
    """
    reporter = _reporter.get()
    if reporter is None:
        return _listener.get() or _ignore
    receive = reporter.of_stage(stage, model)
    receive(0, 1, stage)
    return receive


def stage_was_kept(stage: str, model: str | None = None) -> None:
    """Note that an earlier attempt had finished a stage, for the forecast of the rest."""
    reporter = _reporter.get()
    if reporter is not None:
        reporter.forecast.keep(stage, model)


def _ignore(step: int, total: int, message: str) -> None:
    """Nobody listens: a task was called outside of a run."""

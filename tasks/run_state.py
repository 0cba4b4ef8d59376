"""How a run hears that it is to stop: from its own state on the server, which nobody else enforces for every run.

A worker ends the process of a run that is being cancelled. Nobody ends one that runs in a command, or whose worker
died; so each run looks at its state every few seconds, and its next step of progress raises `Cancelled`. Nothing here
sets a state.
"""

from __future__ import annotations

import contextvars
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self
from uuid import UUID

import prefect.runtime.flow_run
from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.objects import State as RunState
from prefect.exceptions import PrefectException

from reconflow.errors import Cancelled

POLL_INTERVAL_S: Final = 2.5
REQUEST_TIMEOUT_S: Final = 10.0
_STOPPING: Final = frozenset({StateType.CANCELLING, StateType.CANCELLED, StateType.CRASHED})
_logger = logging.getLogger(__name__)


class AttemptSuperseded(Cancelled):
    """This process was taken for dead, and another attempt may own the run's files; nothing more may be written."""


class StatePoller:
    """Looks at the state of a run, and of the runs that it is part of, in a thread for the length of a `with` block.

    Args:
        flow_run_ids: The run itself, then those that contain it.
        interval_s: Seconds between two looks; each costs the server some 10 ms.
    """

    def __init__(self, flow_run_ids: Sequence[UUID], interval_s: float = POLL_INTERVAL_S) -> None:
        self._ids = list(flow_run_ids)
        self._interval_s = interval_s
        self._verdict: Cancelled | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._watch,), name="run-state", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def raise_if_stopped(self) -> None:
        """Return when the run may go on; costs nothing.

        Raises:
            Cancelled: It is to stop.
        """
        if self._verdict is not None:
            raise self._verdict

    def _watch(self) -> None:
        # Own settings, because clients with equal ones share a connection with the flow's thread.
        with get_client(sync_client=True, httpx_settings={"timeout": REQUEST_TIMEOUT_S}) as client:
            while self._verdict is None and not self._ended.wait(self._interval_s):
                self._look(client)

    def _look(self, client: SyncPrefectClient) -> None:
        asked = FlowRunFilter(id=FlowRunFilterId(any_=self._ids))
        try:
            found = {run.id: run for run in client.read_flow_runs(flow_run_filter=asked, limit=len(self._ids))}
        except (HTTPError, PrefectException) as error:
            _logger.info("The run's state could not be read (%s); it goes on.", type(error).__name__)
            return
        self._verdict = next(filter(None, (_verdict(found.get(run_id)) for run_id in self._ids)), None)


def own_flow_run_ids() -> list[UUID]:
    """Return the identifiers of the flow run that calls this, and of those that contain it."""
    around = (
        prefect.runtime.flow_run.id,
        prefect.runtime.flow_run.parent_flow_run_id,
        prefect.runtime.flow_run.root_flow_run_id,
    )
    return [UUID(text) for text in dict.fromkeys(around) if text]


def asked_to_stop(flow_run_id: UUID) -> Cancelled | None:
    """Return why a run is to stop, from its state now; None when nobody asked it to, or the server does not answer.

    Args:
        flow_run_id: The run.
    """
    try:
        with get_client(sync_client=True, httpx_settings={"timeout": REQUEST_TIMEOUT_S}) as client:
            return _verdict(client.read_flow_run(flow_run_id))
    except (HTTPError, PrefectException) as error:
        _logger.info("The run's state could not be read (%s).", type(error).__name__)
        return None


def cancelled_before_start(client: SyncPrefectClient, flow_run_id: UUID) -> Cancelled | None:
    """Return why a run that is about to start must not; None when it may.

    A run that was cancelled while its process was being started begins all the same, and looks like any other by
    then. Its history still knows. What was cancelled before the run was scheduled anew does not count.

    Args:
        client: Of the Prefect server.
        flow_run_id: The run.
    """
    states = sorted(client.read_flow_run_states(flow_run_id), key=lambda state: state.timestamp)
    for state in reversed(states):
        if state.type is StateType.SCHEDULED:
            return None
        if state.type in (StateType.CANCELLING, StateType.CANCELLED):
            return _cancelled(state)
    return None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let nothing but a kill interrupt the block, which writes how a run ended within the 30 s before that kill."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _verdict(flow_run: FlowRun | None) -> Cancelled | None:
    if flow_run is None:
        return Cancelled("The run was deleted from the Prefect server.", suggestion="Start it again if it is wanted.")
    state = flow_run.state
    if state is None or state.type not in _STOPPING:
        return None
    if state.type is StateType.CRASHED:
        return AttemptSuperseded(
            "The run was taken for crashed while it was still at work.",
            suggestion="Look for a later attempt with the same run id; it reuses the finished stages.",
        )
    return _cancelled(state)


def _cancelled(state: RunState) -> Cancelled:
    return Cancelled(
        state.message or "The run was cancelled.", suggestion="Start the run again; finished stages are reused."
    )

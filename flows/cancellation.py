"""Cancelling a run in two steps: a request that says who and why, and within the hour a confirmation that stops it.

Between the steps the run goes on as if nothing had been asked, across a crash and its recovery as well. What a
confirmation brings about is a run in a final state that nothing starts again; how the run's process ends is the
worker's and the run's own business (`tasks.run_state`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from flows import cancellation_answers as answers
from flows.attempts import first_attempt_of, latest_attempt, may_go_on
from flows.cancellation_answers import CancellationAnswer, PendingCancellation
from flows.cancellation_records import (
    CancellationRecord,
    all_records,
    confirmation_name,
    create_record,
    delete_expired,
    forget_cancellation,
    new_record,
    read_record,
    request_name,
)
from flows.run_ids import shown_id
from flows.variables import delete_variable_by_id
from reconflow.errors import CancellationExpiredError, CancellationNotRequestedError, JobAlreadyFinishedError

START_PATIENCE_S: Final = 20.0
"""How long a run that never started may stay in Cancelling: nobody but the server's time-out of 300 s ends it."""
STOP_PATIENCE_S: Final = 60.0
"""How long a started run may take to stop; a worker kills its process after 30 s."""
CRASH_GRACE_S: Final = 15.0
"""How long after its crash was reported a process may still write: one that lives looks at its state every 2.5 s."""
CONFIRMATION_LEASE: Final = timedelta(seconds=30)
"""When a confirmation that did not stop the run counts as abandoned by a process that died."""
_CHECK_INTERVAL_S: Final = 0.5


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class CancellationDesk:
    """Takes requests and confirmations for the runs of one Prefect server.

    Attributes:
        client: Of that server.
        now: The time, with its zone.
        start_patience_s: See `START_PATIENCE_S`.
        stop_patience_s: See `STOP_PATIENCE_S`.
        crash_grace_s: See `CRASH_GRACE_S`.
    """

    client: SyncPrefectClient
    now: Callable[[], datetime] = utc_now
    start_patience_s: float = START_PATIENCE_S
    stop_patience_s: float = STOP_PATIENCE_S
    crash_grace_s: float = CRASH_GRACE_S

    def request(self, run: FlowRun, by: str, reason: str, *, discard_results: bool = False) -> CancellationAnswer:
        """Note that somebody wants a run cancelled; the run goes on.

        Args:
            run: Any attempt at the run; the latest one counts.
            by: Who.
            reason: Why.
            discard_results: Whether what is finished shall go as well.

        Raises:
            JobAlreadyFinishedError: The run has ended.
        """
        self.sweep()
        run = latest_attempt(self.client, run)
        if self._is_stopping(run):
            return self._already_confirmed(run)
        wanted = new_record(by, reason, self.now(), discard_results=discard_results)
        standing = self._create(request_name(first_attempt_of(run)), wanted)
        return answers.requested(run, wanted) if standing is None else answers.already_requested(run, standing)

    def confirm(self, run: FlowRun, by: str) -> CancellationAnswer:
        """Stop a run whose cancellation was requested within the hour, and wait until it has ended.

        Of any number of callers at once, one stops the run; the others are told who. A run that has crashed is kept
        from being started again.

        Args:
            run: Any attempt at the run; the latest one counts.
            by: Who confirms.

        Raises:
            JobAlreadyFinishedError: The run has ended.
            CancellationNotRequestedError: Nobody has requested it.
            CancellationExpiredError: The request is too old.
        """
        run = latest_attempt(self.client, run)
        first_attempt = first_attempt_of(run)
        if self._is_stopping(run):
            return self._already_confirmed(run)
        request = read_record(self.client, request_name(first_attempt))
        if request is None:
            return self._answer_without_request(run)
        if self._is_expired(request):
            delete_expired(self.client, request_name(first_attempt), self.now())
            raise _expired(run, request)
        confirmed = new_record(
            by, request.reason, self.now(), discard_results=request.discard_results, valid_for=CONFIRMATION_LEASE
        )
        standing = self._create(confirmation_name(first_attempt), confirmed)
        if standing is not None:
            return answers.already_confirmed(run, standing)
        # Since the first look, another confirmation may have come, stopped the run and been cleaned up after.
        if self._is_stopping(run):
            return answers.already_confirmed(run, None)
        return self._stop(run, confirmed)

    def pending(self) -> list[PendingCancellation]:
        """Return the requests that wait for their confirmation, oldest first; leftovers are removed on the way."""
        self.sweep()
        waiting = [
            _pending(latest_attempt(self.client, self.client.read_flow_run(found.first_attempt)), found.content)
            for found in all_records(self.client)
            if found.content is not None and not found.is_confirmation
        ]
        return sorted(waiting, key=lambda request: request.requested_at)

    def sweep(self) -> int:
        """Delete what nobody waits for: records of ended and deleted runs, expired ones, unreadable ones.

        Returns:
            How many runs were cleaned up after.
        """
        left = [
            found
            for found in all_records(self.client)
            if found.content is None or self._is_expired(found.content) or self._has_ended(found.first_attempt)
        ]
        for found in left:
            delete_variable_by_id(self.client, found.variable_id)
        return len({found.first_attempt for found in left})

    def _create(self, name: str, record: CancellationRecord) -> CancellationRecord | None:
        """Create a record in the place of none or an expired one; return the one that stands in the way."""
        standing = create_record(self.client, name, record)
        if standing is not None and self._is_expired(standing):
            delete_expired(self.client, name, self.now())
            standing = create_record(self.client, name, record)
        return standing

    def _stop(self, run: FlowRun, confirmed: CancellationRecord) -> CancellationAnswer:
        began_s, message = time.monotonic(), f"Cancelled by {confirmed.by}: {confirmed.reason}"
        while True:
            forced = self._stop_attempt(run, message)
            latest = latest_attempt(self.client, run)
            if latest.id == run.id:
                break
            run = latest  # the recovery of a crash did not know of the cancellation yet
        forget_cancellation(self.client, first_attempt_of(run))
        return answers.ended(latest, confirmed, forced=forced, seconds=time.monotonic() - began_s)

    def _stop_attempt(self, run: FlowRun, message: str) -> bool:
        """Bring one Prefect run to its end; return whether nobody answered, so that it was merely marked."""
        answer: OrchestrationResult[Any] = self.client.set_flow_run_state(run.id, Cancelling(message=message))
        state = self._wait_for_end(run) if answer.status is SetStateStatus.ACCEPT else self._state_of(run)
        if answer.status is SetStateStatus.REJECT or state is None:
            # A run without a process is cancelled at once, but by the server, which does not know who and why.
            self.client.set_flow_run_state(run.id, Cancelled(message=message))
        elif state.is_crashed() or (answer.status is SetStateStatus.ABORT and self._may_go_on(run)):
            self._mark_crashed(run, state, message)
        return state is None

    def _mark_crashed(self, run: FlowRun, state: State[Any], message: str) -> None:
        """Let nobody start a crashed run again, and return when its process is gone or has seen what became of it."""
        self.client.set_flow_run_state(run.id, Cancelling(message=message), force=True)  # what a recovery looks for
        self.client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
        age_s = (utc_now() - state.timestamp).total_seconds()
        time.sleep(max(0.0, self.crash_grace_s - age_s))

    def _wait_for_end(self, run: FlowRun) -> State[Any] | None:
        """Return the final state of a run that is to stop; None when it has none in time."""
        began_s = time.monotonic()
        while True:
            latest = self.client.read_flow_run(run.id)
            if latest.state is not None and latest.state.is_final():
                return latest.state
            patience_s = self.stop_patience_s if latest.start_time else self.start_patience_s
            if time.monotonic() - began_s >= patience_s:
                return None
            time.sleep(_CHECK_INTERVAL_S)

    def _state_of(self, run: FlowRun) -> State[Any] | None:
        return self.client.read_flow_run(run.id).state

    def _may_go_on(self, run: FlowRun) -> bool:
        return may_go_on(self.client, self.client.read_flow_run(run.id))

    def _is_stopping(self, run: FlowRun) -> bool:
        """Tell whether a run is on its way to its end; one that can be started again has not ended.

        Raises:
            JobAlreadyFinishedError: It has.
        """
        latest = self.client.read_flow_run(run.id)
        state = latest.state
        if state is None or not state.is_final():
            return state is not None and state.is_cancelling()
        if may_go_on(self.client, latest):
            return False
        forget_cancellation(self.client, first_attempt_of(latest))
        raise JobAlreadyFinishedError(
            f"Run {shown_id(run)} has ended already: {state.name}. {self._said_of_end(latest.id, state)}".strip(),
            suggestion="There is nothing to cancel; look at its results.",
            run=shown_id(run),
            state=state.name,
        )

    def _said_of_end(self, flow_run_id: UUID, state: State[Any]) -> str:
        """Return what a run's end says; of a cancelled one who and why, over which a worker puts words of its own."""
        states = self.client.read_flow_run_states(flow_run_id) if state.is_cancelled() else []
        asked = [past.message for past in sorted(states, key=lambda past: past.timestamp) if past.is_cancelling()]
        return (asked[-1] if asked else None) or state.message or ""

    def _already_confirmed(self, run: FlowRun) -> CancellationAnswer:
        return answers.already_confirmed(run, read_record(self.client, confirmation_name(first_attempt_of(run))))

    def _answer_without_request(self, run: FlowRun) -> CancellationAnswer:
        if self._is_stopping(run):
            return self._already_confirmed(run)
        raise CancellationNotRequestedError(
            f"Nobody has requested that run {shown_id(run)} be cancelled.",
            suggestion="Request it first, without the confirmation; then confirm.",
            run=shown_id(run),
        )

    def _is_expired(self, record: CancellationRecord) -> bool:
        return self.now() >= record.expires_at

    def _has_ended(self, first_attempt: UUID) -> bool:
        try:
            run = latest_attempt(self.client, self.client.read_flow_run(first_attempt))
        except ObjectNotFound:
            return True
        return run.state is not None and run.state.is_final() and not may_go_on(self.client, run)


def _expired(run: FlowRun, request: CancellationRecord) -> CancellationExpiredError:
    since, until = answers.clock_text(request.requested_at), answers.clock_text(request.expires_at)
    return CancellationExpiredError(
        f"The request to cancel run {shown_id(run)}, made by {request.by} at {since}, was valid until {until}. "
        "The run was left alone.",
        suggestion="Request it again, then confirm.",
        run=shown_id(run),
        by=request.by,
        requested_at=request.requested_at.isoformat(),
        expired_at=request.expires_at.isoformat(),
    )


def _pending(run: FlowRun, record: CancellationRecord) -> PendingCancellation:
    return PendingCancellation(
        run=shown_id(run),
        flow_run_id=run.id,
        name=run.name,
        state=run.state_name or "",
        by=record.by,
        reason=record.reason,
        discard_results=record.discard_results,
        requested_at=record.requested_at,
        valid_until=record.expires_at,
    )

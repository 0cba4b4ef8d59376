"""Cancelling a run in two steps: a request that says who and why, and within the hour a confirmation that stops it.

Between the steps the run goes on as if nothing had been asked. What a confirmation brings about is a run in a final
state; how the run's process ends is the worker's and the run's own business (`tasks.run_state`).
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
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from flows import cancellation_answers as answers
from flows.cancellation_answers import CancellationAnswer, PendingCancellation
from flows.cancellation_records import (
    CancellationRecord,
    all_records,
    confirmation_name,
    create_record,
    forget_cancellation,
    new_record,
    read_record,
    request_name,
)
from flows.run_ids import shown_id
from flows.variables import delete_variable
from reconflow.errors import CancellationExpiredError, CancellationNotRequestedError, JobAlreadyFinishedError

START_PATIENCE_S: Final = 20.0
"""How long a run that never started may stay in Cancelling: nobody but the server's time-out of 300 s ends it."""
STOP_PATIENCE_S: Final = 60.0
"""How long a started run may take to stop; a worker kills its process after 30 s."""
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
    """

    client: SyncPrefectClient
    now: Callable[[], datetime] = utc_now
    start_patience_s: float = START_PATIENCE_S
    stop_patience_s: float = STOP_PATIENCE_S

    def request(self, run: FlowRun, by: str, reason: str, *, discard_results: bool = False) -> CancellationAnswer:
        """Note that somebody wants a run cancelled; the run goes on.

        Args:
            run: The run.
            by: Who.
            reason: Why.
            discard_results: Whether what is finished shall go as well.

        Raises:
            JobAlreadyFinishedError: The run has ended.
        """
        self.sweep()
        self._is_stopping(run)
        wanted, name = new_record(by, reason, self.now(), discard_results=discard_results), request_name(run.id)
        standing = self._create(name, wanted)
        return answers.requested(run, wanted) if standing is None else answers.already_requested(run, standing)

    def confirm(self, run: FlowRun, by: str) -> CancellationAnswer:
        """Stop a run whose cancellation was requested within the hour, and wait until it has ended.

        Of any number of callers at once, one stops the run; the others are told who.

        Args:
            run: The run.
            by: Who confirms.

        Raises:
            JobAlreadyFinishedError: The run has ended.
            CancellationNotRequestedError: Nobody has requested it.
            CancellationExpiredError: The request is too old.
        """
        if self._is_stopping(run):
            return self._already_confirmed(run)
        request = read_record(self.client, request_name(run.id))
        if request is None:
            return self._answer_without_request(run)
        if self._is_expired(request):
            delete_variable(self.client, request_name(run.id))
            raise _expired(run, request)
        confirmed = new_record(
            by, request.reason, self.now(), discard_results=request.discard_results, valid_for=CONFIRMATION_LEASE
        )
        standing = self._create(confirmation_name(run.id), confirmed)
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
            _pending(self.client.read_flow_run(flow_run_id), record)
            for flow_run_id, is_confirmation, record in all_records(self.client)
            if record is not None and not is_confirmation
        ]
        return sorted(waiting, key=lambda request: request.requested_at)

    def sweep(self) -> int:
        """Delete what nobody waits for: records of ended and deleted runs, expired requests, unreadable ones.

        Returns:
            How many runs were cleaned up after.
        """
        left = {
            flow_run_id
            for flow_run_id, is_confirmation, record in all_records(self.client)
            if record is None or (not is_confirmation and self._is_expired(record)) or self._has_ended(flow_run_id)
        }
        for flow_run_id in left:
            forget_cancellation(self.client, flow_run_id)
        return len(left)

    def _create(self, name: str, record: CancellationRecord) -> CancellationRecord | None:
        """Create a record in the place of none or an expired one; return the one that stands in the way."""
        standing = create_record(self.client, name, record)
        if standing is not None and self._is_expired(standing):
            delete_variable(self.client, name)
            standing = create_record(self.client, name, record)
        return standing

    def _stop(self, run: FlowRun, confirmed: CancellationRecord) -> CancellationAnswer:
        began_s, message = time.monotonic(), f"Cancelled by {confirmed.by}: {confirmed.reason}"
        answer: OrchestrationResult[Any] = self.client.set_flow_run_state(run.id, Cancelling(message=message))
        forced = answer.status is SetStateStatus.ACCEPT and not self._wait_for_end(run)
        if forced or answer.status is SetStateStatus.REJECT:
            # A run without a process is cancelled at once, but by the server, which does not know who and why.
            self.client.set_flow_run_state(run.id, Cancelled(message=message))
        ended = self.client.read_flow_run(run.id)
        forget_cancellation(self.client, run.id)
        return answers.ended(ended, confirmed, forced=forced, seconds=time.monotonic() - began_s)

    def _wait_for_end(self, run: FlowRun) -> bool:
        began_s = time.monotonic()
        while True:
            latest = self.client.read_flow_run(run.id)
            if latest.state is not None and latest.state.is_final():
                return True
            patience_s = self.stop_patience_s if latest.start_time else self.start_patience_s
            if time.monotonic() - began_s >= patience_s:
                return False
            time.sleep(_CHECK_INTERVAL_S)

    def _is_stopping(self, run: FlowRun) -> bool:
        state = self.client.read_flow_run(run.id).state
        if state is None or not state.is_final():
            return state is not None and state.is_cancelling()
        forget_cancellation(self.client, run.id)
        raise JobAlreadyFinishedError(
            f"Run {shown_id(run)} has ended already: {state.name}. {state.message or ''}".strip(),
            suggestion="There is nothing to cancel; look at its results.",
            run=shown_id(run),
            state=state.name,
        )

    def _already_confirmed(self, run: FlowRun) -> CancellationAnswer:
        return answers.already_confirmed(run, read_record(self.client, confirmation_name(run.id)))

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

    def _has_ended(self, flow_run_id: UUID) -> bool:
        try:
            state = self.client.read_flow_run(flow_run_id).state
        except ObjectNotFound:
            return True
        return state is not None and state.is_final()


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

"""What a step of a cancellation came to, as data and in words. Decides nothing and asks nobody."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from pydantic import BaseModel

from flows.cancellation_records import CancellationRecord
from flows.run_ids import shown_id


class Outcome(StrEnum):
    """How a step of a cancellation ended."""

    REQUESTED = "requested"
    ALREADY_REQUESTED = "already-requested"
    CANCELLED = "cancelled"
    FORCED = "forced"
    FINISHED_FIRST = "finished-first"
    ALREADY_CONFIRMED = "already-confirmed"


class CancellationAnswer(BaseModel, frozen=True, extra="forbid"):
    """What came of a step, for people and programs."""

    outcome: Outcome
    run: str
    """The id that people use: the run id, or Prefect's while there is none."""
    flow_run_id: UUID
    message: str
    by: str
    """Who did the step that counts, which may be another one than the caller's; empty when nobody knows."""
    reason: str
    discard_results: bool
    valid_until: datetime | None = None
    """Of a request: when it can no longer be confirmed."""
    seconds: float = 0.0
    """From the confirmation to the final state."""


class PendingCancellation(BaseModel, frozen=True, extra="forbid"):
    """A request that waits for its confirmation."""

    run: str
    flow_run_id: UUID
    name: str
    state: str
    by: str
    reason: str
    discard_results: bool
    requested_at: datetime
    valid_until: datetime


def requested(run: FlowRun, record: CancellationRecord) -> CancellationAnswer:
    """Answer whoever made the request that now stands."""
    text = f"The cancellation is requested; {_meanwhile(run)}. Confirm it before {clock_text(record.expires_at)}."
    return _answer(Outcome.REQUESTED, run, record, text, valid_until=record.expires_at)


def already_requested(run: FlowRun, record: CancellationRecord) -> CancellationAnswer:
    """Answer whoever comes after somebody else's request, or repeats the own one."""
    text = (
        f"{record.by} requested the cancellation already, at {clock_text(record.requested_at)} ({record.reason}); "
        f"{_meanwhile(run)}. Confirm it before {clock_text(record.expires_at)}."
    )
    return _answer(Outcome.ALREADY_REQUESTED, run, record, text, valid_until=record.expires_at)


def already_confirmed(run: FlowRun, record: CancellationRecord | None) -> CancellationAnswer:
    """Answer whoever confirms what somebody else has confirmed, with a record or by Prefect's own cancel button."""
    if record is None:
        text = "The run is being stopped already."
        return CancellationAnswer(
            outcome=Outcome.ALREADY_CONFIRMED, run=shown_id(run), flow_run_id=run.id, message=text,
            by="", reason="", discard_results=False,
        )  # fmt: skip
    text = f"{record.by} confirmed this already, at {clock_text(record.requested_at)}; the run is being stopped."
    return _answer(Outcome.ALREADY_CONFIRMED, run, record, text)


def ended(run: FlowRun, record: CancellationRecord, *, forced: bool, seconds: float) -> CancellationAnswer:
    """Answer whoever confirmed.

    Args:
        run: In its final state.
        record: The confirmation.
        forced: Whether the run was marked as cancelled without a sign from its process.
        seconds: From the confirmation to the final state.
    """
    state = run.state
    if state is not None and not state.is_cancelled():
        text = f"The run ended before it could be stopped ({state.name}); its results stand."
        return _answer(Outcome.FINISHED_FIRST, run, record, text, seconds=seconds)
    if not forced:
        return _answer(Outcome.CANCELLED, run, record, "The run is cancelled.", seconds=seconds)
    text = (
        "The run is marked as cancelled, though no process answered: its worker or machine may be gone. A process that "
        "is alive after all, or starts late, stops by itself at its next step."
    )
    return _answer(Outcome.FORCED, run, record, text, seconds=seconds)


def clock_text(time: datetime) -> str:
    """Return a time for people."""
    return f"{time.astimezone(UTC):%H:%M:%S} UTC"


def _meanwhile(run: FlowRun) -> str:
    """Say what becomes of a run while its cancellation waits to be confirmed."""
    has_ended = run.state is not None and run.state.is_final()
    return "the run has crashed and may be started again until then" if has_ended else "the run goes on"


def _answer(
    outcome: Outcome,
    run: FlowRun,
    record: CancellationRecord,
    message: str,
    *,
    valid_until: datetime | None = None,
    seconds: float = 0.0,
) -> CancellationAnswer:
    return CancellationAnswer(
        outcome=outcome,
        run=shown_id(run),
        flow_run_id=run.id,
        message=message,
        by=record.by,
        reason=record.reason,
        discard_results=record.discard_results,
        valid_until=valid_until,
        seconds=round(seconds, 2),
    )

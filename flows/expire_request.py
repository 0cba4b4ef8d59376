"""What the removal of old results is asked for, and what it reports: the form behind `expire`. Imports no Prefect."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from reconflow.retention import ExpiryDecision, ExpiryOutcome, RetentionRules

MAX_ROWS: Final = 500
DEFAULT_RULES: Final = RetentionRules.model_validate({"stages_days": 30.0, "leftovers_days": 2.0})
_DAY_S: Final = 86_400.0


class ExpireRequest(BaseModel):
    """Remove what the rules let expire from a store; without rules for runs, only what nobody needs any more."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Expiry")

    out: str = Field("out", min_length=1, title="Results", description="The store: a folder or s3:// address.")
    dry_run: bool = Field(default=True, title="Dry run", description="Report only; remove nothing.")
    rules: RetentionRules = Field(DEFAULT_RULES, title="Rules", description="What expires.")


class ExpiryRow(BaseModel, frozen=True, extra="forbid"):
    """One run of a store."""

    run_id: str
    age_days: float
    decision: str
    """`stays`, `expires`; after the removal `expired`, `failed` or `stays`."""
    reason: str


class ExpiryReport(BaseModel, frozen=True, extra="forbid"):
    """What expires, or has been removed."""

    runs: int
    dry_run: bool
    counts: dict[str, int]
    swept: dict[str, int] = {}
    """How many other things were removed: uploads, files, stages, cancellations, notifications."""
    rows: tuple[ExpiryRow, ...]

    def headline(self) -> str:
        """Return the counts in one line."""
        counts = ", ".join(f"{count} {what}" for what, count in self.counts.items())
        swept = ", ".join(f"{count} {what}" for what, count in self.swept.items() if count)
        told = f"{self.runs} runs: {counts or 'none'}"
        return f"{told} (dry run)." if self.dry_run else f"{told}{'; also removed: ' + swept if swept else ''}."

    def table_rows(self) -> list[dict[str, Any]]:
        """Return what people look at: runs that go, and runs that something protects."""
        return [row.model_dump() for row in self.rows if row.decision != "stays" or row.reason][:MAX_ROWS]


def protect(decisions: Sequence[ExpiryDecision], unfinished: Collection[str]) -> list[ExpiryDecision]:
    """Return the decisions with the runs that are at work again, under the id of a failed one, left alone.

    Args:
        decisions: A plan.
        unfinished: The identifiers of those runs.
    """
    return [
        ExpiryDecision(run.run_id, run.published_at, expires=False, reason="at work", tags=run.tags)
        if run.expires and run.run_id in unfinished
        else run
        for run in decisions
    ]


def make_report(
    decisions: Sequence[ExpiryDecision],
    now: datetime,
    outcome: ExpiryOutcome | None = None,
    swept: dict[str, int] | None = None,
) -> ExpiryReport:
    """Put a report together.

    Args:
        decisions: The plan.
        now: The time that ages are counted from.
        outcome: What applying it did; None for a dry run.
        swept: What else was removed.
    """
    rows = tuple(_row(decision, now, outcome) for decision in decisions)
    kinds = [row.decision for row in rows]
    return ExpiryReport(
        runs=len(rows),
        dry_run=outcome is None,
        counts={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        swept=swept or {},
        rows=rows,
    )


def _row(decision: ExpiryDecision, now: datetime, outcome: ExpiryOutcome | None) -> ExpiryRow:
    kind, reason = "expires" if decision.expires else "stays", decision.reason
    if outcome is not None and decision.expires:
        kind = "expired" if decision.run_id in outcome.expired else "stays"
        if decision.run_id in outcome.failed:
            kind, reason = "failed", str(outcome.failed[decision.run_id])
    age_days = (now - decision.published_at).total_seconds() / _DAY_S
    return ExpiryRow(run_id=decision.run_id, age_days=round(age_days, 1), decision=kind, reason=reason)

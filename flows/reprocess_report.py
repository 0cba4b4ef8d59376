"""What a walk over many datasets reports: counts and one row per dataset, as data, and as tables for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel

from flows.reprocess_request import ReprocessRequest
from reconflow.errors import ServerRefusedError
from reconflow.reprocessing import Decision, Verdict, count_verdicts

REFUSED: Final = "Refused"
MAX_ROWS: Final = 500
"""Of a table that people look at; the counts are of all datasets."""


class RunOutcome(BaseModel, frozen=True, extra="forbid"):
    """What became of one run of a walk."""

    state: str
    """As Prefect names it, or `Not submitted`, or `Refused` by the server."""
    message: str = ""
    run_id: str | None = None
    flow_run_id: str | None = None


def refusal_of(outcomes: Mapping[str, RunOutcome]) -> ServerRefusedError | None:
    """Return why a walk has come to nothing: the server refused every single run; None when it did not.

    Args:
        outcomes: Of the runs, by the dataset's location.
    """
    refused = {location: outcome.message for location, outcome in outcomes.items() if outcome.state == REFUSED}
    if not refused or len(refused) < len(outcomes):
        return None
    runs = "the run" if len(refused) == 1 else f"all {len(refused)} runs"
    return ServerRefusedError(
        f"The Prefect server refused {runs}. {next(iter(refused.values()))}",
        suggestion="Deploy again, with the version that walks: reconflow deploy. Until then, leave out the options "
        "that the deployment does not know.",
        refused=dict(list(refused.items())[:MAX_ROWS]),
    )


class DatasetRow(BaseModel, frozen=True, extra="forbid"):
    """One dataset of a walk."""

    dataset: str
    decision: str
    reason: str
    run_id: str | None = None
    """Of the run in this walk, else of the one that the decision rests on."""
    flow_run_id: str | None = None
    state: str = ""
    """Of the run in this walk; empty when it has none."""
    message: str = ""


class WalkReport(BaseModel, frozen=True, extra="forbid"):
    """Everything about a walk."""

    datasets: int
    dry_run: bool
    decisions: dict[str, int]
    chosen: int
    """How many datasets get a run in this walk."""
    states: dict[str, int]
    """How many of their runs are in which state."""
    rows: tuple[DatasetRow, ...]

    def headline(self) -> str:
        """Return the counts in one line."""
        counts = ", ".join(f"{count} {verdict}" for verdict, count in self.decisions.items() if count)
        states = ", ".join(f"{count} {state.lower()}" for state, count in self.states.items())
        told = f"{self.datasets} datasets: {counts or 'none'}; {self.chosen} to run"
        return f"{told} (dry run)." if self.dry_run else f"{told}{': ' + states if states else ''}."


def make_report(
    request: ReprocessRequest,
    decisions: Sequence[Decision],
    chosen: Sequence[Decision],
    outcomes: Mapping[str, RunOutcome],
) -> WalkReport:
    """Put a walk's report together.

    Args:
        request: What was asked for.
        decisions: For all datasets.
        chosen: Those that get a run.
        outcomes: Of the runs, by the dataset's location.
    """
    return WalkReport(
        datasets=len(decisions),
        dry_run=request.dry_run,
        decisions=count_verdicts(decisions),
        chosen=len(chosen),
        states=dict(sorted(Counter(outcome.state for outcome in outcomes.values()).items())),
        rows=tuple(_row(decision, outcomes.get(decision.source.location)) for decision in decisions),
    )


def table_rows(report: WalkReport) -> list[dict[str, Any]]:
    """Return the rows that people look at: what is not up to date, runs first, at most `MAX_ROWS`."""
    shown = [row for row in report.rows if row.state or row.decision != Verdict.UP_TO_DATE]
    shown.sort(key=lambda row: (not row.state, row.dataset))
    return [
        {name: value or "" for name, value in row.model_dump(exclude={"flow_run_id"}).items()}
        for row in shown[:MAX_ROWS]
    ]


def _row(decision: Decision, outcome: RunOutcome | None) -> DatasetRow:
    row = DatasetRow(
        dataset=decision.source.location,
        decision=decision.verdict.value,
        reason=decision.reason,
        run_id=decision.run_id,
    )
    return row if outcome is None else row.model_copy(update=outcome.model_dump())

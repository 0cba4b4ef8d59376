"""The commands `reconflow expire`, `pin` and `unpin`: what stays and what goes, from a terminal.

What expires is decided in `reconflow.retention`. Prefect is asked only when a server is configured.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from reconflow.errors import ValidationFailedError

if TYPE_CHECKING:
    from flows.expire_request import ExpireRequest, ExpiryReport

_OUT_HELP = "The store: a folder, s3:// address or block://NAME."
_DAYS = {"h": 1 / 24, "d": 1.0, "w": 7.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([hdw])")
_KEEP = re.compile(r"(?:(.+)=)?(\d{1,6})")


def expire_command(
    out: Annotated[str, typer.Option("--out", "-o", metavar="URI", help=_OUT_HELP)] = "out",
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Runs older than this expire: 30d, 12h, 8w.")] = "",
    keep: Annotated[
        list[str] | None,
        typer.Option(metavar="[TAG=]N", help="Only the newest N runs of each dataset, or of a tag, stay. Repeatable."),
    ] = None,
    stages_older_than: Annotated[str, typer.Option(metavar="AGE", help="Kept stage results that go.")] = "30d",
    leftovers_older_than: Annotated[str, typer.Option(metavar="AGE", help="Unfinished uploads that go.")] = "2d",
    dry_run: Annotated[bool, typer.Option("--dry-run/--apply", help="Report only, or really remove.")] = True,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")] = False,  # noqa: FBT002
) -> None:
    """Show which results the rules let expire; with --apply, remove them."""
    from flows.cli import reporting_errors

    with reporting_errors(Console(stderr=True), as_json=as_json):
        request = make_request(out, older_than, keep or [], stages_older_than, leftovers_older_than, dry_run=dry_run)
        report = expire_here(request)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        _show(Console(), report)


def pin_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run id, or Prefect's id of the run.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="URI", help=_OUT_HELP)] = "out",
) -> None:
    """Protect a run's results from expiry."""
    from flows.cli import reporting_errors
    from flows.link_command import opened_store, stored_run_id

    console = Console(stderr=True)
    with reporting_errors(console), opened_store(out) as store:
        run_id = stored_run_id(run)
        store.read_manifest(run_id)
        store.pin(run_id)
        console.print(f"Run {run_id} is pinned: it never expires.", highlight=False)


def unpin_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run id, or Prefect's id of the run.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="URI", help=_OUT_HELP)] = "out",
) -> None:
    """Let a pinned run expire again by the rules."""
    from flows.cli import reporting_errors
    from flows.link_command import opened_store, stored_run_id

    console = Console(stderr=True)
    with reporting_errors(console), opened_store(out) as store:
        run_id = stored_run_id(run)
        was_pinned = run_id in store.pinned_runs()
        store.pin(run_id, pinned=False)
        console.print(f"Run {run_id} {'is no longer' if was_pinned else 'was not'} pinned.", highlight=False)


def make_request(
    out: str, older_than: str, keep: list[str], stages_older_than: str, leftovers_older_than: str, *, dry_run: bool
) -> ExpireRequest:
    """Build the request from what was typed.

    Raises:
        ValidationFailedError: Something typed cannot be understood.
    """
    from flows.expire_request import ExpireRequest
    from reconflow.retention import RetentionRules

    if not out:
        raise ValidationFailedError("--out is empty.", suggestion="Name a store.", options=["--out"])
    counts = [_count("--keep", text) for text in keep]
    rules = RetentionRules(
        max_age_days=_days("--older-than", older_than) if older_than else None,
        keep_per_tag={tag: count for tag, count in counts if tag is not None},
        keep_per_dataset=next((count for tag, count in reversed(counts) if tag is None), None),
        stages_days=_days("--stages-older-than", stages_older_than),
        leftovers_days=_days("--leftovers-older-than", leftovers_older_than),
    )
    return ExpireRequest(out=out, dry_run=dry_run, rules=rules)


def expire_here(request: ExpireRequest) -> ExpiryReport:
    """Plan, and unless it is a dry run remove, in this process.

    Args:
        request: What is asked for.

    Raises:
        ReconflowError: The store or the configured server does not answer.
    """
    from flows.embedded import is_server_configured

    if not is_server_configured():
        return _expire_without_server(request)
    from prefect.client.orchestration import get_client

    from flows.expire import expire_with
    from flows.in_process import expect_server

    expect_server()
    with get_client(sync_client=True) as client:
        return expire_with(client, request)


def _expire_without_server(request: ExpireRequest) -> ExpiryReport:
    from dataclasses import asdict
    from datetime import UTC, datetime

    from flows.expire_request import make_report
    from flows.link_command import opened_store
    from reconflow.retention import apply_expiry, plan_expiry

    now = datetime.now(UTC)
    with opened_store(request.out) as store:
        decisions = plan_expiry(store, request.rules, now)
        if request.dry_run:
            return make_report(decisions, now)
        outcome = apply_expiry(store, decisions, request.rules)
    return make_report(decisions, now, outcome, asdict(outcome.swept))


def _days(option: str, text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise ValidationFailedError(
            f"{option} is {text!r}, which is no time.", suggestion="Write it like 30d, 12h or 8w.", options=[option]
        )
    return float(match[1]) * _DAYS[match[2]]


def _count(option: str, text: str) -> tuple[str | None, int]:
    match = _KEEP.fullmatch(text.strip())
    if match is None:
        raise ValidationFailedError(
            f"{option} is {text!r}, which is no number.", suggestion="Write 5, or TAG=5.", options=[option]
        )
    return match[1], int(match[2])


def _show(console: Console, report: ExpiryReport) -> None:
    table = Table("run", "days old", "", "why")
    for row in report.table_rows():
        table.add_row(row["run_id"], f"{row['age_days']:.1f}", row["decision"], row["reason"])
    if table.row_count:
        console.print(table)
    console.print(report.headline(), highlight=False)
    if report.dry_run and report.counts.get("expires"):
        console.print("Nothing was removed; --apply removes them.")

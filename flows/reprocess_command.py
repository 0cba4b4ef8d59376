"""The command `reconflow reprocess`: a walk over many datasets from a terminal; `reconflow.reprocessing` decides.

With a Prefect server configured it is the flow `reprocess`, which submits runs to a deployment. Without one the runs
are done one after another in this process. Prefect and the models are imported when they are needed, never before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from deployments.heartbeats import WATCHED_TAG
from reconflow.errors import ReconflowError, ValidationFailedError
from reconflow.nvdiffrec.options import Preset
from reconflow.request import ModelName

if TYPE_CHECKING:
    from flows.reprocess_report import RunOutcome, WalkReport
    from flows.reprocess_request import ReprocessRequest
    from reconflow.reprocessing import Decision

_MAX_ROWS = 50


def reprocess_command(
    datasets: Annotated[
        str, typer.Argument(metavar="PREFIX", help="Folder or s3:// address below which the datasets lie.")
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="URI", help="The store of results to compare with.")
    ] = "out",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and report only; start nothing.")] = False,  # noqa: FBT002
    preset: Annotated[Preset, typer.Option(help="How much work to spend on each dataset.")] = Preset.STANDARD,
    model: Annotated[ModelName, typer.Option(help="Which reconstruction model runs.")] = ModelName.NVDIFFREC,
    options: Annotated[str, typer.Option(metavar="JSON", help='Further options of a run: {"fov_deg": 60}.')] = "{}",
    redo: Annotated[
        str, typer.Option(metavar="LIST", help="What gets a run: new, changed, failed, outdated, expired.")
    ] = "new,changed,failed,outdated",
    attempts: Annotated[int, typer.Option(help="Failures of the same work before giving up.")] = 3,
    limit: Annotated[int | None, typer.Option(help="Start at most so many runs.")] = None,
    in_flight: Annotated[int, typer.Option(help="So many submitted runs at a time (with a server).")] = 4,
    deployment: Annotated[str, typer.Option(help="Which deployment runs them (with a server).")] = (
        "reconstruct/on-demand"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")] = False,  # noqa: FBT002
) -> None:
    """Reconstruct the datasets that are new, changed, failed or outdated."""
    from flows.cli import reporting_errors
    from flows.embedded import is_server_configured

    console = Console(stderr=True)
    with reporting_errors(console, as_json=as_json):
        request = _make_request(
            redo,
            options,
            datasets=datasets, out=out, dry_run=dry_run, preset=preset, model=model, attempts=attempts, limit=limit,
            in_flight=in_flight, deployment=deployment,
        )  # fmt: skip
        report = walk_on_server(request) if is_server_configured() else walk_here(request, console)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        _show(Console(), report)


def walk_on_server(request: ReprocessRequest) -> WalkReport:
    """Run the flow `reprocess` in this process, on the configured server.

    Raises:
        ReconflowError: Why nothing could be decided or submitted.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    from prefect import tags

    from flows.in_process import expect_server
    from flows.reprocess import reprocess
    from flows.reprocess_report import WalkReport

    expect_server()
    with tags(WATCHED_TAG):
        return WalkReport.model_validate(reprocess(request))


def walk_here(request: ReprocessRequest, console: Console) -> WalkReport:
    """Decide, and run what is chosen one after another in this process; a failure concerns its dataset alone.

    Args:
        request: What was asked for.
        console: Told of each run.

    Raises:
        ReconflowError: Why nothing could be decided.
    """
    from flows.reprocess_report import make_report
    from reconflow.datasets.sources import find_datasets
    from reconflow.reprocessing import decide_all, wanted_of
    from reconflow.run_records import read_records

    wanted = wanted_of(request.request_for(request.datasets))
    decisions = decide_all(find_datasets(request.datasets), read_records(request.out), wanted, request.attempts)
    chosen = request.choose(decisions)
    outcomes = {} if request.dry_run else _run_all(request, chosen, console)
    return make_report(request, decisions, chosen, outcomes)


def _run_all(request: ReprocessRequest, chosen: Sequence[Decision], console: Console) -> dict[str, RunOutcome]:
    from flows.reprocess_report import RunOutcome
    from reconflow.pipeline import run_pipeline

    outcomes = {}
    for number, decision in enumerate(chosen, 1):
        location = decision.source.location
        console.print(f"{number} of {len(chosen)}: {decision.source.name} ({decision.verdict.value})", highlight=False)
        try:
            summary = run_pipeline(request.request_for(location))
            outcomes[location] = RunOutcome(state="Completed", run_id=summary.run_id)
        except ReconflowError as error:
            console.print(f"  {error.code}: {error.message}", highlight=False)
            outcomes[location] = RunOutcome(state="Failed", message=f"{error.code}: {error.message}")
    return outcomes


def _make_request(redo: str, options: str, **values: Any) -> ReprocessRequest:
    """Build the request from what was typed.

    Raises:
        ValidationFailedError: It is not usable.
    """
    from flows.reprocess_request import ReprocessRequest

    switches = {name: False for name in ReprocessRequest.model_fields if name.startswith("redo_")}
    asked = {f"redo_{name.strip()}" for name in redo.split(",") if name.strip()}
    try:
        parsed = {**values, "options": json.loads(options), **switches, **dict.fromkeys(asked, True)}
        return ReprocessRequest.model_validate(parsed)
    except json.JSONDecodeError:
        problem = "--options is not JSON."
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"])).replace("_", "-")
        problem = f"{'--' + name + ': ' if name else ''}{fault['msg'].removeprefix('Value error, ')}."
    raise ValidationFailedError(
        f"The options are not usable. {problem.replace('..', '.')}", suggestion="See reconflow reprocess --help."
    )


def _show(console: Console, report: WalkReport) -> None:
    from flows.reprocess_report import table_rows

    rows = table_rows(report)
    table = Table("dataset", "decision", "why", "run", "state")
    for row in rows[:_MAX_ROWS]:
        why = row["message"] or row["reason"]
        table.add_row(row["dataset"].rsplit("/", 1)[-1], row["decision"], why, row["run_id"], row["state"])
    if rows:
        console.print(table)
    if len(rows) > _MAX_ROWS:
        console.print(f"and {len(rows) - _MAX_ROWS} more; --json lists all.")
    console.print(report.headline(), highlight=False)

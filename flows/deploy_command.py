"""`reconflow deploy`: options in, a table of what was done out. What is deployed is in `deployments`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from reconflow.errors import DeploymentFailedError, ServerUnreachableError

if TYPE_CHECKING:
    from deployments.apply import Change

_MAX_OUTPUT: Final = 2000
_STYLES: Final = {"create": "green", "update": "yellow", "remove": "red", "keep": "dim"}


class WorkerDevice(StrEnum):
    """What a machine's reconstructions run on, decided when it is set up."""

    CUDA = "cuda"
    CPU = "cpu"


def deploy_command(
    device: Annotated[
        WorkerDevice | None, typer.Option(help="What reconstructions run on: cuda is the pool gpu, cpu the pool cpu.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="URI", help="Where results go when a run does not say.")
    ] = None,
    datasets: Annotated[
        str | None, typer.Option(metavar="URI", help="What reprocess/nightly walks; it rests until this is given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="Print the changes as JSON on standard output.")] = False,  # noqa: FBT002
) -> None:
    """Bring the Prefect server to what this repository defines; what was chosen before is kept."""
    from flows.cli import reporting_errors

    console = Console(stderr=True)
    with reporting_errors(console, as_json=as_json):
        changes = _deploy(device, out, datasets, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps([vars(change) for change in changes], indent=2))
        return
    show_changes(console, changes, dry_run=dry_run)


def _deploy(device: WorkerDevice | None, out: str | None, datasets: str | None, *, dry_run: bool) -> list[Change]:
    import httpx
    from prefect.client.orchestration import get_client

    from deployments.apply import Choices, apply
    from deployments.desired import repository_root
    from flows.server_checks import expect_configured_server

    root = repository_root()
    expect_configured_server()
    choices = Choices(device=device.value if device else None, results=out, datasets=datasets)
    try:
        with get_client(sync_client=True) as client:
            return apply(client, root, choices, dry_run=dry_run)
    except httpx.HTTPStatusError as error:
        raise DeploymentFailedError(
            f"The Prefect server answers {error.response.status_code} to {error.request.url.path}.",
            suggestion="Read the details, and run the command again.",
            output=error.response.text[:_MAX_OUTPUT],
        ) from error
    except httpx.TransportError as error:
        raise ServerUnreachableError(
            f"The Prefect server stopped answering ({type(error).__name__}).",
            suggestion="Run the command again: what was done stays done.",
        ) from error


def show_changes(console: Console, changes: list[Change], *, dry_run: bool) -> None:
    """Print what was done, or would be."""
    table = Table.grid(padding=(0, 2))
    for change in changes:
        table.add_row(f"[{_STYLES[change.action]}]{change.action}[/]", change.kind, change.name)
    console.print(table)
    count = sum(change.action != "keep" for change in changes)
    done = "would change" if dry_run else "changed"
    console.print(f"{count} of {len(changes)} {done}." if count else "Nothing to change.")

"""The command `reconflow cancel`: the two steps of a cancellation from a terminal. What they do is in `flows.cancel`.

Prefect is imported when a step is done, never before, so that the command's help stays quick.
"""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from reconflow.errors import ValidationFailedError

if TYPE_CHECKING:
    from flows.cancellation_answers import PendingCancellation


def cancel_command(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="The run id of 8 letters and digits, or Prefect's id of the run.")
    ] = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; stays with the run.")] = "",
    by: Annotated[str, typer.Option(metavar="NAME", help="Who asks; your user name when left out.")] = "",
    confirm: Annotated[bool, typer.Option("--confirm", help="Confirm the request and stop the run.")] = False,  # noqa: FBT002
    discard_results: Annotated[bool, typer.Option("--discard-results", help="Drop finished results too.")] = False,  # noqa: FBT002
    show_list: Annotated[bool, typer.Option("--list", help="Show the requests that wait to be confirmed.")] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON on standard output.")] = False,  # noqa: FBT002
) -> None:
    """Cancel a run of the configured Prefect server in two steps: request, then --confirm within an hour."""
    from flows.cli import reporting_errors

    console = Console(stderr=True)
    with reporting_errors(console, as_json=as_json):
        from flows.server_checks import expect_configured_server

        expect_configured_server()
        if show_list:
            _print_pending(as_json=as_json)
            return
        if not run:
            raise ValidationFailedError("No run is named.", suggestion="Give a run id, or --list.", options=["RUN"])
        from prefect.client.orchestration import get_client

        from flows.cancel import CancelRequest, do_step

        step = CancelRequest(
            run=run[:64],
            by=(by or _user_name())[:100],
            **({"reason": reason[:500]} if reason else {}),
            confirm=confirm,
            discard_results=discard_results,
        )
        with get_client(sync_client=True) as client:
            answer = do_step(client, step)
    if as_json:
        typer.echo(answer.model_dump_json(indent=2))
    else:
        console.print(f"[bold]run {answer.run}[/bold] · {answer.message}", highlight=False)


def _print_pending(*, as_json: bool) -> None:
    from prefect.client.orchestration import get_client
    from pydantic import TypeAdapter

    from flows.cancellation import CancellationDesk
    from flows.cancellation_answers import PendingCancellation

    with get_client(sync_client=True) as client:
        waiting = CancellationDesk(client).pending()
    if as_json:
        typer.echo(TypeAdapter(list[PendingCancellation]).dump_json(waiting, indent=2).decode())
    elif waiting:
        Console().print(_table(waiting))
    else:
        Console(stderr=True).print("No cancellation waits to be confirmed.")


def _table(waiting: list[PendingCancellation]) -> Table:
    table = Table("run", "name", "state", "requested by", "reason", "confirm before (UTC)")
    for request in waiting:
        table.add_row(
            request.run, request.name, request.state, request.by, request.reason, f"{request.valid_until:%H:%M:%S}"
        )
    return table


def _user_name() -> str:
    """Return who is logged in.

    Raises:
        ValidationFailedError: The system knows no name.
    """
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ValidationFailedError(
            "This user has no name here.", suggestion="Say who asks, with --by NAME.", options=["--by"]
        ) from None

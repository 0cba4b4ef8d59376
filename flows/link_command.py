"""The commands `reconflow link` and `reconflow fetch`: a finished run's files from a terminal. Nothing is computed.

Prefect is imported only for Prefect's own ids and for `block://` locations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console

from reconflow.errors import JobNotFoundError
from reconflow.outputs.runs import check_run_id
from reconflow.storage import ArtifactStore, open_store
from reconflow.storage.locations import scheme_of

_Run = Annotated[str, typer.Argument(metavar="RUN", help="The run id, or Prefect's id of the run.")]
_Out = Annotated[str, typer.Option("--out", "-o", metavar="PLACE", help="Where the results are: folder or s3://.")]


def link_command(
    run: _Run,
    out: _Out = "out",
    file: Annotated[str, typer.Option("--file", metavar="NAME", help="Which file; the archive when left out.")] = "",
    minutes: Annotated[int, typer.Option(min=1, max=7 * 24 * 60, help="How long the link works.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print the link as JSON on standard output.")] = False,  # noqa: FBT002
) -> None:
    """Print a link to one file of a finished run; whoever has it can read the file until it ends."""
    from flows.cli import reporting_errors

    console = Console(stderr=True)
    with reporting_errors(console, as_json=as_json), opened_store(out) as store:
        run_id = stored_run_id(run)
        name = file or f"{run_id}.zip"
        ends_at = datetime.now(UTC) + timedelta(minutes=minutes)
        url = store.link(run_id, name, minutes * 60)
    ends = f"{ends_at:%Y-%m-%d %H:%M} UTC" if scheme_of(url) != "file" else None
    if as_json:
        typer.echo(json.dumps({"run_id": run_id, "file": name, "url": url, "ends_at": ends}, indent=2))
        return
    typer.echo(url)
    if ends is not None:
        console.print(f"Whoever has this link can read {name} until {ends}.", highlight=False)


def fetch_command(
    run: _Run,
    out: _Out = "out",
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder that gets the run's folder.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,  # noqa: FBT002
) -> None:
    """Copy a finished run to this machine, every file checked."""
    from flows.cli import reporting_errors

    console = Console(stderr=True)
    with reporting_errors(console, as_json=as_json), opened_store(out) as store:
        folder = store.fetch_run(stored_run_id(run), to.expanduser())
    if as_json:
        typer.echo(json.dumps({"folder": str(folder)}, indent=2))
    else:
        console.print(f"The run is in {folder}.", highlight=False)


def stored_run_id(either_id: str) -> str:
    """Return the id under which a run's results are stored.

    Args:
        either_id: That id, or Prefect's id of the run.

    Raises:
        JobNotFoundError: There is no such run, or it has not got an id yet.
    """
    text = either_id.strip().lower()
    try:
        UUID(text)
    except ValueError:
        return check_run_id(text)
    from prefect.client.orchestration import get_client

    from flows.run_ids import find_flow_run, run_id_of

    with get_client(sync_client=True) as client:
        run_id = run_id_of(find_flow_run(client, text))
    if run_id is None:
        raise JobNotFoundError("The run has not begun, so it has no results.", suggestion="Wait for it to finish.")
    return run_id


@contextmanager
def opened_store(out: str) -> Iterator[ArtifactStore]:
    """Open a store for the length of a block of code.

    Args:
        out: A folder, `s3://bucket/prefix`, or `block://NAME`, for which the Prefect server is asked.
    """
    if scheme_of(out) != "block":
        yield open_store(out)
        return
    from blocks.artifact_store import using_locations

    with using_locations(out) as (uri,):
        yield open_store(uri)

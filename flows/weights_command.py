"""The commands `reconflow weights fetch|verify|status`: bringing the models' weights here, and checking them.

Which files there are, and where they come from, is in `reconflow.reconviagen`; nothing is fetched from the web unless
that is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from reconflow.storage.locations import scheme_of

if TYPE_CHECKING:
    from reconflow.progress import OnProgress

_INTO_HELP = "The folder of weights; the machine's own when left out."
_FROM_HELP = (
    "Where to take them from: a folder (also a Hugging Face snapshot or cache), s3://bucket/prefix, block://NAME, the "
    "word https for the published files, or the https address of a copy. Repeatable; each file is taken where it is "
    "found first."
)

_ANEW_HELP = "Record what is there now: files were replaced on purpose."
_ACCEPT_HELP = "I have read the licences that restrict use, and accept them."

weights_app = typer.Typer(no_args_is_help=True, help="The weights of reconviagen: fetch, verify, status.")


@weights_app.command("fetch")
def fetch_command(
    places: Annotated[list[str], typer.Option("--from", metavar="PLACE", help=_FROM_HELP)],
    into: Annotated[Path | None, typer.Option("--into", metavar="FOLDER", help=_INTO_HELP)] = None,
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help=_ACCEPT_HELP)] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Bring the files that are missing, and record their checksums."""
    console = Console(stderr=True)
    with _reporting(console, as_json=as_json) as on_progress:
        from reconflow.reconviagen.weight_sources import default_folder, fetch_weights

        with _resolved(places) as found:
            report = fetch_weights(
                found,
                (into or default_folder()).expanduser(),
                accept_licence=accept_licence,
                on_progress=on_progress,
            )
    if as_json:
        typer.echo(json.dumps(vars(report), indent=2))
        return
    console.print(f"{len(report.fetched)} files fetched, {len(report.present)} were there.", highlight=False)
    for source, licence in report.licences.items():
        console.print(f"{source}: {licence}", highlight=False)
    for note in report.notes:
        console.print(f"Note: {note}", highlight=False)


@weights_app.command("verify")
def verify_command(
    into: Annotated[Path | None, typer.Option("--into", metavar="FOLDER", help=_INTO_HELP)] = None,
    anew: Annotated[bool, typer.Option("--anew", help=_ANEW_HELP)] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="Print the checksums as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Read every file and compare it with what was recorded; record what was not."""
    console = Console(stderr=True)
    with _reporting(console, as_json=as_json) as on_progress:
        from reconflow.reconviagen.weight_sources import default_folder
        from reconflow.reconviagen.weights import WeightsFolder, digest_of
        from reconflow.reconviagen.weights_record import check_files

        folder = WeightsFolder((into or default_folder()).expanduser())
        checksums = check_files(folder, anew=anew, on_progress=on_progress)
    if as_json:
        typer.echo(json.dumps({"files": checksums, "digest": digest_of(checksums)}, indent=2))
    else:
        console.print(f"{len(checksums)} files are as recorded; together {digest_of(checksums)[:16]}.", highlight=False)


@weights_app.command("status")
def status_command(
    into: Annotated[Path | None, typer.Option("--into", metavar="FOLDER", help=_INTO_HELP)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the state as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Say what is there, what is missing, how large it is, and under which licence."""
    console = Console(stderr=True)
    with _reporting(console, as_json=as_json):
        from reconflow.reconviagen.weight_sources import default_folder
        from reconflow.reconviagen.weights import WeightsFolder, size_text
        from reconflow.reconviagen.weights_record import folder_state

        root = (into or default_folder()).expanduser()
        rows = folder_state(WeightsFolder(root))
    if as_json:
        typer.echo(json.dumps({"folder": str(root), "bundles": rows}, indent=2))
        return
    table = Table(title=str(root), title_justify="left")
    for column in ("weights", "files", "size", "checksums", "licence", "source"):
        table.add_column(column, overflow="fold")
    for row in rows:
        there = row["files"] - len(row["missing"])
        size = size_text(row["bytes"]) if there == row["files"] else f"about {size_text(row['about_bytes'])}"
        state = f"{there} of {row['files']}" if row["missing"] else f"all {there}"
        source = ", ".join([row["source"], *(f"from {place}" for place in row["from"])])
        licence = row["licence"] + _acceptance(row)
        table.add_row(row["title"], state, size, f"{row['recorded']} recorded", licence, source)
    Console().print(table)
    for row in rows:
        if row["note"]:
            Console().print(f"Note: {row['note']}", highlight=False)


def _acceptance(row: Mapping[str, Any]) -> str:
    """Say whether a licence that restricts use was accepted here."""
    if row["accepted"]:
        return " (accepted)"
    if not row["restricted"]:
        return ""
    return " (not accepted here)" if row["from"] else " (to be accepted)"


@contextmanager
def _resolved(places: Sequence[str]) -> Iterator[list[str]]:
    """Resolve the blocks among the places; without any, Prefect is not needed."""
    if not any(scheme_of(place) == "block" for place in places):
        yield list(places)
        return
    from blocks.model_weights import using_weights

    with using_weights(*places) as found:
        yield [uri for uri in found if uri is not None]


@contextmanager
def _reporting(console: Console, *, as_json: bool) -> Iterator[OnProgress]:
    """Turn failures into panels, and tell progress: a line for every file."""
    from flows.cli import reporting_errors

    told: set[str] = set()

    def report(step: int, total: int, message: str) -> None:  # noqa: ARG001 - called by these names
        if message not in told:
            told.add(message)
            console.print(message, highlight=False)

    with reporting_errors(console, as_json=as_json):
        yield report

"""The small JSON records of a store: a kept stage result, and the tombstone of an expired run. Moves no bytes.

A stage's files are stored under their content's hash, so that saving an entry again never changes a file that a reader
of the former entry is about to fetch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, Field, ValidationError

from reconflow.datasets.files import relative_name
from reconflow.errors import (
    IncompleteResultsError,
    InputError,
    JobExpiredError,
    JobNotFoundError,
    JobNotReadyError,
    ValidationFailedError,
)
from reconflow.outputs.files import sha256_of
from reconflow.outputs.package import MANIFEST_NAME, FileEntry, Manifest
from reconflow.storage.protocol import StoredStage, Targets

RESULT_NAME: Final = "result.json"
HOLDERS_NAME: Final = "holders"
"""The folder of an entry with an empty file for everybody who needs it."""
_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_ATTEMPTS: Final = 3


class StageFile(BaseModel, frozen=True, extra="forbid"):
    """A file of a kept stage result."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)

    def stored_name(self, name: str) -> str:
        """Return where the file is inside its entry."""
        return f"files/{self.sha256[:16]}/{name}"


FetchFiles = Callable[[Sequence[tuple[StageFile, str, Path]]], None]
"""Copies files of an entry, each with its description, its name inside the entry, and where it goes."""


class StageEntry(BaseModel, frozen=True, extra="forbid"):
    """The content of a kept stage's `result.json`."""

    format_version: int = 1
    result: dict[str, Any]
    files: dict[str, StageFile]

    def to_bytes(self) -> bytes:
        """Return the entry as it is stored."""
        return (self.model_dump_json(indent=2) + "\n").encode("utf-8")


class Tombstone(BaseModel, frozen=True, extra="forbid"):
    """What is left of an expired run."""

    run_id: str
    expired_at: datetime
    reason: str
    manifest: Manifest | None = None
    """Of the run, without its files: what it had been made from."""

    @classmethod
    def now(cls, run_id: str, reason: str, manifest: Manifest | None = None) -> Tombstone:
        """Return the tombstone of a run that expires at this moment."""
        kept = None if manifest is None else manifest.model_copy(update={"files": ()})
        return cls(run_id=run_id, expired_at=datetime.now(UTC).replace(microsecond=0), reason=reason, manifest=kept)

    def to_bytes(self) -> bytes:
        """Return the tombstone as it is stored."""
        return (self.model_dump_json(indent=2) + "\n").encode("utf-8")


def check_entry_name(stage: str, key: str) -> None:
    """Check that a stage's name and a key can be parts of a path.

    Raises:
        ValidationFailedError: They cannot.
    """
    for text in (stage, key):
        if not _NAME_PATTERN.fullmatch(text):
            raise ValidationFailedError(
                f"{text[:64]!r} cannot name a kept stage result.", suggestion="Use letters, digits, '_' and '-'."
            )


def make_entry(result: Mapping[str, Any], files: Mapping[str, Path]) -> StageEntry:
    """Describe a stage's result and the files that belong to it.

    Raises:
        IncompleteResultsError: A file is missing.
        ValidationFailedError: A file's name leads out of the entry.
    """
    described = {}
    for name, path in files.items():
        if relative_name(name) != name:
            raise ValidationFailedError(f"{name!r} cannot name a stage's file.", suggestion="Use a relative name.")
        if not path.is_file():
            raise IncompleteResultsError(
                f"The stage's file {name} is missing.", suggestion="Run the reconstruction again.", file=name
            )
        described[name] = StageFile(sha256=sha256_of(path), size=path.stat().st_size)
    return StageEntry(result=dict(result), files=described)


def find_entry(
    read: Callable[[], bytes | None],
    fetch: FetchFiles,
    discard: Callable[[], None],
    into: Targets,
    warnings: list[str] | None,
) -> StoredStage | None:
    """Return a kept result with its files fetched, or None.

    An entry that is found damaged while somebody saves it again is read again; only one that stays damaged is removed.

    Args:
        read: Returns the content of the entry's `result.json`, None when there is none.
        fetch: Copies files of the entry to paths, checked; raises `IncompleteResultsError` when one is damaged.
        discard: Removes the entry.
        into: Where the files go.
        warnings: Told of a damaged entry.
    """
    for _ in range(_ATTEMPTS):
        content = read()
        if content is None:
            return None
        try:
            return _fetched(content, fetch, into)
        except (ValidationError, IncompleteResultsError, InputError) as error:
            if read() == content:
                discard()
                if warnings is not None:
                    what = error.message if isinstance(error, IncompleteResultsError) else "Its record is damaged."
                    warnings.append(f"A kept stage result was unusable and has been removed. {what}")
                return None
    return None


def parse_manifest(content: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        IncompleteResultsError: It is damaged.
    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError:
        raise IncompleteResultsError(
            "The run's manifest cannot be read.", suggestion="Fetch the run again, or repeat it.", file=MANIFEST_NAME
        ) from None


def checked_entry(manifest: Manifest, run_id: str, name: str) -> FileEntry | None:
    """Return the manifest's entry of a file; None for the manifest itself.

    Raises:
        JobNotFoundError: The run has no such file.
    """
    entry = next((entry for entry in manifest.files if entry.path == name), None)
    if entry is None and name != MANIFEST_NAME:
        raise JobNotFoundError(
            f"The run {run_id} has no file {name[:120]!r}.",
            suggestion="Choose one that the run's manifest lists, like nvdiffrec/mesh.glb.",
            run_id=run_id,
            files=[entry.path for entry in manifest.files],
        )
    return entry


def missing_run(run_id: str, tombstone: bytes | None, *, begun: bool) -> Exception:
    """Return why a run without a manifest cannot be read.

    Args:
        run_id: The run.
        tombstone: The content of its tombstone, if it has one.
        begun: Whether anything of it is stored.
    """
    if tombstone is not None:
        return _expired(run_id, tombstone)
    if begun:
        return JobNotReadyError(
            "The run has no manifest, so it has no result yet.",
            suggestion="Wait for the run to finish, or look at its state.",
            run_id=run_id,
        )
    return JobNotFoundError(f"There is no run {run_id}.", suggestion="Check the run id and the folder.", run_id=run_id)


def _expired(run_id: str, content: bytes) -> JobExpiredError:
    try:
        stone = Tombstone.model_validate_json(content)
    except ValidationError:
        return JobExpiredError(f"The run {run_id} has expired.", suggestion="Run it again.", run_id=run_id)
    return JobExpiredError(
        f"The results of run {run_id} were removed on {stone.expired_at:%Y-%m-%d %H:%M} UTC: {stone.reason}.",
        suggestion="Run the reconstruction again; pin runs that have to stay.",
        run_id=run_id,
        expired_at=stone.expired_at.isoformat(),
        reason=stone.reason,
    )


def _fetched(content: bytes, fetch: FetchFiles, into: Targets) -> StoredStage:
    entry = StageEntry.model_validate_json(content)
    placed: dict[str, Path] = {}
    for name in entry.files:
        if relative_name(name) != name:
            raise IncompleteResultsError("It names a file outside of itself.", suggestion="Run it again.")
        target = into(name) if callable(into) else into.get(name)
        if target is not None:
            placed[name] = target
    fetch([(entry.files[name], entry.files[name].stored_name(name), target) for name, target in placed.items()])
    return StoredStage(entry.result, placed)

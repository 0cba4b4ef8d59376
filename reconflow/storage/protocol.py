"""What a place for results must be able to do, and the small records it hands out. No place is known here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from reconflow.outputs.package import Manifest

Targets: TypeAlias = Mapping[str, Path] | Callable[[str], Path]
"""Where the files of a stage go, by their names; files that a mapping leaves out are not fetched."""


@dataclass(frozen=True)
class Workspace:
    """The local folders of one run.

    Attributes:
        run_id: The run's identifier.
        root: Where its results are written; in a local store `runs/<run-id>` itself.
        work: Where stages hand each other intermediate files; not part of the result.
    """

    run_id: str
    root: Path
    work: Path


@dataclass(frozen=True)
class StoredStage:
    """A stage's result out of the cache, every file checked.

    Attributes:
        result: What the stage returned, JSON-able.
        files: Where each fetched file is now, by name.
    """

    result: dict[str, Any]
    files: dict[str, Path]


@dataclass(frozen=True)
class PublishedRun:
    """A run that readers can see, from a listing alone.

    Attributes:
        run_id: Its identifier.
        published_at: When its manifest was written, with a time zone.
    """

    run_id: str
    published_at: datetime


@dataclass(frozen=True)
class Sweepings:
    """What a clean-up removed.

    Attributes:
        uploads: Unfinished uploads, which no reader ever saw.
        files: Temporary files and folders.
        stages: Entries of the stage cache.
    """

    uploads: int = 0
    files: int = 0
    stages: int = 0


class ArtifactStore(Protocol):
    """A place for results: a local folder or an object store.

    Every method raises `StorageUnreachableError` (retryable) when the place does not answer, and
    `StorageRefusedError` when it answers and refuses.
    """

    @property
    def uri(self) -> str:
        """The place, as the user wrote it."""

    def prepare(self) -> None:
        """Make the place ready to be written, or say why it cannot be."""

    # one run

    def open_workspace(self, run_id: str) -> Workspace:
        """Return local folders to write a run in; the same ones again for the same run."""

    def begin_attempt(self, run_id: str) -> None:
        """Remove what killed attempts left outside of the run's folders; whoever calls this holds the run's lock."""

    def publish(self, workspace: Workspace) -> str:
        """Make a finished run visible to readers, manifest last, and return where it is."""

    def discard_work(self, workspace: Workspace) -> None:
        """Remove what is local and not part of the result; the last thing that is done with a workspace."""

    def discard_unfinished(self, run_id: str) -> None:
        """Remove what a run that was never published left behind; a published run stays as it is."""

    # finished runs

    def run_ids(self) -> list[str]:
        """Return the identifiers of the published runs, sorted."""

    def published_runs(self) -> list[PublishedRun]:
        """Return the published runs, sorted by their identifiers."""

    def read_manifest(self, run_id: str) -> Manifest:
        """Return a published run's manifest."""

    def read_file(self, run_id: str, name: str) -> bytes:
        """Return a small file of a published run."""

    def fetch_run(self, run_id: str, into: Path) -> Path:
        """Copy a published run to `into/<run-id>`, every file checked, and return that folder."""

    def link(self, run_id: str, name: str, seconds: int) -> str:
        """Return a URL of one file of a published run; where links are secrets it ends after `seconds`."""

    def delete_run(self, run_id: str, reason: str) -> None:
        """Expire a published run: from now on reading it answers JOB_EXPIRED with the reason."""

    def pin(self, run_id: str, *, pinned: bool = True) -> None:
        """Protect a run from expiry, or no longer."""

    def pinned_runs(self) -> frozenset[str]:
        """Return the identifiers of the protected runs."""

    # the stage cache

    def save_stage(self, stage: str, key: str, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Keep a stage's result under the key of its inputs; visible at once and whole, or not at all."""

    def find_stage(self, stage: str, key: str, into: Targets, warnings: list[str] | None = None) -> StoredStage | None:
        """Return a kept result after checking every file, or None; a damaged one is removed and noted in `warnings`."""

    def hold_stage(self, stage: str, key: str, holder: str) -> None:
        """Note that somebody needs the result under this key, whether it is there or not."""

    def discard_stages(self, keys: Iterable[str], holder: str | None = None) -> None:
        """Remove the kept results under these keys, of whatever stage.

        Args:
            keys: Of the results.
            holder: Who does not need them any more; those that others have noted stay. Everything goes when None.
        """

    # upkeep

    def sweep(self, older_than_s: float) -> Sweepings:
        """Remove unfinished uploads and temporary files that nobody has touched for that long."""

    def sweep_stages(self, older_than_s: float) -> Sweepings:
        """Remove kept stage results that were made before that long ago."""

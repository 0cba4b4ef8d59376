"""Where runs are stored and found again. Names inside a run live in `reconflow.outputs.runs`; nothing here computes.

A run becomes visible with its `manifest.json`, which is written last: a folder without one does not exist for a reader.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from reconflow.errors import (
    DiskFullError,
    JobNotFoundError,
    StorageUnreachableError,
    ValidationFailedError,
)
from reconflow.outputs.package import Manifest, read_manifest
from reconflow.outputs.runs import check_run_id


@dataclass(frozen=True)
class Workspace:
    """The local folders of one run.

    Attributes:
        run_id: The run's identifier.
        root: Where its results are written, `runs/<run-id>`.
        work: Where stages hand each other intermediate files; not part of the result.
    """

    run_id: str
    root: Path
    work: Path


class ArtifactStore(Protocol):
    """What a place for results must be able to do; the local folder is the first, an object store fits as well."""

    @property
    def uri(self) -> str:
        """The place, as the user wrote it."""

    def prepare(self) -> None:
        """Make the place ready to be written, or say why it cannot be."""

    def open_workspace(self, run_id: str) -> Workspace:
        """Return local folders to write a run in; the same ones again for the same run."""

    def publish(self, workspace: Workspace) -> str:
        """Make a finished run visible to readers, manifest last, and return where it is."""

    def discard_work(self, workspace: Workspace) -> None:
        """Remove the run's intermediate files."""

    def run_ids(self) -> list[str]:
        """Return the identifiers of the published runs, sorted."""

    def read_manifest(self, run_id: str) -> Manifest:
        """Return a published run's manifest."""


@dataclass(frozen=True)
class LocalStore:
    """Results in a local folder: `<folder>/runs/<run-id>/`, intermediates in `<folder>/.work/<run-id>/`.

    Attributes:
        folder: The folder that the user named.
    """

    folder: Path

    @property
    def uri(self) -> str:
        """The folder's path."""
        return str(self.folder)

    def prepare(self) -> None:
        """Create the folder and check that it can be written.

        Raises:
            StorageUnreachableError: It cannot.
            DiskFullError: There is no room in it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"writable")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFullError(
                    "There is no room on the disk for the results.",
                    suggestion="Free some space, or choose another --out folder.",
                ) from error
            if error.errno in (errno.EEXIST, errno.ENOTDIR):
                file = next(path for path in (self.folder, *self.folder.parents) if path.exists())
                raise StorageUnreachableError(
                    f"The results need a folder, but {file.name} is a file.", suggestion="Choose another --out folder."
                ) from error
            raise StorageUnreachableError(
                f"The output folder cannot be written ({error.strerror}).",
                suggestion="Choose another --out folder, or make this one writable.",
            ) from error

    def open_workspace(self, run_id: str) -> Workspace:
        """Create the run's two folders."""
        check_run_id(run_id)
        workspace = Workspace(run_id, self.folder / "runs" / run_id, self.folder / ".work" / run_id)
        workspace.root.mkdir(parents=True, exist_ok=True)
        workspace.work.mkdir(parents=True, exist_ok=True)
        return workspace

    def publish(self, workspace: Workspace) -> str:
        """Check that the manifest stands; the files are in their place already."""
        self.read_manifest(workspace.run_id)
        return str(workspace.root)

    def discard_work(self, workspace: Workspace) -> None:
        """Remove the run's intermediate files, and their parent when no other run has any."""
        shutil.rmtree(workspace.work, ignore_errors=True)
        parent = workspace.work.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()

    def run_ids(self) -> list[str]:
        """Return the identifiers of the runs that have a manifest, sorted."""
        return sorted(manifest.parent.name for manifest in (self.folder / "runs").glob("*/manifest.json"))

    def read_manifest(self, run_id: str) -> Manifest:
        """Return a run's manifest.

        Raises:
            JobNotFoundError: There is no such run.
            JobNotReadyError: It has not finished.
            IncompleteResultsError: The manifest is damaged.
        """
        root = self.folder / "runs" / check_run_id(run_id)
        if not root.is_dir():
            raise JobNotFoundError(
                f"There is no run {run_id}.", suggestion="Check the run id and the folder.", run_id=run_id
            )
        return read_manifest(root)


def open_store(uri: str | Path) -> ArtifactStore:
    """Return the artifact store at a location.

    Args:
        uri: A local folder; it need not exist yet.

    Raises:
        ValidationFailedError: The location is of a kind that this version cannot write to.
    """
    text = str(uri)
    if "://" in text:
        raise ValidationFailedError(
            f"Results cannot be stored at {text.split('://')[0]}:// locations.",
            suggestion="Give a local folder.",
            scheme=text.split("://")[0],
        )
    return LocalStore(Path(text).expanduser())

"""The artifact store in a local folder. Its layout is the one of `docs/storage.md`, with the stage cache hidden."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Final

from reconflow.errors import IncompleteResultsError, StorageUnreachableError
from reconflow.failures import folder_errors
from reconflow.outputs.files import replacing, write_bytes
from reconflow.outputs.package import MANIFEST_NAME, FileEntry, Manifest, read_manifest
from reconflow.outputs.runs import check_run_id
from reconflow.run_lock import remove_abandoned
from reconflow.storage.entries import (
    HOLDERS_NAME,
    RESULT_NAME,
    StageFile,
    Tombstone,
    check_entry_name,
    checked_entry,
    find_entry,
    make_entry,
    missing_run,
)
from reconflow.storage.packages import fetch_package
from reconflow.storage.protocol import PublishedRun, StoredStage, Sweepings, Targets, Workspace
from reconflow.storage.scratch import touched_s

_CHUNK_BYTES: Final = 1 << 20
_WRITE_ATTEMPTS: Final = 100
_folder_errors = partial(
    folder_errors, "output folder", "Make it writable and free some space there, or choose another --out folder."
)


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

    @_folder_errors()
    def prepare(self) -> None:
        """Create the folder and check that it can be written.

        Raises:
            StorageUnreachableError, StorageRefusedError: It cannot.
            DiskFullError: There is no room in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder) as probe:
            probe.write(b"writable")

    @_folder_errors()
    def open_workspace(self, run_id: str) -> Workspace:
        """Create the run's two folders."""
        workspace = Workspace(run_id, self._run(run_id), self.folder / ".work" / run_id)
        workspace.root.mkdir(parents=True, exist_ok=True)
        workspace.work.mkdir(parents=True, exist_ok=True)
        return workspace

    def begin_attempt(self, run_id: str) -> None:
        """Do nothing: there is nothing outside of the run's folders."""

    @_folder_errors()
    def publish(self, workspace: Workspace) -> str:
        """Check that the manifest stands; the files are in their place already."""
        self.read_manifest(workspace.run_id)
        return str(workspace.root)

    @_folder_errors()
    def discard_work(self, workspace: Workspace) -> None:
        """Remove the run's intermediate files, and their parent when no other run has any."""
        _remove(workspace.work)
        _remove_empty(workspace.work.parent)

    @_folder_errors()
    def discard_unfinished(self, run_id: str) -> None:
        """Remove the run's intermediate and temporary files, and its folder unless it was published."""
        root = self._run(run_id)
        self.discard_work(Workspace(run_id, root, self.folder / ".work" / run_id))
        if not (root / MANIFEST_NAME).is_file():
            _remove(root)
        for path in root.rglob(".*.part"):
            _remove(path)

    @_folder_errors()
    def run_ids(self) -> list[str]:
        """Return the identifiers of the runs that have a manifest, sorted."""
        return sorted(manifest.parent.name for manifest in (self.folder / "runs").glob(f"*/{MANIFEST_NAME}"))

    @_folder_errors()
    def published_runs(self) -> list[PublishedRun]:
        """Return the runs that have a manifest, with its time, sorted."""
        runs = []
        for run_id in self.run_ids():
            with suppress(FileNotFoundError):
                modified_s = (self.folder / "runs" / run_id / MANIFEST_NAME).stat().st_mtime
                runs.append(PublishedRun(run_id, datetime.fromtimestamp(modified_s, UTC)))
        return runs

    @_folder_errors()
    def read_manifest(self, run_id: str) -> Manifest:
        """Return a run's manifest.

        Raises:
            JobNotFoundError: There is no such run.
            JobNotReadyError: It has not finished.
            JobExpiredError: Its results were removed.
            IncompleteResultsError: The manifest is damaged.
        """
        root = self._run(run_id)
        if not (root / MANIFEST_NAME).is_file():
            raise missing_run(run_id, _read(self._tombstone(run_id)), begun=root.is_dir())
        return read_manifest(root)

    @_folder_errors()
    def read_file(self, run_id: str, name: str) -> bytes:
        """Return a small file of a published run.

        Raises:
            JobNotFoundError: The run has no such file.
            IncompleteResultsError: It is missing or has changed.
        """
        entry = checked_entry(self.read_manifest(run_id), run_id, name)
        content = _read(self._run(run_id) / name)
        if content is None or (entry is not None and hashlib.sha256(content).hexdigest() != entry.sha256):
            raise _damaged(name)
        return content

    def fetch_run(self, run_id: str, into: Path) -> Path:
        """Copy a published run to `into/<run-id>`, every file checked."""
        root = self._run(run_id)
        manifest = self.read_manifest(run_id)

        def copy(entries: Sequence[FileEntry], folder: Path) -> None:
            for entry in entries:
                _copy_checked(root / entry.path, folder / entry.path, entry.sha256)

        return fetch_package(run_id, into, manifest, (root / MANIFEST_NAME).read_bytes(), copy)

    def link(self, run_id: str, name: str, seconds: int) -> str:  # noqa: ARG002 - a file's URL does not end
        """Return the file's URL on this machine.

        Raises:
            JobNotFoundError: The run has no such file.
        """
        checked_entry(self.read_manifest(run_id), run_id, name)
        return (self._run(run_id) / name).resolve().as_uri()

    @_folder_errors()
    def delete_run(self, run_id: str, reason: str) -> None:
        """Leave a tombstone, then remove the manifest, then the rest."""
        manifest = self.read_manifest(run_id)
        write_bytes(self._tombstone(run_id), Tombstone.now(run_id, reason, manifest).to_bytes())
        (self._run(run_id) / MANIFEST_NAME).unlink(missing_ok=True)
        _remove(self._run(run_id))

    @_folder_errors()
    def pin(self, run_id: str, *, pinned: bool = True) -> None:
        """Create or remove the run's pin."""
        path = self.folder / "pins" / check_run_id(run_id)
        if pinned:
            write_bytes(path, b"")
        else:
            path.unlink(missing_ok=True)

    @_folder_errors()
    def pinned_runs(self) -> frozenset[str]:
        """Return the identifiers that have a pin."""
        return frozenset(path.name for path in (self.folder / "pins").glob("[a-z0-9]*"))

    @_folder_errors()
    def save_stage(self, stage: str, key: str, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Copy the files into the entry, then write its `result.json`.

        Raises:
            DiskFullError: There is no room.
            StorageUnreachableError: Others remove the entry again and again.
        """
        entry, folder = make_entry(result, files), self._stage(stage, key)
        stored = {name: folder / file.stored_name(name) for name, file in entry.files.items()}
        for _ in _attempts_against_removal():
            with suppress(FileNotFoundError):
                for name, file in entry.files.items():
                    _copy_checked(files[name], stored[name], file.sha256)
                write_bytes(folder / RESULT_NAME, entry.to_bytes())
                if all(path.is_file() for path in stored.values()):
                    return

    @_folder_errors()
    def find_stage(self, stage: str, key: str, into: Targets, warnings: list[str] | None = None) -> StoredStage | None:
        """Return a kept result with its files copied and checked, or None."""
        folder = self._stage(stage, key)

        def fetch(files: Sequence[tuple[StageFile, str, Path]]) -> None:
            for file, stored, target in files:
                _copy_checked(folder / stored, target, file.sha256)

        return find_entry(lambda: _read(folder / RESULT_NAME), fetch, lambda: _empty_entry(folder), into, warnings)

    @_folder_errors()
    def hold_stage(self, stage: str, key: str, holder: str) -> None:
        """Write the holder's empty file into the entry."""
        check_entry_name(stage, holder)
        for _ in _attempts_against_removal():
            with suppress(FileNotFoundError):
                write_bytes(self._stage(stage, key) / HOLDERS_NAME / holder, b"")
                return

    @_folder_errors()
    def discard_stages(self, keys: Iterable[str], holder: str | None = None) -> None:
        """Remove the entries under these keys that nobody else holds."""
        for key in keys:
            check_entry_name("any", key)
            for folder in (self.folder / ".stages").glob(f"*/{key}"):
                if holder is not None:
                    (folder / HOLDERS_NAME / holder).unlink(missing_ok=True)
                    if any((folder / HOLDERS_NAME).glob("[!.]*")):
                        continue
                _remove_entry(folder)
                _remove_empty(folder.parent)
        _remove_empty(self.folder / ".stages")

    @_folder_errors()
    def sweep(self, older_than_s: float) -> Sweepings:
        """Remove temporary files, and intermediate files of runs, untouched for that long."""
        before_s = time.time() - older_than_s
        files = [path for path in self.folder.rglob(".*.part") if touched_s(path) < before_s]
        for path in files:
            _remove(path)
        works = [work for work in (self.folder / ".work").glob("*") if touched_s(work) < before_s]
        removed = sum(remove_abandoned(work, work) for work in works)
        _remove_empty(self.folder / ".work")
        return Sweepings(files=len(files) + removed)

    @_folder_errors()
    def sweep_stages(self, older_than_s: float) -> Sweepings:
        """Remove the entries of the stage cache made before that long ago."""
        before_s = time.time() - older_than_s
        old = [folder for folder in (self.folder / ".stages").glob("*/*") if touched_s(folder) < before_s]
        for folder in old:
            _remove_entry(folder)
        return Sweepings(stages=len(old))

    def _run(self, run_id: str) -> Path:
        return self.folder / "runs" / check_run_id(run_id)

    def _tombstone(self, run_id: str) -> Path:
        return self.folder / "expired" / f"{check_run_id(run_id)}.json"

    def _stage(self, stage: str, key: str) -> Path:
        check_entry_name(stage, key)
        return self.folder / ".stages" / stage / key


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _copy_checked(source: Path, target: Path, sha256: str) -> None:
    """Copy a file whose content is known; the target appears only when it is that content."""
    digest = hashlib.sha256()
    try:
        stream = source.open("rb")
    except FileNotFoundError:
        raise _damaged(source.name) from None
    with stream, replacing(target) as copied:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            copied.write(chunk)
        if digest.hexdigest() != sha256:
            raise _damaged(source.name)


def _damaged(name: str) -> IncompleteResultsError:
    return IncompleteResultsError(
        f"{Path(name).name} is missing or is not what was stored.",
        suggestion="Run the reconstruction again.",
        file=Path(name).name,
    )


def _attempts_against_removal() -> Iterator[None]:
    """Count attempts at writing into an entry whose folder others may remove meanwhile.

    Raises:
        StorageUnreachableError: There have been enough.
    """
    yield from repeat(None, _WRITE_ATTEMPTS)
    raise StorageUnreachableError(
        "Other runs keep removing the stage result that is being written.", suggestion="Run it again."
    )


def _empty_entry(folder: Path) -> None:
    """Remove a kept result, its record first, so that nobody finds a record without its files; its holders stay."""
    (folder / RESULT_NAME).unlink(missing_ok=True)
    _remove(folder / "files")
    _remove_empty(folder)


def _remove_entry(folder: Path) -> None:
    """Remove a kept result and its holders, its record first."""
    (folder / RESULT_NAME).unlink(missing_ok=True)
    _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        with suppress(OSError):
            folder.rmdir()

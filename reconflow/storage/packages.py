"""Copying a whole published run, checked, into a local folder that appears complete or not at all. Knows no store."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from reconflow.datasets.files import relative_name
from reconflow.errors import IncompleteResultsError, InputError, JobNotReadyError, ValidationFailedError
from reconflow.outputs.files import write_bytes
from reconflow.outputs.package import MANIFEST_NAME, FileEntry, Manifest, verify_package

CopyFiles = Callable[[Sequence[FileEntry], Path], None]


def fetch_package(run_id: str, into: Path, manifest: Manifest, content: bytes, copy: CopyFiles) -> Path:
    """Copy a run to `into/<run-id>`; one that is there already and whole is kept.

    Args:
        run_id: The run.
        into: The folder that gets the run's folder.
        manifest: What the run consists of.
        content: The manifest as it is stored.
        copy: Copies files below a folder, under their paths.

    Raises:
        ValidationFailedError: Something else is in the way.
        IncompleteResultsError: A file is not what the manifest says.
    """
    target = into / run_id
    if target.exists() and _is_same_run(target, manifest):
        return target
    if target.exists() and any(target.iterdir()):
        raise ValidationFailedError(
            f"There is another {run_id} in the folder already.", suggestion="Choose another folder, or remove it."
        )
    for entry in manifest.files:
        _expect_inside(entry)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=into, prefix=f".{run_id}.", suffix=".part") as temporary:
        folder = Path(temporary) / run_id
        folder.mkdir()
        copy(manifest.files, folder)
        write_bytes(folder / MANIFEST_NAME, content)
        verify_package(folder)
        if target.exists():
            target.rmdir()
        shutil.move(folder, target)
    return target


def _is_same_run(folder: Path, manifest: Manifest) -> bool:
    try:
        return verify_package(folder) == manifest
    except (IncompleteResultsError, JobNotReadyError):
        return False


def _expect_inside(entry: FileEntry) -> None:
    try:
        inside = relative_name(entry.path) == entry.path
    except InputError:
        inside = False
    if not inside:
        raise IncompleteResultsError(
            "The run's manifest names a file outside of the run.", suggestion="Do not use this run."
        )

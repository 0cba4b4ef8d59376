"""What is recorded of the files with weights: their checksums, and which licences were accepted.

A checksum is never assumed: the first fetch or use of a file records it in `weights.lock.json` beside the files, and
every later one is compared with that.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconflow.errors import WeightsInvalidError
from reconflow.outputs.files import sha256_of, write_json
from reconflow.progress import OnProgress, ignore_progress
from reconflow.reconviagen.weights import (
    LOCK_NAME,
    WeightFile,
    WeightsFolder,
    digest_of,
    fault,
    invalid_error,
    missing_error,
)


@dataclass
class WeightsLock:
    """What was recorded of the files in a folder.

    Attributes:
        path: The lock file.
        files: Per file `sha256`, `size` and `mtime_ns` at its recording.
        accepted: Sources whose restricting licences were accepted.
    """

    path: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> WeightsLock:
        """Read a lock file; an empty one when there is none.

        Raises:
            WeightsInvalidError: It is damaged.
        """
        if not path.is_file():
            return cls(path)
        try:
            content = json.loads(path.read_text("utf-8"))
            return cls(path, dict(content["files"]), list(content["accepted_licences"]))
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsInvalidError(
                f"{LOCK_NAME} is damaged.",
                suggestion="Remove it; the checksums are recorded anew at the next use.",
                faults=[{"file": LOCK_NAME, "message": "damaged"}],
            ) from error

    def record(self, file: WeightFile, path: Path, sha256: str) -> None:
        """Take note of a file's checksum."""
        facts = path.stat()
        self.files[file.name] = {"sha256": sha256, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}

    def write(self) -> None:
        """Write the lock file."""
        write_json(self.path, {"files": self.files, "accepted_licences": sorted(set(self.accepted))})


def check_files(
    folder: WeightsFolder, *, thoroughly: bool = True, on_progress: OnProgress = ignore_progress
) -> dict[str, str]:
    """Compare every file with what was recorded of it, and record those of which nothing was.

    Args:
        folder: The weights.
        thoroughly: Read every file; else only those whose size or time has changed since they were recorded.
        on_progress: Told of every file.

    Returns:
        SHA-256 by file.

    Raises:
        WeightsMissingError: A file is missing.
        WeightsInvalidError: A file is not what was recorded; all of them are listed.
    """
    missing = folder.missing()
    if missing:
        raise missing_error(missing)
    lock, files, found, faults = read_lock(folder), folder.files(), {}, []
    recorded = len(lock.files)
    for index, file in enumerate(files):
        on_progress(index, len(files), f"checking {file.name}")
        path = folder.need(file)
        known = lock.files.get(file.name)
        facts = path.stat()
        if file.size is not None and facts.st_size != file.size:
            faults.append(fault(file, f"{facts.st_size} bytes instead of {file.size}"))
        elif known is None or thoroughly or (known["size"], known["mtime_ns"]) != (facts.st_size, facts.st_mtime_ns):
            found[file.name] = sha256_of(path)
            expected = file.sha256 or (known or {}).get("sha256")
            if expected not in (None, found[file.name]):
                faults.append(fault(file, "its content is not what was recorded"))
            lock.record(file, path, found[file.name])
        else:
            found[file.name] = known["sha256"]
    if faults:
        raise invalid_error(faults)
    if len(lock.files) > recorded:
        with suppress(OSError):  # a folder that cannot be written to is read anew at every use
            lock.write()
    return found


def recorded_digest(folder: WeightsFolder) -> str | None:
    """Return the name of the weights in a folder by what was recorded of them, without reading them.

    Returns:
        As `digest_of` what `check_files` finds; None when a file is missing, was never recorded, or has changed since.

    Raises:
        WeightsInvalidError: The record or `pipeline.json` is damaged.
    """
    lock, checksums = read_lock(folder), dict[str, str]()
    for file in folder.files():
        path, known = folder.find(file), lock.files.get(file.name)
        if path is None or known is None:
            return None
        facts = path.stat()
        if (known["size"], known["mtime_ns"]) != (facts.st_size, facts.st_mtime_ns):
            return None
        checksums[file.name] = known["sha256"]
    return digest_of(checksums)


def read_lock(folder: WeightsFolder) -> WeightsLock:
    """Return what was recorded of the files in a folder.

    Raises:
        WeightsInvalidError: The record is damaged.
    """
    return WeightsLock.read(folder.root / LOCK_NAME)


def folder_state(folder: WeightsFolder) -> list[dict[str, Any]]:
    """Tell of every bundle what is there, as JSON-able rows: files, those missing, bytes, licence, what is recorded."""
    files, lock, rows = folder.files(), read_lock(folder), []
    for bundle in dict.fromkeys(file.bundle for file in files):
        own = [file for file in files if file.bundle == bundle]
        found = {file.name: path for file in own if (path := folder.find(file)) is not None}
        rows.append(
            {
                "bundle": bundle.name,
                "title": bundle.title,
                "source": bundle.source,
                "licence": bundle.licence,
                "restricted": bundle.restricted,
                "files": len(own),
                "missing": [file.name for file in own if file.name not in found],
                "bytes": sum(path.stat().st_size for path in found.values()),
                "about_bytes": sum(file.about_bytes for file in own),
                "recorded": sum(name in lock.files for name in found),
                "accepted": bundle.source in lock.accepted,
            }
        )
    return rows

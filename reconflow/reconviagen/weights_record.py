"""What is recorded of the files with weights: their checksums, where they came from, which licences were accepted.

A checksum is never assumed: the first fetch or use of a file records it in `weights.lock.json` beside the files, and
every later one is compared with that. Of a folder that cannot be written to, the machine's cache keeps the record.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from reconflow.errors import DiskFullError, WeightsInvalidError
from reconflow.outputs.files import sha256_of, write_json
from reconflow.progress import OnProgress, ignore_progress
from reconflow.reconviagen.weights import (
    LOCK_NAME,
    Bundle,
    WeightFile,
    WeightsFolder,
    digest_of,
    fault,
    invalid_error,
    missing_error,
)
from reconflow.storage.cache import cache_root

_SUGGESTION: Final = (
    "Remove the files named and fetch them again. If they were replaced on purpose, run "
    "`reconflow weights verify --anew`, with --into FOLDER for another folder than the machine's own."
)


@dataclass
class WeightsLock:
    """What was recorded of the files in a folder.

    Attributes:
        root: The folder.
        files: Per file `sha256`, `size` and `mtime_ns` at its recording; of those from an object store `from` and
            `etag` as well, of those that may be of another revision than is meant a `note`.
        accepted: Sources whose restricting licences were accepted.
    """

    root: Path
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> WeightsLock:
        """Return what is recorded in a folder, and on this machine of its files as they are there.

        Raises:
            WeightsInvalidError: The record in the folder is damaged.
        """
        files, accepted = _read_record(root / LOCK_NAME)
        with suppress(WeightsInvalidError):  # what is damaged in the cache is written anew
            seen, here = _read_record(_machine_record(root))
            files |= {name: facts for name, facts in seen.items() if _same_content(files.get(name, facts), facts)}
            accepted += here
        return cls(root, files, accepted)

    def record(
        self, file: WeightFile, facts: os.stat_result, sha256: str, origin: Mapping[str, str] | None = None
    ) -> None:
        """Take note of a file.

        Args:
            file: Of the model.
            facts: Its state before it was read.
            sha256: Of its content.
            origin: Where it came from; None when it is where it was.
        """
        kept = self.files.get(file.name, {}) if origin is None else origin
        self.files[file.name] = {**kept, "sha256": sha256, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}

    def write(self) -> None:
        """Write the record into the folder, or where that cannot be written to, into the machine's cache.

        Raises:
            OSError, DiskFullError: Neither can be written to.
        """
        content = {"files": self.files, "accepted_licences": sorted(set(self.accepted))}
        try:
            write_json(self.root / LOCK_NAME, content)
        except (OSError, DiskFullError):
            write_json(_machine_record(self.root), content)
        else:
            with suppress(OSError):
                _machine_record(self.root).unlink(missing_ok=True)


def check_files(
    folder: WeightsFolder,
    *,
    thoroughly: bool = True,
    anew: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, str]:
    """Compare every file with what was recorded of it, and record what was not, or is another file of that content.

    Args:
        folder: The weights.
        thoroughly: Read every file; else only those whose size or time has changed since they were recorded.
        anew: Record what is there now, also where something else was recorded.
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
    lock, files, found, faults = read_lock(folder), folder.files(), dict[str, str](), list[dict[str, str]]()
    before = dict(lock.files)
    for index, file in enumerate(files):
        on_progress(index, len(files), f"checking {file.name}")
        path = folder.need(file)
        known, facts = lock.files.get(file.name), path.stat()
        if file.size is not None and facts.st_size != file.size:
            faults.append(fault(file, f"{facts.st_size} bytes instead of {file.size}"))
        elif known is None or thoroughly or not _is_as_recorded(known, facts):
            found[file.name] = sha256_of(path)
            replaced = known is not None and known["sha256"] != found[file.name]
            if file.sha256 not in (None, found[file.name]):
                faults.append(fault(file, "its content is not what is published"))
            elif replaced and not anew:
                faults.append(fault(file, "its content is not what was recorded"))
            lock.record(file, facts, found[file.name], {} if replaced else None)
        else:
            found[file.name] = known["sha256"]
    if faults:
        raise invalid_error(faults, _SUGGESTION)
    if lock.files != before:
        with suppress(OSError, DiskFullError):  # where nothing can be written, the files are read at every use
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
        if not _is_as_recorded(known, path.stat()):
            return None
        checksums[file.name] = known["sha256"]
    return digest_of(checksums)


def read_lock(folder: WeightsFolder) -> WeightsLock:
    """Return what was recorded of the files in a folder.

    Raises:
        WeightsInvalidError: The record is damaged.
    """
    return WeightsLock.read(folder.root)


def revision_notes(folder: WeightsFolder) -> dict[Bundle, str]:
    """Say which bundles are not known to be of the revision meant, where they are or where they were copied from.

    Raises:
        WeightsInvalidError: The record or `pipeline.json` is damaged.
    """
    lock, notes = read_lock(folder), dict[Bundle, str]()
    for file in folder.files():
        note = folder.note(file.bundle) or lock.files.get(file.name, {}).get("note")
        if note is not None and folder.find(file) is not None:
            notes.setdefault(file.bundle, note)
    return notes


def folder_state(folder: WeightsFolder) -> list[dict[str, Any]]:
    """Tell of every bundle what is there, as JSON-able rows: files, those missing, bytes, licence, what is recorded."""
    files, lock, notes, rows = folder.files(), read_lock(folder), revision_notes(folder), []
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
                "from": sorted({lock.files[name]["from"] for name in found if "from" in lock.files.get(name, {})}),
                "note": notes.get(bundle),
            }
        )
    return rows


def _read_record(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Read facts of files and accepted sources; nothing of either when there is no such file.

    Raises:
        WeightsInvalidError: It is damaged.
    """
    if not path.is_file():
        return {}, []
    try:
        content = json.loads(path.read_text("utf-8"))
        files, accepted = dict(content["files"]), list(content["accepted_licences"])
        sound = all(_is_entry(facts) for facts in files.values()) and all(isinstance(name, str) for name in accepted)
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise WeightsInvalidError(
            f"{LOCK_NAME} is damaged.",
            suggestion="Remove it; the checksums are recorded anew at the next use.",
            faults=[{"file": LOCK_NAME, "message": "damaged"}],
        )
    return files, accepted


def _is_entry(facts: object) -> bool:
    if not isinstance(facts, dict):
        return False
    texts = [facts.get("sha256"), *(facts.get(name, "") for name in ("from", "etag", "note"))]
    numbers = [facts.get(name) for name in ("size", "mtime_ns")]
    return all(isinstance(text, str) for text in texts) and all(isinstance(number, int) for number in numbers)


def _machine_record(root: Path) -> Path:
    """Return where this machine records of a folder what cannot be recorded in it."""
    name = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return cache_root() / "weights" / "records" / f"{name}.json"


def _same_content(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["sha256"] == other["sha256"])


def _is_as_recorded(known: Mapping[str, Any], facts: os.stat_result) -> bool:
    return (known["size"], known["mtime_ns"]) == (facts.st_size, facts.st_mtime_ns)

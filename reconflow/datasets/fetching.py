"""Bringing a dataset to this machine: `resolve_dataset` returns a local folder for every kind of location.

Datasets in an object store are kept in a cache whose entries are named by their content (the listing's sizes and
ETags), appear whole or not at all, are checked again when they are used, and leave in the order of their last use.
What a dataset has to contain is decided elsewhere; here only how much of it is fetched at most.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from reconflow.datasets.files import relative_name, shown
from reconflow.datasets.limits import MAX_FILE_BYTES, MAX_POSED_VIEWS, MAX_TOTAL_BYTES, MEBIBYTE
from reconflow.errors import (
    FileTooLargeError,
    InvalidFileCountError,
    StorageUnreachableError,
    ValidationFailedError,
)
from reconflow.outputs.files import sha256_of, write_text
from reconflow.outputs.package import MANIFEST_NAME
from reconflow.storage import check_allowed, open_bucket
from reconflow.storage.cache import cache_root
from reconflow.storage.locations import scheme_of

if TYPE_CHECKING:
    from reconflow.storage.bucket import Bucket, ListedObject

MAX_FILES: Final = 3 * MAX_POSED_VIEWS + 64
"""A photo, a depth render and a mask for each view, and a few others."""

LIMIT_VARIABLE: Final = "RECONFLOW_CACHE_GB"
DEFAULT_CACHE_GB: Final = 5.0
_IN_USE_S: Final = 3600.0
_RECORD: Final = "record.json"


class CachedFiles(BaseModel, frozen=True, extra="forbid"):
    """The record of a cache entry: SHA-256 and size of every file by its name."""

    files: dict[str, tuple[str, int]]

    @property
    def size(self) -> int:
        """All files together, bytes."""
        return sum(size for _, size in self.files.values())


def resolve_dataset(location: str | Path) -> Path:
    """Return the local folder of a dataset, fetched when it lies in an object store.

    Args:
        location: A local folder, or `s3://bucket/prefix`.

    Raises:
        ValidationFailedError: The location is not allowed here, of an unknown kind, or there is nothing.
        FileTooLargeError, InvalidFileCountError: It exceeds the limits; nothing has been fetched.
        StorageUnreachableError, StorageRefusedError: The store does not give it.
        DiskFullError: There is no room for it.
    """
    text = str(location)
    scheme = scheme_of(text)
    if scheme is None:
        check_allowed(text)
        return Path(text).expanduser()
    if scheme == "s3":
        return _fetched(text)
    raise ValidationFailedError(
        f"Datasets cannot be read from {scheme}:// locations.",
        suggestion="Give a local folder or s3://bucket/prefix.",
        scheme=scheme,
    )


def datasets_cache() -> Path:
    """Return the folder of fetched datasets; it need not exist."""
    return cache_root() / "datasets"


def _fetched(uri: str) -> Path:
    location, bucket = open_bucket(uri)
    name = location.prefix.rsplit("/", 1)[-1] or location.bucket
    for is_last in (False, True):
        listed = _list_files(bucket, location.key("") + "/" if location.prefix else "", name)
        entry = datasets_cache() / _listing_digest(location.uri, listed)
        with _lock_of(entry):
            try:
                if not _is_whole(entry, name):
                    _download(bucket, listed, entry, name)
            except StorageUnreachableError as error:
                if error.details.get("reason") == "PreconditionFailed" and not is_last:
                    continue  # somebody replaced a file since the listing
                raise
            os.utime(entry / _RECORD)
        _evict(keep=entry)
        break
    return entry / name


def _list_files(bucket: Bucket, prefix: str, name: str) -> dict[str, ListedObject]:
    """Return the objects that make up the dataset by their names in it, within all limits."""
    objects = {item.key[len(prefix) :]: item for item in bucket.objects(prefix, at_most=20 * MAX_FILES)}
    results = tuple(key.removesuffix(MANIFEST_NAME) for key in objects if key.endswith(f"/{MANIFEST_NAME}"))
    listed = {
        key: item
        for key, item in objects.items()
        if not key.endswith("/") and not _is_hidden(key) and not (results and key.startswith(results))
    }
    if not listed:
        raise ValidationFailedError(
            f"There is no dataset {shown(name)}.", suggestion="Check the bucket and the prefix.", dataset=shown(name)
        )
    for key in listed:
        if relative_name(key) != key or any(f"{key}/" == other[: len(key) + 1] for other in listed):
            raise ValidationFailedError(
                f"{shown(key)} cannot be a file of a dataset.", suggestion="Rename or remove it.", file=shown(key)
            )
    _check_limits(listed)
    return listed


def _check_limits(listed: Mapping[str, ListedObject]) -> None:
    if len(listed) > MAX_FILES:
        raise InvalidFileCountError(
            f"The location holds more than {MAX_FILES} files.",
            suggestion="Give the folder of one dataset.",
            limit=MAX_FILES,
        )
    large = {key: item.size for key, item in listed.items() if item.size > MAX_FILE_BYTES}
    if large:
        key, size = max(large.items(), key=lambda pair: pair[1])
        more = f" {len(large) - 1} others are too large as well." if len(large) > 1 else ""
        raise FileTooLargeError(
            f"{shown(key)} has {size / MEBIBYTE:.1f} MB; the limit is {MAX_FILE_BYTES // MEBIBYTE} MB.{more}",
            suggestion="Save it with fewer pixels or stronger (lossless) compression, or take it out of the dataset.",
            file=shown(key),
            size_bytes=size,
            limit_bytes=MAX_FILE_BYTES,
        )
    total = sum(item.size for item in listed.values())
    if total > MAX_TOTAL_BYTES:
        raise FileTooLargeError(
            f"The dataset's files have {total / MEBIBYTE:.0f} MB together; "
            f"the limit is {MAX_TOTAL_BYTES // MEBIBYTE} MB.",
            suggestion="Use fewer or smaller pictures.",
            size_bytes=total,
            limit_bytes=MAX_TOTAL_BYTES,
        )


def _download(bucket: Bucket, listed: Mapping[str, ListedObject], entry: Path, name: str) -> None:
    """Fetch the files next to the cache entry, then let the entry appear in one step."""
    from reconflow.storage.transfer import Download, download_files

    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=".", suffix=".part") as temporary:
        fresh = Path(temporary) / entry.name
        folder = fresh / name
        folder.mkdir(parents=True)
        download_files(
            bucket,
            [Download(item.key, folder / key, etag=item.etag, size=item.size) for key, item in listed.items()],
        )
        record = CachedFiles(files={key: (sha256_of(folder / key), item.size) for key, item in listed.items()})
        write_text(fresh / _RECORD, record.model_dump_json() + "\n")
        with suppress(FileNotFoundError):
            entry.replace(Path(temporary) / "damaged")
        fresh.replace(entry)


def _lock_of(entry: Path) -> FileLock:
    """Return the lock under which one process or thread at a time fetches, checks or removes a cache entry.

    The entries share 256 lock files, which stay: there is nothing to clean up after thousands of datasets.
    """
    locks = entry.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    return FileLock(locks / entry.name[:2])


def _is_whole(entry: Path, name: str) -> bool:
    """Whether a cache entry is there and every file in it is what was fetched."""
    record = _read_record(entry)
    return record is not None and all(
        (path := entry / name / key).is_file() and path.stat().st_size == size and sha256_of(path) == sha256
        for key, (sha256, size) in record.files.items()
    )


def _read_record(entry: Path) -> CachedFiles | None:
    try:
        return CachedFiles.model_validate_json((entry / _RECORD).read_bytes())
    except (OSError, ValidationError):
        return None


def _evict(keep: Path) -> None:
    """Remove the entries that were not used for longest until the rest fits; never what was used within the hour."""
    limit = float(os.environ.get(LIMIT_VARIABLE, DEFAULT_CACHE_GB)) * 1e9
    for _, size, entry in sorted(_entries(), reverse=True):
        limit -= size
        if limit < 0 and entry != keep and _remove_unused(entry):
            limit += size


def _remove_unused(entry: Path) -> bool:
    """Remove a cache entry; return False when somebody uses it or has used it within the hour."""
    with suppress(FileNotFoundError, Timeout), _lock_of(entry).acquire(timeout=0):
        if time.time() - _last_use_s(entry) > _IN_USE_S:
            shutil.rmtree(entry, ignore_errors=True)
            return True
    return False


def _last_use_s(entry: Path) -> float:
    record = entry / _RECORD
    return (record if record.is_file() else entry).stat().st_mtime


def _entries() -> Iterator[tuple[float, int, Path]]:
    """Yield when each cache entry was used last, its size in bytes, and its folder."""
    for entry in datasets_cache().glob("[0-9a-f]*"):
        record = _read_record(entry)
        with suppress(FileNotFoundError):
            yield _last_use_s(entry), record.size if record else 0, entry


def _listing_digest(uri: str, listed: Mapping[str, ListedObject]) -> str:
    lines = sorted(f"{key}\0{item.size}\0{item.etag}\n" for key, item in listed.items())
    return hashlib.sha256("".join((uri, "\n", *lines)).encode("utf-8", "surrogateescape")).hexdigest()[:40]


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))

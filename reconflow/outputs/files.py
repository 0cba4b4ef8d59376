"""How a result file reaches the disk: under a temporary name, flushed, then renamed. No formats, no names of files.

A reader therefore sees the old file, or the new one, or none; never half of one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from reconflow.errors import DiskFullError

_CHUNK_BYTES = 1 << 20


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a binary file that becomes `path` when the block ends without an error.

    The data is flushed to the disk before the rename and the folder's entry after it. When the block raises, the
    temporary file is removed and what stood at `path` stays.

    Args:
        path: Where the file shall be; its folder is created.

    Raises:
        DiskFullError: There is no room for the file.
    """
    descriptor, temporary = _open_temporary(path)
    try:
        with explaining_full_disk(path.name):
            with os.fdopen(descriptor, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
            _flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def explaining_full_disk(name: str) -> Iterator[None]:
    """Turn the system's error about a disk without room into one that names the file.

    Raises:
        DiskFullError: There is no room for the file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                f"There is no room on the disk for {name}.",
                suggestion="Free some space where the results are stored, then run the same command again.",
                file=name,
            ) from error
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file in one step; see `replacing`."""
    with replacing(path) as stream:
        stream.write(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with the line ends it has; see `replacing`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and programs: keys sorted, two spaces, a final newline, no NaN; see `replacing`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, hex, reading it in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _open_temporary(path: Path) -> tuple[int, Path]:
    """Open a new file beside `path`, again when somebody removes the folder at that moment because it is empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    return descriptor, Path(name)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Downloading one large file over the web: what has arrived stays, and the next attempt goes on from there.

Beside the file-to-be stand its beginning, `.NAME.download`, and what is known of that, `.NAME.download.json`: where it
is from, the server's mark of the version (RFC 9110, `If-Range`), and how much of it is surely on the disk. A server
that has another version by then, or cannot go on in the middle, sends the whole file again.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Final

from reconflow.errors import JobNotReadyError
from reconflow.outputs.files import explaining_full_disk, write_json
from reconflow.run_lock import try_lock

OnBytes = Callable[[int, int | None], None]
"""Hears of bytes that are there, and of how many there will be where the server says so; may raise `Cancelled`."""

_CHUNK_BYTES: Final = 1 << 20
_SYNC_BYTES: Final = 64 << 20
"""After so many bytes what has arrived is made sure of."""
_TIMEOUT_S: Final = 60.0
_ATTEMPTS: Final = 5
"""So often a connection may break in one download, each time with something new."""
_BROKEN: Final = (http.client.HTTPException, TimeoutError, ConnectionError, urllib.error.URLError)


class CutError(ConnectionError):
    """The connection ended before the file did."""


@dataclass
class _Beginning:
    """What is there of a file: `done` bytes of the version `mark` of what is at `url`."""

    url: str
    mark: str | None = None
    done: int = 0

    @classmethod
    def read(cls, path: Path, url: str) -> _Beginning:
        """Return what is noted of a beginning; one of nothing when that is not known to be of this address."""
        try:
            noted = cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return cls(url)
        return noted if noted.url == url and noted.mark is not None and noted.done > 0 else cls(url)

    def restart(self, mark: str | None = None) -> None:
        """Begin with nothing, of another version."""
        self.mark, self.done = mark, 0


def download(url: str, target: Path, on_bytes: OnBytes) -> bool:
    """Download a file, going on from what an earlier attempt has left.

    Args:
        url: An http(s) address.
        target: Where the whole file shall be; it appears there when it is complete.
        on_bytes: Told at the start and after every piece.

    Returns:
        False when there is no such file.

    Raises:
        JobNotReadyError: Another process is downloading it.
        DiskFullError: There is no room.
        OSError, HTTPException: The connection broke, again and again or without anything new; what has arrived stays.
    """
    part, notes = _paths(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor = try_lock(part)
    if descriptor is None:
        raise JobNotReadyError(
            f"Another process is fetching {target.name}.", suggestion="Wait for it to finish, or stop it."
        )
    with os.fdopen(descriptor, "r+b") as stream, explaining_full_disk(target.name):
        beginning = _Beginning.read(notes, url)
        beginning.done = min(beginning.done, os.fstat(stream.fileno()).st_size)
        try:
            found = _keep_on(beginning, stream, notes, on_bytes)
        finally:
            if beginning.done == 0:
                forget_beginning(target)
        if found:
            part.chmod(0o644)
            part.replace(target)
            notes.unlink(missing_ok=True)
    return found


def forget_beginning(target: Path) -> None:
    """Remove what an attempt to download a file has left."""
    for path in _paths(target):
        path.unlink(missing_ok=True)


def _keep_on(beginning: _Beginning, stream: IO[bytes], notes: Path, on_bytes: OnBytes) -> bool:
    """Ask again while something new arrives; return False when there is no such file."""
    attempts = 0
    while True:
        before, attempts = beginning.done, attempts + 1
        try:
            _go_on(beginning, stream, notes, on_bytes)
        except urllib.error.HTTPError as error:
            if error.code == http.HTTPStatus.NOT_FOUND:
                beginning.restart()
                return False
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or before == 0:
                raise
            beginning.restart()
        except _BROKEN:
            if beginning.done <= before or attempts >= _ATTEMPTS:
                raise
        else:
            return True


def _go_on(beginning: _Beginning, stream: IO[bytes], notes: Path, on_bytes: OnBytes) -> None:
    """Ask for what is missing and write it behind what is there; note how far it came, however it ends."""
    request = urllib.request.Request(beginning.url)  # noqa: S310 - the caller has checked the scheme
    if beginning.done > 0 and beginning.mark is not None:
        request.add_header("Range", f"bytes={beginning.done}-")
        request.add_header("If-Range", beginning.mark)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
        total = _begin(beginning, answer)
        if beginning.done == 0:
            notes.unlink(missing_ok=True)
        stream.seek(beginning.done)
        stream.truncate()
        on_bytes(beginning.done, total)
        position = beginning.done
        try:
            while chunk := answer.read(_CHUNK_BYTES):
                stream.write(chunk)
                position += len(chunk)
                if position - beginning.done >= _SYNC_BYTES:
                    _make_sure(beginning, position, stream, notes)
                on_bytes(position, total)
        finally:
            _make_sure(beginning, position, stream, notes)
    if total is not None and position != total:
        raise CutError


def _begin(beginning: _Beginning, answer: Any) -> int | None:
    """Take from an answer's head where its bytes belong; return the whole file's size where it is told."""
    length = answer.headers.get("Content-Length")
    if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
        if told is None or int(told[1]) != beginning.done:
            beginning.restart()
            raise CutError
        return None if told[2] == "*" else int(told[2])
    tag = answer.headers.get("ETag")
    beginning.restart(tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified"))
    return None if length is None else int(length)


def _make_sure(beginning: _Beginning, position: int, stream: IO[bytes], notes: Path) -> None:
    stream.flush()
    os.fsync(stream.fileno())
    beginning.done = position
    write_json(notes, asdict(beginning))


def _paths(target: Path) -> tuple[Path, Path]:
    part = target.with_name(f".{target.name}.download")
    return part, part.with_name(f"{part.name}.json")

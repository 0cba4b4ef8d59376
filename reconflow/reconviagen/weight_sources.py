"""Bringing weights to a folder of this machine: from a folder, an object store, or, only when asked for, the web.

Every file appears whole or not at all, and its checksum is recorded. Which files there are is in `weights`.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import urllib.error
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol
from urllib.parse import urlsplit

from reconflow.errors import StorageUnreachableError, ValidationFailedError, WeightsMissingError
from reconflow.outputs.files import replacing, sha256_of
from reconflow.progress import OnProgress, ignore_progress
from reconflow.reconviagen.web_download import download, forget_beginning
from reconflow.reconviagen.weights import (
    LOCK_NAME,
    PIPELINE_FILE,
    Bundle,
    WeightFile,
    WeightsFolder,
    invalid_error,
    missing_error,
    size_text,
)
from reconflow.reconviagen.weights_record import WeightsLock, check_files, read_lock, revision_notes
from reconflow.storage import check_allowed, open_bucket
from reconflow.storage.cache import cache_root
from reconflow.storage.locations import scheme_of

PUBLISHED: Final = "https"
"""The word for the addresses where the files are published."""
_CHUNK_BYTES: Final = 4 << 20


class WeightSource(Protocol):
    """Where files come from."""

    def copy(self, file: WeightFile, target: Path, on_progress: OnProgress) -> dict[str, str] | None:
        """Bring a file to `target`; return what shall be recorded of its origin, None when it is not there."""


@dataclass(frozen=True)
class FetchReport:
    """What a fetch did.

    Attributes:
        fetched: Files that were brought.
        present: Files that were there already.
        licences: Licence by source, of everything there now.
        accepted: Sources whose restricting licences were accepted.
        notes: What is not known to be of the revision meant.
    """

    fetched: tuple[str, ...]
    present: tuple[str, ...]
    licences: dict[str, str]
    accepted: tuple[str, ...]
    notes: tuple[str, ...] = ()


def default_folder() -> Path:
    """Return the folder of the machine's cache where weights are kept unless another one is named."""
    return cache_root() / "weights" / "reconviagen"


def fetch_weights(
    places: Sequence[str], into: Path, *, accept_licence: bool = False, on_progress: OnProgress = ignore_progress
) -> FetchReport:
    """Bring every file that is missing in a folder, and record the checksums.

    Args:
        places: Folders, `s3://bucket/prefix`, `https` for the published addresses, or the https address of a copy;
            each file comes from the first place that has it.
        into: The folder of weights.
        accept_licence: Whether the licences that restrict use have been read and are accepted.
        on_progress: Hears of every piece; may raise `Cancelled`.

    Raises:
        ValidationFailedError: A restricting licence is not accepted, or a place is of an unknown kind.
        WeightsMissingError: No place has a file.
        WeightsInvalidError: A file is not what it has to be.
    """
    sources, folder = [open_source(place) for place in places], WeightsFolder(into)
    lock, fetched = read_lock(folder), list[str]()
    while wanted := folder.missing():  # what one brings may say that others are needed
        if wanted[0] != PIPELINE_FILE:  # which says what there is to accept
            _accept(folder, lock, accept_licence=accept_licence)
        _bring(wanted[0], sources, folder, lock, on_progress)
        fetched.append(wanted[0].name)
    _accept(folder, lock, accept_licence=accept_licence)
    lock.write()
    check_files(folder, thoroughly=False, on_progress=on_progress)
    return FetchReport(
        tuple(fetched),
        tuple(file.name for file in folder.files() if file.name not in fetched),
        {bundle.source: bundle.licence for bundle in folder.bundles()},
        tuple(sorted(set(lock.accepted))),
        tuple(revision_notes(folder).values()),
    )


def resolve_weights(location: str | None, on_progress: OnProgress = ignore_progress) -> WeightsFolder:
    """Return the local folder of weights; those in an object store are brought to the machine's cache first.

    What the store has now counts: it is asked for the version of every file, and a file that was replaced there is
    fetched again. Whether its licence allows the use is for whoever put it there; nothing is recorded as accepted.

    Args:
        location: A folder or `s3://bucket/prefix`; None for the folder of the machine's cache.
        on_progress: Hears of what is fetched; may raise `Cancelled`.

    Raises:
        ValidationFailedError: The location is of another kind, or not allowed here.
        WeightsMissingError: Files are missing there.
        StorageUnreachableError: The store does not answer.
    """
    folder = weights_folder(location)
    if location is None or scheme_of(location) is None:
        return folder
    source, lock = BucketSource(location.rstrip("/")), read_lock(folder)
    _renew(PIPELINE_FILE, source, folder, lock, on_progress)
    for file in folder.files()[1:]:
        _renew(file, source, folder, lock, on_progress)
    return folder


def weights_folder(location: str | None) -> WeightsFolder:
    """Return the local folder that weights are used from; those of an object store may not be in it yet.

    Args:
        location: As for `resolve_weights`.

    Raises:
        ValidationFailedError: The location is of another kind, or not allowed here.
    """
    if location is None:
        return WeightsFolder(default_folder())
    scheme = scheme_of(location)
    if scheme is None:
        check_allowed(location)
        return WeightsFolder(Path(location).expanduser())
    if scheme != "s3":
        raise ValidationFailedError(
            f"Weights cannot be used from {scheme}:// locations.",
            suggestion="Give a folder or s3://bucket/prefix; bring others here with `reconflow weights fetch`.",
            scheme=scheme,
        )
    name = hashlib.sha256(location.rstrip("/").encode("utf-8")).hexdigest()[:16]
    return WeightsFolder(cache_root() / "weights" / name)


def open_source(place: str) -> WeightSource:
    """Return the source that a place names; reads and sends nothing.

    Raises:
        ValidationFailedError: It is of an unknown kind.
    """
    scheme = scheme_of(place)
    if place == PUBLISHED:
        return WebSource(None)
    if scheme is None:
        check_allowed(place)
        return FolderSource(WeightsFolder(Path(place).expanduser()))
    if scheme == "s3":
        return BucketSource(place)
    if scheme == "https" or (scheme == "http" and urlsplit(place).hostname in ("localhost", "127.0.0.1", "::1")):
        return WebSource(place.rstrip("/"))
    raise ValidationFailedError(
        f"Weights cannot be fetched from {scheme}:// addresses.",
        suggestion="Give a folder, s3://bucket/prefix, an https address, or the word https for the published files.",
        scheme=scheme,
    )


@dataclass(frozen=True)
class FolderSource:
    """A folder of weights, or a Hugging Face snapshot or cache."""

    folder: WeightsFolder

    def copy(self, file: WeightFile, target: Path, on_progress: OnProgress) -> dict[str, str] | None:
        """Copy a file."""
        found = self.folder.find(file)
        if found is None:
            return None
        with found.open("rb") as stream, replacing(target) as copied:
            _pour(stream, copied, found.stat().st_size, file, on_progress)
        note = self.folder.note(file.bundle)
        return {} if note is None else {"note": note}


@dataclass(frozen=True)
class BucketSource:
    """A prefix of an object store, one folder per bundle below it."""

    uri: str

    def version(self, file: WeightFile) -> tuple[int, str] | None:
        """Return size and ETag of an object as the store has it now; None when there is none."""
        location, bucket = open_bucket(self.uri)
        facts = bucket.head(location.key(*file.name.split("/")))
        return None if facts is None else (facts["ContentLength"], str(facts["ETag"]).strip('"'))

    def copy(self, file: WeightFile, target: Path, on_progress: OnProgress) -> dict[str, str] | None:
        """Fetch an object."""
        location, bucket = open_bucket(self.uri)
        from reconflow.storage.transfer import Download, download_files

        version = self.version(file)
        if version is None:
            return None
        size, etag = version
        on_progress(0, 1, f"fetching {file.name} ({size_text(size)})")
        download_files(bucket, [Download(location.key(*file.name.split("/")), target, etag=etag, size=size)])
        return {"from": self.uri, "etag": etag}


@dataclass(frozen=True)
class WebSource:
    """The addresses where the files are published, or a copy of them with one folder per bundle."""

    base: str | None

    def copy(self, file: WeightFile, target: Path, on_progress: OnProgress) -> dict[str, str] | None:
        """Download a file, or what an earlier attempt has not got of it."""
        url = file.bundle.url(file.path) if self.base is None else f"{self.base}/{file.name}"
        host = urlsplit(url).hostname

        def on_bytes(done: int, total: int | None) -> None:
            size = total or file.about_bytes
            on_progress(done, max(size, done, 1), f"fetching {file.name} ({size_text(size)})")

        try:
            return {} if download(url, target, on_bytes) else None
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            raise _unreachable(file, host, _broken_text(error)) from error


def licence_error(bundles: Sequence[Bundle]) -> ValidationFailedError:
    """Return the error that names the licences which have to be accepted."""
    named = "; ".join(f"{bundle.title} ({bundle.source}): {bundle.licence}" for bundle in bundles)
    return ValidationFailedError(
        f"The licence of some weights restricts what they may be used for. {named}.",
        suggestion="Read the licence at its source; if your use is allowed, run the same command with "
        "--accept-licence.",
        licences={bundle.source: bundle.licence for bundle in bundles},
    )


def _accept(folder: WeightsFolder, lock: WeightsLock, *, accept_licence: bool) -> None:
    """Note that the licences which restrict use are accepted.

    Raises:
        ValidationFailedError: One is not.
    """
    restricted = [bundle for bundle in folder.bundles() if bundle.restricted and bundle.source not in lock.accepted]
    if restricted and not accept_licence:
        raise licence_error(restricted)
    lock.accepted += [bundle.source for bundle in restricted]


def _bring(
    file: WeightFile,
    sources: Sequence[WeightSource],
    folder: WeightsFolder,
    lock: WeightsLock,
    on_progress: OnProgress,
) -> None:
    """Bring a file from the first place that has it, and record it."""
    target = folder.root / file.name
    origins = (source.copy(file, target, on_progress) for source in sources)
    origin = next((origin for origin in origins if origin is not None), None)
    if origin is None:
        raise _nowhere(file)
    forget_beginning(target)
    facts, sha256 = target.stat(), sha256_of(target)
    if file.size not in (None, facts.st_size) or file.sha256 not in (None, sha256):
        target.unlink()
        raise invalid_error([{"file": file.name, "message": f"{facts.st_size} bytes that are not the published ones"}])
    lock.record(file, facts, sha256, origin)
    lock.write()


def _renew(
    file: WeightFile, source: BucketSource, folder: WeightsFolder, lock: WeightsLock, on_progress: OnProgress
) -> None:
    """Bring a file unless what is here is what the store has."""
    known, version = lock.files.get(file.name, {}), source.version(file)
    if folder.find(file) is None or version is None or version != (known.get("size"), known.get("etag")):
        _bring(file, [source], folder, lock, on_progress)


def _nowhere(file: WeightFile) -> WeightsMissingError:
    error = missing_error([file])
    error.suggestion = (
        f"Name a place with --from that has {file.name}: a folder, a Hugging Face snapshot, an s3:// address, or the "
        f"word https. What is there already stays, as {LOCK_NAME} records."
    )
    return error


def _pour(source: IO[bytes], target: IO[bytes], size: int, file: WeightFile, on_progress: OnProgress) -> None:
    """Copy a stream."""
    done = 0
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)
        done += len(chunk)
        on_progress(done, max(size, done), f"fetching {file.name} ({size_text(size)})")


def _broken_text(error: Exception) -> str:
    """Say why a download ended, without the addresses that the error may hold."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(error, urllib.error.HTTPError):
        return f"it answered {error.code}"
    if isinstance(cause, socket.gaierror):
        return "no address is known for that name"
    if isinstance(cause, ConnectionRefusedError):
        return "nothing answers there"
    if isinstance(cause, ssl.SSLError):
        return "its certificate or encryption was not accepted"
    if isinstance(cause, TimeoutError):
        return "it did not answer in time"
    if isinstance(cause, ConnectionError | http.client.HTTPException):
        return "the connection was cut"
    return type(cause).__name__


def _unreachable(file: WeightFile, host: str | None, why: str) -> StorageUnreachableError:
    return StorageUnreachableError(
        f"{file.name} could not be fetched from {host}: {why}.",
        suggestion="Check the connection and run the same command again; what has arrived stays.",
        file=file.name,
    )

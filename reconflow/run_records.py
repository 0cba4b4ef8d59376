"""What the runs of a store were made from, read from their manifests: the ground on which reprocessing decides.

Manifests are the truth. Reading ten thousand of them from an object store takes a while, so they are read side by side,
and the records of completed and expired runs, which do not change again, are kept in an index there. It may be deleted
at any time; one that is damaged or of another format is made anew.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from pydantic import BaseModel, ValidationError

from reconflow.outputs.files import write_bytes
from reconflow.outputs.package import MANIFEST_NAME, Manifest, RunStatus
from reconflow.storage import open_bucket, open_store
from reconflow.storage.entries import Tombstone
from reconflow.storage.locations import S3Location, scheme_of

if TYPE_CHECKING:
    from reconflow.storage.bucket import Bucket

INDEX_NAME: Final = "index/run-records.json.gz"
INDEX_FORMAT: Final = 2
READERS: Final = 16


class RunRecord(BaseModel, frozen=True, extra="forbid"):
    """One finished run: of what it was made, and how it ended."""

    run_id: str
    completed: bool
    """Whether it stored a result of the quality asked for; a failed run has a record too."""
    expired: bool = False
    """Whether the results were removed by the retention policy."""
    location: str
    listing: str
    content: str | None = None
    """Digest of the dataset's content; None when the dataset was refused."""
    options: dict[str, Any]
    versions: dict[str, str]
    """Of `reconflow` and of the models that were loaded."""
    weights: dict[str, str] = {}
    """By model, a digest of the weights that made the result, where that is known."""

    @property
    def is_final(self) -> bool:
        """Whether it stays as it is; a failed run may be taken up again under its id."""
        return self.completed or self.expired


class RecordIndex(BaseModel, frozen=True, extra="forbid"):
    """The content of the index."""

    format_version: int = INDEX_FORMAT
    records: tuple[RunRecord, ...] = ()


def record_of(run_id: str, manifest: Manifest, *, expired: bool = False) -> RunRecord | None:
    """Return what a manifest says of its run's origin; None when it was written by a version that did not record it."""
    source = manifest.source
    if source is None:
        return None
    return RunRecord(
        run_id=run_id,
        completed=manifest.status is RunStatus.COMPLETED,
        expired=expired,
        location=source.location,
        listing=source.listing,
        content=manifest.facts.dataset_digest if manifest.facts is not None else None,
        options=source.options,
        versions={"reconflow": manifest.versions["reconflow"], **source.model_versions},
        weights=manifest.facts.weights if manifest.facts is not None else {},
    )


def read_records(uri: str, *, use_index: bool = True) -> list[RunRecord]:
    """Return the records of all finished and expired runs in a store, sorted by run id.

    Runs that are damaged, or vanish while they are read, count as absent.

    Args:
        uri: The store; a folder that does not exist yet has no runs.
        use_index: Whether to go by the index, and refresh it; otherwise every manifest is read.

    Raises:
        StorageUnreachableError, StorageRefusedError: It does not answer, or refuses.
        ValidationFailedError: There cannot be a store.
    """
    shelf = _open_shelf(uri)
    use_index = use_index and isinstance(shelf, _BucketShelf)
    kept = _read_index(shelf) if use_index else {}
    present = set(shelf.folders("runs"))
    expired = {name.removesuffix(".json") for name in shelf.files("expired")} - present
    known = {run_id: record for run_id, record in kept.items() if run_id in (expired if record.expired else present)}
    with ThreadPoolExecutor(READERS, thread_name_prefix="manifests") as readers:
        found = [
            *readers.map(partial(_read_manifest, shelf), sorted(present - known.keys())),
            *readers.map(partial(_read_tombstone, shelf), sorted(expired - known.keys())),
        ]
    known |= {record.run_id: record for record in found if record is not None}
    final = {run_id: record for run_id, record in known.items() if record.is_final}
    if use_index and final != kept:
        _write_index(shelf, final.values())
    return [record for _, record in sorted(known.items())]


def _read_manifest(shelf: _Shelf, run_id: str) -> RunRecord | None:
    content = shelf.get(f"runs/{run_id}/{MANIFEST_NAME}")
    try:
        return None if content is None else record_of(run_id, Manifest.model_validate_json(content))
    except ValidationError:
        return None


def _read_tombstone(shelf: _Shelf, run_id: str) -> RunRecord | None:
    content = shelf.get(f"expired/{run_id}.json")
    try:
        manifest = None if content is None else Tombstone.model_validate_json(content).manifest
    except ValidationError:
        return None
    return None if manifest is None else record_of(run_id, manifest, expired=True)


def _read_index(shelf: _Shelf) -> dict[str, RunRecord]:
    content = shelf.get(INDEX_NAME)
    if content is None:
        return {}
    try:
        index = RecordIndex.model_validate_json(gzip.decompress(content))
    except (OSError, EOFError, zlib.error, ValidationError):
        return {}
    return {record.run_id: record for record in index.records} if index.format_version == INDEX_FORMAT else {}


def _write_index(shelf: _Shelf, records: Iterable[RunRecord]) -> None:
    ordered = tuple(sorted(records, key=lambda record: record.run_id))
    shelf.put(INDEX_NAME, gzip.compress(RecordIndex(records=ordered).model_dump_json().encode("utf-8"), 6))


class _Shelf(Protocol):
    """A store's small records by their names."""

    def folders(self, name: str) -> list[str]:
        """Return the names of the folders in a folder."""

    def files(self, name: str) -> list[str]:
        """Return the names of the files in a folder."""

    def get(self, name: str) -> bytes | None:
        """Return a file's content, None when there is none."""

    def put(self, name: str, content: bytes) -> None:
        """Write a file."""


@dataclass(frozen=True)
class _FolderShelf:
    root: Path

    def folders(self, name: str) -> list[str]:
        return [path.name for path in (self.root / name).glob("[a-z0-9]*") if path.is_dir()]

    def files(self, name: str) -> list[str]:
        return [path.name for path in (self.root / name).glob("[a-z0-9]*") if path.is_file()]

    def get(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        write_bytes(self.root / name, content)


@dataclass(frozen=True)
class _BucketShelf:
    location: S3Location
    bucket: Bucket

    def folders(self, name: str) -> list[str]:
        return list(self.bucket.folders(self.location.key(name) + "/"))

    def files(self, name: str) -> list[str]:
        prefix = self.location.key(name) + "/"
        return [item.key[len(prefix) :] for item in self.bucket.objects(prefix)]

    def get(self, name: str) -> bytes | None:
        return self.bucket.get(self.location.key(name))

    def put(self, name: str, content: bytes) -> None:
        self.bucket.put(self.location.key(name), content, "application/gzip")


def _open_shelf(uri: str) -> _Shelf:
    open_store(uri)  # which says what cannot be a store
    if scheme_of(uri) is None:
        return _FolderShelf(Path(uri).expanduser())
    return _BucketShelf(*open_bucket(uri))

"""Finding datasets below a folder or an S3 prefix, and telling from a listing alone whether one has changed.

Opens no picture. A listing holds names, sizes, and what changes with the content: ETags on S3, times of modification in
a folder. What a dataset has to contain is decided in `reconflow.datasets.layout`.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import BaseModel, Field

from reconflow.datasets.files import DatasetFolder, dataset_digest, shown
from reconflow.datasets.layout import PHOTO_FOLDER, plan_dataset
from reconflow.datasets.transforms_file import TRANSFORMS_NAMES
from reconflow.errors import InputError, ValidationFailedError
from reconflow.storage import check_allowed, open_bucket
from reconflow.storage.locations import scheme_of

_INPUT_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".json"})
_RESULT_MARK: Final = "manifest.json"


class DatasetSource(BaseModel, frozen=True, extra="forbid"):
    """A dataset as a listing shows it."""

    location: str = Field(description="Absolute folder or s3:// address, without a slash at its end.")
    listing: str = Field(description="SHA-256 over names, sizes and ETags or times of the files it may consist of.")

    @property
    def name(self) -> str:
        """The last part of the location."""
        return PurePosixPath(self.location).name


@dataclass(frozen=True)
class ListedFile:
    """A file in a listing.

    Attributes:
        parts: Its path relative to what was listed.
        size: Bytes.
        stamp: What changes with its content.
    """

    parts: tuple[str, ...]
    size: int
    stamp: str


def canonical_location(location: str) -> str:
    """Return the one spelling of a dataset's location that runs are matched by.

    Args:
        location: A local folder or an `s3://` address.
    """
    if "://" in location:
        return location.rstrip("/")
    return str(Path(location).expanduser().resolve())


def location_mark(location: str) -> str:
    """Return how a manifest names a dataset's place: an address as it is, a folder by a digest.

    A package travels; the folders of the machine that made it are nobody's business.

    Args:
        location: A canonical one.
    """
    return location if "://" in location else f"folder:{hashlib.sha256(location.encode()).hexdigest()[:32]}"


def find_datasets(prefix: str) -> list[DatasetSource]:
    """Return every dataset at or below a place, sorted by location.

    A dataset is a folder with `multi_views/` or a `transforms.json`; what lies inside of one belongs to it. Hidden
    folders and results of runs are passed over.

    Args:
        prefix: A local folder or an `s3://` address.

    Raises:
        ValidationFailedError: There is no such folder, it is of an unknown kind, or not allowed here.
        StorageUnreachableError, StorageRefusedError: It cannot be listed.
    """
    base = canonical_location(prefix)
    found = _group(list(_list_files(base)))
    return [
        DatasetSource(location="/".join((base, *root)), listing=_listing_digest(root, files))
        for root, files in sorted(found.items())
    ]


def describe_source(location: str) -> DatasetSource:
    """Return one dataset as its listing shows it, whatever it contains.

    Args:
        location: A local folder or an `s3://` address.

    Raises:
        ValidationFailedError: There is no such folder, it is of an unknown kind, or not allowed here.
        StorageUnreachableError, StorageRefusedError: It cannot be listed.
    """
    base = canonical_location(location)
    return DatasetSource(location=base, listing=_listing_digest((), _list_files(base)))


def content_digest(location: str) -> str | None:
    """Return the digest that a run of this dataset would record, from the files' content.

    Args:
        location: A canonical one.

    Returns:
        SHA-256, hex; None when the files cannot be read cheaply (on S3) or do not make a dataset.
    """
    if "://" in location:
        return None
    try:
        folder = DatasetFolder.open(Path(location))
        plan = plan_dataset(folder)
        names = {file for view in plan.views for file in view.files}
        if plan.transforms_file is not None:
            names.add(plan.transforms_file)
        return dataset_digest({name: hashlib.sha256(folder.read(name)).hexdigest() for name in names})
    except InputError:
        return None


def _listing_digest(root: tuple[str, ...], files: Iterable[ListedFile]) -> str:
    known = list(files)
    results = {file.parts[:-1] for file in known if file.parts[-1] == _RESULT_MARK}
    lines = sorted(
        f"{'/'.join(file.parts[len(root) :])}\0{file.size}\0{file.stamp}\n"
        for file in known
        if PurePosixPath(file.parts[-1]).suffix.lower() in _INPUT_SUFFIXES
        and not any(file.parts[:depth] in results for depth in range(len(root) + 1, len(file.parts)))
    )
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _group(files: list[ListedFile]) -> dict[tuple[str, ...], list[ListedFile]]:
    """Return the files of each dataset by its folder; the outermost folder counts."""
    results = {file.parts[:-1] for file in files if file.parts[-1] == _RESULT_MARK}
    candidates = {root for file in files if (root := _root_in(file)) is not None} - results
    roots = {root for root in candidates if not any(root[:depth] in candidates for depth in range(len(root)))}
    grouped: defaultdict[tuple[str, ...], list[ListedFile]] = defaultdict(list)
    for file in files:
        root = next((file.parts[:depth] for depth in range(len(file.parts)) if file.parts[:depth] in roots), None)
        if root is not None:
            grouped[root].append(file)
    return grouped


def _root_in(file: ListedFile) -> tuple[str, ...] | None:
    """Return the folder that a file shows to be a dataset."""
    if PHOTO_FOLDER in file.parts[:-1]:
        return file.parts[: file.parts.index(PHOTO_FOLDER)]
    return file.parts[:-1] if file.parts[-1] in TRANSFORMS_NAMES else None


def _list_files(base: str) -> Iterator[ListedFile]:
    check_allowed(base)
    scheme = scheme_of(base)
    if scheme == "s3":
        return _list_bucket(base)
    if scheme is not None:
        raise ValidationFailedError(
            f"Datasets cannot be read from {scheme}:// locations.",
            suggestion="Give a local folder or an s3:// address.",
        )
    return _list_folder(Path(base))


def _list_folder(folder: Path) -> Iterator[ListedFile]:
    DatasetFolder.open(folder)
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        parts = Path(path).relative_to(folder).parts
        for name in names:
            if name.startswith("."):
                continue
            try:
                status = os.stat(os.path.join(path, name))  # noqa: PTH116, PTH118 - 100,000 files
            except OSError:
                continue  # a link to nowhere, or gone since it was listed
            yield ListedFile((*parts, name), status.st_size, str(status.st_mtime_ns))


def _list_bucket(base: str) -> Iterator[ListedFile]:
    location, bucket = open_bucket(base)
    prefix = f"{location.prefix}/" if location.prefix else ""
    empty = True
    for item in bucket.objects_side_by_side(prefix):
        empty = False
        parts = tuple(item.key[len(prefix) :].split("/"))
        if parts[-1] and not any(part.startswith(".") for part in parts):
            yield ListedFile(parts, item.size, item.etag)
    if empty:  # a folder that is not there: S3 has no others
        name = shown(location.prefix.rpartition("/")[2] or location.bucket)
        raise ValidationFailedError(
            f"There is nothing in {name}.", suggestion="Check the bucket and the prefix.", dataset=name
        )

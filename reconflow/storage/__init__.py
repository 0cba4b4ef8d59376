"""Where runs and stage results are stored and found again. Names inside a run live in `reconflow.outputs.runs`.

A run becomes visible with its `manifest.json`, which is written last: one without it does not exist for a reader.
Nothing here computes. `docs/storage.md` has the layout of a store.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from reconflow.errors import ValidationFailedError
from reconflow.storage.access import StorageAccess, access_for, using_access
from reconflow.storage.local import LocalStore
from reconflow.storage.locations import S3Location, check_allowed, parse_s3, scheme_of
from reconflow.storage.protocol import ArtifactStore, PublishedRun, StoredStage, Sweepings, Workspace

if TYPE_CHECKING:
    from reconflow.storage.bucket import Bucket

__all__ = [
    "ArtifactStore",
    "LocalStore",
    "PublishedRun",
    "StorageAccess",
    "StoredStage",
    "Sweepings",
    "Workspace",
    "check_allowed",
    "open_bucket",
    "open_store",
    "using_access",
]


def open_store(uri: str | Path) -> ArtifactStore:
    """Return the artifact store at a location; sends and creates nothing.

    Args:
        uri: A local folder, which need not exist yet, or `s3://bucket/prefix`.

    Raises:
        ValidationFailedError: The location is of a kind that this version cannot write to, or is not allowed here.
    """
    text = str(uri)
    check_allowed(text)
    scheme = scheme_of(text)
    if scheme is None:
        return LocalStore(Path(text).expanduser())
    if scheme == "s3":
        return _open_object_store(text)
    raise ValidationFailedError(
        f"Results cannot be stored at {scheme}:// locations.",
        suggestion="Give a local folder or s3://bucket/prefix.",
        scheme=scheme,
    )


def open_bucket(uri: str) -> tuple[S3Location, Bucket]:
    """Return the bucket of an `s3://bucket/prefix`, for reading what is no store of results; sends nothing.

    Raises:
        ValidationFailedError: The location cannot be understood, or is not allowed here.
    """
    check_allowed(uri)
    location = parse_s3(uri)
    with _needing_s3():
        from reconflow.storage.bucket import Bucket

    return location, Bucket(location.bucket, access_for(uri))


def _open_object_store(uri: str) -> ArtifactStore:
    with _needing_s3():
        from reconflow.storage.object_store import ObjectStore

    return ObjectStore.open(uri)


@contextmanager
def _needing_s3() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("boto3", "botocore", "urllib3"):
            raise
        raise ValidationFailedError(
            "s3:// locations need packages that are not installed.", suggestion="pip install 'reconflow[s3]'"
        ) from None

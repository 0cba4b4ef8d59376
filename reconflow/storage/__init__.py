"""Where runs and stage results are stored and found again. Names inside a run live in `reconflow.outputs.runs`.

A run becomes visible with its `manifest.json`, which is written last: one without it does not exist for a reader.
Nothing here computes. `docs/storage.md` has the layout of a store.
"""

from __future__ import annotations

from pathlib import Path

from reconflow.errors import ValidationFailedError
from reconflow.storage.access import StorageAccess, using_access
from reconflow.storage.local import LocalStore
from reconflow.storage.locations import check_allowed, scheme_of
from reconflow.storage.protocol import ArtifactStore, PublishedRun, StoredStage, Sweepings, Workspace

__all__ = [
    "ArtifactStore",
    "LocalStore",
    "PublishedRun",
    "StorageAccess",
    "StoredStage",
    "Sweepings",
    "Workspace",
    "check_allowed",
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


def _open_object_store(uri: str) -> ArtifactStore:
    try:
        from reconflow.storage.object_store import ObjectStore
    except ModuleNotFoundError as error:
        if error.name not in ("boto3", "botocore", "urllib3"):
            raise
        raise ValidationFailedError(
            "s3:// locations need packages that are not installed.", suggestion="pip install 'reconflow[s3]'"
        ) from None
    return ObjectStore.open(uri)

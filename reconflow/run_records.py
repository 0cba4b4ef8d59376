"""What the runs of a store were made from, read from their manifests: the ground on which reprocessing decides.

Manifests are the truth. Reading ten thousand of them one by one takes a while on an object store, so they are read side
by side, and those of completed runs, which never change again, are remembered in an index that may be deleted any time.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pydantic import BaseModel

from reconflow.errors import IncompleteResultsError, StateError
from reconflow.outputs.package import Manifest, RunStatus
from reconflow.storage import ArtifactStore

READERS: Final = 32


class RunRecord(BaseModel, frozen=True, extra="forbid"):
    """One finished run: of what it was made, and how it ended."""

    run_id: str
    completed: bool
    """Whether the results reached the quality asked for; a failed run has a record too."""
    expired: bool = False
    """Whether the results were removed by the retention policy."""
    location: str
    listing: str
    content: str | None = None
    """Digest of the dataset's content; None when the dataset was refused."""
    options: dict[str, Any]
    versions: dict[str, str]
    """Of `reconflow` and of the models that were loaded."""


def record_of(run_id: str, manifest: Manifest) -> RunRecord | None:
    """Return what a manifest says of its run's origin; None when it was written by a version that did not record it."""
    source = manifest.source
    if source is None:
        return None
    return RunRecord(
        run_id=run_id,
        completed=manifest.status is RunStatus.COMPLETED,
        location=source.location,
        listing=source.listing,
        content=manifest.facts.dataset_digest if manifest.facts is not None else None,
        options=source.options,
        versions={"reconflow": manifest.versions["reconflow"], **source.model_versions},
    )


def read_records(store: ArtifactStore) -> list[RunRecord]:
    """Return the records of all runs in a store, sorted by run id.

    Runs that vanish or are damaged while they are read count as absent.

    Args:
        store: The place for results.

    Raises:
        StorageUnreachableError: It does not answer.
    """
    return [record for record in _read_all(store, store.run_ids()) if record is not None]


def _read_all(store: ArtifactStore, run_ids: Iterable[str]) -> list[RunRecord | None]:
    def read(run_id: str) -> RunRecord | None:
        try:
            return record_of(run_id, store.read_manifest(run_id))
        except (StateError, IncompleteResultsError):
            return None

    with ThreadPoolExecutor(READERS, thread_name_prefix="manifests") as readers:
        return list(readers.map(read, run_ids))

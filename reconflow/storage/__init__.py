"""Where runs and stage results are stored and found again. Names inside a run live in `reconflow.outputs.runs`.

A run becomes visible with its `manifest.json`, which is written last: one without it does not exist for a reader.
Nothing here computes. `docs/storage.md` has the layout of a store.
"""

from __future__ import annotations

from pathlib import Path

from reconflow.errors import ValidationFailedError
from reconflow.storage.local import LocalStore
from reconflow.storage.protocol import ArtifactStore, StoredStage, Sweepings, Workspace

__all__ = ["ArtifactStore", "LocalStore", "StoredStage", "Sweepings", "Workspace", "open_store"]


def open_store(uri: str | Path) -> ArtifactStore:
    """Return the artifact store at a location.

    Args:
        uri: A local folder; it need not exist yet.

    Raises:
        ValidationFailedError: The location is of a kind that this version cannot write to.
    """
    text = str(uri)
    if "://" in text:
        raise ValidationFailedError(
            f"Results cannot be stored at {text.split('://')[0]}:// locations.",
            suggestion="Give a local folder.",
            scheme=text.split("://")[0],
        )
    return LocalStore(Path(text).expanduser())

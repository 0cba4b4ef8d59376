"""Results of stages kept for a later attempt, under the content of what they were made from.

A key is the SHA-256 over the stage's name, the version of its code and everything its result depends on: the digest of
the dataset, the checksums of what earlier stages made, the options that matter, the model and its version. So an equal
key means an equal result, on any machine and for any run. A kept result is verified before it is used; one that is
damaged is removed and made again, which its record says. Where results are kept is `reconflow.storage`'s business.

Only unfinished runs need them. Every run notes what it needs before it looks for it, under what it was asked for; when
it is published, what no run that was asked for something else needs is dropped. The rest stays until it expires.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

import reconflow
from reconflow.checkpoints import FileCheckpoint
from reconflow.errors import StorageRefusedError, StorageUnreachableError
from reconflow.progress import OnProgress
from reconflow.run_context import RunRef, RunSite
from reconflow.stage_results import StageResult
from reconflow.storage import ArtifactStore, LocalStore, open_store

STAGE_VERSIONS: Final = {"validate": 2, "transforms": 2, "infer": 1, "quality": 1, "preview": 1}
"""Raised when a stage's code changes what it makes of the same input; a model's own version counts as well."""
UPLOAD_INTERVAL_S: Final = 15.0
"""Between two checkpoints that go to another machine."""
_CHECKPOINT_NAME: Final = "checkpoint.npz"

Result = TypeVar("Result", bound=StageResult)


def stage_key(stage: str, inputs: Mapping[str, Any]) -> str:
    """Return the key of a stage's result: hex, 64 digits.

    Args:
        stage: One of `STAGE_VERSIONS`.
        inputs: Everything the result depends on besides the code, JSON-able.
    """
    facts = {"stage": stage, "code": [reconflow.__version__, STAGE_VERSIONS[stage]], "inputs": inputs}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode("utf-8")).hexdigest()


def remember(
    site: RunSite,
    stage: str,
    inputs: Mapping[str, Any],
    kind: type[Result],
    on_progress: OnProgress,
    compute: Callable[[str], Result],
) -> Result:
    """Return a stage's result: a kept one with its files put in their places, else a new one, which is then kept.

    Args:
        site: The run.
        stage: The stage.
        inputs: See `stage_key`.
        kind: The result's type.
        on_progress: Told when there is nothing left to do.
        compute: Runs the stage; given the key.

    Raises:
        StorageUnreachableError: Whether there is a kept result cannot be told.
    """
    key, notes = stage_key(stage, inputs), list[str]()
    with suppress(StorageUnreachableError, StorageRefusedError):  # an entry dropped for want of it is made again
        _store(site).hold_stage(stage, key, holder_of(site.run))
    kept = _find(site, stage, key, kind, notes)
    if kept is not None:
        on_progress(1, 1, f"{stage}: done by an earlier attempt")
        return kept
    result = compute(key).noting(*notes, key=key)
    try:
        _store(site).save_stage(stage, key, result.model_dump(mode="json"), site.files_of(result))
    except (StorageUnreachableError, StorageRefusedError) as error:
        return result.noting(f"The result could not be kept for a later attempt. {error.message}")
    discard(_store(site), [checkpoint_key(key)])
    return result


def holder_of(run: RunRef) -> str:
    """Return the name under which runs that were asked for the same hold what is kept for them."""
    asked = run.request.model_dump(mode="json", exclude={"out"})
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode("utf-8")).hexdigest()[:16]


def discard(store: ArtifactStore, keys: Iterable[str], holder: str | None = None) -> None:
    """Drop kept results and checkpoints; what cannot be reached now is left to the store's own expiry.

    Args:
        store: Where they are.
        keys: Of the results; empty ones are passed over.
        holder: Who has no more need of them: what others hold stays. Everything goes when None.
    """
    try:
        store.discard_stages([key for key in keys if key], holder)
    except (StorageUnreachableError, StorageRefusedError):
        return


def checkpoint_key(key: str) -> str:
    """Return the key of the checkpoints on the way to the result with this key."""
    return f"{key}-checkpoint"


class CheckpointKeeper:
    """Keeps the checkpoints of one stage in the run's store, and fetches the last one of an earlier attempt.

    Args:
        site: The run.
        stage: The stage.
        key: Of its result.

    Attributes:
        path: Where a fetched checkpoint stands, and where the stage is to write its own.
        notes: What went wrong with keeping them; a run goes on without.
    """

    def __init__(self, site: RunSite, stage: str, key: str) -> None:
        self.path = site.workspace.work / f"{stage}-{key[:16]}.checkpoint.npz"
        self.notes: list[str] = []
        self._store = _store(site)
        self._stage, self._key = stage, checkpoint_key(key)
        self._interval_s = 0.0 if isinstance(self._store, LocalStore) else UPLOAD_INTERVAL_S
        self._kept_at_s = float("-inf")
        self.path.unlink(missing_ok=True)
        self._store.find_stage(stage, self._key, {_CHECKPOINT_NAME: self.path}, self.notes)

    def in_process(self) -> FileCheckpoint:
        """Return the checkpoint for a stage that runs in this process."""
        return FileCheckpoint(self.path, self.keep)

    def on_event(self, event: dict[str, Any]) -> None:
        """Take note of what a stage tells that runs in a process of its own."""
        if "checkpoint" in event:
            self.keep(Path(event["checkpoint"]))

    def keep(self, path: Path) -> None:
        """Keep a checkpoint that has just been written, unless another machine was sent one a moment ago.

        Args:
            path: The file; it may be replaced while this reads it.
        """
        if time.monotonic() - self._kept_at_s < self._interval_s:
            return
        copy = path.with_suffix(".kept")
        try:
            shutil.copyfile(path, copy)
            self._store.save_stage(self._stage, self._key, {}, {_CHECKPOINT_NAME: copy})
        except (StorageUnreachableError, StorageRefusedError) as error:
            self.notes[:] = [f"A checkpoint could not be kept. {error.message}"]
        finally:
            copy.unlink(missing_ok=True)
        self._kept_at_s = time.monotonic()


def _find(site: RunSite, stage: str, key: str, kind: type[Result], notes: list[str]) -> Result | None:
    kept = _store(site).find_stage(stage, key, site.path_of, notes)
    if kept is None:
        return None
    try:
        return kind.model_validate(kept.result).noting(cached=True)
    except ValidationError:
        discard(_store(site), [key])
        notes.append("A kept stage result was of another form and has been removed.")
        return None


def _store(site: RunSite) -> ArtifactStore:
    return open_store(site.run.request.out)

"""The artifact store below an `s3://bucket/prefix`. The layout is here; requests and transfers are next door.

Runs are written in local scratch folders and go up whole when they are published, the manifest last.
"""

from __future__ import annotations

import hashlib
import shutil
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from reconflow.errors import IncompleteResultsError, ValidationFailedError
from reconflow.failures import folder_errors
from reconflow.outputs.package import MANIFEST_NAME, FileEntry, Manifest, read_manifest
from reconflow.outputs.runs import check_run_id
from reconflow.storage.access import access_for
from reconflow.storage.bucket import CONNECTIONS, Bucket, ListedObject
from reconflow.storage.entries import (
    HOLDERS_NAME,
    RESULT_NAME,
    StageFile,
    Tombstone,
    check_entry_name,
    checked_entry,
    find_entry,
    make_entry,
    missing_run,
    parse_manifest,
)
from reconflow.storage.locations import S3Location, parse_s3
from reconflow.storage.packages import fetch_package
from reconflow.storage.protocol import PublishedRun, StoredStage, Sweepings, Targets, Workspace
from reconflow.storage.scratch import scratch_folder, scratch_folders, sweep_scratch
from reconflow.storage.transfer import PART_BYTES, Download, Upload, download_files, is_stored, upload_files

MAX_LINK_S: Final = 7 * 24 * 3600
"""What the signature of a presigned URL allows."""

_RUN_ID_CHARACTERS: Final = string.digits + string.ascii_lowercase
_ONE_PAGE: Final = 1000


@dataclass(frozen=True)
class ObjectStore:
    """Results in an object store; the layout is the one of `docs/storage.md`.

    Attributes:
        location: Where it is.
        bucket: The door to it.
    """

    location: S3Location
    bucket: Bucket

    @classmethod
    def open(cls, uri: str) -> ObjectStore:
        """Return the store at `s3://bucket/prefix`, with the access that holds at this moment; sends nothing."""
        location = parse_s3(uri)
        return cls(location, Bucket(location.bucket, access_for(uri)))

    @property
    def uri(self) -> str:
        """The place as `s3://bucket/prefix`."""
        return self.location.uri

    def prepare(self) -> None:
        """Check that the place can be written.

        Raises:
            StorageUnreachableError: It does not answer.
            StorageRefusedError: It refuses.
        """
        probe = self.location.key(f".probe-{uuid4().hex}")
        self.bucket.put(probe, b"writable", "text/plain")
        self.bucket.delete([probe])

    def open_workspace(self, run_id: str) -> Workspace:
        """Create the run's scratch folders on this machine."""
        workspace = Workspace(run_id, *scratch_folders(self.uri, run_id))
        with folder_errors("cache folder", "Make it writable, or name another one with RECONFLOW_CACHE."):
            workspace.root.mkdir(parents=True, exist_ok=True)
            workspace.work.mkdir(parents=True, exist_ok=True)
        return workspace

    def begin_attempt(self, run_id: str) -> None:
        """Remove scratch folders of killed runs on this machine, and abort the run's unfinished uploads.

        An earlier attempt that was taken for dead, and still uploads on another machine, is stopped by that.
        """
        sweep_scratch()
        self._abort_uploads(self._run(run_id, ""))

    def publish(self, workspace: Workspace) -> str:
        """Upload the run, its manifest last; what an earlier attempt has uploaded whole is not sent again.

        A run that was published before under the same id disappears for readers until this one is complete.

        Raises:
            JobNotReadyError: The workspace has no manifest.
            IncompleteResultsError: A file is not what the manifest says.
        """
        manifest = read_manifest(workspace.root)
        content = (workspace.root / MANIFEST_NAME).read_bytes()
        present = {item.key: item for item in self.bucket.objects(self._run(workspace.run_id, ""))}
        manifest_key = self._run(workspace.run_id, MANIFEST_NAME)
        if manifest_key in present and self.bucket.get(manifest_key) != content:
            self.bucket.delete([manifest_key])
        uploads = [_upload(workspace, entry, self._run(workspace.run_id, entry.path)) for entry in manifest.files]
        upload_files(self.bucket, [upload for upload in uploads if not self._is_sent(upload, present)])
        wanted = {upload.key for upload in uploads} | {manifest_key}
        self.bucket.delete(present.keys() - wanted)
        self.bucket.put(manifest_key, content)
        return self.location.uri + f"/runs/{workspace.run_id}"

    def discard_work(self, workspace: Workspace) -> None:
        """Remove the run's scratch folders, results included: the published ones are in the store."""
        shutil.rmtree(scratch_folder(self.uri, workspace.run_id), ignore_errors=True)

    def discard_unfinished(self, run_id: str) -> None:
        """Abort the run's uploads, and remove its files unless it was published, here and in the store."""
        prefix = self._run(run_id, "")
        self._abort_uploads(prefix)
        if self.bucket.head(self._run(run_id, MANIFEST_NAME)) is None:
            self.bucket.delete(item.key for item in self.bucket.objects(prefix))
        shutil.rmtree(scratch_folder(self.uri, run_id), ignore_errors=True)

    def run_ids(self) -> list[str]:
        """Return the identifiers of the runs that have a manifest, sorted."""
        return [run.run_id for run in self.published_runs()]

    def published_runs(self) -> list[PublishedRun]:
        """Return the runs that have a manifest, with its time, sorted."""
        start = len(self.location.key("runs")) + 1
        runs = []
        for item in self._list_runs():
            run_id, _, name = item.key[start:].partition("/")
            if name == MANIFEST_NAME:
                runs.append(PublishedRun(run_id, item.modified.astimezone(UTC)))
        return sorted(runs, key=lambda run: run.run_id)

    def read_manifest(self, run_id: str) -> Manifest:
        """Return a run's manifest.

        Raises:
            JobNotFoundError: There is no such run.
            JobNotReadyError: It has not finished.
            JobExpiredError: Its results were removed.
            IncompleteResultsError: The manifest is damaged.
        """
        return parse_manifest(self._manifest_bytes(run_id))

    def read_file(self, run_id: str, name: str) -> bytes:
        """Return a small file of a published run.

        Raises:
            JobNotFoundError: The run has no such file.
            IncompleteResultsError: It is missing or has changed.
        """
        content = self._manifest_bytes(run_id)
        entry = checked_entry(parse_manifest(content), run_id, name)
        if entry is None:
            return content
        found = self.bucket.get(self._run(run_id, name))
        if found is None or hashlib.sha256(found).hexdigest() != entry.sha256:
            raise IncompleteResultsError(
                f"{entry.path} is missing or is not what was stored.", suggestion="Run the reconstruction again."
            )
        return found

    def fetch_run(self, run_id: str, into: Path) -> Path:
        """Download a published run to `into/<run-id>`, every file checked."""
        content = self._manifest_bytes(run_id)

        def copy(entries: Sequence[FileEntry], folder: Path) -> None:
            download_files(
                self.bucket,
                [
                    Download(self._run(run_id, entry.path), folder / entry.path, entry.sha256, size=entry.size)
                    for entry in entries
                ],
            )

        return fetch_package(run_id, into, parse_manifest(content), content, copy)

    def link(self, run_id: str, name: str, seconds: int) -> str:
        """Return a presigned URL: whoever has it can read the file until it ends.

        Raises:
            JobNotFoundError: The run has no such file.
            ValidationFailedError: It would last longer than signatures do.
        """
        if not 1 <= seconds <= MAX_LINK_S:
            raise ValidationFailedError(
                "A link lasts at least a second and at most seven days.", suggestion="Choose a shorter time."
            )
        checked_entry(self.read_manifest(run_id), run_id, name)
        return self.bucket.presigned_url(self._run(run_id, name), seconds)

    def delete_run(self, run_id: str, reason: str) -> None:
        """Leave a tombstone, then remove the manifest, then the rest."""
        manifest = self.read_manifest(run_id)
        self.bucket.put(self._tombstone(run_id), Tombstone.now(run_id, reason, manifest).to_bytes())
        self.bucket.delete([self._run(run_id, MANIFEST_NAME)])
        self.bucket.delete(item.key for item in self.bucket.objects(self._run(run_id, "")))

    def pin(self, run_id: str, *, pinned: bool = True) -> None:
        """Create or remove the run's pin."""
        key = self.location.key("pins", check_run_id(run_id))
        if pinned:
            self.bucket.put(key, b"", "text/plain")
        else:
            self.bucket.delete([key])

    def pinned_runs(self) -> frozenset[str]:
        """Return the identifiers that have a pin."""
        prefix = self.location.key("pins") + "/"
        return frozenset(item.key[len(prefix) :] for item in self.bucket.objects(prefix))

    def save_stage(self, stage: str, key: str, result: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        """Upload the files into the entry, then its `result.json`."""
        prefix, entry = self._stage(stage, key), make_entry(result, files)
        upload_files(
            self.bucket,
            [
                Upload(files[name], f"{prefix}{file.stored_name(name)}", file.sha256)
                for name, file in entry.files.items()
            ],
        )
        self.bucket.put(f"{prefix}{RESULT_NAME}", entry.to_bytes())

    def find_stage(self, stage: str, key: str, into: Targets, warnings: list[str] | None = None) -> StoredStage | None:
        """Return a kept result with its files downloaded and checked, or None."""
        prefix = self._stage(stage, key)

        def fetch(files: Sequence[tuple[StageFile, str, Path]]) -> None:
            download_files(
                self.bucket,
                [Download(f"{prefix}{stored}", target, file.sha256, size=file.size) for file, stored, target in files],
            )

        return find_entry(
            lambda: self.bucket.get(f"{prefix}{RESULT_NAME}"),
            fetch,
            lambda: self._empty_entry(prefix),
            into,
            warnings,
        )

    def hold_stage(self, stage: str, key: str, holder: str) -> None:
        """Put the holder's empty object into the entry."""
        check_entry_name(stage, holder)
        self.bucket.put(f"{self._stage(stage, key)}{HOLDERS_NAME}/{holder}", b"", "text/plain")

    def discard_stages(self, keys: Iterable[str], holder: str | None = None) -> None:
        """Remove the entries under these keys that nobody else holds, and what was being uploaded into them."""
        unwanted = list(keys)
        for key in unwanted:
            check_entry_name("any", key)
        removed: set[str] = set()
        for stage in self.bucket.folders(self.location.key("stages") + "/") if unwanted else ():
            prefixes = (self._stage(stage, key) for key in unwanted)
            removed |= {prefix for prefix in prefixes if self._remove_entry(prefix, holder)}
        if removed:
            self._abort_uploads(self.location.key("stages") + "/", removed)

    def sweep(self, older_than_s: float) -> Sweepings:
        """Abort uploads begun, and remove scratch folders on this machine untouched, for that long."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        prefix = self.location.key("") + "/" if self.location.prefix else ""
        old = [upload for upload in self.bucket.unfinished_uploads(prefix) if upload.started < before]
        for upload in old:
            self.bucket.abort_upload(upload.key, upload.upload_id)
        return Sweepings(uploads=len(old), files=sweep_scratch(older_than_s))

    def sweep_stages(self, older_than_s: float) -> Sweepings:
        """Remove the entries of the stage cache made before that long ago."""
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        prefix = self.location.key("stages") + "/"
        entries: dict[str, list[ListedObject]] = {}
        for item in self.bucket.objects(prefix):
            stage, key = item.key[len(prefix) :].split("/")[:2]
            entries.setdefault(f"{prefix}{stage}/{key}/", []).append(item)
        old = [entry for entry, items in entries.items() if max(item.modified for item in items) < before]
        for entry in old:
            self._remove_entry(entry)
        return Sweepings(stages=len(old))

    def _run(self, run_id: str, name: str) -> str:
        return f"{self.location.key('runs', check_run_id(run_id))}/{name}"

    def _tombstone(self, run_id: str) -> str:
        return self.location.key("expired", f"{check_run_id(run_id)}.json")

    def _stage(self, stage: str, key: str) -> str:
        check_entry_name(stage, key)
        return self.location.key("stages", stage, key) + "/"

    def _empty_entry(self, prefix: str) -> None:
        """Remove a kept result, its record first, so that nobody finds a record without its files; holders stay."""
        self.bucket.delete([f"{prefix}{RESULT_NAME}"])
        self.bucket.delete(item.key for item in self.bucket.objects(f"{prefix}files/"))

    def _abort_uploads(self, prefix: str, below: Collection[str] = ("",)) -> None:
        """Abort the unfinished uploads of keys that begin with a prefix and with one of `below`."""
        for upload in self.bucket.unfinished_uploads(prefix):
            if upload.key.startswith(tuple(below)):
                self.bucket.abort_upload(upload.key, upload.upload_id)

    def _remove_entry(self, prefix: str, holder: str | None = None) -> bool:
        """Remove a kept result, its record first, and its holders; return False when others than the holder need it."""
        keys = [item.key for item in self.bucket.objects(prefix)]
        if holder is not None and any(key.startswith(f"{prefix}{HOLDERS_NAME}/") for key in keys):
            self.bucket.delete([f"{prefix}{HOLDERS_NAME}/{holder}"])  # first, so that of two the last one sees none
            if any(self.bucket.objects(f"{prefix}{HOLDERS_NAME}/")):
                return False
        if keys:
            self.bucket.delete([f"{prefix}{RESULT_NAME}"])
            self.bucket.delete(key for key in keys if key != f"{prefix}{RESULT_NAME}")
        return True

    def _manifest_bytes(self, run_id: str) -> bytes:
        content = self.bucket.get(self._run(run_id, MANIFEST_NAME))
        if content is None:
            begun = next(self.bucket.objects(self._run(run_id, ""), at_most=1), None) is not None
            raise missing_run(run_id, self.bucket.get(self._tombstone(run_id)), begun=begun)
        return content

    def _is_sent(self, upload: Upload, present: Mapping[str, ListedObject]) -> bool:
        """Whether a large file is there already; asking costs more than sending a small one again."""
        item = present.get(upload.key)
        size = upload.path.stat().st_size
        return item is not None and item.size == size > PART_BYTES and is_stored(self.bucket, upload)

    def _list_runs(self) -> Iterable[ListedObject]:
        """List everything below `runs/`: one page when that is all, else by first characters side by side."""
        prefix = self.location.key("runs") + "/"
        first = list(self.bucket.objects(prefix, at_most=_ONE_PAGE))
        if len(first) < _ONE_PAGE:
            return first
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="list") as pool:
            shards = pool.map(lambda c: list(self.bucket.objects(prefix + c)), _RUN_ID_CHARACTERS)
            return list(chain.from_iterable(shards))


def _upload(workspace: Workspace, entry: FileEntry, key: str) -> Upload:
    path = workspace.root / entry.path
    if not path.is_file() or path.stat().st_size != entry.size:
        raise IncompleteResultsError(
            f"{entry.path} is missing or is not what the manifest says.", suggestion="Run the reconstruction again."
        )
    return Upload(path, key, entry.sha256)

"""Moving files to and from a bucket: several at once, in bounded memory, every byte accounted for by checksums.

Large files go up in parts. What was measured against other transports is in `docs/storage.md`; the command is
`python -m benchmarks.transfer`. No layout of a store here.
"""

from __future__ import annotations

import hashlib
import math
import mimetypes
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from reconflow.errors import IncompleteResultsError, ReconflowError, StorageUnreachableError
from reconflow.outputs.files import replacing
from reconflow.storage.bucket import Bucket, again_when_cut_off
from reconflow.storage.checksums import base64_sha256, expect_confirmed, is_md5
from reconflow.storage.s3_errors import storage_errors, unreachable

PART_BYTES: Final = 8 << 20
THREADS: Final = 8
_MOST_PARTS: Final = 10_000
_CHUNK_BYTES: Final = 1 << 20
_APPEARING_PAUSES_S: Final = (0.0, 1.0, 3.0, 9.0)
_TYPES: Final = {".glb": "model/gltf-binary", ".obj": "model/obj", ".mtl": "model/mtl", ".webp": "image/webp"}
SHA256_FIELD: Final = "sha256"
"""Name of the object metadata that holds the SHA-256 of the whole content, hex."""


@dataclass(frozen=True)
class Upload:
    """A file to send.

    Attributes:
        path: The file.
        key: Where it goes.
        sha256: Of its content, hex; another content is refused.
    """

    path: Path
    key: str
    sha256: str


@dataclass(frozen=True)
class Download:
    """An object to fetch.

    Attributes:
        key: The object.
        path: Where it goes; appears whole or not at all.
        sha256: Of its content, hex; None when only the server knows.
        etag: Of the version that is meant, or None for any.
        size: Most bytes taken, or None.
    """

    key: str
    path: Path
    sha256: str | None = None
    etag: str | None = None
    size: int | None = None


def upload_files(bucket: Bucket, uploads: Sequence[Upload]) -> None:
    """Send files; when this returns, the server has confirmed each one's content.

    When it raises, for whatever reason, no multipart upload of it is left open.

    Raises:
        IncompleteResultsError: A file is not the content that was announced.
        StorageUnreachableError, StorageRefusedError: The server did not take it.
    """
    parts: list[_PartedUpload] = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="upload") as pool:
        window = _Window(pool)
        try:
            for upload in uploads:
                if upload.path.stat().st_size <= PART_BYTES:
                    window.submit(partial(_put_whole, bucket, upload))
                else:
                    parts.append(_PartedUpload(bucket, upload))
                    parts[-1].send_parts(window)
            window.drain()
            for parted in parts:
                parted.complete()
        except BaseException:
            window.cancel()
            for parted in parts:
                with suppress(ReconflowError):  # the fault under way says more than the one of cleaning up after it
                    parted.abort()
            raise


def download_files(bucket: Bucket, downloads: Sequence[Download]) -> None:
    """Fetch objects; each file appears once its content is known to be right.

    Raises:
        IncompleteResultsError: An object is missing or is not what it should be.
        StorageUnreachableError, StorageRefusedError: The server did not give it.
    """
    with ThreadPoolExecutor(THREADS, thread_name_prefix="download") as pool:
        window = _Window(pool)
        try:
            for download in downloads:
                window.submit(partial(_fetch, bucket, download))
            window.drain()
        except BaseException:
            window.cancel()
            raise


def is_stored(bucket: Bucket, upload: Upload) -> bool:
    """Whether an object is there with a file's size and checksum."""
    facts = bucket.head(upload.key)
    return (
        facts is not None
        and facts["ContentLength"] == upload.path.stat().st_size
        and facts.get("Metadata", {}).get(SHA256_FIELD) == upload.sha256
    )


class _Window:
    """Work in threads with a bounded backlog, so that memory is; the first fault comes back to the caller."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._running: deque[Future[None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        while len(self._running) > THREADS:
            self._running.popleft().result()
        self._running.append(self._pool.submit(work))

    def drain(self) -> None:
        while self._running:
            self._running.popleft().result()

    def cancel(self) -> None:
        for future in self._running:
            future.cancel()
        wait(self._running)


@dataclass
class _PartedUpload:
    bucket: Bucket
    upload: Upload
    upload_id: str | None = None
    parts: dict[int, dict[str, Any]] = field(default_factory=dict)

    def send_parts(self, window: _Window) -> None:
        """Read the file once, in order, and hand its parts to the window; start the upload first."""
        size = self.upload.path.stat().st_size
        part_bytes = max(PART_BYTES, math.ceil(size / _MOST_PARTS / _CHUNK_BYTES) * _CHUNK_BYTES)
        with storage_errors(self.bucket.name):
            self.upload_id = self.bucket.client.create_multipart_upload(
                **_target(self.bucket, self.upload), ChecksumAlgorithm="SHA256"
            )["UploadId"]
        digest = hashlib.sha256()
        with self.upload.path.open("rb") as stream:
            number = 0
            while data := stream.read(part_bytes):
                number += 1
                digest.update(data)
                window.submit(partial(self._send, number, data))
        _expect_content(self.upload, digest.hexdigest())

    def _send(self, number: int, data: bytes) -> None:
        checksum = base64_sha256(data)
        with storage_errors(self.bucket.name):
            answer = self.bucket.client.upload_part(
                Bucket=self.bucket.name,
                Key=self.upload.key,
                UploadId=self.upload_id,
                PartNumber=number,
                Body=data,
                ChecksumSHA256=checksum,
            )
        expect_confirmed(answer, data, checksum)
        known = {"ChecksumSHA256": checksum} if "ChecksumSHA256" in answer else {}  # else it is refused at the end
        self.parts[number] = {"PartNumber": number, "ETag": answer["ETag"], **known}

    def complete(self) -> None:
        """Make the object appear; an answer that got lost is made up for by looking."""
        ordered = [self.parts[number] for number in sorted(self.parts)]
        try:
            with storage_errors(self.bucket.name):
                self.bucket.client.complete_multipart_upload(
                    Bucket=self.bucket.name,
                    Key=self.upload.key,
                    UploadId=self.upload_id,
                    MultipartUpload={"Parts": ordered},
                )
        except StorageUnreachableError:
            if not self._has_appeared():
                raise
        self.upload_id = None

    def _has_appeared(self) -> bool:
        """Whether the object is there after all: a server may still be putting a large one together."""
        for pause_s in _APPEARING_PAUSES_S:
            time.sleep(pause_s)
            if is_stored(self.bucket, self.upload):
                return True
        return False

    def abort(self) -> None:
        if self.upload_id is not None:
            self.bucket.abort_upload(self.upload.key, self.upload_id)


def _put_whole(bucket: Bucket, upload: Upload) -> None:
    data = upload.path.read_bytes()
    _expect_content(upload, hashlib.sha256(data).hexdigest())
    checksum = base64_sha256(data)
    with storage_errors(bucket.name):
        answer = bucket.client.put_object(**_target(bucket, upload), Body=data, ChecksumSHA256=checksum)
    expect_confirmed(answer, data, checksum)


def _target(bucket: Bucket, upload: Upload) -> dict[str, Any]:
    guessed = _TYPES.get(upload.path.suffix) or mimetypes.guess_type(upload.key)[0] or "application/octet-stream"
    return {
        "Bucket": bucket.name,
        "Key": upload.key,
        "ContentType": guessed,
        "Metadata": {SHA256_FIELD: upload.sha256},
    }


def _expect_content(upload: Upload, sha256: str) -> None:
    if sha256 != upload.sha256:
        raise IncompleteResultsError(
            f"{upload.path.name} has changed since it was written.",
            suggestion="Run the reconstruction again.",
            file=upload.path.name,
        )


def _fetch(bucket: Bucket, download: Download) -> None:
    again_when_cut_off(partial(_fetch_once, bucket, download))


def _fetch_once(bucket: Bucket, download: Download) -> None:
    condition = {"IfMatch": f'"{download.etag}"'} if download.etag is not None else {}
    sha256, md5, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    with storage_errors(bucket.name):
        try:
            answer = bucket.client.get_object(Bucket=bucket.name, Key=download.key, **condition)
        except bucket.client.exceptions.NoSuchKey:
            raise _damaged(download) from None
        with replacing(download.path) as stream:
            for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                size += len(chunk)
                if download.size is not None and size > download.size:
                    raise _damaged(download)
                stream.write(chunk)
                sha256.update(chunk)
                md5.update(chunk)
            if size != answer["ContentLength"]:
                raise unreachable("IncompleteReadError")
            wanted = download.sha256 or answer.get("Metadata", {}).get(SHA256_FIELD)
            if wanted is not None and sha256.hexdigest() != wanted:
                raise _damaged(download)
            etag = str(answer["ETag"]).strip('"')
            if wanted is None and is_md5(answer, etag) and md5.hexdigest() != etag:
                raise unreachable("IncompleteReadError")


def _damaged(download: Download) -> IncompleteResultsError:
    name = download.path.name
    return IncompleteResultsError(
        f"{name} is missing in the storage or is not what was stored.",
        suggestion="Upload it again, or run the reconstruction again.",
        file=name,
    )

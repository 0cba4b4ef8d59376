"""One bucket through a boto3 client: the requests that the store is made of, each with known errors. No layout here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, TypeVar

import boto3.session
from botocore.config import Config
from botocore.exceptions import ClientError

from reconflow.errors import StorageRefusedError, StorageUnreachableError
from reconflow.storage.access import StorageAccess
from reconflow.storage.checksums import base64_sha256, expect_confirmed, sign_md5
from reconflow.storage.s3_errors import ABSENT, error_code, storage_errors, unreachable

AnyResult = TypeVar("AnyResult")
CONNECTIONS: Final = 16
_CONNECT_TIMEOUT_S: Final = 10.0
_READ_TIMEOUT_S: Final = 60.0
_ATTEMPTS: Final = 8
_DELETE_AT_ONCE: Final = 1000
_PAGE: Final = 1000
_FOLDERS_AT_ONCE: Final = 128
_PAUSE_S: Final = 0.2


@dataclass(frozen=True)
class ListedObject:
    """An object in a listing.

    Attributes:
        key: Its whole key.
        size: Bytes.
        etag: What changes with its content, without quotes.
        modified: When it was written.
    """

    key: str
    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class UnfinishedUpload:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    started: datetime


@dataclass(frozen=True)
class Bucket:
    """A bucket and the access to it; the client is shared and safe between threads.

    Attributes:
        name: The bucket's.
        access: Endpoint and credentials.
    """

    name: str
    access: StorageAccess

    @property
    def client(self) -> Any:
        """The client, for requests that are not here."""
        return _client(self.access, _timeout_s(), _attempts())

    def head(self, key: str) -> dict[str, Any] | None:
        """Return what the server says of an object, None when there is none."""
        with storage_errors(self.name):
            try:
                facts: dict[str, Any] = self.client.head_object(Bucket=self.name, Key=key)
            except ClientError as error:
                if error_code(error) in ABSENT:
                    return None
                raise
        return facts

    def get(self, key: str) -> bytes | None:
        """Return a small object's content, None when there is none."""

        def read() -> bytes | None:
            with storage_errors(self.name):
                try:
                    content: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
                except ClientError as error:
                    if error_code(error) in ABSENT:
                        return None
                    raise
                return content

        return again_when_cut_off(read)

    def put(self, key: str, content: bytes, content_type: str = "application/json") -> None:
        """Write a small object."""
        checksum = base64_sha256(content)
        with storage_errors(self.name):
            answer = self.client.put_object(
                Bucket=self.name, Key=key, Body=content, ContentType=content_type, ChecksumSHA256=checksum
            )
        expect_confirmed(answer, content, checksum)

    def objects(self, prefix: str, at_most: int | None = None) -> Iterator[ListedObject]:
        """Yield the objects whose keys begin with `prefix`, in order, page by page."""
        paginator = self.client.get_paginator("list_objects_v2")
        limits = {} if at_most is None else {"PaginationConfig": {"MaxItems": at_most}}
        with storage_errors(self.name):
            for page in paginator.paginate(Bucket=self.name, Prefix=prefix, **limits):
                for item in page.get("Contents", ()):
                    yield _listed(item)

    def objects_side_by_side(self, prefix: str) -> list[ListedObject]:
        """Return the objects whose keys begin with `prefix`, a slash at its end, in order; for very many of them.

        More than a page is listed in groups of the folders right below, several at a time.
        """
        first = list(self.objects(prefix, at_most=_PAGE))
        if len(first) < _PAGE:
            return first
        folders: list[str] = []
        listed: dict[str, ListedObject] = {}
        with storage_errors(self.name):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=prefix, Delimiter="/"
            )
            for page in pages:
                folders += (item["Prefix"][len(prefix) :] for item in page.get("CommonPrefixes", ()))
                listed |= {item["Key"]: _listed(item) for item in page.get("Contents", ())}
        groups = [prefix + group for group in common_beginnings(folders, _FOLDERS_AT_ONCE)]
        with ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="list") as pool:
            for found in pool.map(lambda group: list(self.objects(group)), groups):
                listed |= {item.key: item for item in found}
        return [listed[key] for key in sorted(listed)]

    def folders(self, prefix: str) -> Iterator[str]:
        """Yield the names of the folders right below `prefix`, which ends with a slash."""
        paginator = self.client.get_paginator("list_objects_v2")
        with storage_errors(self.name):
            for page in paginator.paginate(Bucket=self.name, Prefix=prefix, Delimiter="/"):
                for item in page.get("CommonPrefixes", ()):
                    yield item["Prefix"][len(prefix) :].rstrip("/")

    def delete(self, keys: Iterable[str]) -> int:
        """Remove objects; those that are gone already are no fault. Return how many were named."""
        named = list(keys)
        for start in range(0, len(named), _DELETE_AT_ONCE):
            some = [{"Key": key} for key in named[start : start + _DELETE_AT_ONCE]]
            with storage_errors(self.name):
                answer = self.client.delete_objects(Bucket=self.name, Delete={"Objects": some, "Quiet": True})
            _expect_deleted(answer.get("Errors", ()), self.name)
        return len(named)

    def unfinished_uploads(self, prefix: str) -> list[UnfinishedUpload]:
        """Return the multipart uploads under way below a prefix."""
        paginator = self.client.get_paginator("list_multipart_uploads")
        with storage_errors(self.name):
            return [
                UnfinishedUpload(item["Key"], item["UploadId"], item["Initiated"])
                for page in paginator.paginate(Bucket=self.name, Prefix=prefix)
                for item in page.get("Uploads", ())
                if item["Key"].startswith(prefix)
            ]

    def abort_upload(self, key: str, upload_id: str) -> None:
        """End a multipart upload and free what it has stored; one that is gone already is no fault."""
        with storage_errors(self.name):
            try:
                self.client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload_id)
            except ClientError as error:
                if error_code(error) not in ("NoSuchUpload", "404", "NoSuchKey"):
                    raise

    def presigned_url(self, key: str, seconds: int) -> str:
        """Return a URL that reads an object until it ends."""
        with storage_errors(self.name):
            url: str = self.client.generate_presigned_url(
                "get_object", Params={"Bucket": self.name, "Key": key}, ExpiresIn=seconds
            )
        return url


def common_beginnings(names: Sequence[str], at_most: int, depth: int = 0) -> list[str]:
    """Return beginnings such that each of the names has exactly one of them, and few names share one.

    Args:
        names: Distinct ones, none the beginning of another.
        at_most: So many names may share a beginning.
        depth: How many characters they are known to share.
    """
    if len(names) <= at_most:
        return [names[0][:depth]] if names else []
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name[: depth + 1], []).append(name)
    return [beginning for group in groups.values() for beginning in common_beginnings(group, at_most, depth + 1)]


def _listed(item: dict[str, Any]) -> ListedObject:
    return ListedObject(item["Key"], item["Size"], item["ETag"].strip('"'), item["LastModified"])


def again_when_cut_off(work: Callable[[], AnyResult]) -> AnyResult:
    """Do `work` again when an answer broke off on its way, which the client itself does not.

    Args:
        work: Reads a whole answer.
    """
    for attempt in range(_ATTEMPTS - 1):
        try:
            return work()
        except StorageUnreachableError as error:
            if error.details.get("reason") not in _CUT_OFF:
                raise
            time.sleep(_PAUSE_S * attempt)
    return work()


_CUT_OFF: Final = frozenset(
    {"ResponseStreamingError", "IncompleteReadError", "ReadTimeoutError", "ConnectionResetError"}
)


def _expect_deleted(errors: Sequence[dict[str, Any]], bucket: str) -> None:
    if errors:
        code = str(errors[0].get("Code", ""))
        if code in ("InternalError", "SlowDown", "ServiceUnavailable"):
            raise unreachable(code)
        raise StorageRefusedError(
            f"{len(errors)} objects in the bucket {bucket} cannot be removed ({code}).",
            suggestion="Allow deleting below the prefix.",
            reason=code,
        )


def _timeout_s() -> float:
    return float(os.environ.get("RECONFLOW_STORAGE_TIMEOUT_S", _READ_TIMEOUT_S))


def _attempts() -> int:
    return int(os.environ.get("AWS_MAX_ATTEMPTS", _ATTEMPTS))


@lru_cache(maxsize=16)
def _client(access: StorageAccess, timeout_s: float, attempts: int) -> Any:
    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=min(_CONNECT_TIMEOUT_S, timeout_s),
        read_timeout=timeout_s,
        max_pool_connections=CONNECTIONS,
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={
            "addressing_style": "path" if access.endpoint_url else "auto",
            "payload_signing_enabled": False,  # the checksum is signed, and the body is held against it
        },
    )
    session = boto3.session.Session()
    try:
        client = session.client(
            "s3",
            endpoint_url=access.endpoint_url,
            region_name=access.region or session.region_name or "us-east-1",
            aws_access_key_id=access.key,
            aws_secret_access_key=access.secret,
            aws_session_token=access.token,
            config=config,
        )
    except ValueError:
        raise StorageRefusedError(
            "The storage's endpoint is not a URL.", suggestion="Write it as https://host or http://host:port."
        ) from None
    client.meta.events.register("before-sign.s3.DeleteObjects", sign_md5)
    return client

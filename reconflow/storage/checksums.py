"""How a request says what its body is, and an answer that the server stored the bytes that were sent. Sends nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any, Final

from botocore.awsrequest import AWSRequest

from reconflow.storage.s3_errors import unreachable

_NEWER_HEADERS: Final = ("x-amz-checksum-", "x-amz-sdk-checksum-")


def base64_sha256(data: bytes) -> str:
    """Return the SHA-256 as S3's checksum headers write it."""
    return base64.b64encode(hashlib.sha256(data).digest()).decode("ascii")


def sign_md5(request: AWSRequest, **_: object) -> None:
    """Put the MD5 of a request's body in the place of newer checksums, which servers may not know, before it is signed.

    Args:
        request: Has its whole body in memory.
    """
    for name in list(request.headers):
        if name.lower().startswith(_NEWER_HEADERS):
            del request.headers[name]
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode("ascii")


def expect_confirmed(answer: Mapping[str, Any], data: bytes, checksum: str) -> None:
    """Check that the server has stored these bytes: by its SHA-256, else by the ETag where that is an MD5.

    Every request carries the checksum as a signed header, which servers that know it hold against the body themselves.

    Args:
        answer: To a request that stored an object or a part.
        data: What was sent.
        checksum: Its `base64_sha256`.

    Raises:
        StorageUnreachableError: It has stored something else.
    """
    theirs = answer.get("ChecksumSHA256")
    etag = str(answer.get("ETag", "")).strip('"')
    if theirs is not None:
        is_right = theirs == checksum
    else:
        is_right = not is_md5(answer, etag) or etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
    if not is_right:
        raise unreachable("ChecksumMismatch")


def is_md5(answer: Mapping[str, Any], etag: str) -> bool:
    """Whether an ETag is the MD5 of the content: not of multipart uploads, nor under keys that the server does not own.

    Args:
        answer: That the ETag is from.
        etag: Without quotes.
    """
    encrypted = answer.get("ServerSideEncryption") not in (None, "AES256") or "SSECustomerAlgorithm" in answer
    return len(etag) == 32 and not encrypted

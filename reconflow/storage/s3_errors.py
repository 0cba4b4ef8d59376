"""What the failures of an S3 client mean for the user. Texts name no endpoint, no key and no file of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from botocore import exceptions
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from reconflow.errors import ReconflowError, StorageRefusedError, StorageUnreachableError

ABSENT: Final = frozenset({"NoSuchKey", "404", "NotFound"})
_WRONG_CREDENTIALS: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "401"}
)
_DENIED: Final = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"})
_MISSING_BUCKET: Final = frozenset({"NoSuchBucket", "InvalidBucketName"})
_PASSING: Final = frozenset(
    {
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "IncompleteBody",
        "OperationAborted",
        "ConditionalRequestConflict",
        "PreconditionFailed",
        "NoSuchUpload",
    }
)
_TOO_MANY: Final = 429
_NOT_IMPLEMENTED: Final = 501
_NO_CREDENTIALS: Final = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.ProfileNotFound,
    exceptions.TokenRetrievalError,
)


@contextmanager
def storage_errors(bucket: str) -> Iterator[None]:
    """Turn what an S3 client raises inside the block into this project's errors.

    Args:
        bucket: The bucket's name, for the texts.
    """
    try:
        yield
    except (ClientError, BotoCoreError, HTTPError, ConnectionError, TimeoutError) as error:
        raise known_error(error, bucket) from None


def error_code(error: ClientError) -> str:
    """Return the code that the server gave."""
    return str(error.response.get("Error", {}).get("Code", ""))


def known_error(error: Exception, bucket: str) -> ReconflowError:
    """Return what a client's error means.

    Args:
        error: As the client raised it.
        bucket: The bucket's name.
    """
    if isinstance(error, _NO_CREDENTIALS):
        return StorageRefusedError(
            "There are no usable credentials for the storage.",
            suggestion="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give the machine a role, or use a block.",
            reason=type(error).__name__,
        )
    if not isinstance(error, ClientError):
        return unreachable(type(error).__name__)
    code = error_code(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _PASSING or (status >= 500 and status != _NOT_IMPLEMENTED) or status == _TOO_MANY:
        return unreachable(code or str(status))
    if code in _MISSING_BUCKET:
        text, way_out = f"There is no bucket {bucket}.", "Create it, or correct its name."
    elif code in _WRONG_CREDENTIALS:
        text, way_out = "The storage refuses the credentials.", "Check the access key, the secret and their expiry."
    elif code in _DENIED:
        text = f"The credentials do not allow this in the bucket {bucket}."
        way_out = "Allow listing, reading, writing and deleting below the prefix."
    else:
        text, way_out = f"The storage refuses the request ({code or status}).", "Check the bucket, region and endpoint."
    return StorageRefusedError(text, suggestion=way_out, reason=code or str(status))


def unreachable(reason: str) -> StorageUnreachableError:
    """Return the error of a storage that does not do its work, after all attempts.

    Args:
        reason: A short name of what happened last.
    """
    return StorageUnreachableError(
        f"The storage does not answer as it should ({reason}), also after several attempts.",
        suggestion="Check that the storage runs and can be reached from here, then try again.",
        reason=reason,
    )

"""Who may use an object store, and where it answers: from the environment or IAM, or handed over for a block of code.

Nothing here is ever written, logged or shown; a secret's `repr` hides it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from reconflow.storage.locations import is_inside, parse_s3

_VARIABLES: Final = {
    "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "key": ("AWS_ACCESS_KEY_ID",),
    "secret": ("AWS_SECRET_ACCESS_KEY",),
    "token": ("AWS_SESSION_TOKEN",),
}


@dataclass(frozen=True)
class StorageAccess:
    """Endpoint and credentials of an object store; what is None is left to IAM, profiles and defaults.

    Attributes:
        endpoint_url: Of a server other than AWS.
        region: Of the bucket.
        key: Access key id.
        secret: Secret access key.
        token: Session token of temporary credentials.
    """

    endpoint_url: str | None = None
    region: str | None = None
    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    def environment(self) -> dict[str, str]:
        """Return the variables that give a child process the same access."""
        return {names[-1]: value for name, names in _VARIABLES.items() if (value := getattr(self, name))}


_granted: ContextVar[tuple[tuple[str, StorageAccess], ...]] = ContextVar("granted", default=())


@contextmanager
def using_access(access: StorageAccess, for_prefix: str) -> Iterator[None]:
    """Use `access` for every location at or below a prefix while the block runs, in this thread and its tasks.

    Args:
        access: Endpoint and credentials.
        for_prefix: `s3://bucket/prefix`; a longer prefix wins over a shorter one.
    """
    parse_s3(for_prefix)
    token = _granted.set((*_granted.get(), (for_prefix, access)))
    try:
        yield
    finally:
        _granted.reset(token)


def access_for(uri: str) -> StorageAccess:
    """Return the access that was handed over for a location, else the environment's.

    Args:
        uri: `s3://bucket/prefix`.
    """
    location = parse_s3(uri)
    fitting = [(prefix, access) for prefix, access in _granted.get() if is_inside(location, parse_s3(prefix))]
    if fitting:
        return max(reversed(fitting), key=lambda pair: len(pair[0].rstrip("/")))[1]
    values = {
        name: next((value for variable in variables if (value := os.environ.get(variable))), None)
        for name, variables in _VARIABLES.items()
    }
    return StorageAccess(**values)

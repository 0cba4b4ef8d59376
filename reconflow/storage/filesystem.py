"""A place as an fsspec filesystem, for notebooks and tools that know that interface. The store itself uses none."""

from __future__ import annotations

from typing import Any

import fsspec

from reconflow.storage import check_allowed
from reconflow.storage.access import access_for
from reconflow.storage.locations import scheme_of


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a location, and the location's path in it.

    Args:
        uri: A local folder or `s3://bucket/prefix`, opened with the access that holds at this moment.

    Returns:
        The filesystem (`s3fs.S3FileSystem` for S3) and the path, as `fsspec.url_to_fs` does.

    Raises:
        ValidationFailedError: The location is not allowed here.
    """
    check_allowed(uri)
    if scheme_of(uri) != "s3":
        return fsspec.url_to_fs(uri)  # type: ignore[no-any-return]
    access = access_for(uri)
    return fsspec.url_to_fs(  # type: ignore[no-any-return]
        uri,
        key=access.key,
        secret=access.secret,
        token=access.token,
        endpoint_url=access.endpoint_url,
        client_kwargs={"region_name": access.region} if access.region else {},
    )

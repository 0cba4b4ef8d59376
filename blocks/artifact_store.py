"""Places for datasets and results as Prefect blocks, and what `block://NAME` means. What a store does is elsewhere.

A block's secret is a `SecretStr`: encrypted in the server's database and masked by its API, though whoever may ask the
API for secrets gets them. Where workers have a role or credentials in their environment, leave the fields empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Final, NamedTuple, cast

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from reconflow.datasets.files import relative_name
from reconflow.errors import ValidationFailedError
from reconflow.storage import StorageAccess, using_access
from reconflow.storage.locations import scheme_of

BLOCK_SCHEME: Final = "block://"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")


class ResolvedLocation(NamedTuple):
    """Where a location is, and who may use it.

    Attributes:
        uri: A local folder or `s3://bucket/prefix`.
        access: Endpoint and credentials; None to leave them to the environment.
    """

    uri: str
    access: StorageAccess | None


class ArtifactStoreBlock(Block):
    """A place for datasets or results: a local folder, or a prefix in an object store with endpoint and credentials."""

    _block_type_name = "Artifact store"
    _block_type_slug = "reconflow-artifact-store"
    _description = "Where datasets or results are: a folder, or s3://bucket/prefix with endpoint and credentials."

    uri: str = Field(min_length=1, title="Location", description="A folder, or s3://bucket/prefix.")
    endpoint_url: str | None = Field(
        default=None, title="Endpoint", description="Of a server other than AWS, like https://storage.example.com."
    )
    region: str | None = Field(default=None, title="Region", description="Of the bucket.")
    access_key_id: str | None = Field(
        default=None, title="Access key", description="Left out where workers have a role or credentials of their own."
    )
    secret_access_key: SecretStr | None = Field(
        default=None, title="Secret", description="Belongs to the access key; not shown again."
    )

    def access(self) -> StorageAccess | None:
        """Return endpoint and credentials; None when the block leaves everything to the environment."""
        given = (self.endpoint_url, self.region, self.access_key_id, self.secret_access_key)
        if not any(given):
            return None
        secret = self.secret_access_key.get_secret_value() if self.secret_access_key else None
        return StorageAccess(self.endpoint_url, self.region, self.access_key_id, secret)


def resolve_location(text: str) -> ResolvedLocation:
    """Return what a location means: itself, or the place that a saved block names.

    Args:
        text: A local folder, `s3://bucket/prefix`, `block://NAME` or `block://NAME/path/below/it`.

    Raises:
        ValidationFailedError: There is no such block, or the path leaves its place.
    """
    if scheme_of(text) != "block":
        return ResolvedLocation(text, None)
    name, _, below = text[len(BLOCK_SCHEME) :].partition("/")
    block = _load(name)
    uri = block.uri.rstrip("/") or "/"
    return ResolvedLocation(f"{uri}/{relative_name(below)}" if below.strip("/") else uri, block.access())


@contextmanager
def using_locations(*locations: str) -> Iterator[tuple[str, ...]]:
    """Resolve locations, and use the access of their blocks while the block of code runs.

    Args:
        *locations: As for `resolve_location`.
    """
    resolved = [resolve_location(location) for location in locations]
    with ExitStack() as stack:
        for place in resolved:
            if place.access is not None and scheme_of(place.uri) == "s3":
                stack.enter_context(using_access(place.access, place.uri))
        yield tuple(place.uri for place in resolved)


def _load(name: str) -> ArtifactStoreBlock:
    if _NAME.fullmatch(name):
        with suppress(ValueError):
            return cast("ArtifactStoreBlock", ArtifactStoreBlock.load(name))
    raise ValidationFailedError(
        f"There is no saved artifact store named {name[:100]!r}.",
        suggestion="Save a block of the type Artifact store under that name, or write the location itself.",
        block=name[:100],
    )

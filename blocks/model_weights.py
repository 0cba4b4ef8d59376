"""Where models' weights are, as a Prefect block: a folder on the workers, or a prefix in an object store with access.

What is in such a place is in `reconflow.reconviagen.weights`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import cast

from pydantic import Field

from blocks.artifact_store import BLOCK_SCHEME, ArtifactStoreBlock
from reconflow.errors import ValidationFailedError
from reconflow.storage import using_access
from reconflow.storage.locations import scheme_of


class ModelWeightsBlock(ArtifactStoreBlock):
    """A place for models' weights: a folder, or a prefix in an object store with endpoint and credentials."""

    _block_type_name = "Model weights"
    _block_type_slug = "reconflow-model-weights"
    _description = "Where models' weights are: a folder, or s3://bucket/prefix with endpoint and credentials."

    uri: str = Field(min_length=1, title="Location", description="A folder, or s3://bucket/prefix.")


@contextmanager
def using_weights(*locations: str | None) -> Iterator[tuple[str | None, ...]]:
    """Resolve places of weights, and use the access of their blocks while the block of code runs.

    Args:
        *locations: Folders, `s3://bucket/prefix`, `block://NAME` of a saved `ModelWeightsBlock`; None stays None.

    Raises:
        ValidationFailedError: There is no such block.
    """
    with ExitStack() as stack:
        found: list[str | None] = []
        for location in locations:
            if location is None or scheme_of(location) != "block":
                found.append(location)
                continue
            block = _load(location[len(BLOCK_SCHEME) :])
            access = block.access()
            if access is not None and scheme_of(block.uri) == "s3":
                stack.enter_context(using_access(access, block.uri))
            found.append(block.uri)
        yield tuple(found)


def _load(name: str) -> ModelWeightsBlock:
    with suppress(ValueError):
        return cast("ModelWeightsBlock", ModelWeightsBlock.load(name))
    raise ValidationFailedError(
        f"There are no saved model weights named {name[:100]!r}.",
        suggestion="Save a block of the type Model weights under that name, or write the location itself.",
        block=name[:100],
    )

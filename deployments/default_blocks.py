"""The blocks that every installation has: their types, and the documents that are made once and then the operator's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Final

from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound
from pydantic import SecretStr

from blocks.artifact_store import ArtifactStoreBlock
from blocks.model_weights import ModelWeightsBlock
from blocks.notifications import DESTINATIONS, EmailDestination, WebhookDestination
from blocks.quality import QualityThresholdsBlock

BLOCK_TYPES: Final[tuple[type[Block], ...]] = (
    QualityThresholdsBlock,
    ArtifactStoreBlock,
    ModelWeightsBlock,
    WebhookDestination,
    EmailDestination,
)
DEFAULT_NAME: Final = "default"
ARTIFACT_STORE: Final = "RECONFLOW_ARTIFACT_STORE"
"""Where the artifact store `default` is; credentials stay with the workers, or are added to the block."""
WEBHOOK_URL: Final = "RECONFLOW_WEBHOOK_URL"
WEBHOOK_SECRET: Final = "RECONFLOW_WEBHOOK_SECRET"  # noqa: S105 - the name of a variable


def apply_blocks(client: SyncPrefectClient, *, dry_run: bool) -> Iterator[tuple[str, str]]:
    """Register the types and create the default documents that do not exist yet.

    Yields:
        Name and action of each, `create` or `keep`.
    """
    for kind in BLOCK_TYPES:
        slug = str(kind._block_type_slug)
        known = has_type(client, slug)
        if not dry_run:
            kind.register_type_and_schema()
        yield slug, "keep" if known else "create"
    for kind, make in _default_documents().items():
        name = f"{kind._block_type_slug}/{DEFAULT_NAME}"
        known = DEFAULT_NAME in document_names(client, str(kind._block_type_slug))
        if not dry_run and not known:
            make().save(DEFAULT_NAME)
        yield name, "keep" if known else "create"


def _default_documents() -> dict[type[Block], Callable[[], Block]]:
    documents: dict[type[Block], Callable[[], Block]] = {QualityThresholdsBlock: QualityThresholdsBlock}
    uri = os.environ.get(ARTIFACT_STORE)
    if uri:
        endpoint = os.environ.get("AWS_ENDPOINT_URL") or None
        documents[ArtifactStoreBlock] = lambda: ArtifactStoreBlock(uri=uri, endpoint_url=endpoint)
    url, secret = os.environ.get(WEBHOOK_URL), os.environ.get(WEBHOOK_SECRET)
    if url and secret:
        documents[WebhookDestination] = lambda: WebhookDestination(url=SecretStr(url), secret=SecretStr(secret))
    return documents


def has_destinations(client: SyncPrefectClient) -> bool:
    """Tell whether there is anybody to notify."""
    return any(document_names(client, str(kind._block_type_slug)) for kind in DESTINATIONS)


def has_type(client: SyncPrefectClient, slug: str) -> bool:
    """Tell whether the server knows a block type."""
    try:
        client.read_block_type_by_slug(slug)
    except ObjectNotFound:
        return False
    return True


def document_names(client: SyncPrefectClient, slug: str) -> list[str]:
    """Return the names of the saved blocks of a type; none when the server does not know the type."""
    if not has_type(client, slug):
        return []
    return [str(document.name) for document in client.read_block_documents_by_type(slug)]

"""Removing from a server what an earlier version defined and this one does not. What is ours is in the inventory.

What something else still needs stays, and stays ours: a pool or queue with deployments or runs, a block type with
saved blocks. The limit of a deployment goes with it, by Prefect's own doing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
    WorkQueueFilter,
    WorkQueueFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from deployments.default_blocks import document_names
from deployments.desired import DeploymentFacts, existing_deployments

_DEFAULT_QUEUE: Final = "default"
"""Of every pool; comes and goes with it."""
_ORDER: Final = ("automation", "deployment", "queue", "pool", "block type", "variable")
"""Before what it needs."""
_AT_WORK: Final = (StateType.PENDING, StateType.RUNNING, StateType.PAUSED, StateType.CANCELLING)


def queues_of(deployments: Collection[DeploymentFacts]) -> set[str]:
    """Return the queues of deployments, as `pool/queue`, without those that every pool has."""
    named = ((facts.content["pool"], facts.content["queue"]) for facts in deployments)
    return {f"{pool}/{queue}" for pool, queue in named if queue != _DEFAULT_QUEUE}


def remove(
    client: SyncPrefectClient, entries: Collection[str], desired: Mapping[str, DeploymentFacts], *, dry_run: bool
) -> Iterator[tuple[str, str]]:
    """Remove what is ours and not wanted any more, as far as nothing needs it.

    Args:
        client: Of the server.
        entries: What to remove, as `kind:name`.
        desired: The deployments that are wanted, by name.
        dry_run: Only say what would be done.

    Yields:
        Entry and action, `remove` or `keep`; nothing for what is gone already.
    """
    existing = existing_deployments(client)
    going = {entry.partition(":")[2] for entry in entries if entry.startswith("deployment:")}
    staying = {name: facts for name, (_, facts) in existing.items() if name not in going} | dict(desired)
    for entry in sorted(entries, key=_position):
        kind, _, name = entry.partition(":")
        if not _exists(client, kind, name):
            continue
        if _is_needed(client, kind, name, staying.values()):
            yield entry, "keep"
            continue
        if not dry_run:
            _delete(client, kind, name)
        yield entry, "remove"


def _position(entry: str) -> tuple[int, str]:
    return _ORDER.index(entry.partition(":")[0]), entry


def _exists(client: SyncPrefectClient, kind: str, name: str) -> bool:
    try:
        match kind:
            case "automation":
                return bool(client.read_automations_by_name(name))
            case "deployment":
                client.read_deployment_by_name(name)
            case "queue":
                pool, _, queue = name.partition("/")
                client.read_work_queue_by_name(queue, pool)
            case "pool":
                client.read_work_pool(name)
            case "block type":
                client.read_block_type_by_slug(name)
            case "variable":
                return client.read_variable_by_name(name) is not None
    except ObjectNotFound:
        return False
    return True


def _is_needed(client: SyncPrefectClient, kind: str, name: str, staying: Collection[DeploymentFacts]) -> bool:
    match kind:
        case "queue":
            return name in queues_of(staying) or _is_at_work(client, *name.split("/"))
        case "pool":
            return name in {facts.content["pool"] for facts in staying} or _is_at_work(client, name)
        case "block type":
            return bool(document_names(client, name))
    return False


def _is_at_work(client: SyncPrefectClient, pool: str, queue: str | None = None) -> bool:
    """Tell whether workers have runs out of a pool, or out of one of its queues."""
    found = client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
        work_queue_filter=WorkQueueFilter(name=WorkQueueFilterName(any_=[queue])) if queue is not None else None,
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(_AT_WORK)))),
        limit=1,
    )
    return bool(found)


def _delete(client: SyncPrefectClient, kind: str, name: str) -> None:
    match kind:
        case "automation":
            for automation in client.read_automations_by_name(name):
                client.delete_automation(automation.id)
        case "deployment":
            client.delete_deployment(client.read_deployment_by_name(name).id)
        case "queue":
            pool, _, queue = name.partition("/")
            client.request(
                "DELETE",
                "/work_pools/{work_pool_name}/queues/{name}",
                path_params={"work_pool_name": pool, "name": queue},
            )
        case "pool":
            client.delete_work_pool(name)
        case "block type":
            client.delete_block_type(client.read_block_type_by_slug(name).id)
        case "variable":
            client.delete_variable_by_name(name)

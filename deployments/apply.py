"""Bring a Prefect server to what this repository defines: pools, variables, blocks, deployments, automations.

Applied again it changes nothing. What an earlier version defined and this one does not is removed; what others made
is never touched (see `deployments.inventory`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from deployments.automations import define_automations, is_same
from deployments.default_blocks import BLOCK_TYPES, apply_blocks, has_destinations
from deployments.desired import FILE_NAME, DeploymentFacts, desired_deployments, excerpt, existing_deployments
from deployments.inventory import read_inventory, set_variable, write_inventory
from deployments.pools import POOLS, create_pool, needs_update, pool_for, put_cancellations_first, update_pool
from deployments.removal import queues_of, remove
from reconflow.errors import DeploymentFailedError

POOL_VARIABLE: Final = "reconflow_pool"
RESULTS_VARIABLE: Final = "reconflow_results"
DATASETS_VARIABLE: Final = "reconflow_datasets"
UNKNOWN_DATASETS: Final = "datasets"
"""What the form shows until somebody says where the datasets are; the schedule rests as long."""
NIGHTLY_DEPLOYMENT: Final = "reprocess/nightly"
_SHOWN_LINES: Final = 12
_UNKNOWN_ID: Final = UUID(int=0)
"""Stands for a deployment that a dry run would create."""


@dataclass(frozen=True)
class Choices:
    """What an installation decides; None keeps what the server has, and takes the default on a new one.

    Attributes:
        device: What reconstructions run on, `cuda` or `cpu`; `cuda` by default.
        results: Where results go when a run does not say; `out` by default.
        datasets: The prefix that the nightly reprocessing walks; without one it does not run.
    """

    device: str | None = None
    results: str | None = None
    datasets: str | None = None


@dataclass(frozen=True)
class Change:
    """One object, and what was done about it, or would be.

    Attributes:
        kind: Of the object: `pool`, `queue`, `variable`, `block type`, `block`, `deployment`, `automation`.
        name: Of the object.
        action: `create`, `update`, `remove` or `keep`.
    """

    kind: str
    name: str
    action: str


_NEW_NIGHTLY: Final = Change("deployment", NIGHTLY_DEPLOYMENT, "create")


def apply(client: SyncPrefectClient, root: Path, choices: Choices, *, dry_run: bool = False) -> list[Change]:
    """Apply everything.

    Args:
        client: Of the server.
        root: The folder with `prefect.yaml`.
        choices: What this installation decides.
        dry_run: Only say what would be done.

    Returns:
        Every object of ours, in the order of its treatment.
    """
    variables = _decide_variables(client, choices)
    desired = desired_deployments(root, variables)
    inventory, ours = read_inventory(client), _entries(desired, variables)
    if not dry_run:  # noted before they exist, so that nothing is forgotten when this is interrupted
        write_inventory(client, inventory | ours)
    changes = [*_apply_pools(client, dry_run=dry_run)]
    changes += _apply_variables(client, variables, dry_run=dry_run)
    changes += _apply_blocks(client, dry_run=dry_run)
    changes += _apply_deployments(client, root, desired, dry_run=dry_run)
    if not dry_run:
        begins = bool({Change("variable", DATASETS_VARIABLE, "update"), _NEW_NIGHTLY} & set(changes))
        _switch_nightly(client, begins=begins, wanted=variables[DATASETS_VARIABLE] != UNKNOWN_DATASETS)
    automations = [*_apply_automations(client, desired, dry_run=dry_run)]
    ours |= {f"automation:{change.name}" for change in automations}
    treated = dict(remove(client, inventory - ours, desired, dry_run=dry_run))
    if not dry_run:
        write_inventory(client, ours | {entry for entry, action in treated.items() if action == "keep"})
    leftovers = (Change(*_split(entry), action) for entry, action in treated.items())
    return [*changes, *automations, *leftovers]


def _entries(desired: dict[str, DeploymentFacts], variables: Collection[str]) -> frozenset[str]:
    """Return what is ours, as `kind:name`, without the automations, which depend on what others saved."""
    names = {
        "pool": (pool.name for pool in POOLS),
        "queue": queues_of(desired.values()),
        "variable": variables,
        "block type": (str(kind._block_type_slug) for kind in BLOCK_TYPES),
        "deployment": desired,
    }
    return frozenset(f"{kind}:{name}" for kind, found in names.items() for name in found)


def _split(entry: str) -> tuple[str, str]:
    kind, _, name = entry.partition(":")
    return kind, name


def _decide_variables(client: SyncPrefectClient, choices: Choices) -> dict[str, str]:
    chosen = {
        POOL_VARIABLE: (pool_for(choices.device).name if choices.device else None, pool_for("cuda").name),
        RESULTS_VARIABLE: (choices.results, "out"),
        DATASETS_VARIABLE: (choices.datasets, UNKNOWN_DATASETS),
    }
    values = {}
    for name, (given, default) in chosen.items():
        existing = client.read_variable_by_name(name)
        values[name] = given if given is not None else str(existing.value) if existing is not None else default
    return values


def _apply_pools(client: SyncPrefectClient, *, dry_run: bool) -> Iterator[Change]:
    for pool in POOLS:
        try:
            existing = client.read_work_pool(pool.name)
        except ObjectNotFound:
            action = "create"
        else:
            action = "update" if needs_update(pool, existing) else "keep"
        if not dry_run and action != "keep":
            (create_pool if action == "create" else update_pool)(client, pool)
        yield Change("pool", pool.name, action)
    if not dry_run:
        put_cancellations_first(client)


def _apply_variables(client: SyncPrefectClient, values: dict[str, str], *, dry_run: bool) -> Iterator[Change]:
    for name, value in values.items():
        existing = client.read_variable_by_name(name)
        action = "create" if existing is None else "keep" if existing.value == value else "update"
        if not dry_run:
            set_variable(client, name, value)
        yield Change("variable", name, action)


def _apply_blocks(client: SyncPrefectClient, *, dry_run: bool) -> Iterator[Change]:
    for name, action in apply_blocks(client, dry_run=dry_run):
        yield Change("block" if "/" in name else "block type", name, action)


def _apply_deployments(
    client: SyncPrefectClient, root: Path, desired: dict[str, DeploymentFacts], *, dry_run: bool
) -> list[Change]:
    existing = existing_deployments(client)
    changes = []
    for name, facts in desired.items():
        same = name in existing and existing[name][1].content == facts.content
        changes.append(Change("deployment", name, "keep" if same else "update" if name in existing else "create"))
    wanting = [change.name for change in changes if change.action != "keep"]
    if not dry_run and wanting:
        _run_prefect_deploy(root, wanting)
        for name in wanting:
            _close_form(client, name, desired[name].content["form"])
    return changes


def _close_form(client: SyncPrefectClient, name: str, form: dict[str, Any]) -> None:
    """Let the server refuse parameters that the flow does not have: Prefect's own form lets them through.

    A run with one would crash before the flow begins, again at each recovery.
    """
    path = {"id": client.read_deployment_by_name(name).id}
    client.request("PATCH", "/deployments/{id}", path_params=path, json={"parameter_openapi_schema": form})


def _run_prefect_deploy(root: Path, names: list[str]) -> None:
    """Let Prefect write these deployments, from a copy of the file that has no others."""
    environment = {**os.environ, **get_current_settings().to_environment_variables(exclude_unset=True)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / FILE_NAME
        file.write_text(excerpt(root, names), "utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        finished = subprocess.run(  # noqa: S603 - our own command
            command, cwd=root, env=environment, capture_output=True, text=True, check=False
        )
    if finished.returncode != 0:
        raise DeploymentFailedError(
            "prefect deploy did not succeed.",
            suggestion="Read its last lines in the details, and run the command again.",
            output=(finished.stdout + finished.stderr).splitlines()[-_SHOWN_LINES:],
        )


def _switch_nightly(client: SyncPrefectClient, *, begins: bool, wanted: bool) -> None:
    """Let the schedule rest as long as there is nothing to walk; an operator's pause is not undone."""
    deployment = client.read_deployment_by_name(NIGHTLY_DEPLOYMENT)
    for entry in deployment.schedules:
        if entry.active and not wanted:
            client.update_deployment_schedule(deployment.id, entry.id, active=False)
        elif begins and wanted and not entry.active:
            client.update_deployment_schedule(deployment.id, entry.id, active=True)


def _apply_automations(
    client: SyncPrefectClient, desired: dict[str, DeploymentFacts], *, dry_run: bool
) -> Iterator[Change]:
    ids = dict.fromkeys(desired, _UNKNOWN_ID)
    ids |= {name: deployment.id for name, (deployment, _) in existing_deployments(client).items()}
    existing: dict[str, list[Any]] = {}
    for automation in client.read_automations():
        existing.setdefault(automation.name, []).append(automation)
    for definition in define_automations(ids, notify=has_destinations(client)):
        found = existing.get(definition.name, [])
        action = "create" if not found else "keep" if len(found) == 1 and is_same(definition, found[0]) else "update"
        if not dry_run and action == "create":
            client.create_automation(definition)
        if not dry_run and action == "update":
            kept, *doubles = found
            client.update_automation(kept.id, _complete(definition, enabled=kept.enabled))
            for double in doubles:
                client.delete_automation(double.id)
        yield Change("automation", definition.name, action)


def _complete(definition: AutomationCore, *, enabled: bool) -> AutomationCore:
    """Return a definition with every field set that an update may have: the client leaves out what was not set."""
    content = definition.model_dump(mode="json", exclude={"owner_resource"})
    return AutomationCore.model_validate({**content, "enabled": enabled})

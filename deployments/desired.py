"""What `prefect.yaml` asks for, and what the server has, in one comparable form. Changes nothing.

`prefect deploy` writes every deployment anew each time and removes none; this is how it is known which ones differ.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowFilter, FlowFilterId
from prefect.client.schemas.responses import DeploymentResponse
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from reconflow.errors import ValidationFailedError

FILE_NAME: Final = "prefect.yaml"
PAGE_SIZE: Final = 200
_VARIABLE: Final = re.compile(r"\{\{\s*prefect\.variables\.(\w+)\s*\}\}")


@dataclass(frozen=True)
class DeploymentFacts:
    """What makes two deployments the same.

    Attributes:
        name: `flow/deployment`.
        content: Everything that `prefect.yaml` can say of it, as JSON-able data.
    """

    name: str
    content: dict[str, Any]


def repository_root() -> Path:
    """Return the folder with `prefect.yaml` and the flows: `RECONFLOW_HOME`, or the one this code was started from.

    Raises:
        ValidationFailedError: There is no `prefect.yaml` in it.
    """
    root = Path(os.environ.get("RECONFLOW_HOME") or Path(__file__).resolve().parents[1])
    if not (root / FILE_NAME).is_file():
        raise ValidationFailedError(
            "There is no prefect.yaml in the folder of the flows.",
            suggestion="Set RECONFLOW_HOME to a checkout of the repository.",
        )
    return root


def desired_deployments(root: Path, variables: Mapping[str, str]) -> dict[str, DeploymentFacts]:
    """Return the deployments of `prefect.yaml` by name.

    Args:
        root: The folder with `prefect.yaml`.
        variables: The Prefect variables that the file refers to, as they will be.
    """
    document = yaml.safe_load((root / FILE_NAME).read_text("utf-8"))
    filled = _filled(document["deployments"], variables)
    facts = (_from_file(root, deployment, document.get("pull") or []) for deployment in filled)
    return {fact.name: fact for fact in facts}


def excerpt(root: Path, names: Collection[str]) -> str:
    """Return `prefect.yaml` with only some of its deployments, as text.

    Args:
        root: The folder with `prefect.yaml`.
        names: `flow/deployment` of those that stay; a flow is called like its function.
    """
    document = yaml.safe_load((root / FILE_NAME).read_text("utf-8"))
    document["deployments"] = [
        entry for entry in document["deployments"] if f"{entry['entrypoint'].split(':')[1]}/{entry['name']}" in names
    ]
    return str(yaml.safe_dump(document))


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    return _VARIABLE.sub(lambda match: variables[match[1]], value) if isinstance(value, str) else value


def _from_file(root: Path, deployment: dict[str, Any], pull: list[Any]) -> DeploymentFacts:
    path, function = deployment["entrypoint"].split(":")
    flow: Flow[..., Any] = load_flow_from_entrypoint(f"{root / path}:{function}")
    pool, limit = deployment["work_pool"], deployment.get("concurrency_limit") or {}
    content = {
        "entrypoint": deployment["entrypoint"],
        "description": deployment.get("description") or flow.description,
        "tags": sorted(deployment.get("tags") or []),
        "pool": pool["name"],
        "queue": pool.get("work_queue_name") or "default",
        "job_variables": pool.get("job_variables") or {},
        "parameters": deployment.get("parameters") or {},
        "limit": limit.get("limit"),
        "collision": limit.get("collision_strategy"),
        "schedules": sorted(
            (
                [schedule["slug"], schedule["cron"], schedule["timezone"], schedule.get("parameters") or {}]
                for schedule in deployment.get("schedules") or []
            ),
            key=_slug,
        ),
        "pull": deployment.get("pull") or pull,
        "form": {**parameter_schema(flow).model_dump_for_openapi(), "additionalProperties": False},
    }
    return DeploymentFacts(f"{flow.name}/{deployment['name']}", content)


def _slug(schedule: list[Any]) -> str:
    return schedule[0] or ""


def existing_deployments(client: SyncPrefectClient) -> dict[str, tuple[DeploymentResponse, DeploymentFacts]]:
    """Return all deployments of the server by name."""
    found: list[DeploymentResponse] = []
    while page := client.read_deployments(limit=PAGE_SIZE, offset=len(found)):
        found += page
    names = _flow_names(client, [deployment.flow_id for deployment in found])
    pairs = ((deployment, _from_server(deployment, names[deployment.flow_id])) for deployment in found)
    return {facts.name: (deployment, facts) for deployment, facts in pairs}


def _flow_names(client: SyncPrefectClient, ids: list[Any]) -> dict[Any, str]:
    names: dict[Any, str] = {}
    for start in range(0, len(ids), PAGE_SIZE):
        some = FlowFilter(id=FlowFilterId(any_=list(set(ids[start : start + PAGE_SIZE]))))
        names |= {flow.id: flow.name for flow in client.read_flows(flow_filter=some)}
    return names


def _from_server(deployment: DeploymentResponse, flow_name: str) -> DeploymentFacts:
    limit, options = deployment.global_concurrency_limit, deployment.concurrency_options
    content = {
        "entrypoint": deployment.entrypoint,
        "description": deployment.description,
        "tags": sorted(deployment.tags),
        "pool": deployment.work_pool_name,
        "queue": deployment.work_queue_name,
        "job_variables": deployment.job_variables,
        "parameters": deployment.parameters,
        "limit": limit.limit if limit is not None else None,
        "collision": options.collision_strategy.value if options is not None else None,
        "schedules": sorted(
            (
                [
                    entry.slug,
                    getattr(entry.schedule, "cron", None),
                    getattr(entry.schedule, "timezone", None),
                    entry.parameters,
                ]
                for entry in deployment.schedules
            ),
            key=_slug,
        ),
        "pull": deployment.pull_steps,
        "form": deployment.parameter_openapi_schema,
    }
    return DeploymentFacts(f"{flow_name}/{deployment.name}", content)

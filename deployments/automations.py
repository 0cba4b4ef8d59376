"""The automations: what the server does by itself about runs that crash, hang or end. Definitions, no requests.

They watch the flows named here and nobody else's, and never the flows that they start, so that no circle can arise.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from deployments.heartbeats import HEARTBEAT_S, WATCHED_TAG

PREFIX: Final = "reconflow: "
"""Begins the name of every automation that this project looks after."""
WATCHED_FLOWS: Final = ("reconstruct", "reprocess", "expire")
RECOVERED_FLOWS: Final = ("reconstruct",)
ZOMBIE_AFTER: Final = timedelta(seconds=3 * HEARTBEAT_S)
ONE_REPORT_PER: Final = timedelta(seconds=60)
"""A worker reports the same crash twice, up to 8 s apart; the second one must start nothing."""
FINAL_STATES: Final = ("Completed", "Failed", "Crashed", "Cancelled")

RECOVER_DEPLOYMENT: Final = "recover/automatic"
NOTIFY_DEPLOYMENT: Final = "notify/automatic"
_HEARTBEAT: Final = "prefect.flow-run.heartbeat"
_TAGGED: Final[dict[str, str | list[str]]] = {
    "prefect.resource.role": "tag",
    "prefect.resource.id": f"prefect.tag.{WATCHED_TAG}",
}
_RUN: Final[dict[str, str | list[str]]] = {"prefect.resource.id": "prefect.flow-run.*"}


def define_automations(deployment_ids: Mapping[str, UUID], *, notify: bool) -> list[AutomationCore]:
    """Return the automations that the server should have.

    Args:
        deployment_ids: By `flow/deployment`, at least those that automations start.
        notify: Whether there is anybody to tell.
    """
    automations = [crash_silent_runs(), _recover_crashed(deployment_ids[RECOVER_DEPLOYMENT])]
    if notify:
        automations.append(_notify(deployment_ids[NOTIFY_DEPLOYMENT]))
    return automations


def crash_silent_runs() -> AutomationCore:
    """Return the automation that ends runs which are not heard of any more."""
    return AutomationCore(
        name=f"{PREFIX}crash runs that went silent",
        description="A run whose machine died says nothing any more; nobody else would end it.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=_RUN,
            match_related=[_of_flows(WATCHED_FLOWS), _TAGGED],
            for_each={"prefect.resource.id"},
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{state}" for state in FINAL_STATES)},
            threshold=1,
            within=ZOMBIE_AFTER,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                name="Crashed",
                force=False,
                message=f"The run has not been heard of for {ZOMBIE_AFTER.seconds} s: its process or machine is gone.",
            )
        ],
    )


def _recover_crashed(deployment_id: UUID) -> AutomationCore:
    return AutomationCore(
        name=f"{PREFIX}recover crashed runs",
        description="Starts recover/automatic, which creates a new run that goes on from the finished stages.",
        trigger=_reactive(RECOVERED_FLOWS, ("Crashed",)),
        actions=[_start(deployment_id, {"run": "{{ flow_run.id }}"})],
    )


def _notify(deployment_id: UUID) -> AutomationCore:
    return AutomationCore(
        name=f"{PREFIX}notify",
        description="Starts notify/automatic, which tells every saved notification block how the run ended.",
        trigger=_reactive(WATCHED_FLOWS, FINAL_STATES),
        actions=[
            _start(
                deployment_id, {"flow_run": "{{ flow_run.id }}", "state": "{{ event.resource['prefect.state-name'] }}"}
            )
        ],
    )


def _reactive(flows: tuple[str, ...], states: tuple[str, ...]) -> EventTrigger:
    return EventTrigger(
        posture=Posture.Reactive,
        match=_RUN,
        match_related=_of_flows(flows),
        for_each={"prefect.resource.id", "prefect.state-name"},
        expect={f"prefect.flow-run.{state}" for state in states},
        threshold=1,
        within=ONE_REPORT_PER,
    )


def _of_flows(flows: tuple[str, ...]) -> dict[str, Any]:
    return {"prefect.resource.role": "flow", "prefect.resource.name": list(flows)}


def _start(deployment_id: UUID, templates: Mapping[str, str]) -> RunDeployment:
    params = {name: {"__prefect_kind": "jinja", "template": template} for name, template in templates.items()}
    return RunDeployment(
        source="selected", deployment_id=deployment_id, parameters={"params": params}, job_variables=None
    )


def is_same(definition: AutomationCore, existing: AutomationCore) -> bool:
    """Tell whether an automation on the server is what its definition says; who switched it off is left out of it."""
    return _comparable(definition) == _comparable(existing)


def _comparable(automation: AutomationCore) -> dict[str, Any]:
    content = automation.model_dump(mode="json", exclude={"id", "enabled"})
    content["trigger"].pop("id", None)
    for name in ("expect", "after", "for_each"):
        content["trigger"][name] = sorted(content["trigger"][name])
    return content

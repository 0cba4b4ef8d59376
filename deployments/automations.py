"""The automations: what the server does by itself about runs that crash, hang or end. Definitions, no requests.

They watch the flows named here and nobody else's, and never the flows that they start, so that no circle can arise.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from deployments.heartbeats import HEARTBEAT_EVENT, LISTEN_S, SILENT_AFTER_S, WATCHED_TAG
from flows.attempts import RECOVERED_FLOWS

PREFIX: Final = "reconflow: "
"""Begins the name of every automation that this project looks after."""
WATCHED_FLOWS: Final = ("reconstruct", "reprocess", "expire")
ONE_REPORT_PER: Final = timedelta(seconds=60)
"""A worker reports the same crash twice, up to 8 s apart; the second one must start nothing."""
FINAL_STATES: Final = ("Completed", "Failed", "Crashed", "Cancelled")

SILENCE_DEPLOYMENT: Final = "silence/automatic"
RECOVER_DEPLOYMENT: Final = "recover/automatic"
NOTIFY_DEPLOYMENT: Final = "notify/automatic"
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
    automations = [
        look_at_silent_runs(deployment_ids[SILENCE_DEPLOYMENT]),
        _recover_crashed(deployment_ids[RECOVER_DEPLOYMENT]),
    ]
    if notify:
        automations.append(_notify(deployment_ids[NOTIFY_DEPLOYMENT]))
    return automations


def look_at_silent_runs(deployment_id: UUID) -> AutomationCore:
    """Return the automation that has runs looked at which are not heard of any more."""
    return AutomationCore(
        name=f"{PREFIX}crash runs that went silent",
        description="A run whose machine died says nothing any more; nobody else would end it. Starts "
        "silence/automatic a minute later, which ends the run when it has not been heard of again.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=_RUN,
            match_related=[_of_flows(WATCHED_FLOWS), _TAGGED],
            for_each={"prefect.resource.id"},
            after={HEARTBEAT_EVENT},
            expect={HEARTBEAT_EVENT, *(f"prefect.flow-run.{state}" for state in FINAL_STATES)},
            threshold=1,
            within=timedelta(seconds=SILENT_AFTER_S),
        ),
        actions=[_start(deployment_id, {"run": "{{ flow_run.id }}"}, after_s=LISTEN_S)],
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


def _start(deployment_id: UUID, templates: Mapping[str, str], after_s: float = 0) -> RunDeployment:
    params = {name: {"__prefect_kind": "jinja", "template": template} for name, template in templates.items()}
    return RunDeployment(
        source="selected",
        deployment_id=deployment_id,
        parameters={"params": params},
        job_variables=None,
        schedule_after=timedelta(seconds=after_s),
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

"""The flow `silence`: what an automation has started, a minute ahead, when a run is not heard of any more.

It ends the run when there still is no sign of life. Not the automation itself does: a server that has been away looks
first whom it has not heard of, before anybody can have reached it again, and would end every run at work.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import prefect.runtime.flow_run
from prefect import flow, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed, Crashed
from prefect.types import DateTime
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from deployments.heartbeats import HEARTBEAT_EVENT, LISTEN_S, SILENT_AFTER_S
from flows.endings import checked, failed_state, name_after
from flows.run_ids import find_flow_run

_TIME: Final = TypeAdapter(DateTime)


class SilenceRequest(BaseModel):
    """Which run is not heard of."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Silence")

    run: str = Field(
        min_length=1,
        max_length=64,
        title="Run",
        description="A run: Prefect's id, as an automation knows it, or the run id of 8 letters and digits.",
    )


class SilenceOutcome(StrEnum):
    """What came of it."""

    ENDED = "Ended"
    LEFT_ALONE = "LeftAlone"


def name_run() -> str:
    """Name a run by the run that it is about."""
    return name_after(SilenceRequest, lambda asked: f"silence · {asked.run}")


@flow(
    name="silence",
    flow_run_name=name_run,
    description="End a run as crashed when it is still not heard of.",
    result_serializer="json",
    persist_result=False,
    validate_parameters=False,
)
def silence(params: SilenceRequest) -> State[Any]:
    """End a run as crashed, unless it has ended or was heard of since this run was created.

    Args:
        params: Which run.

    Returns:
        A state whose name and message say what was done.
    """
    try:
        request = checked(SilenceRequest, params)
        with get_client(sync_client=True) as client:
            own = client.read_flow_run(UUID(prefect.runtime.flow_run.id))
            _listen(own)
            outcome, message = end_if_silent(client, find_flow_run(client, request.run), since_of(own))
    except Exception as error:
        return failed_state(error)
    get_run_logger().info("%s: %s", outcome, message)
    return Completed(name=outcome.value, message=message)


def _listen(own: FlowRun) -> None:
    """Let the time pass in which a run can be heard of; an automation has let it pass before this run began."""
    waited = own.expected_start_time - since_of(own) if own.expected_start_time is not None else None
    if waited is None or waited.total_seconds() < LISTEN_S - 1:
        time.sleep(LISTEN_S)


def since_of(own: FlowRun) -> DateTime:
    """Return when the silence was noticed, by the server's clock."""
    assert own.created is not None
    return own.created


def end_if_silent(client: SyncPrefectClient, flow_run: FlowRun, since: DateTime) -> tuple[SilenceOutcome, str]:
    """End a run as crashed when it is at work and the server has not heard of it since.

    Args:
        client: Of the Prefect server.
        flow_run: The run.
        since: By the server's clock.

    Returns:
        What was done, and why in a sentence.
    """
    state = flow_run.state
    if state is None or not (state.is_running() or state.is_cancelling()):
        return SilenceOutcome.LEFT_ALONE, "The run is not at work."
    last = _last_heard(client, flow_run)
    if last is not None and last >= since:
        return SilenceOutcome.LEFT_ALONE, "The run was heard of again."
    silent_s = SILENT_AFTER_S + LISTEN_S
    crashed: State[Any] = Crashed(
        message=f"The run has not been heard of for {silent_s} s: its process or machine is gone."
    )
    client.set_flow_run_state(flow_run.id, crashed)
    return SilenceOutcome.ENDED, "The run is still not heard of, and was ended as crashed."


def _last_heard(client: SyncPrefectClient, flow_run: FlowRun) -> DateTime | None:
    """Return when the latest heartbeat reached the server, by the server's clock; None when none ever did."""
    wanted = {"event": {"name": [HEARTBEAT_EVENT]}, "resource": {"id": [f"prefect.flow-run.{flow_run.id}"]}}
    found = client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
    return max((_TIME.validate_python(event["received"]) for event in found), default=None)

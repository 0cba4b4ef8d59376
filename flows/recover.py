"""The flow `recover`: what an automation starts when a run has crashed. It starts the run again, as a new one.

Every few minutes a schedule starts it too, for all crashed runs that were left: a server whose database is busy, or
that is stopped at the wrong moment, loses the event that the automation waits for.

Never the same Prefect run: a worker reports a crash twice, some seconds apart, and the second report ends whatever
was started in between. The new run has the old one's run id, so that finished stages are reused.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Completed
from pydantic import BaseModel, ConfigDict, Field

from flows.attempts import (
    ATTEMPT_TAG,
    FIRST_ATTEMPT_LABEL,
    MAX_ATTEMPTS,
    RECOVERED_FLOWS,
    attempt_of,
    first_attempt_of,
    latest_attempt,
    may_go_on,
    reason_to_leave_alone,
    successor_key,
)
from flows.endings import checked, failed_state, name_after
from flows.run_ids import find_flow_run, shown_id

RECOVERY_LABEL: Final = "reconflow.recovery"
SETTLE_S: Final = 15.0
"""How long a crash has to be the last word; second reports were seen 3 to 8 s after the first."""
SETTLE_TIMEOUT_S: Final = 120.0
MISSED_AFTER: Final = timedelta(minutes=2)
"""When a crash that nobody has taken up was missed: an automation has had its time."""
MISSED_WITHIN: Final = timedelta(days=1)
"""How far back missed crashes are looked for."""
_CHECK_INTERVAL_S: Final = 1.0
_PAGE: Final = 200


class RecoverRequest(BaseModel):
    """Which run to start again."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Recovery")

    run: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        title="Run",
        description="A crashed run: Prefect's id, as an automation knows it, or the run id of 8 letters and digits. "
        "Left empty: every run that crashed within a day and was not started again.",
    )


class RecoveryOutcome(StrEnum):
    """What came of a recovery."""

    RECOVERED = "Recovered"
    ALREADY_RECOVERED = "AlreadyRecovered"
    LEFT_ALONE = "LeftAlone"
    GIVEN_UP = "GivenUp"


class Recovery(BaseModel, frozen=True, extra="forbid"):
    """What was done about a crashed run, and why."""

    outcome: RecoveryOutcome
    run: str
    flow_run_id: UUID
    message: str
    attempt: int
    """Of the new run; of the old one when there is no new one."""
    new_flow_run_id: UUID | None = None


def name_run() -> str:
    """Name a run by the run that it is about."""
    return name_after(RecoverRequest, lambda asked: f"recover · {asked.run or 'missed'}")


@flow(
    name="recover",
    flow_run_name=name_run,
    description="Start a crashed run again as a new one, which reuses the finished stages; at most three attempts.",
    result_serializer="json",
    persist_result=False,
    validate_parameters=False,
)
def recover(params: RecoverRequest) -> State[Any]:
    """Start a crashed run again, unless it was cancelled, failed for good, or has had its attempts.

    Args:
        params: Which run; without one, all that crashed and were missed.

    Returns:
        A state whose name and message say what was done and whose data is a `Recovery`, or a list of them.
    """
    try:
        request = checked(RecoverRequest, params)
        with get_client(sync_client=True) as client:
            if request.run is None:
                return _swept(recover_missed(client))
            done = recover_run(client, find_flow_run(client, request.run))
    except Exception as error:
        return failed_state(error)
    get_run_logger().info("%s: %s", done.outcome, done.message)
    link = f"\n\n[The new run](/runs/flow-run/{done.new_flow_run_id})" if done.new_flow_run_id else ""
    create_markdown_artifact(f"**{done.outcome}**: {done.message}{link}", key="recovery", description="Recovery")
    return Completed(name=done.outcome.value, message=done.message, data=done.model_dump(mode="json"))


def _swept(done: list[Recovery]) -> State[Any]:
    started = [recovery.run for recovery in done if recovery.outcome is RecoveryOutcome.RECOVERED]
    message = "No crashed run was left."
    if started:
        message = f"Crashed runs that nobody had taken up were started again: {', '.join(started)}."
        create_markdown_artifact(message, key="recovery", description="Recovery")
    get_run_logger().info(message)
    return Completed(name="Swept", message=message, data=[recovery.model_dump(mode="json") for recovery in done])


def recover_missed(
    client: SyncPrefectClient,
    flows: Sequence[str] = RECOVERED_FLOWS,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Recovery]:
    """Start again what crashed within a day, may go on, and was not taken up by an automation.

    Args:
        client: Of the Prefect server.
        flows: The names of the flows whose runs are looked at.
        now: The time, with its zone.

    Returns:
        What was done about each of them.
    """
    crashed = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED])),
        end_time=FlowRunFilterEndTime.model_validate(
            {"after_": now() - MISSED_WITHIN, "before_": now() - MISSED_AFTER}
        ),
    )
    of_flows = FlowFilter(name=FlowFilterName(any_=list(flows)))
    found: list[FlowRun] = []
    while page := client.read_flow_runs(
        flow_filter=of_flows, flow_run_filter=crashed, sort=FlowRunSort.ID_DESC, limit=_PAGE, offset=len(found)
    ):
        found += page
    missed = [run for run in found if may_go_on(client, run) and latest_attempt(client, run).id == run.id]
    return [recover_run(client, run, now=now) for run in missed]


def recover_run(
    client: SyncPrefectClient,
    flow_run: FlowRun,
    settle_s: float = SETTLE_S,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Recovery:
    """Start a crashed run again as a new one of its deployment, when its crash is final.

    Args:
        client: Of the Prefect server.
        flow_run: The run.
        settle_s: How long its crash has to be the last word.
        now: The time, with its zone.
    """
    flow_run = _wait_until_settled(client, flow_run, settle_s, now)
    attempt = attempt_of(flow_run)

    def report(outcome: RecoveryOutcome, message: str, new: FlowRun | None = None) -> Recovery:
        return Recovery(
            outcome=outcome,
            run=shown_id(flow_run),
            flow_run_id=flow_run.id,
            message=message,
            attempt=attempt if new is None else attempt + 1,
            new_flow_run_id=None if new is None else new.id,
        )

    why_not = reason_to_leave_alone(flow_run, client.read_flow_run_states(flow_run.id))
    if why_not is not None:
        return report(RecoveryOutcome.LEFT_ALONE, why_not)
    if attempt >= MAX_ATTEMPTS:
        return report(
            RecoveryOutcome.GIVEN_UP,
            f"This was attempt {attempt} of {MAX_ATTEMPTS}, and it crashed like those before. Look at the worker's log "
            "for why (too little memory is the usual reason), then start the run by hand.",
        )
    token = secrets.token_hex(8)
    new = _start_again(client, flow_run, attempt + 1, token)
    if new.labels.get(RECOVERY_LABEL) != token:
        return report(RecoveryOutcome.ALREADY_RECOVERED, "Another recovery has started this run again already.", new)
    # Who confirms a cancellation looks for a new run after the old one is marked; so one of the two sees the other.
    why_not = reason_to_leave_alone(client.read_flow_run(flow_run.id), client.read_flow_run_states(flow_run.id))
    if why_not is not None:
        client.set_flow_run_state(new.id, Cancelled(message=why_not))
        return report(RecoveryOutcome.LEFT_ALONE, why_not)
    return report(
        RecoveryOutcome.RECOVERED, f"The run was started again, attempt {attempt + 1} of {MAX_ATTEMPTS}.", new
    )


def _wait_until_settled(
    client: SyncPrefectClient, flow_run: FlowRun, settle_s: float, now: Callable[[], datetime]
) -> FlowRun:
    """Return the run as it is when its state has not changed for `settle_s` seconds."""
    gives_up_s = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        latest = client.read_flow_run(flow_run.id)
        if latest.state is None or latest.state.is_running() or time.monotonic() >= gives_up_s:
            return latest
        quiet_s = (now() - latest.state.timestamp).total_seconds()
        if quiet_s >= settle_s:
            return latest
        time.sleep(min(_CHECK_INTERVAL_S, settle_s - quiet_s))


def _start_again(client: SyncPrefectClient, flow_run: FlowRun, attempt: int, token: str) -> FlowRun:
    """Return the one run that follows a crashed one: made now, with this token, or earlier, with another."""
    assert flow_run.deployment_id is not None
    kept = [tag for tag in flow_run.tags if not tag.startswith(ATTEMPT_TAG)]
    return client.create_flow_run_from_deployment(
        flow_run.deployment_id,
        parameters=flow_run.parameters,
        tags=[*kept, f"{ATTEMPT_TAG}{attempt}"],
        idempotency_key=successor_key(flow_run.id),
        work_queue_name=flow_run.work_queue_name,
        job_variables=flow_run.job_variables,
        labels={RECOVERY_LABEL: token, FIRST_ATTEMPT_LABEL: str(first_attempt_of(flow_run))},
    )

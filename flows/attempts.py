"""The attempts at one run: a Prefect run that crashed, and those that continued it. Starts none; see `flows.recover`.

What concerns all of them is kept under the id of the first, which every later one carries as a label.
"""

from __future__ import annotations

from typing import Any, Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun, State, StateType

from reconflow import errors
from reconflow.errors import ReconflowError

RECOVERED_FLOWS: Final = ("reconstruct",)
"""The flows whose crashed runs are started again by themselves."""
MAX_ATTEMPTS: Final = 3
ATTEMPT_TAG: Final = "attempt-"
FIRST_ATTEMPT_LABEL: Final = "reconflow.first-attempt"


def attempt_of(flow_run: FlowRun) -> int:
    """Return which attempt a run is; 1 for one that is no recovery."""
    numbers = [tag.removeprefix(ATTEMPT_TAG) for tag in flow_run.tags if tag.startswith(ATTEMPT_TAG)]
    return max((int(number) for number in numbers if number.isdecimal()), default=1)


def first_attempt_of(flow_run: FlowRun) -> UUID:
    """Return Prefect's id of the first attempt, which is the run itself unless it is a recovery."""
    label = flow_run.labels.get(FIRST_ATTEMPT_LABEL)
    return UUID(label) if isinstance(label, str) else flow_run.id


def successor_key(flow_run_id: UUID) -> str:
    """Return the idempotency key of the one run that may follow a crashed one."""
    return f"recover-{flow_run_id}"


def latest_attempt(client: SyncPrefectClient, flow_run: FlowRun) -> FlowRun:
    """Return the last of the runs that continued this one, or the run itself, as it is now.

    Args:
        client: Of the Prefect server.
        flow_run: Any attempt.

    Raises:
        ObjectNotFound: The run was deleted.
    """
    latest = client.read_flow_run(flow_run.id)
    while True:
        key = FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[successor_key(latest.id)]))
        found = client.read_flow_runs(flow_run_filter=key, limit=1)
        if not found:
            return latest
        latest = found[0]


def may_go_on(client: SyncPrefectClient, flow_run: FlowRun) -> bool:
    """Tell whether a run that has ended may be started again without anybody asking for it: it has crashed.

    Args:
        client: Of the Prefect server.
        flow_run: The latest attempt.
    """
    state = flow_run.state
    if state is None or state.is_completed() or state.is_failed() or attempt_of(flow_run) >= MAX_ATTEMPTS:
        return False
    return reason_to_leave_alone(flow_run, client.read_flow_run_states(flow_run.id)) is None


def reason_to_leave_alone(flow_run: FlowRun, history: list[State[Any]]) -> str | None:
    """Return why a run must not be started again, in a sentence; None when it should be.

    Args:
        flow_run: The run.
        history: All states that it has had.
    """
    state, types = flow_run.state, {state.type for state in history}
    if state is None or not state.is_final():
        return "The run is at work, so there is nothing to recover."
    if state.is_completed():
        return "The run has completed, so there is nothing to recover."
    if StateType.CANCELLING in types:
        return "The run was cancelled; cancelled runs are not started again by themselves."
    if state.is_cancelled() and StateType.CRASHED not in types:
        return "The run was cancelled before it began; cancelled runs are not started again by themselves."
    if state.is_failed() and not _is_retryable(state.message or ""):
        return (
            f"The run failed for a reason that does not pass by itself ({(state.message or 'unknown').split(':')[0]})."
        )
    if flow_run.deployment_id is None:
        return "The run belongs to no deployment; repeat the command that started it."
    if flow_run.parameters.keys() != {"params"}:
        return "The run was not given `params` and nothing else, so it cannot begin; start another."
    return None


def _is_retryable(message: str) -> bool:
    """Tell whether the code at the beginning of a failed run's message is one whose cause may pass by itself."""
    code = message.split(":")[0]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ReconflowError)]
    return any(kind.retryable for kind in kinds if kind.code == code)

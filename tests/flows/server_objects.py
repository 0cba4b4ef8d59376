"""What the server has for tests: runs that no process belongs to, their state, and the artifacts made last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State


def make_run(client: SyncPrefectClient, state: State[Any] | None = None, tags: tuple[str, ...] = ()) -> FlowRun:
    """Create a run that no process belongs to."""
    from prefect import flow
    from prefect.states import Running

    @flow(name="idle")
    def idle() -> None:
        """Do nothing."""

    return client.create_flow_run(idle, state=state or Running(), tags=tags)


def state_of(client: SyncPrefectClient, run: FlowRun) -> State[Any]:
    """Return a run's state now."""
    state = client.read_flow_run(run.id).state
    assert state is not None
    return state


def records_of(client: SyncPrefectClient, run: FlowRun) -> list[str]:
    """Return the names of the variables about a run."""
    return [variable.name for variable in client.read_variables(limit=200) if str(run.id) in variable.name]


def latest_artifact(client: SyncPrefectClient, key: str) -> dict[str, Any]:
    """Return the artifact that was made last under a key; earlier tests made others."""
    latest: dict[str, Any] = client.request("GET", "/artifacts/{key}/latest", path_params={"key": key}).json()
    return latest


def begin_after_cancellation(client: SyncPrefectClient, flow: Any, request: BaseModel) -> State[Any]:
    """Begin a flow run whose process starts late, after its run was cancelled; return how it ends."""
    from prefect.flow_engine import run_flow
    from prefect.states import Cancelled, Pending, Running

    run = client.create_flow_run(flow, parameters={"params": request.model_dump(mode="json")}, state=Pending())
    client.set_flow_run_state(run.id, Cancelled(message="Not needed."), force=True)
    client.set_flow_run_state(run.id, Running(), force=True)
    begun = client.read_flow_run(run.id)
    state: State[Any] = run_flow(flow, flow_run=begun, parameters={"params": request}, return_type="state")  # type: ignore[assignment]
    assert state_of(client, run).type == state.type
    return state

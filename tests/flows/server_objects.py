"""What the server has for tests: runs that no process belongs to, their state, and the artifacts made last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

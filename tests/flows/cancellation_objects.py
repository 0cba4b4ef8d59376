"""Runs that no process belongs to, for tests of what cancelling does to them."""

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

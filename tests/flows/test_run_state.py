"""How a run hears that it is to stop: from its own state, from that of the run around it, and not from a signal."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from reconflow.errors import Cancelled

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from tasks.run_state import StatePoller

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


def make_run(client: SyncPrefectClient) -> UUID:
    """Create a running run that no process belongs to."""
    from prefect import flow
    from prefect.states import Running

    @flow(name="polled")
    def polled() -> None:
        """Do nothing."""

    return client.create_flow_run(polled, state=Running()).id


def stopped_within(poller: StatePoller, seconds: float) -> Cancelled | None:
    """Return why a poller stops a run, if it does in time."""
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        try:
            poller.raise_if_stopped()
        except Cancelled as error:
            return error
        time.sleep(0.05)
    return None


def test_a_running_run_goes_on_and_a_cancelling_one_stops_with_who_and_why(client: SyncPrefectClient) -> None:
    from prefect.states import Cancelling

    from tasks.run_state import StatePoller

    run = make_run(client)
    with StatePoller([run], interval_s=0.1) as poller:
        assert stopped_within(poller, 0.6) is None
        client.set_flow_run_state(run, Cancelling(message="Cancelled by ada: wrong pictures"))
        error = stopped_within(poller, 5)
    assert error is not None
    assert error.message == "Cancelled by ada: wrong pictures"


def test_a_run_that_was_taken_for_dead_stops_and_says_so(client: SyncPrefectClient) -> None:
    from prefect.states import Crashed

    from tasks.run_state import AttemptSuperseded, StatePoller

    run = make_run(client)
    client.set_flow_run_state(run, Crashed())
    with StatePoller([run], interval_s=0.1) as poller:
        assert isinstance(stopped_within(poller, 5), AttemptSuperseded)


def test_a_run_that_was_deleted_stops(client: SyncPrefectClient) -> None:
    from tasks.run_state import StatePoller

    run = make_run(client)
    client.delete_flow_run(run)
    with StatePoller([run], interval_s=0.1) as poller:
        error = stopped_within(poller, 5)
    assert error is not None
    assert "deleted" in error.message


def test_a_run_inside_another_stops_with_it(client: SyncPrefectClient) -> None:
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.runtime import flow_run
    from prefect.states import Cancelled as CancelledState
    from prefect.states import Cancelling

    from tasks.run_state import StatePoller, own_flow_run_ids

    heard: list[Any] = []

    @flow(name="inner")
    def inner() -> None:
        with StatePoller(own_flow_run_ids(), interval_s=0.1) as poller:
            with get_client(sync_client=True) as own:
                own.set_flow_run_state(flow_run.parent_flow_run_id, Cancelling(message="Enough."))
            heard.append(stopped_within(poller, 5))

    @flow(name="outer")
    def outer() -> Any:
        inner()
        return CancelledState()

    assert outer(return_state=True).is_cancelled()
    assert heard[0].message == "Enough."


def test_a_server_that_does_not_answer_stops_nothing(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    from prefect.client.orchestration import SyncPrefectClient as Client
    from prefect.states import Cancelling

    from tasks.run_state import StatePoller

    def fail(*arguments: Any, **options: Any) -> Any:
        raise httpx.ConnectError("away")

    run = make_run(client)
    client.set_flow_run_state(run, Cancelling())
    with StatePoller([run], interval_s=0.1) as poller:
        with monkeypatch.context() as away:
            away.setattr(Client, "read_flow_runs", fail)
            assert stopped_within(poller, 0.6) is None
        assert stopped_within(poller, 5) is not None


def test_a_termination_signal_does_not_interrupt_how_an_end_is_written() -> None:
    from tasks.run_state import undisturbed

    before = signal.getsignal(signal.SIGTERM)
    with undisturbed():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
    assert signal.getsignal(signal.SIGTERM) == before

"""Cancelling around a crash, on a real Prefect server: neither step is lost, and what is cancelled stays so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from server_objects import make_run, records_of, state_of

from reconflow.errors import JobAlreadyFinishedError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from flows.cancellation import CancellationDesk
    from flows.recover import Recovery

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def desk(client: SyncPrefectClient) -> CancellationDesk:
    """A desk that is not patient."""
    from flows.cancellation import CancellationDesk

    return CancellationDesk(client, start_patience_s=0.5, stop_patience_s=0.5, crash_grace_s=0.0)


@pytest.fixture
def run(client: SyncPrefectClient) -> FlowRun:
    """A run at work, of a deployment that no worker serves."""
    from prefect import flow
    from prefect.states import Running

    @flow(name="crashing")
    def crashing(params: dict[str, Any]) -> None:
        """Do nothing."""

    deployment = client.create_deployment(client.create_flow(crashing), "of-tests")
    created = client.create_flow_run_from_deployment(deployment, parameters={"params": {"dataset": "mug"}})
    client.set_flow_run_state(created.id, Running(), force=True)
    return client.read_flow_run(created.id)


def crash(client: SyncPrefectClient, flow_run_id: UUID, *, force: bool = False) -> None:
    """Report what a worker does when a process was killed."""
    from prefect.states import Crashed

    client.set_flow_run_state(flow_run_id, Crashed(message="killed"), force=force)


def recover(client: SyncPrefectClient, run: FlowRun) -> Recovery:
    """Recover a run whose crash counts as a minute old."""
    from flows.recover import recover_run

    return recover_run(client, run, now=lambda: datetime.now(UTC) + timedelta(minutes=1))


def test_a_request_outlives_the_crash_and_either_attempts_id_confirms_it(
    desk: CancellationDesk, client: SyncPrefectClient, run: FlowRun
) -> None:
    desk.request(run, "ada", "wrong pictures")
    latest = run
    for attempt in (2, 3):
        crash(client, latest.id)
        assert desk.sweep() == 0
        done = recover(client, latest)
        assert (done.outcome, done.attempt) == ("Recovered", attempt)
        assert done.new_flow_run_id is not None
        latest = client.read_flow_run(done.new_flow_run_id)
        assert desk.request(latest, "bob", "too slow").outcome == "already-requested"
    assert [waiting.flow_run_id for waiting in desk.pending() if waiting.reason == "wrong pictures"] == [latest.id]
    answer = desk.confirm(run, "bob")
    assert (answer.outcome, answer.flow_run_id) == ("cancelled", latest.id)
    assert state_of(client, latest).message == "Cancelled by bob: wrong pictures"
    assert records_of(client, run) == records_of(client, latest) == []


def test_a_crashed_run_that_is_cancelled_is_not_started_again(
    desk: CancellationDesk, client: SyncPrefectClient, run: FlowRun
) -> None:
    crash(client, run.id)
    requested = desk.request(run, "ada", "wrong pictures")
    assert requested.outcome == "requested"
    assert "has crashed and may be started again" in requested.message
    assert desk.confirm(run, "bob").outcome == "cancelled"
    crash(client, run.id)  # a worker reports it twice
    assert state_of(client, run).message == "Cancelled by bob: wrong pictures"
    done = recover(client, run)
    assert (done.outcome, done.new_flow_run_id) == ("LeftAlone", None)
    assert records_of(client, run) == []


def test_a_run_that_crashes_in_the_moment_of_its_confirmation_is_not_started_again(
    desk: CancellationDesk, client: SyncPrefectClient, run: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.request(run, "ada", "wrong pictures")
    set_state = client.set_flow_run_state

    def crash_first(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        crash(client, run.id)
        return set_state(*arguments, **options)

    monkeypatch.setattr(client, "set_flow_run_state", crash_first)
    assert desk.confirm(run, "bob").outcome == "cancelled"
    assert recover(client, run).outcome == "LeftAlone"


def test_a_run_that_crashes_while_it_is_being_stopped_ends_as_cancelled(
    desk: CancellationDesk, client: SyncPrefectClient, run: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.request(run, "ada", "wrong pictures")
    set_state = client.set_flow_run_state

    def crash_afterwards(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        answer = set_state(*arguments, **options)
        crash(client, run.id, force=True)
        return answer

    monkeypatch.setattr(client, "set_flow_run_state", crash_afterwards)
    assert desk.confirm(run, "bob").outcome == "cancelled"
    assert state_of(client, run).message == "Cancelled by bob: wrong pictures"


def test_a_recovery_that_is_faster_than_the_confirmation_is_stopped_with_it(
    desk: CancellationDesk, client: SyncPrefectClient, run: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(client, run.id)
    desk.request(run, "ada", "wrong pictures")
    set_state, recoveries = client.set_flow_run_state, list[Any]()

    def recover_first(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        recoveries.append(recover(client, run))
        return set_state(*arguments, **options)

    monkeypatch.setattr(client, "set_flow_run_state", recover_first)
    answer = desk.confirm(run, "bob")
    assert (answer.outcome, answer.flow_run_id) == ("cancelled", recoveries[0].new_flow_run_id)
    assert client.read_flow_run(recoveries[0].new_flow_run_id).state_name == "Cancelled"


def test_a_recovery_that_learns_of_the_cancellation_late_takes_its_run_back(
    desk: CancellationDesk, client: SyncPrefectClient, run: FlowRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.attempts import latest_attempt

    crash(client, run.id)
    desk.request(run, "ada", "wrong pictures")
    create = client.create_flow_run_from_deployment

    def confirm_first(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        assert desk.confirm(run, "bob").outcome == "cancelled"
        return create(*arguments, **options)

    monkeypatch.setattr(client, "create_flow_run_from_deployment", confirm_first)
    assert recover(client, run).outcome == "LeftAlone"
    latest = latest_attempt(client, run)
    assert latest.id != run.id
    assert state_of(client, latest).is_cancelled()


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_crash_that_nothing_follows_is_an_end(
    desk: CancellationDesk, client: SyncPrefectClient, run: FlowRun, attempts: int
) -> None:
    ended = run if attempts == 3 else make_run(client)  # one that belongs to no deployment
    desk.request(ended, "ada", "wrong pictures")
    crash(client, ended.id)
    for _ in range(attempts - 1):
        new = recover(client, ended).new_flow_run_id
        assert new is not None
        crash(client, new)
        ended = client.read_flow_run(new)
    with pytest.raises(JobAlreadyFinishedError, match="ended already: Crashed"):
        desk.request(ended, "ada", "too late")
    assert records_of(client, run) == []


def test_a_process_that_was_taken_for_dead_leaves_the_request_to_the_next_attempt(
    desk: CancellationDesk, client: SyncPrefectClient, run: FlowRun
) -> None:
    from prefect.states import Cancelled

    from flows.cancellation_records import forget_own_cancellation

    desk.request(run, "ada", "wrong pictures")
    crash(client, run.id)
    forget_own_cancellation(run.id)
    client.set_flow_run_state(run.id, Cancelled(message="Taken for crashed."))
    assert len(records_of(client, run)) == 1
    assert desk.request(run, "bob", "too slow").outcome == "already-requested"
    assert recover(client, run).outcome == "Recovered"
    assert desk.confirm(run, "bob").outcome == "cancelled"

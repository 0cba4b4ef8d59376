"""Cancelling in two steps on a real Prefect server: who is told what, and what becomes of a run's state."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from server_objects import make_run, records_of, state_of

from reconflow.errors import (
    CancellationExpiredError,
    CancellationNotRequestedError,
    JobAlreadyFinishedError,
    JobNotFoundError,
)

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from flows.cancellation import CancellationDesk

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Clock:
    """A time that only moves when told."""

    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def desk(client: SyncPrefectClient, clock: Clock) -> CancellationDesk:
    """A desk that waits half a second for a run to stop."""
    from flows.cancellation import CancellationDesk

    return CancellationDesk(client, clock, start_patience_s=0.5, stop_patience_s=0.5)


def test_a_request_is_answered_and_the_run_goes_on(desk: CancellationDesk, client: SyncPrefectClient) -> None:
    run = make_run(client)
    answer = desk.request(run, "ada", "wrong pictures")
    assert answer.outcome == "requested"
    assert answer.valid_until == NOON + timedelta(hours=1)
    assert "13:00:00 UTC" in answer.message
    assert state_of(client, run).is_running()
    variable = client.read_variable_by_name(f"cancel-{run.id}")
    assert variable is not None
    assert isinstance(variable.value, dict)
    assert variable.value["by"] == "ada"
    assert variable.value["reason"] == "wrong pictures"


def test_a_repeated_request_is_told_of_the_first(
    desk: CancellationDesk, client: SyncPrefectClient, clock: Clock
) -> None:
    run = make_run(client)
    desk.request(run, "ada", "wrong pictures")
    clock.time += timedelta(minutes=10)
    answer = desk.request(run, "bob", "too slow")
    assert answer.outcome == "already-requested"
    assert answer.by == "ada"
    assert "12:00:00 UTC (wrong pictures)" in answer.message
    assert answer.valid_until == NOON + timedelta(hours=1)


def test_a_confirmation_without_a_request_is_refused(desk: CancellationDesk, client: SyncPrefectClient) -> None:
    run = make_run(client)
    with pytest.raises(CancellationNotRequestedError):
        desk.confirm(run, "ada")
    assert state_of(client, run).is_running()


def test_an_expired_request_is_refused_forgotten_and_can_be_made_again(
    desk: CancellationDesk, client: SyncPrefectClient, clock: Clock
) -> None:
    run = make_run(client)
    desk.request(run, "ada", "wrong pictures")
    clock.time += timedelta(hours=1)
    with pytest.raises(CancellationExpiredError, match="valid until 13:00:00 UTC"):
        desk.confirm(run, "bob")
    assert records_of(client, run) == []
    assert state_of(client, run).is_running()
    assert desk.request(run, "bob", "still wrong").outcome == "requested"


def test_an_expired_request_does_not_stand_in_the_way_of_another(
    desk: CancellationDesk, client: SyncPrefectClient, clock: Clock
) -> None:
    run = make_run(client)
    desk.request(run, "ada", "wrong pictures")
    clock.time += timedelta(hours=2)
    assert desk.request(run, "bob", "too slow").by == "bob"


@pytest.mark.parametrize("name", ["Scheduled", "AwaitingConcurrencySlot", "Late"])
def test_a_run_that_waits_is_cancelled_at_once_with_who_and_why(
    desk: CancellationDesk, client: SyncPrefectClient, name: str
) -> None:
    from prefect.states import Scheduled

    run = make_run(client, Scheduled(name=name))
    desk.request(run, "ada", "not needed")
    answer = desk.confirm(run, "bob")
    assert answer.outcome == "cancelled"
    assert state_of(client, run).is_cancelled()
    assert state_of(client, run).message == "Cancelled by bob: not needed"
    assert records_of(client, run) == []


def test_a_run_that_nobody_stops_is_marked_and_ends_when_it_starts_after_all(
    desk: CancellationDesk, client: SyncPrefectClient
) -> None:
    from prefect.states import Pending, Running

    from tasks.run_state import cancelled_before_start

    run = make_run(client, Pending(name="Submitting"))
    desk.request(run, "ada", "not needed")
    answer = desk.confirm(run, "ada")
    assert answer.outcome == "forced"
    assert state_of(client, run).is_cancelled()
    client.set_flow_run_state(run.id, Running(), force=True)
    reason = cancelled_before_start(client, run.id)
    assert reason is not None
    assert reason.message == "Cancelled by ada: not needed"


def test_a_run_scheduled_again_after_its_cancellation_may_start(client: SyncPrefectClient) -> None:
    from prefect.states import Cancelled as CancelledState
    from prefect.states import Running, Scheduled

    from tasks.run_state import cancelled_before_start

    run = make_run(client)
    for state in (CancelledState(), Scheduled(name="AwaitingRetry"), Running()):
        client.set_flow_run_state(run.id, state, force=True)
    assert cancelled_before_start(client, run.id) is None


def test_a_finished_run_is_told_how_it_ended(desk: CancellationDesk, client: SyncPrefectClient) -> None:
    from prefect.states import Completed

    run = make_run(client, Completed())
    with pytest.raises(JobAlreadyFinishedError, match="ended already: Completed"):
        desk.request(run, "ada", "too late")
    with pytest.raises(JobAlreadyFinishedError):
        desk.confirm(run, "ada")


def test_a_cancelled_run_is_told_with_who_and_why_though_a_worker_had_the_last_word(
    desk: CancellationDesk, client: SyncPrefectClient
) -> None:
    from prefect.states import Cancelled, Cancelling

    run = make_run(client, Cancelling(message="Cancelled by bob: not needed"))
    client.set_flow_run_state(run.id, Cancelled(message="Flow run was cancelled successfully."))
    with pytest.raises(JobAlreadyFinishedError, match=r"ended already: Cancelled\. Cancelled by bob: not needed"):
        desk.request(run, "ada", "too late")


def test_a_run_that_finishes_between_the_steps_keeps_its_state(
    desk: CancellationDesk, client: SyncPrefectClient
) -> None:
    from prefect.states import Completed

    run = make_run(client)
    desk.request(run, "ada", "too slow")
    client.set_flow_run_state(run.id, Completed())
    with pytest.raises(JobAlreadyFinishedError):
        desk.confirm(run, "ada")
    assert state_of(client, run).is_completed()
    assert records_of(client, run) == []


def test_a_run_that_finishes_while_it_is_being_confirmed_keeps_its_state(
    desk: CancellationDesk, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Completed

    run = make_run(client)
    desk.request(run, "ada", "too slow")
    set_state = client.set_flow_run_state

    def finish_first(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        set_state(run.id, Completed())
        return set_state(*arguments, **options)

    monkeypatch.setattr(client, "set_flow_run_state", finish_first)
    assert desk.confirm(run, "ada").outcome == "finished-first"
    assert state_of(client, run).is_completed()
    assert records_of(client, run) == []


@pytest.mark.parametrize("either_id", ["zzzzzzzz", "8d8d71fc-50f1-435b-af3a-448ac4b1409d", "not an id"])
def test_an_unknown_run_is_not_found(client: SyncPrefectClient, either_id: str) -> None:
    from flows.run_ids import find_flow_run

    with pytest.raises(JobNotFoundError):
        find_flow_run(client, either_id)


def test_either_id_finds_a_run_and_a_recovered_one_is_its_latest_attempt(client: SyncPrefectClient) -> None:
    from flows.run_ids import find_flow_run, run_id_of

    first = make_run(client, tags=("run-abcd1234",))
    assert find_flow_run(client, "abcd1234").id == first.id
    second = make_run(client, tags=("run-abcd1234", "attempt-2"))
    assert find_flow_run(client, "abcd1234").id == second.id
    assert find_flow_run(client, f" {str(first.id).upper()} ").id == first.id
    assert run_id_of(second) == "abcd1234"


def test_of_twenty_confirmations_at_once_exactly_one_stops_the_run(client: SyncPrefectClient) -> None:
    from prefect.client.orchestration import get_client

    from flows.cancellation import CancellationDesk

    run = make_run(client)
    CancellationDesk(client).request(run, "ada", "too slow")
    together = threading.Barrier(20)

    def confirm(number: int) -> str:
        with get_client(sync_client=True, httpx_settings={"timeout": 60.0 + number}) as own:
            together.wait()
            try:
                return (
                    CancellationDesk(own, stop_patience_s=2.0, start_patience_s=2.0).confirm(run, f"{number}").outcome
                )
            except JobAlreadyFinishedError as error:
                return error.code

    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(copy_context().run, confirm, number) for number in range(20)]
        outcomes = [str(future.result()) for future in futures]
    assert outcomes.count("forced") == 1
    assert set(outcomes) <= {"forced", "already-confirmed", "JOB_ALREADY_FINISHED"}
    assert state_of(client, run).is_cancelled()
    assert [state.name for state in client.read_flow_run_states(run.id)].count("Cancelling") == 1
    assert records_of(client, run) == []


def test_a_confirmation_by_somebody_who_died_is_taken_over(
    desk: CancellationDesk, client: SyncPrefectClient, clock: Clock
) -> None:
    from flows import cancellation_records as records

    run = make_run(client)
    desk.request(run, "ada", "too slow")
    dead = records.new_record("bob", "", clock(), discard_results=False, valid_for=timedelta(seconds=30))
    records.create_record(client, records.confirmation_name(run.id), dead)
    answer = desk.confirm(run, "ada")
    assert answer.outcome == "already-confirmed"
    assert answer.by == "bob"
    clock.time += timedelta(seconds=31)
    assert desk.confirm(run, "ada").outcome == "forced"
    assert records_of(client, run) == []


def test_prefects_own_cancel_button_counts_as_a_confirmation(desk: CancellationDesk, client: SyncPrefectClient) -> None:
    from prefect.states import Cancelling

    run = make_run(client)
    desk.request(run, "ada", "too slow")
    client.set_flow_run_state(run.id, Cancelling())
    assert desk.confirm(run, "ada").outcome == "already-confirmed"


def test_leftovers_are_swept_and_what_waits_is_listed(
    desk: CancellationDesk, client: SyncPrefectClient, clock: Clock
) -> None:
    from prefect.client.schemas.actions import VariableCreate
    from prefect.states import Completed

    finished, deleted, expired, waiting, damaged = (make_run(client) for _ in range(5))
    desk.request(expired, "ada", "old")
    clock.time += timedelta(minutes=61)
    for run in (finished, deleted, waiting):
        desk.request(run, "ada", "young")
    client.create_variable(VariableCreate(name=f"cancel-{damaged.id}", value="nonsense"))
    client.create_variable(VariableCreate(name="cancel-culture", value="somebody else's"))
    client.set_flow_run_state(finished.id, Completed())
    client.delete_flow_run(deleted.id)
    assert [request.flow_run_id for request in desk.pending() if request.reason == "young"] == [waiting.id]
    for run in (finished, deleted, expired, damaged):
        assert records_of(client, run) == []
    assert len(records_of(client, waiting)) == 1
    assert client.read_variable_by_name("cancel-culture") is not None
    client.delete_variable_by_name("cancel-culture")


@pytest.mark.parametrize("step", ["request", "confirm"])
def test_who_comes_late_to_an_expired_request_does_not_delete_the_one_that_took_its_place(
    desk: CancellationDesk, client: SyncPrefectClient, clock: Clock, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from prefect.client.orchestration import get_client

    from flows.cancellation import CancellationDesk

    run = make_run(client)
    desk.request(run, "ada", "old")
    clock.time += timedelta(hours=1)
    send, told = client.request, list[str]()

    def overtaken(method: Any, *arguments: Any, **options: Any) -> Any:
        if method == "DELETE" and not told:
            with get_client(sync_client=True, httpx_settings={"timeout": 33.0}) as own:
                told.append(CancellationDesk(own, clock).request(run, "bob", "young").outcome)
        return send(method, *arguments, **options)

    monkeypatch.setattr(client, "request", overtaken)
    if step == "request":
        told.append(desk.request(run, "carol", "late").outcome)
    else:
        with pytest.raises(CancellationExpiredError):
            desk.confirm(run, "carol")
        told.append(desk.request(run, "carol", "late").outcome)
    assert told == ["requested", "already-requested"]


def test_a_request_for_a_run_that_is_being_stopped_is_told_so(
    desk: CancellationDesk, client: SyncPrefectClient
) -> None:
    from prefect.states import Cancelling

    run = make_run(client)
    client.set_flow_run_state(run.id, Cancelling())
    assert desk.request(run, "ada", "too slow").outcome == "already-confirmed"
    assert records_of(client, run) == []

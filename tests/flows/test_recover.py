"""Starting crashed runs again on a real Prefect server: which ones, as what, and how often."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from threading import Timer
from typing import TYPE_CHECKING, Any

import pytest
from server_objects import latest_artifact

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

    from flows.recover import Recovery

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def deployment(client: SyncPrefectClient) -> UUID:
    """A deployment that no worker serves."""
    from prefect import flow

    @flow(name="crashing")
    def crashing(params: dict[str, Any]) -> None:
        """Do nothing."""

    return client.create_deployment(client.create_flow(crashing), "of-tests", tags=["reconflow"])


def make_run(client: SyncPrefectClient, deployment: UUID, *states: State[Any], tags: tuple[str, ...] = ()) -> FlowRun:
    """Create a run of the deployment that has gone through these states."""
    run = client.create_flow_run_from_deployment(deployment, parameters={"params": {"dataset": "mug"}}, tags=tags)
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    return client.read_flow_run(run.id)


def recover_later(client: SyncPrefectClient, run: FlowRun) -> Recovery:
    """Recover a run when its state is a minute old."""
    from flows.recover import recover_run

    return recover_run(client, run, now=lambda: datetime.now(UTC) + timedelta(minutes=1))


def test_a_crashed_run_is_started_again_as_a_new_one_with_its_run_id(
    client: SyncPrefectClient, deployment: UUID
) -> None:
    from prefect.states import Crashed, Running

    crashed = make_run(client, deployment, Running(), Crashed(), tags=("run-abcd5678", "nvdiffrec"))
    done = recover_later(client, crashed)
    assert (done.outcome, done.attempt) == ("Recovered", 2)
    assert done.new_flow_run_id is not None
    new = client.read_flow_run(done.new_flow_run_id)
    assert new.id != crashed.id
    assert new.deployment_id == deployment
    assert new.parameters == crashed.parameters
    assert set(new.tags) == {"reconflow", "run-abcd5678", "nvdiffrec", "attempt-2"}
    assert new.state is not None
    assert new.state.is_scheduled()
    latest = client.read_flow_run(crashed.id).state
    assert latest is not None
    assert latest.is_crashed()


def test_a_crash_that_is_reported_to_two_automations_is_recovered_once(
    client: SyncPrefectClient, deployment: UUID
) -> None:
    from prefect.states import Crashed

    crashed = make_run(client, deployment, Crashed())
    first, second = recover_later(client, crashed), recover_later(client, crashed)
    assert second.outcome == "AlreadyRecovered"
    assert second.new_flow_run_id == first.new_flow_run_id


def test_the_third_attempt_is_the_last(client: SyncPrefectClient, deployment: UUID) -> None:
    from prefect.states import Crashed

    run = make_run(client, deployment, Crashed(), tags=("run-abcd9999",))
    for attempt in (2, 3):
        done = recover_later(client, run)
        assert (done.outcome, done.attempt) == ("Recovered", attempt)
        assert done.new_flow_run_id is not None
        client.set_flow_run_state(done.new_flow_run_id, Crashed(), force=True)
        run = client.read_flow_run(done.new_flow_run_id)
    assert recover_later(client, run).outcome == "GivenUp"


def test_what_was_cancelled_done_or_failed_for_good_is_left_alone(client: SyncPrefectClient, deployment: UUID) -> None:
    from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Running

    histories: list[tuple[State[Any], ...]] = [
        (Running(), Cancelling(), Cancelled()),
        (Running(), Cancelling(), Crashed()),
        (Cancelled(),),
        (Running(), Completed()),
        (Running(), Crashed(), Running()),
        (Running(), Failed(message="VALIDATION_FAILED: Wrong. Correct it.")),
        (Running(), Failed(message="Something odd")),
    ]
    runs = [make_run(client, deployment, *states) for states in histories]
    assert [recover_later(client, run).outcome for run in runs] == ["LeftAlone"] * len(histories)


def test_a_failure_that_may_pass_and_a_process_taken_for_dead_are_recovered(
    client: SyncPrefectClient, deployment: UUID
) -> None:
    from prefect.states import Cancelled, Crashed, Failed, Running

    passing = make_run(client, deployment, Running(), Failed(message="STORAGE_UNREACHABLE: Away. Wait."))
    taken_for_dead = make_run(client, deployment, Running(), Crashed(), Cancelled())
    assert recover_later(client, passing).outcome == "Recovered"
    assert recover_later(client, taken_for_dead).outcome == "Recovered"


def test_a_run_without_a_deployment_is_left_alone(client: SyncPrefectClient) -> None:
    from prefect import flow
    from prefect.states import Crashed

    @flow(name="by-hand")
    def by_hand() -> None:
        """Do nothing."""

    done = recover_later(client, client.create_flow_run(by_hand, state=Crashed()))
    assert done.outcome == "LeftAlone"
    assert "no deployment" in done.message


@pytest.mark.parametrize("parameters", [{}, {"dataset": "mug"}, {"params": {"dataset": "mug"}, "seed": 1}])
def test_a_run_whose_parameters_no_flow_takes_is_left_alone(
    client: SyncPrefectClient, deployment: UUID, parameters: dict[str, Any]
) -> None:
    from prefect.states import Crashed

    from flows.recover import recover_missed

    run = client.create_flow_run_from_deployment(deployment, parameters=parameters, state=Crashed())
    done = recover_later(client, run)
    assert done.outcome == "LeftAlone"
    assert "`params`" in done.message
    assert recover_missed(client, flows=("crashing",), now=lambda: datetime.now(UTC) + timedelta(hours=1)) == []


def test_a_second_report_of_the_crash_is_waited_for(client: SyncPrefectClient, deployment: UUID) -> None:
    from contextvars import copy_context

    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    from flows.recover import recover_run

    crashed = make_run(client, deployment, Crashed(message="first"))

    def report_again() -> None:
        with get_client(sync_client=True, httpx_settings={"timeout": 32.0}) as own:
            own.set_flow_run_state(crashed.id, Crashed(message="second"), force=True)

    second = Timer(1.0, copy_context().run, args=(report_again,))
    second.start()
    done = recover_run(client, crashed, settle_s=2.0)
    second.join()
    assert done.new_flow_run_id is not None
    started = client.read_flow_run(done.new_flow_run_id).created
    reported = client.read_flow_run(crashed.id).state
    assert started is not None
    assert reported is not None
    assert reported.message == "second"
    assert (started - reported.timestamp).total_seconds() >= 1.9


def test_what_crashed_and_no_automation_took_up_is_started_again(client: SyncPrefectClient) -> None:
    from prefect import flow
    from prefect.states import Cancelling, Completed, Crashed, Running

    from flows.recover import recover_missed

    @flow(name="crashing-unnoticed")
    def crashing(params: dict[str, Any]) -> None:
        """Do nothing."""

    deployment = client.create_deployment(client.create_flow(crashing), "of-tests", tags=["reconflow"])

    def later() -> datetime:
        return datetime.now(UTC) + timedelta(minutes=3)

    make_run(client, deployment, Running(), Completed())
    make_run(client, deployment, Running(), Cancelling(), Crashed())
    make_run(client, deployment, Running(), Crashed(), tags=("attempt-3",))
    taken_up = make_run(client, deployment, Running(), Crashed())
    recover_later(client, taken_up)
    missed = [make_run(client, deployment, Running(), Crashed()) for _ in range(2)]
    assert recover_missed(client, ("crashing-unnoticed",)) == []  # an automation may still come
    done = recover_missed(client, ("crashing-unnoticed",), later)
    assert {recovery.flow_run_id for recovery in done} == {run.id for run in missed}
    assert {recovery.outcome for recovery in done} == {"Recovered"}
    assert recover_missed(client, ("crashing-unnoticed",), later) == []


def test_the_flow_looks_for_missed_crashes_when_no_run_is_named() -> None:
    from flows.recover import RecoverRequest, recover

    state = recover(RecoverRequest(), return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", "Swept")


def test_the_flow_says_what_it_did(
    client: SyncPrefectClient, deployment: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.logging.handlers import APILogHandler
    from prefect.states import Completed

    from flows import recover

    monkeypatch.setattr(recover.recover_run, "__defaults__", (0.0, *recover.recover_run.__defaults__[1:]))  # type: ignore[index]
    run = make_run(client, deployment, Completed(), tags=("run-done0001",))
    state = recover.recover(recover.RecoverRequest(run=str(run.id)), return_state=True)
    assert (state.type.value, state.name) == ("COMPLETED", "LeftAlone")
    assert client.read_flow_run(state.state_details.flow_run_id).name == f"recover · {run.id}"
    page = latest_artifact(client, "recovery")["data"]
    assert "nothing to recover" in page
    unknown = recover.recover(recover.RecoverRequest(run="nosuch00"), return_state=True)
    assert unknown.is_failed()
    assert unknown.message.startswith("JOB_NOT_FOUND: ")
    APILogHandler().flush()

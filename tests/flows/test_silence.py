"""Ending runs that are not heard of, on a real server: whom a heartbeat saves, and whom nothing does."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from server_objects import make_run, state_of

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from flows.silence import SilenceOutcome

pytestmark = pytest.mark.prefect
PATIENCE_S = 60
SKEW = timedelta(hours=1)


def beat(client: SyncPrefectClient, run: FlowRun, occurred: datetime) -> None:
    """Send a heartbeat, and return when the server can be asked for it."""
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    event = {
        "id": str(uuid4()),
        "occurred": occurred.isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": resource,
    }
    client.request("POST", "/events", json=[event])
    wanted = {"filter": {"id": {"id": [event["id"]]}, "occurred": {"since": (occurred - SKEW).isoformat()}}}
    ends_s = time.monotonic() + PATIENCE_S
    while not client.request("POST", "/events/filter", json=wanted).json()["events"]:
        assert time.monotonic() < ends_s
        time.sleep(0.2)


def look(client: SyncPrefectClient, run: FlowRun, since: datetime) -> SilenceOutcome:
    """Return what becomes of a run whose silence was noticed at some time."""
    from flows.silence import end_if_silent

    outcome, message = end_if_silent(client, client.read_flow_run(run.id), since)  # type: ignore[arg-type]
    assert message.endswith(".")
    return outcome


def test_a_run_that_is_still_silent_is_ended_as_crashed(client: SyncPrefectClient) -> None:
    never_heard, once_heard = make_run(client), make_run(client)
    beat(client, once_heard, datetime.now(UTC))
    for run in (never_heard, once_heard):
        assert look(client, run, datetime.now(UTC)) == "Ended"
        assert state_of(client, run).is_crashed()
        assert "120 s" in (state_of(client, run).message or "")


@pytest.mark.parametrize("skew", [-SKEW, timedelta(0)])
def test_a_run_that_was_heard_of_again_goes_on_whatever_its_machine_s_clock_says(
    client: SyncPrefectClient, skew: timedelta
) -> None:
    run, since = make_run(client), datetime.now(UTC)
    beat(client, run, since + skew)
    assert look(client, run, since) == "LeftAlone"
    assert state_of(client, run).is_running()


def test_a_run_that_is_not_at_work_is_left_as_it_is(client: SyncPrefectClient) -> None:
    from prefect.states import Completed, Scheduled

    states: list[Any] = [Completed(), Scheduled()]
    for state in states:
        run = make_run(client, state)
        assert look(client, run, datetime.now(UTC)) == "LeftAlone"
        assert state_of(client, run).type == state.type

"""The flow `notify`: tell every saved notification block how a run ended. Started by an automation, or by hand.

What is told is in `tasks.notifications`, how it is delivered in `blocks.notifications`, and who has been told already
in `flows.notification_records`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID

import prefect.runtime.flow_run
from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed
from pydantic import BaseModel, ConfigDict, Field

from blocks.artifact_store import using_locations
from blocks.notifications import Delivery, EmailDestination, WebhookDestination, saved_destinations
from flows.endings import checked, failed_state
from flows.notification_records import begin_telling, end_telling, telling_name
from reconflow.errors import JobNotFoundError, NotificationFailedError, ReconflowError
from reconflow.storage import ArtifactStore, open_store
from tasks.notifications import make_delivery, make_payload


class NotifyRequest(BaseModel):
    """Which run is reported."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Notification")

    flow_run: UUID = Field(title="Flow run", description="Prefect's id of the run.")
    state: str = Field(
        pattern="^(Completed|Failed|Crashed|Cancelled)$", title="State", description="The state to report."
    )


@flow(
    name="notify",
    description="Tell every saved notification block how a run ended.",
    result_serializer="json",
    persist_result=False,
    validate_parameters=False,
)
def notify(params: NotifyRequest) -> dict[str, Any] | State[Any]:
    """Report one run to all destinations.

    Args:
        params: Which run.

    Returns:
        How many destinations were told, and how many had been by an earlier report of the same end. One that cannot be
        told does not keep the others from being told, and fails the flow in the end; the next report tells it.
    """
    try:
        return _notify(checked(NotifyRequest, params))
    except Exception as error:  # of the server; what a destination does ends otherwise
        return failed_state(error)


def _notify(params: NotifyRequest) -> dict[str, Any] | State[Any]:
    with get_client(sync_client=True) as client:
        flow_run = _read_flow_run(client, params.flow_run)
        flow_name = client.read_flow(flow_run.flow_id).name
        destinations = list(saved_destinations(client))
        with _store_of(flow_run) as store:
            delivery = make_delivery(make_payload(flow_run, flow_name, params.state, store))
        outcomes = [_tell_once(client, flow_run, params.state, destination, delivery) for destination in destinations]
    failures = [outcome for outcome in outcomes if isinstance(outcome, NotificationFailedError)]
    if failures:
        return Failed(
            message=" ".join(f"{failure.code}: {failure.message} {failure.suggestion}" for failure in failures)
        )
    return {"told": outcomes.count(True), "told_before": outcomes.count(False)}


def _read_flow_run(client: SyncPrefectClient, flow_run_id: UUID) -> FlowRun:
    try:
        return client.read_flow_run(flow_run_id)
    except ObjectNotFound:
        raise JobNotFoundError(
            "The Prefect server has no run with this id.", suggestion="Nothing; it was deleted before it was reported."
        ) from None


@contextmanager
def _store_of(flow_run: FlowRun) -> Iterator[ArtifactStore | None]:
    """Give the store with the run's results; None when there is none, or when it cannot be used from here."""
    location = ((flow_run.parameters or {}).get("params") or {}).get("out")
    with ExitStack() as stack:
        store = None
        if location:
            try:
                (uri,) = stack.enter_context(using_locations(location))
                store = open_store(uri)
            except ReconflowError as error:
                get_run_logger().warning("The results cannot be looked at: %s %s", error.code, error.message)
        yield store


def _tell_once(
    client: SyncPrefectClient,
    flow_run: FlowRun,
    state: str,
    destination: WebhookDestination | EmailDestination,
    delivery: Delivery,
) -> bool | NotificationFailedError:
    """Tell a destination unless an earlier report did, which is False; return why it could not be told."""
    own, document = UUID(prefect.runtime.flow_run.id), destination._block_document_id
    assert document is not None
    name = begin_telling(client, telling_name(flow_run, state, document), own)
    if name is None:
        return False
    try:
        deliver(destination, delivery)
    except NotificationFailedError as error:
        end_telling(client, name, own, told=False)
        return error
    end_telling(client, name, own, told=True)
    return True


@task(name="deliver", cache_policy=NO_CACHE, persist_result=False)
def deliver(destination: WebhookDestination | EmailDestination, delivery: Delivery) -> None:
    """Send one message to one destination."""
    destination.deliver(delivery)

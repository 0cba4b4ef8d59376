"""The flow `notify`: tell every saved notification block how a run ended. Started by an automation, or by hand.

What is told is in `tasks.notifications`, how it is delivered in `blocks.notifications`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Failed
from pydantic import BaseModel, ConfigDict, Field

from blocks.artifact_store import using_locations
from blocks.notifications import Delivery, EmailDestination, WebhookDestination, saved_destinations
from reconflow.errors import NotificationFailedError, ReconflowError
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
)
def notify(params: NotifyRequest) -> dict[str, Any] | State[Any]:
    """Report one run to all destinations.

    Args:
        params: Which run.

    Returns:
        How many destinations were told. One that cannot be told does not keep the others from being told, and fails
        the flow in the end.
    """
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(params.flow_run)
        flow_name = client.read_flow(flow_run.flow_id).name
        destinations = list(saved_destinations(client))
    with _store_of(flow_run) as store:
        delivery = make_delivery(make_payload(flow_run, flow_name, params.state, store))
    failures = [failure for failure in (_tell(destination, delivery) for destination in destinations) if failure]
    if failures:
        return Failed(
            message=" ".join(f"{failure.code}: {failure.message} {failure.suggestion}" for failure in failures)
        )
    return {"told": len(destinations)}


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


def _tell(destination: WebhookDestination | EmailDestination, delivery: Delivery) -> NotificationFailedError | None:
    try:
        deliver(destination, delivery)
    except NotificationFailedError as error:
        return error
    return None


@task(name="deliver", cache_policy=NO_CACHE, persist_result=False)
def deliver(destination: WebhookDestination | EmailDestination, delivery: Delivery) -> None:
    """Send one message to one destination."""
    destination.deliver(delivery)

"""The flow `expire`: remove results that the retention rules let go, and what runs and requests have left behind.

Which runs those are is decided in `reconflow.retention`. Never a run that is pinned or at work.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Completed

from blocks.artifact_store import using_locations
from flows.cancellation import CancellationDesk
from flows.endings import checked, name_after
from flows.expire_request import ExpireRequest, ExpiryReport, make_report, protect
from flows.notification_records import sweep_tellings
from flows.run_ids import run_id_of
from flows.stoppable import unless_cancelled
from reconflow.progress import OnProgress, ignore_progress
from reconflow.retention import apply_expiry, plan_expiry
from reconflow.storage import open_store

_PAGE: Final = 200
_UNFINISHED: Final = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]


def name_run() -> str:
    """Name a run by the store."""
    return name_after(ExpireRequest, lambda asked: f"{asked.out}{' · dry run' if asked.dry_run else ''}")


@flow(
    name="expire",
    flow_run_name=name_run,
    description="Remove old results and leftovers; a dry run unless told otherwise.",
    result_serializer="json",
    persist_result=False,
    validate_parameters=False,
)
def expire(params: ExpireRequest) -> State[Any]:
    """Remove what the rules let expire.

    Args:
        params: From which store, by which rules, and whether really.

    Returns:
        A state whose message has the counts and whose data is a `flows.expire_request.ExpiryReport`.
    """
    return unless_cancelled(lambda on_progress: _expire(checked(ExpireRequest, params), on_progress))


def _expire(params: ExpireRequest, on_progress: OnProgress) -> State[Any]:
    with get_client(sync_client=True) as client:
        report = expire_with(client, params, on_progress)
    create_table_artifact(table=report.table_rows(), key="expire", description=report.headline())
    get_run_logger().info(report.headline())
    return Completed(message=report.headline(), data=report.model_dump(mode="json"))


def expire_with(
    client: SyncPrefectClient, request: ExpireRequest, on_progress: OnProgress = ignore_progress
) -> ExpiryReport:
    """Do what the flow does, without showing it.

    Args:
        client: Of the Prefect server, which knows the runs at work and the requests to cancel.
        request: What is asked for.
        on_progress: Called before each removal; may raise `Cancelled`.
    """
    now = datetime.now(UTC)
    with using_locations(request.out) as (out,):
        store = open_store(out)
        decisions = protect(plan_expiry(store, request.rules, now), unfinished_run_ids(client))
        if request.dry_run:
            return make_report(decisions, now)
        outcome = apply_expiry(store, decisions, request.rules, on_progress)
    swept = {**asdict(outcome.swept), **_swept_records(client)}
    return make_report(decisions, now, outcome, swept)


def _swept_records(client: SyncPrefectClient) -> dict[str, int]:
    return {"cancellations": CancellationDesk(client).sweep(), "notifications": sweep_tellings(client)}


def unfinished_run_ids(client: SyncPrefectClient) -> frozenset[str]:
    """Return the run ids of the Prefect runs that have not ended."""
    unfinished = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_UNFINISHED)))
    found: set[str] = set()
    offset = 0
    while True:
        page = client.read_flow_runs(flow_run_filter=unfinished, sort=FlowRunSort.ID_DESC, limit=_PAGE, offset=offset)
        found.update(run_id for run in page if (run_id := run_id_of(run)) is not None)
        if len(page) < _PAGE:
            return frozenset(found)
        offset += _PAGE

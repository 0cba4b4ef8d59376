"""Finding the Prefect run that a person means, by either of its two ids. Nothing is changed here."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from reconflow.errors import JobNotFoundError
from reconflow.outputs.runs import check_run_id

RUN_TAG: Final = "run-"
"""What stands before the run id in the tag of a Prefect run."""


def find_flow_run(client: SyncPrefectClient, either_id: str) -> FlowRun:
    """Return the Prefect run with that id.

    Args:
        client: Of the Prefect server.
        either_id: Prefect's own id, or the run id of 8 letters and digits. A run that was recovered consists of
            several Prefect runs with one run id; the latest is returned.

    Raises:
        JobNotFoundError: There is none.
    """
    text = either_id.strip().lower()
    try:
        flow_run_id = UUID(text)
    except ValueError:
        return _find_by_run_id(client, check_run_id(text))
    try:
        return client.read_flow_run(flow_run_id)
    except ObjectNotFound:
        raise _not_found(text) from None


def run_id_of(flow_run: FlowRun) -> str | None:
    """Return the run id that a Prefect run carries as a tag; None before it has one."""
    return next((tag.removeprefix(RUN_TAG) for tag in flow_run.tags if tag.startswith(RUN_TAG)), None)


def shown_id(flow_run: FlowRun) -> str:
    """Return the id to show to people: the short one when there is one."""
    return run_id_of(flow_run) or str(flow_run.id)


def _find_by_run_id(client: SyncPrefectClient, run_id: str) -> FlowRun:
    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[f"{RUN_TAG}{run_id}"]))
    found = client.read_flow_runs(flow_run_filter=tagged, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    if not found:
        raise _not_found(run_id)
    return found[0]


def _not_found(text: str) -> JobNotFoundError:
    return JobNotFoundError(
        f"There is no run {text} on this Prefect server.",
        suggestion="Check the id, and that PREFECT_API_URL names the server that the run belongs to.",
        run_id=text,
    )

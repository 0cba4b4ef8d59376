"""The two variables that hold a cancellation between its steps, on the Prefect server. No run is touched here.

`cancel-<flow run id>` is a request, `cancel-<flow run id>-confirmed` its confirmation. Creating a variable is the only
operation of the server that one of many callers wins, on every database; deleting and updating are not. So nothing
here is ever updated, and a deletion decides nothing.
"""

from __future__ import annotations

import logging
import re
import secrets
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectAlreadyExists, PrefectException
from pydantic import BaseModel, ValidationError

from flows.variables import delete_variable, list_variables

VALID_FOR: Final = timedelta(hours=1)
"""How long a request waits for its confirmation."""
_TAGS: Final = ["reconflow", "cancellation"]
_NAME: Final = re.compile(r"cancel-(?P<id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?P<confirmed>-confirmed)?")
_logger = logging.getLogger(__name__)


class CancellationRecord(BaseModel, frozen=True, extra="forbid"):
    """What one step of a cancellation leaves on the server: who, when, why."""

    by: str
    reason: str
    requested_at: datetime
    """Of this step."""
    expires_at: datetime
    """When this step counts as not done."""
    discard_results: bool = False
    token: str
    """Tells the writer, whose first attempt may have reached the server unnoticed, its own record from others'."""


def new_record(
    by: str, reason: str, now: datetime, *, discard_results: bool, valid_for: timedelta = VALID_FOR
) -> CancellationRecord:
    """Return a record of a step done now."""
    return CancellationRecord(
        by=by,
        reason=reason,
        requested_at=now,
        expires_at=now + valid_for,
        discard_results=discard_results,
        token=secrets.token_hex(8),
    )


def request_name(flow_run_id: UUID) -> str:
    """Return the name of the variable that holds a run's request."""
    return f"cancel-{flow_run_id}"


def confirmation_name(flow_run_id: UUID) -> str:
    """Return the name of the variable that holds a run's confirmation."""
    return f"cancel-{flow_run_id}-confirmed"


def create_record(client: SyncPrefectClient, name: str, record: CancellationRecord) -> CancellationRecord | None:
    """Create a variable unless it exists.

    Returns:
        None when this call created it, else the record that was there first.
    """
    while True:
        try:
            client.create_variable(VariableCreate(name=name, value=record.model_dump(mode="json"), tags=_TAGS))
        except ObjectAlreadyExists:
            standing = read_record(client, name)
            if standing is None:
                continue
            return None if standing.token == record.token else standing
        return None


def read_record(client: SyncPrefectClient, name: str) -> CancellationRecord | None:
    """Return what a variable says; None when there is none, or one that nobody here wrote, which is deleted."""
    variable = client.read_variable_by_name(name)
    if variable is None:
        return None
    record = _parse(variable)
    if record is None:
        delete_variable(client, name)
    return record


def forget_cancellation(client: SyncPrefectClient, flow_run_id: UUID) -> None:
    """Delete what is left of a run's cancellation.

    Args:
        client: Of the Prefect server.
        flow_run_id: A run that has ended or is about to.
    """
    delete_variable(client, request_name(flow_run_id))
    delete_variable(client, confirmation_name(flow_run_id))


def forget_own_cancellation(flow_run_id: UUID) -> None:
    """Delete what is left of a run's cancellation, as the run's last act, which must not change how it ended.

    What a server that does not answer keeps is swept at the next request.

    Args:
        flow_run_id: The run.
    """
    try:
        with get_client(sync_client=True) as client:
            forget_cancellation(client, flow_run_id)
    except (HTTPError, PrefectException) as error:
        _logger.info("What is left of a cancellation could not be deleted (%s).", type(error).__name__)


def all_records(client: SyncPrefectClient) -> list[tuple[UUID, bool, CancellationRecord | None]]:
    """Return every record on the server: whose, whether it is a confirmation, and what it says (None: unreadable)."""
    return [
        (UUID(match["id"]), match["confirmed"] is not None, _parse(variable))
        for variable in list_variables(client, "cancel-")
        if (match := _NAME.fullmatch(variable.name))
    ]


def _parse(variable: Variable) -> CancellationRecord | None:
    try:
        return CancellationRecord.model_validate(variable.value)
    except ValidationError:
        return None

"""The two variables that hold a cancellation between its steps, on the Prefect server. No run is touched here.

`cancel-<flow run id>` is a request, `cancel-<flow run id>-confirmed` its confirmation. The id is that of the run's
first attempt, so that a request outlives a crash. Creating a variable is the only operation of the server that one of
many callers wins, on every database; deleting and updating are not. So nothing here is ever updated, and a deletion
decides nothing: what was found to be old is deleted by the variable's own id, for its name may be another's by then.
"""

from __future__ import annotations

import logging
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from httpx import HTTPError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectAlreadyExists, PrefectException
from pydantic import BaseModel, ValidationError

from flows.attempts import first_attempt_of
from flows.variables import delete_variable, delete_variable_by_id, list_variables

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


@dataclass(frozen=True)
class StoredRecord:
    """A record as it lies on the server.

    Attributes:
        variable_id: Of the variable that holds it.
        first_attempt: Prefect's id of the first attempt at the run that it is about.
        is_confirmation: Whether it is one; else it is a request.
        content: None when it cannot be read.
    """

    variable_id: UUID
    first_attempt: UUID
    is_confirmation: bool
    content: CancellationRecord | None


def request_name(first_attempt: UUID) -> str:
    """Return the name of the variable that holds a run's request."""
    return f"cancel-{first_attempt}"


def confirmation_name(first_attempt: UUID) -> str:
    """Return the name of the variable that holds a run's confirmation."""
    return f"cancel-{first_attempt}-confirmed"


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
        delete_variable_by_id(client, variable.id)
    return record


def delete_expired(client: SyncPrefectClient, name: str, now: datetime) -> None:
    """Delete the record of that name if it counts as not done; a younger one that has taken its place stays."""
    variable = client.read_variable_by_name(name)
    record = _parse(variable) if variable is not None else None
    if variable is not None and (record is None or now >= record.expires_at):
        delete_variable_by_id(client, variable.id)


def forget_cancellation(client: SyncPrefectClient, first_attempt: UUID) -> None:
    """Delete what is left of a run's cancellation.

    Args:
        client: Of the Prefect server.
        first_attempt: At a run that has ended for good or is about to.
    """
    delete_variable(client, request_name(first_attempt))
    delete_variable(client, confirmation_name(first_attempt))


def forget_own_cancellation(flow_run_id: UUID) -> None:
    """Delete what is left of a run's cancellation, as the run's last act, which must not change how it ended.

    What a server that does not answer keeps is swept at the next request. A run that was taken for crashed deletes
    nothing: another attempt may be at work, which the request is about.

    Args:
        flow_run_id: The run.
    """
    try:
        with get_client(sync_client=True) as client:
            flow_run = client.read_flow_run(flow_run_id)
            if flow_run.state is None or not flow_run.state.is_crashed():
                forget_cancellation(client, first_attempt_of(flow_run))
    except (HTTPError, PrefectException) as error:
        _logger.info("What is left of a cancellation could not be deleted (%s).", type(error).__name__)


def all_records(client: SyncPrefectClient) -> list[StoredRecord]:
    """Return every record on the server."""
    return [
        StoredRecord(variable.id, UUID(match["id"]), match["confirmed"] is not None, _parse(variable))
        for variable in list_variables(client, "cancel-")
        if (match := _NAME.fullmatch(variable.name))
    ]


def _parse(variable: Variable) -> CancellationRecord | None:
    try:
        return CancellationRecord.model_validate(variable.value)
    except ValidationError:
        return None

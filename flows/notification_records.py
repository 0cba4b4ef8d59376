"""Which destination has been told of which end of a run, as variables on the Prefect server. Nothing is told here.

However often, and however late, the same end is reported, whoever creates its variable first tells it. One that dies
before it could say whether it did is followed by the next.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid5

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate
from prefect.client.schemas.objects import FlowRun, Variable
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from pydantic import BaseModel, ValidationError

from flows.variables import delete_variable, list_variables

KEPT_FOR: Final = timedelta(days=7)
"""Afterwards nobody reports the same end again."""
_PREFIX: Final = "told-"
_TAGS: Final = ["reconflow", "notification"]


class TellingRecord(BaseModel, frozen=True, extra="forbid"):
    """Who tells a destination, or has told it."""

    by: UUID
    """The flow run that does."""
    at: datetime
    told: bool = False


def telling_name(flow_run: FlowRun, state: str, destination: UUID) -> str:
    """Return the name of the variable for one end of a run and one destination; the run's id is not in it.

    A run that is started again under its id, by a retry, can end again.

    Args:
        flow_run: The run that ended.
        state: How.
        destination: The block's document.
    """
    return f"{_PREFIX}{uuid5(flow_run.id, f'{state} {flow_run.run_count} {destination}')}"


def begin_telling(client: SyncPrefectClient, name: str, by: UUID) -> str | None:
    """Say that a flow run is about to tell; the record of one that died stays, and another follows it.

    Nothing is deleted here: who saw a record as that of a dead teller may be late, and would delete its successor's.

    Args:
        client: Of the Prefect server.
        name: From `telling_name`.
        by: The flow run.

    Returns:
        The name of its record, for `end_telling`; None when another one tells or has told, or it has done so itself.
    """
    record = TellingRecord(by=by, at=datetime.now(UTC)).model_dump(mode="json")
    attempt, own_name = 1, name
    while True:
        try:
            client.create_variable(VariableCreate(name=own_name, value=record, tags=_TAGS))
        except ObjectAlreadyExists:
            if (standing := _read(client, own_name)) is None:
                continue
            if standing.by == by and not standing.told:
                return own_name
            if standing.told or not _is_gone(client, standing.by):
                return None
            if (last := _read(client, own_name)) is None:  # it could not tell, and is gone with its record
                continue
            if last.told:  # before it ended, since it was read first
                return None
            attempt += 1
            own_name = f"{name}-{attempt}"
        else:
            return own_name


def end_telling(client: SyncPrefectClient, name: str, by: UUID, *, told: bool) -> None:
    """Say how it went; what was not told may be told by another.

    Args:
        client: Of the Prefect server.
        name: From `begin_telling`.
        by: The flow run.
        told: Whether the destination has taken it.
    """
    if told:
        record = TellingRecord(by=by, at=datetime.now(UTC), told=True)
        client.update_variable(VariableUpdate(name=name, value=record.model_dump(mode="json")))
    else:
        delete_variable(client, name)


def sweep_tellings(client: SyncPrefectClient, older_than: timedelta = KEPT_FOR) -> int:
    """Delete old variables, and unreadable ones; return how many."""
    before = datetime.now(UTC) - older_than
    records = ((variable.name, _parse(variable)) for variable in list_variables(client, _PREFIX))
    old = [name for name, record in records if record is None or record.at < before]
    for name in old:
        delete_variable(client, name)
    return len(old)


def _read(client: SyncPrefectClient, name: str) -> TellingRecord | None:
    """Return a record; None when there is none, or none that can be understood, which is deleted."""
    variable = client.read_variable_by_name(name)
    record = _parse(variable) if variable is not None else None
    if variable is not None and record is None:
        delete_variable(client, name)
    return record


def _is_gone(client: SyncPrefectClient, flow_run_id: UUID) -> bool:
    try:
        flow_run = client.read_flow_run(flow_run_id)
    except ObjectNotFound:
        return True
    return flow_run.state is not None and flow_run.state.is_final()


def _parse(variable: Variable) -> TellingRecord | None:
    try:
        return TellingRecord.model_validate(variable.value)
    except ValidationError:
        return None

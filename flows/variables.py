"""Variables of a Prefect server, as records that many callers share: listing and deleting them. Not what is in them.

Creating a variable is the only operation of the server that one of many callers wins, on every database; deleting and
updating are not.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

from httpx import HTTPStatusError
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import Variable
from prefect.exceptions import ObjectNotFound

_PAGE: Final = 200


def list_variables(client: SyncPrefectClient, prefix: str) -> list[Variable]:
    """Return the variables whose names begin so, sorted by name."""
    found: list[Variable] = []
    while True:
        query: dict[str, Any] = {
            "variables": {"name": {"like_": prefix}},
            "limit": _PAGE,
            "offset": len(found),
            "sort": "NAME_ASC",
        }
        page = Variable.model_validate_list(client.request("POST", "/variables/filter", json=query).json())
        found += page
        if len(page) < _PAGE:
            return [variable for variable in found if variable.name.startswith(prefix)]


def delete_variable(client: SyncPrefectClient, name: str) -> None:
    """Delete a variable; one that is gone already is as good."""
    try:
        client.delete_variable_by_name(name)
    except ObjectNotFound:
        return


def delete_variable_by_id(client: SyncPrefectClient, variable_id: UUID) -> None:
    """Delete this very variable, never another of the same name; one that is gone already is as good."""
    try:
        client.request("DELETE", "/variables/{id}", path_params={"id": str(variable_id)})
    except HTTPStatusError as error:
        if error.response.status_code != HTTPStatus.NOT_FOUND:
            raise

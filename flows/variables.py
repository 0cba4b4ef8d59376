"""Variables of a Prefect server, as records that many callers share: listing and deleting them. Not what is in them.

Creating a variable is the only operation of the server that one of many callers wins, on every database; deleting and
updating are not.
"""

from __future__ import annotations

from typing import Any, Final

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

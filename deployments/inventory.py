"""The list of what this project has put on a server, kept there as a variable.

By it, what is no longer defined can be removed, and what others made is never touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import VariableCreate, VariableUpdate

VARIABLE: Final = "reconflow_deployed"
TAGS: Final = ["reconflow"]


def read_inventory(client: SyncPrefectClient) -> frozenset[str]:
    """Return what was put there, as `kind:name`; nothing on a server that is new to us."""
    variable = client.read_variable_by_name(VARIABLE)
    return frozenset(str(entry) for entry in variable.value) if variable is not None else frozenset()  # type: ignore[union-attr]


def write_inventory(client: SyncPrefectClient, entries: Iterable[str]) -> None:
    """Replace the list."""
    set_variable(client, VARIABLE, sorted(entries))


def set_variable(client: SyncPrefectClient, name: str, value: object) -> None:
    """Create a variable or change its value; one that holds that value already is left alone."""
    existing = client.read_variable_by_name(name)
    content = json.loads(json.dumps(value))
    if existing is None:
        client.create_variable(VariableCreate(name=name, value=content, tags=TAGS))
    elif existing.value != content:
        client.update_variable(VariableUpdate(name=name, value=content, tags=TAGS))

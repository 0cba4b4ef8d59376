"""How often a flow run says that it lives, and whose silence means something. Imports nothing of Prefect.

Prefect's own interval is longer than the silence after which a run is taken for dead, so that only runs that are
known to send heartbeats at ours may be watched: those of our deployments and of our commands, which carry the tag.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

HEARTBEAT_S: Final = 30
"""Prefect's smallest interval."""
HEARTBEAT_VARIABLE: Final = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
HEARTBEAT_EVENT: Final = "prefect.flow-run.heartbeat"
SILENT_AFTER_S: Final = 2 * HEARTBEAT_S
"""How long a run may say nothing before somebody looks at it."""
LISTEN_S: Final = 60
"""How long it may go on saying nothing then: long enough for who lost the server to find it again and be heard."""
WATCHED_TAG: Final = "reconflow"
"""The tag of every run that sends heartbeats at this interval; deployments pass it on to their runs."""


def set_heartbeats(environment: MutableMapping[str, str]) -> None:
    """Let Prefect send heartbeats at our interval, whatever it was told otherwise; before it is imported.

    Args:
        environment: Of the process that will have the runs.
    """
    environment[HEARTBEAT_VARIABLE] = str(HEARTBEAT_S)

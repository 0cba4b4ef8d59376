"""What stays in the artifact store of a run that was cancelled. Works from the run's record and the store alone.

The run itself may have been killed, on another machine; so whoever confirmed a cancellation comes here afterwards.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun

from blocks.artifact_store import using_locations
from flows.run_ids import run_id_of
from reconflow.errors import JobExpiredError, JobNotFoundError
from reconflow.storage import open_store


def clean_up_after(flow_run: FlowRun, reason: str, *, discard_results: bool) -> bool:
    """Remove what a cancelled run left unfinished, and what it finished as well if that is wanted.

    Args:
        flow_run: Has ended, and its process is gone.
        reason: Why the results go; whoever reads the run is told.
        discard_results: Whether what is finished goes, too.

    Returns:
        Whether that could be done from here: not for a local folder of another machine.

    Raises:
        StorageUnreachableError, StorageRefusedError: The store does not answer, or refuses.
    """
    run_id, out = run_id_of(flow_run), _place_of_results(flow_run)
    if run_id is None or out is None:
        return True  # it never began
    with using_locations(out) as (place,):
        if "://" not in place and not (Path(place).expanduser() / "runs" / run_id).is_dir():
            return False
        store = open_store(place)
        store.discard_unfinished(run_id)
        if discard_results:
            with suppress(JobNotFoundError, JobExpiredError):  # nothing was published, or nothing is left
                store.delete_run(run_id, reason)
    return True


def _place_of_results(flow_run: FlowRun) -> str | None:
    params: Any = flow_run.parameters.get("params")
    out = params.get("out", "out") if isinstance(params, dict) else None
    return out if isinstance(out, str) else None

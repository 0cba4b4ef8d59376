"""How a flow that is no reconstruction hears that its run was cancelled, and ends so. What it does is its own business.

A worker ends the process of a run that is being cancelled; a command, an orphan and a late starter end themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

import prefect.runtime.flow_run
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Cancelled as CancelledState

from flows.cancellation_records import forget_own_cancellation
from flows.endings import failed_state
from reconflow.errors import Cancelled
from reconflow.progress import OnProgress
from tasks.run_state import AttemptSuperseded, StatePoller, asked_to_stop, cancelled_before_start, own_flow_run_ids

_logger = logging.getLogger(__name__)


def unless_cancelled(work: Callable[[OnProgress], State[Any]]) -> State[Any]:
    """Do the work of the flow run that calls this, unless or until its run is cancelled.

    Args:
        work: Does it and returns how the run ends. It calls what it is given between its steps.

    Returns:
        How the run ends: as the work says, as cancelled, or as failed with code and way out.
    """
    flow_run_id = UUID(prefect.runtime.flow_run.id)
    with get_client(sync_client=True) as client:
        cancelled = cancelled_before_start(client, flow_run_id)
    ending = _cancelled(cancelled) if cancelled is not None else _do(work, flow_run_id)
    forget_own_cancellation(flow_run_id)
    return ending


def _do(work: Callable[[OnProgress], State[Any]], flow_run_id: UUID) -> State[Any]:
    try:
        with StatePoller(own_flow_run_ids()) as poller:

            def stop_if_asked(step: int, total: int, message: str) -> None:
                _logger.debug("%s (%d of %d)", message, step, total)
                poller.raise_if_stopped()

            ending = work(stop_if_asked)
    except Cancelled as error:
        return _cancelled(error)
    except Exception as error:
        ending = failed_state(error)
    # A run that is being cancelled can only end as cancelled, or it never ends.
    cancelled = asked_to_stop(flow_run_id)
    return ending if cancelled is None or isinstance(cancelled, AttemptSuperseded) else _cancelled(cancelled)


def _cancelled(error: Cancelled) -> State[Any]:
    return CancelledState(message=error.message, data=error)

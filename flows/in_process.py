"""Calling the flow from a command and waiting for it, with everything Prefect holds back written before it returns."""

from __future__ import annotations

from prefect import tags
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.exceptions import CancelledRun, TerminationSignal
from prefect.logging.handlers import APILogHandler

from deployments.heartbeats import WATCHED_TAG
from flows.reconstruct import reconstruct
from reconflow.errors import Cancelled, ServerUnreachableError
from reconflow.progress import OnProgress
from reconflow.request import RunRequest
from reconflow.stage_results import RunSummary
from tasks.reporting import listening

FLUSH_TIMEOUT_S = 5.0


def call_flow(request: RunRequest, on_progress: OnProgress | None = None) -> RunSummary:
    """Run `reconstruct` in this process and return its summary.

    Args:
        request: What to reconstruct.
        on_progress: Hears the whole run's progress; may raise `Cancelled`.

    Raises:
        ReconflowError: Why the run failed, as recorded in its state and its `error.json`.
        KeyboardInterrupt: A signal ended the run at once; that is recorded too.
        ServerUnreachableError: There is no Prefect server to record anything.
    """
    expect_server()
    try:
        with tags(WATCHED_TAG), listening(on_progress):
            return RunSummary.model_validate(reconstruct(request))
    except TerminationSignal as error:
        raise KeyboardInterrupt from error
    except CancelledRun as error:
        raise Cancelled("The run was cancelled.", suggestion="Run the same command again to go on.") from error
    finally:
        EventsWorker.drain_all(timeout=FLUSH_TIMEOUT_S)
        APILogHandler().flush()


def expect_server() -> None:
    """Return when the Prefect server answers.

    Raises:
        ServerUnreachableError: It does not.
    """
    with get_client(sync_client=True) as client:
        if client.api_healthcheck() is not None:
            raise ServerUnreachableError(
                "The Prefect server that PREFECT_API_URL names does not answer.",
                suggestion="Start it, correct the address, or unset PREFECT_API_URL to use an embedded server.",
            )

"""The flow `cancel`: an operator's form for the two steps of a cancellation, which are in `flows.cancellation`."""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed
from pydantic import BaseModel, ConfigDict, Field

from flows.cancellation import CancellationDesk
from flows.cancellation_answers import CancellationAnswer, Outcome
from flows.cancelled_results import clean_up_after
from flows.endings import checked, failed_state, known_error, name_after
from flows.run_ids import find_flow_run
from reconflow.errors import ReconflowError

ARTIFACT_KEY = "cancellation"


class CancelRequest(BaseModel):
    """One step of a cancellation."""

    model_config = ConfigDict(frozen=True, extra="forbid", title="Cancellation")

    run: str = Field(
        min_length=1,
        max_length=64,
        title="Run",
        description="The run id of 8 letters and digits (its tag run-...), or the id in the address of its page.",
    )
    by: str = Field(min_length=1, max_length=100, title="Your name", description="Who asks, for the record.")
    reason: str = Field(
        "no reason given", min_length=1, max_length=500, title="Reason", description="Why; stays with the run."
    )
    confirm: bool = Field(
        False,  # noqa: FBT003 - a switch of the form
        title="Confirm",
        description="Off: request the cancellation. On: confirm the request, within an hour, and stop the run.",
    )
    discard_results: bool = Field(
        False,  # noqa: FBT003 - a switch of the form
        title="Discard results",
        description="With the request: remove also what the run has finished. Otherwise results of models stay.",
    )


def name_run() -> str:
    """Name a run by its step and the run that it is about."""
    return name_after(CancelRequest, lambda asked: f"{_step_of(asked)} cancellation · {asked.run}")


def _step_of(request: CancelRequest) -> str:
    return "confirm" if request.confirm else "request"


@flow(
    name="cancel",
    flow_run_name=name_run,
    description="Cancel a run in two steps: request, then confirm within an hour. Between the steps the run goes on.",
    result_serializer="json",
    persist_result=False,
    validate_parameters=False,
)
def cancel(params: CancelRequest) -> State[Any]:
    """Do one step of a cancellation.

    Args:
        params: Which run, which step, who and why.

    Returns:
        A state whose name and message are the answer and whose data is a `CancellationAnswer`; a step that cannot be
        done is a failed state whose message holds code, message and suggestion.
    """
    logger = get_run_logger()
    try:
        request = checked(CancelRequest, params)
        with get_client(sync_client=True) as client:
            answer = do_step(client, request)
    except Exception as error:
        known = known_error(error)
        _show(f"**{known.code}**\n\n{known.message}\n\n**What to do:** {known.suggestion}")
        return failed_state(error)
    logger.info("%s: %s", answer.outcome, answer.message)
    _show(_page(answer))
    return Completed(name=answer.outcome.value, message=answer.message, data=answer.model_dump(mode="json"))


def do_step(client: SyncPrefectClient, step: CancelRequest) -> CancellationAnswer:
    """Request or confirm, and after a confirmed cancellation remove what the run left unfinished.

    Args:
        client: Of the Prefect server.
        step: Which.

    Raises:
        JobNotFoundError: There is no such run.
        JobAlreadyFinishedError: It has ended.
        CancellationNotRequestedError, CancellationExpiredError: There is nothing to confirm.
    """
    desk, run = CancellationDesk(client), find_flow_run(client, step.run)
    if not step.confirm:
        return desk.request(run, step.by, step.reason, discard_results=step.discard_results)
    answer = desk.confirm(run, step.by)
    if answer.outcome not in (Outcome.CANCELLED, Outcome.FORCED):
        return answer
    left = _clean_up(client.read_flow_run(answer.flow_run_id), answer)
    return answer.model_copy(update={"message": " ".join([answer.message, *left])})


def _clean_up(flow_run: FlowRun, answer: CancellationAnswer) -> list[str]:
    """Remove what the run left; return what has to be said about that. The run is cancelled whatever comes of it."""
    reason = f"Cancelled by {answer.by}: {answer.reason}"
    try:
        if clean_up_after(flow_run, reason, discard_results=answer.discard_results):
            return []
    except ReconflowError as error:
        return [f"What it left could not be removed ({error.code}): {error.message}"]
    return ["What it left is in a folder of the machine that it ran on, which cannot be reached from here."]


def _page(answer: CancellationAnswer) -> str:
    rows = {
        "run": f"[{answer.run}](/runs/flow-run/{answer.flow_run_id})",
        "by": answer.by,
        "reason": answer.reason,
        "results": "discarded" if answer.discard_results else "kept",
    }
    facts = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value)
    return f"**{answer.outcome}**: {answer.message}\n\n| | |\n|---|---|\n{facts}"


def _show(text: str) -> None:
    create_markdown_artifact(text, key=ARTIFACT_KEY, description="Cancellation")

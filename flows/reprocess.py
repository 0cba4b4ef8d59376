"""The flow `reprocess`: decide which datasets need another run, submit those, and tell what became of them.

What decides is in `reconflow.reprocessing`, how runs are submitted only once in `flows.submissions`. All state is in
Prefect and in the manifests: a walk that dies is simply walked again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import httpx
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Completed

from blocks.artifact_store import using_locations
from blocks.model_weights import using_weights
from flows.endings import checked, name_after
from flows.reprocess_report import REFUSED, RunOutcome, WalkReport, make_report, refusal_of, table_rows
from flows.reprocess_request import ReprocessRequest
from flows.run_ids import run_id_of
from flows.stoppable import unless_cancelled
from flows.submissions import Work, find_deployment, has_ended, latest_of, read_runs, submit
from reconflow.datasets.sources import canonical_location, find_datasets
from reconflow.progress import OnProgress, ignore_progress
from reconflow.reprocessing import Decision, Wanted, decide_all, submission_key, wanted_of
from reconflow.request import RunRequest
from reconflow.run_records import read_records
from reconflow.storage.locations import scheme_of

POLL_INTERVAL_S: Final = 5.0
_MAX_MESSAGE: Final = 300


def name_walk() -> str:
    """Name a walk by what it walks over."""
    return name_after(ReprocessRequest, _name_of)


def _name_of(request: ReprocessRequest) -> str:
    return f"{request.datasets} · {request.model} · {request.preset}{' · dry run' if request.dry_run else ''}"


@flow(
    name="reprocess",
    flow_run_name=name_walk,
    description="Find the datasets that are new, changed, failed or outdated, and reconstruct them.",
    result_serializer="json",
    persist_result=False,
    validate_parameters=False,
)
def reprocess(params: ReprocessRequest) -> State[Any]:
    """Bring the results of all datasets below a place up to date.

    Args:
        params: Which datasets, compared with which store, run how.

    Returns:
        A state whose message has the counts and whose data is a `flows.reprocess_report.WalkReport`. A run that fails
        is a row of it, not a failure of the walk; what the walk itself cannot go on without is a failed state with
        code and way out.
    """
    return unless_cancelled(lambda on_progress: _walk(checked(ReprocessRequest, params), on_progress))


def _walk(params: ReprocessRequest, on_progress: OnProgress) -> State[Any]:
    began = datetime.now(UTC)
    with (
        using_locations(params.datasets, params.out) as (datasets, out),
        using_weights(params.options.get("weights")) as (weights,),
    ):
        wanted = wanted_of(params.request_for(datasets).model_copy(update={"out": out, "weights": weights}))
        decisions = survey(datasets, wanted, params.attempts, on_progress)
    chosen = params.choose(decisions)
    report = make_report(params, decisions, chosen, {})
    show_report(report, "reprocess-decisions")
    if not params.dry_run:
        with get_client(sync_client=True) as client:
            outcomes = Walk(client, params, wanted, began, datasets, on_progress).run_all(chosen)
        report = make_report(params, decisions, chosen, outcomes)
        show_report(report, "reprocess-runs")
        if (refusal := refusal_of(outcomes)) is not None:
            raise refusal
    return Completed(message=report.headline(), data=report.model_dump(mode="json"))


@task(name="decide", cache_policy=NO_CACHE, persist_result=False)
def survey(datasets: str, wanted: Wanted, attempts: int, on_progress: OnProgress) -> list[Decision]:
    """Decide for every dataset below a place, from listings and manifests; `on_progress` may raise `Cancelled`."""
    sources = find_datasets(datasets)
    on_progress(0, len(sources), "reading manifests")
    return decide_all(sources, read_records(wanted.out), wanted, attempts, on_progress)


def show_report(report: WalkReport, key: str) -> None:
    """Show the counts and the datasets that are not up to date."""
    rows = table_rows(report)
    hidden = report.datasets - len(rows)
    more = f"\n\n{hidden} more datasets are not listed here." if hidden else ""
    create_table_artifact(table=rows, key=key, description=report.headline() + more)
    get_run_logger().info(report.headline())


class Walk:
    """Submits runs, a limited number at a time, and waits for them.

    Args:
        client: Of the Prefect server.
        request: What was asked for.
        wanted: How datasets are processed.
        began: When the walk looked into the store, or before.
        place: The datasets' place, where the request names a block.
        on_progress: Called before each submission and each look at the runs; may raise `Cancelled`.
    """

    def __init__(
        self,
        client: SyncPrefectClient,
        request: ReprocessRequest,
        wanted: Wanted,
        began: datetime,
        place: str,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        self._client = client
        self._request = request
        self._wanted = wanted
        self._began = began
        self._place = canonical_location(place)
        self._on_progress = on_progress
        self._running: dict[str, FlowRun] = {}
        self._outcomes: dict[str, RunOutcome] = {}

    def run_all(self, chosen: Sequence[Decision]) -> dict[str, RunOutcome]:
        """Submit the runs of all these datasets, wait for them, and return what became of each, by location.

        Raises:
            ValidationFailedError: There is no such deployment.
            ServerUnreachableError: The server does not answer; what was submitted goes on.
            Cancelled: The walk is to stop; what was submitted goes on.
        """
        deployment = find_deployment(self._client, self._request.deployment) if chosen else UUID(int=0)
        ends = self._began + timedelta(hours=self._request.wait_hours)
        waiting = list(reversed(chosen))
        while (waiting or self._running) and datetime.now(UTC) < ends:
            while waiting and len(self._running) < self._request.in_flight:
                self._on_progress(len(self._outcomes), len(chosen), "submitting")
                self._submit(deployment, waiting.pop())
            self._on_progress(len(self._outcomes), len(chosen), "waiting for runs")
            self._look()
            if self._running:
                time.sleep(POLL_INTERVAL_S)
        for decision in waiting:
            self._outcomes[decision.source.location] = RunOutcome(state="Not submitted", message="The time was up.")
        unfinished = {location: _outcome(run) for location, run in self._running.items()}
        return self._outcomes | unfinished

    def _submit(self, deployment: UUID, decision: Decision) -> None:
        """Submit one run; what the server refuses concerns this dataset alone."""
        location = decision.source.location
        request = self._request_for(location)
        work = Work(
            parameters={"params": request.model_dump(mode="json", exclude_unset=True)},
            key=lambda attempt: submission_key(decision, self._wanted, attempt),
            first_attempt=decision.attempt,
            max_attempts=self._request.attempts,
            tags=("reconflow", str(request.model), f"dataset-{decision.source.name}"),
        )
        try:
            self._running[location] = submit(self._client, deployment, work, self._began)
        except httpx.HTTPStatusError as error:
            why = f"{error.response.status_code}: {_told(error.response)}"
            self._outcomes[location] = RunOutcome(state=REFUSED, message=why[:_MAX_MESSAGE])

    def _request_for(self, location: str) -> RunRequest:
        """Return a run's request as its worker needs it: with the block, which has the credentials, or absolute.

        Only what the walk was told is set, so that an older deployment, which lacks newer fields, understands it.
        """
        asked, out = self._request.datasets, self._request.out
        below = location.removeprefix(self._place)
        request = self._request.request_for(f"{asked.rstrip('/')}{below}" if scheme_of(asked) == "block" else location)
        return request if scheme_of(out) == "block" else request.model_copy(update={"out": self._wanted.out})

    def _look(self) -> None:
        """Take note of the runs that have ended."""
        states = {run.id: run for run in read_runs(self._client, [run.id for run in self._running.values()])}
        for location, known in list(self._running.items()):
            run = states.get(known.id)
            if run is None:
                self._outcomes[location] = RunOutcome(state="Deleted", flow_run_id=str(known.id))
                del self._running[location]
                continue
            self._running[location] = run = latest_of(self._client, run)
            if has_ended(run):
                self._outcomes[location] = _outcome(run)
                del self._running[location]
                get_run_logger().info("%s: %s", location, run.state_name)


def _told(response: httpx.Response) -> str:
    """Return what the server says of a refusal."""
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase
    return detail if isinstance(detail, str) else json.dumps(detail)


def _outcome(run: FlowRun) -> RunOutcome:
    message = (run.state.message if run.state is not None else None) or ""
    return RunOutcome(
        state=run.state_name or "Unknown",
        message=message[:_MAX_MESSAGE],
        run_id=run_id_of(run),
        flow_run_id=str(run.id),
    )

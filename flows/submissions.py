"""Submitting runs of a deployment so that equal work is submitted once, whoever asks, however often, whatever breaks.

The state is Prefect's: a run is created with an idempotency key, and creating it again returns the one that exists.
What is run, and why, is the caller's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from flows.run_ids import RUN_TAG, find_flow_run, run_id_of
from reconflow.errors import ServerUnreachableError, ValidationFailedError
from reconflow.outputs.runs import new_run_id

PATIENCE_S: Final = 300.0
"""How long the server may fail to answer."""
CRASH_GRACE_S: Final = 90.0
"""How long after a crash its recovery, which is a new run with the same run id, may take to appear."""
PAUSE_S: Final = 5.0
"""Between two calls to a server that fails to answer."""
_PAGE: Final = 100
_SERVER_FAULTS: Final = 500
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Work:
    """One run to submit.

    Attributes:
        parameters: Of the flow.
        key: Returns the idempotency key of the n-th attempt.
        first_attempt: The number of attempts that are known to have ended.
        max_attempts: The number after which no new attempt is made.
        tags: Of the run, beside its run id.
    """

    parameters: dict[str, Any]
    key: Callable[[int], str]
    first_attempt: int
    max_attempts: int
    tags: tuple[str, ...]


def find_deployment(client: SyncPrefectClient, name: str) -> UUID:
    """Return the id of a deployment.

    Args:
        client: Of the Prefect server.
        name: `flow/deployment`.

    Raises:
        ValidationFailedError: There is none.
        ServerUnreachableError: The server does not answer.
    """
    try:
        return patiently(lambda: client.read_deployment_by_name(name)).id
    except ObjectNotFound:
        raise ValidationFailedError(
            f"There is no deployment {name} on the Prefect server.",
            suggestion="Deploy it, or name another one.",
            deployment=name,
        ) from None


def submit(client: SyncPrefectClient, deployment: UUID, work: Work, since: datetime) -> FlowRun:
    """Return the run that does this work: a new one, or the one that somebody has submitted already.

    An attempt that ended before `since` without leaving a trace in the store, as a crash does, is followed by the next
    one, up to the last.

    Args:
        client: Of the Prefect server.
        deployment: What is run.
        work: With which parameters, under which keys.
        since: When the caller looked into the store.

    Raises:
        ServerUnreachableError: The server does not answer.
        httpx.HTTPStatusError: It refuses this run.
    """
    attempt = work.first_attempt
    while True:
        tags = (f"{RUN_TAG}{new_run_id()}", *work.tags)
        created = _create(client, deployment, work, work.key(attempt), tags)
        run = latest_of(client, created)
        attempt += 1
        if not _ended_before(run, since) or attempt >= max(work.max_attempts, work.first_attempt + 1):
            return run


def latest_of(client: SyncPrefectClient, run: FlowRun) -> FlowRun:
    """Return the run itself, or the latest of the Prefect runs that continued it under the same run id."""
    run_id = run_id_of(run)
    if run_id is None or run.state is None or not run.state.is_crashed():
        return run
    return patiently(lambda: find_flow_run(client, run_id))


def read_runs(client: SyncPrefectClient, flow_run_ids: Iterable[UUID]) -> list[FlowRun]:
    """Return the runs as they are now; deleted ones are missing.

    Raises:
        ServerUnreachableError: The server does not answer.
    """
    ids = list(flow_run_ids)
    found: list[FlowRun] = []
    for start in range(0, len(ids), _PAGE):
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=ids[start : start + _PAGE]))
        found += patiently(partial(client.read_flow_runs, flow_run_filter=wanted, limit=_PAGE))
    return found


def has_ended(run: FlowRun, now: datetime | None = None) -> bool:
    """Whether nothing more will come of a run; a crash may be recovered for a while."""
    if run.state is None or not run.state.is_final():
        return False
    age = (now or datetime.now(UTC)) - run.state.timestamp
    return not run.state.is_crashed() or age >= timedelta(seconds=CRASH_GRACE_S)


def patiently(call: Callable[[], Answer]) -> Answer:
    """Return what a call to the server answers, repeating it while the server is away or overloaded.

    Only for calls that may be repeated. Prefect's client repeats each of them a few times by itself.

    Args:
        call: The call.

    Raises:
        ServerUnreachableError: It is still away.
        httpx.HTTPStatusError: It answers that the call is wrong.
    """
    began_s = time.monotonic()
    while True:
        try:
            return call()
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code < _SERVER_FAULTS:
                raise
            if time.monotonic() - began_s >= PATIENCE_S:
                raise ServerUnreachableError(
                    "The Prefect server does not answer.",
                    suggestion="Look at the server; the next walk goes on where this one stopped.",
                ) from error
        time.sleep(PAUSE_S)


def _create(client: SyncPrefectClient, deployment: UUID, work: Work, key: str, tags: tuple[str, ...]) -> FlowRun:
    return patiently(
        lambda: client.create_flow_run_from_deployment(
            deployment, parameters=work.parameters, idempotency_key=key, tags=tags
        )
    )


def _ended_before(run: FlowRun, since: datetime) -> bool:
    return run.state is not None and has_ended(run) and run.state.timestamp < since

"""The flow `reconstruct`: the order of the stages, and how a run ends. Decides no geometry; what stages do is in tasks.

Run it as `python -m flows.reconstruct DATASET --out DIR --preset standard`, which is `reconflow run`.
"""

from __future__ import annotations

if __name__ == "__main__":  # the embedded server's settings have to stand before Prefect is imported below
    from flows.cli import run_from_module

    raise SystemExit(run_from_module())

from typing import Any, Final
from uuid import UUID

import prefect.runtime.flow_run
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled as CancelledState
from prefect.states import Completed

from blocks.artifact_store import using_locations
from blocks.model_weights import using_weights
from blocks.quality import load_thresholds
from flows.cancellation_records import forget_own_cancellation
from flows.endings import checked, failed_state, known_error, name_after
from flows.run_ids import RUN_TAG
from reconflow import pipeline
from reconflow.errors import Cancelled
from reconflow.outputs.runs import is_run_id, new_run_id
from reconflow.request import RunRequest
from reconflow.run_context import Isolation, RunRef, StageOutcomes
from reconflow.stage_results import RunSummary
from tasks import artifacts, stages
from tasks.reporting import RunReporter, reporting_run
from tasks.run_state import AttemptSuperseded, asked_to_stop, cancelled_before_start, undisturbed
from tasks.stages import result_of

DATASET_TAG: Final = "dataset-"
"""What stands before the dataset's name in a tag of its Prefect runs."""


def name_run() -> str:
    """Name a run by its dataset, model and preset."""
    return name_after(RunRequest, lambda asked: f"{asked.dataset_name()} · {asked.model} · {asked.preset}")


@flow(
    name="reconstruct",
    flow_run_name=name_run,
    description="Six views and depth renders in, a measured, textured mesh out.",
    result_serializer="json",
    persist_result=False,
    validate_parameters=False,
)
def reconstruct(params: RunRequest) -> State[Any]:
    """Reconstruct one object: validate, transforms, load, infer, quality, preview, package.

    Args:
        params: What to reconstruct, how, and where to put it.

    Returns:
        A state whose result is the run's summary: `run_id`, `location`, `status`, measures. A failure is a failed
        state whose message holds code, message and suggestion; `error.json` stands beside the results.
    """
    flow_run_id = UUID(prefect.runtime.flow_run.id)
    try:
        request = checked(RunRequest, params)
        with get_client(sync_client=True) as client:
            if (cancelled := cancelled_before_start(client, flow_run_id)) is not None:
                return _cancelled(cancelled)
        return _run_request(request, flow_run_id)
    except Exception as error:  # before anything could be recorded beside the results
        return failed_state(error)


def _run_request(params: RunRequest, flow_run_id: UUID) -> State[Any]:
    """Run the stages where the request says; what it says of saved blocks is looked up first."""
    outcomes = StageOutcomes()
    try:
        with using_locations(params.dataset, params.out) as (dataset, out), using_weights(params.weights) as (weights,):
            request = params.model_copy(update={"dataset": dataset, "out": out, "weights": weights})
            run = RunRef(run_id=_tagged_run_id(request), request=request, isolation=_isolation())
            with pipeline.opened(run, outcomes):
                ending = _run_recorded(run, outcomes, flow_run_id)
    except Exception as error:  # the place for the results cannot be used, so that nothing can be recorded there
        artifacts.show_failure(params.model, known_error(error))
        ending = failed_state(error)
    forget_own_cancellation(flow_run_id)  # not of a run that is interrupted: its recovery may go on with it
    return ending


def _run_recorded(run: RunRef, outcomes: StageOutcomes, flow_run_id: UUID) -> State[Any]:
    """Run the stages and record beside the results how that ended."""
    params = run.request
    try:
        with reporting_run(params, f"{params.model} on its way") as reporter:
            return _unless_cancelled(flow_run_id, _completed(_run_stages(run, outcomes, reporter)))
    except (KeyboardInterrupt, TerminationSignal):
        with undisturbed():
            cancelled = asked_to_stop(flow_run_id)
            if not isinstance(cancelled, AttemptSuperseded):
                pipeline.record_failure(run, outcomes, cancelled or pipeline.interruption(), _orchestration())
            if cancelled is not None:
                artifacts.show_cancelled(params.model, cancelled, run.run_id)
        if cancelled is None:
            raise
        return _cancelled(cancelled)  # at once; a worker would first import the flow again to look for hooks
    except AttemptSuperseded as error:
        return _cancelled(error)
    except Cancelled as error:
        with undisturbed():
            pipeline.record_failure(run, outcomes, error, _orchestration())
            artifacts.show_cancelled(params.model, error, run.run_id)
        return _cancelled(error)
    except Exception as error:
        if isinstance(stop := asked_to_stop(flow_run_id), AttemptSuperseded):
            return _cancelled(stop)  # another attempt has the files now, which may be why this one failed
        known = known_error(error)
        pipeline.record_failure(run, outcomes, known, _orchestration())
        artifacts.show_failure(params.model, known, run.run_id)
        return _unless_cancelled(flow_run_id, failed_state(error))


def _completed(summary: RunSummary) -> State[Any]:
    measures = f"PSNR {summary.psnr_db:.1f} dB, SSIM {summary.ssim:.3f}, {summary.faces} triangles"
    message = f"Run {summary.run_id}: quality {summary.status} ({measures})."
    return Completed(message=message, data=summary.model_dump(mode="json"))


def _cancelled(error: Cancelled) -> State[Any]:
    return CancelledState(message=error.message, data=error)


def _unless_cancelled(flow_run_id: UUID, ending: State[Any]) -> State[Any]:
    """Return how the run ends; one that is being cancelled can only end as cancelled, or it never ends."""
    cancelled = asked_to_stop(flow_run_id)
    if cancelled is None or isinstance(cancelled, AttemptSuperseded):
        return ending
    return _cancelled(cancelled)


def _run_stages(run: RunRef, outcomes: StageOutcomes, reporter: RunReporter) -> RunSummary:
    run = run.model_copy(update={"thresholds": load_thresholds(run.request.quality_thresholds)})
    outcomes.validate = dataset = result_of(stages.validate(run))
    outcomes.transforms = cameras = result_of(stages.transforms(run, dataset))
    run = pipeline.place_models(run, dataset)  # by what is free when they begin
    if run.side_by_side:
        reporter.forecast.run_side_by_side()

    def run_one(name: str) -> None:
        found = outcomes.of(name)
        with reporter.of_model(name):
            found.load = model = stages.load(run, name, dataset)
            found.infer = inferred = result_of(stages.infer(run, dataset, cameras, model))
            found.quality = result_of(stages.quality(run, dataset, cameras, inferred))
            found.preview = result_of(stages.preview(run, inferred))

    pipeline.run_models(run, outcomes, run_one)
    outcomes.package = stages.package(run, outcomes, _orchestration())
    pipeline.raise_failure(run, outcomes)
    return pipeline.summarise(run, outcomes)


def _tagged_run_id(request: RunRequest) -> str:
    """Return the run's own identifier, a tag of the Prefect run that stays across its retries and its recovery."""
    tags: list[str] = list(prefect.runtime.flow_run.tags or [])
    known = [
        tag.removeprefix(RUN_TAG) for tag in tags if tag.startswith(RUN_TAG) and is_run_id(tag.removeprefix(RUN_TAG))
    ]
    run_id = known[0] if known else new_run_id()
    wanted = [f"{RUN_TAG}{run_id}", *request.models(), f"{DATASET_TAG}{request.dataset_name()}"]
    missing = [tag for tag in wanted if tag not in tags]
    if missing:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(prefect.runtime.flow_run.id), tags=[*tags, *missing])
    return run_id


def _isolation() -> Isolation | None:
    """Return where models run: for a deployment in processes of their own, whose memory is surely back afterwards."""
    return "process" if prefect.runtime.deployment.id else None


def _orchestration() -> dict[str, Any]:
    return {
        "flow_run_id": prefect.runtime.flow_run.id,
        "flow_run_name": prefect.runtime.flow_run.name,
        "deployment_id": prefect.runtime.deployment.id,
        "tags": sorted(prefect.runtime.flow_run.tags or []),
        "prefect_version": prefect.__version__,
    }

"""One Prefect task per stage of a reconstruction. Each wraps one function of `reconflow.pipeline` and nothing else.

Tasks pass small references to files, never arrays. They retry only what says of itself that it may succeed later. A
stage whose result an earlier attempt has kept ends in a state named Cached. Prefect's own cache is not used: whether
a result still stands is told by its files, not by a record of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, ParamSpec, TypeVar

import prefect.runtime.flow_run
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.states import Completed

from reconflow import pipeline
from reconflow.errors import ReconflowError
from reconflow.outputs.package import read_manifest
from reconflow.request import RunRequest
from reconflow.run_context import RunRef, StageOutcomes
from reconflow.stage_results import (
    CamerasResult,
    DatasetResult,
    InferResult,
    ModelResult,
    PackageResult,
    PreviewResult,
    QualityResult,
    StageResult,
)
from tasks import artifacts
from tasks.reporting import stage_progress, stage_was_kept

RETRY_DELAYS_S: Final = [2.0, 10.0]
CACHED: Final = "Cached"
"""The name of the state of a task that had nothing left to do."""

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")
Result = TypeVar("Result", bound=StageResult)


def is_retryable(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Tell Prefect whether the error in a failed state may pass by itself."""
    error = state.data
    return isinstance(error, ReconflowError) and error.retryable


def stage_task(name: str) -> Callable[[Callable[Parameters, Returned]], Task[Parameters, Returned]]:
    """Make a task of a function that runs one stage.

    Args:
        name: The stage's.
    """
    return task(
        name=name,
        retries=len(RETRY_DELAYS_S),
        retry_delay_seconds=RETRY_DELAYS_S,
        retry_condition_fn=is_retryable,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def result_of(answer: Result | State[Result]) -> Result:
    """Return the result that a stage's task has returned, in a state of its own or not."""
    if not isinstance(answer, State):
        return answer
    result: Result = answer.result()
    return result


def _finished(result: Result) -> Result | State[Result]:
    """Return a stage's result, in a state that says so when it was not made now; what was unusual goes to the log."""
    for note in result.record.notes:
        get_run_logger().warning("%s: %s", result.record.stage, note)
    if not result.record.cached:
        return result
    stage_was_kept(result.record.stage, result.record.model)
    return Completed(name=CACHED, message="An earlier attempt had finished this stage.", data=result)


@stage_task("validate")
def validate(run: RunRef) -> DatasetResult | State[DatasetResult]:
    """Check the dataset completely; see `reconflow.pipeline.validate`."""
    dataset = pipeline.validate(run, stage_progress("validate"))
    artifacts.show_dataset(run.request.model, dataset)
    return _finished(dataset)


@stage_task("transforms")
def transforms(run: RunRef, dataset: DatasetResult) -> CamerasResult | State[CamerasResult]:
    """Find or check the cameras; see `reconflow.pipeline.transforms`."""
    cameras = pipeline.transforms(run, dataset, stage_progress("transforms"))
    artifacts.show_cameras(run.request.model, cameras)
    return _finished(cameras)


@stage_task("load")
def load(run: RunRef, model: str, dataset: DatasetResult) -> ModelResult:
    """Make the model ready, when the machine has room; see `reconflow.pipeline.load`."""
    return pipeline.load(run, model, dataset, stage_progress("load", model))


@stage_task("infer")
def infer(
    run: RunRef, dataset: DatasetResult, cameras: CamerasResult, model: ModelResult
) -> InferResult | State[InferResult]:
    """Reconstruct and write the meshes; see `reconflow.pipeline.infer`."""
    return _finished(pipeline.infer(run, dataset, cameras, model, stage_progress("infer", model.name)))


@stage_task("quality")
def quality(
    run: RunRef, dataset: DatasetResult, cameras: CamerasResult, inferred: InferResult
) -> QualityResult | State[QualityResult]:
    """Measure the written mesh; see `reconflow.pipeline.quality`."""
    model = inferred.record.model
    measured = pipeline.quality(run, dataset, cameras, inferred, stage_progress("quality", model))
    artifacts.show_quality(model, measured, pipeline.layout_of(run).root)
    return _finished(measured)


@stage_task("preview")
def preview(run: RunRef, inferred: InferResult) -> PreviewResult | State[PreviewResult]:
    """Draw the pictures; see `reconflow.pipeline.preview`."""
    model = inferred.record.model
    previews = pipeline.preview(run, inferred, stage_progress("preview", model))
    artifacts.show_previews(model, previews, pipeline.layout_of(run).root)
    return _finished(previews)


@stage_task("package")
def package(run: RunRef, outcomes: StageOutcomes, orchestration: dict[str, Any]) -> PackageResult:
    """Write report, run facts, manifest and archive; see `reconflow.pipeline.package`."""
    packaged = pipeline.package(run, outcomes, stage_progress("package"), orchestration)
    summary = pipeline.summarise(run, replace(outcomes, package=packaged))
    files = read_manifest(pipeline.layout_of(run).root).files
    artifacts.show_summary(run.request.model, summary, _asked_store(run), files)
    return packaged


def _asked_store(run: RunRef) -> str:
    """Return where results go in the words of whoever asked: a block's name rather than what it stands for."""
    asked = prefect.runtime.flow_run.parameters.get("params")
    return RunRequest.model_validate(asked).out if asked else run.request.out

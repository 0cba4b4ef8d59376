"""One Prefect task per stage of a reconstruction. Each wraps one function of `reconflow.pipeline` and nothing else.

Tasks pass small references to files, never arrays. They retry only what says of itself that it may succeed later.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from reconflow import pipeline
from reconflow.errors import ReconflowError
from reconflow.pipeline import RunRef, StageOutcomes
from reconflow.stage_results import (
    CamerasResult,
    DatasetResult,
    InferResult,
    ModelResult,
    PackageResult,
    PreviewResult,
    QualityResult,
)
from tasks import artifacts
from tasks.reporting import stage_progress

RETRY_DELAYS_S: Final = [2.0, 10.0]


def is_retryable(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Tell Prefect whether the error in a failed state may pass by itself."""
    error = state.data
    return isinstance(error, ReconflowError) and error.retryable


@task(
    name="validate",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=is_retryable,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def validate(run: RunRef) -> DatasetResult:
    """Check the dataset completely; see `reconflow.pipeline.validate`."""
    dataset = pipeline.validate(run, stage_progress("validate"))
    artifacts.show_dataset(run.request.model, dataset)
    return dataset


@task(name="transforms", cache_policy=NO_CACHE, persist_result=False)
def transforms(run: RunRef, dataset: DatasetResult) -> CamerasResult:
    """Find or check the cameras; see `reconflow.pipeline.transforms`."""
    cameras = pipeline.transforms(run, dataset, stage_progress("transforms"))
    artifacts.show_cameras(run.request.model, cameras)
    return cameras


@task(name="load", cache_policy=NO_CACHE, persist_result=False)
def load(run: RunRef, dataset: DatasetResult) -> ModelResult:
    """Make the model ready, when the machine has room; see `reconflow.pipeline.load`."""
    return pipeline.load(run, dataset, stage_progress("load"))


@task(name="infer", cache_policy=NO_CACHE, persist_result=False)
def infer(run: RunRef, dataset: DatasetResult, cameras: CamerasResult, model: ModelResult) -> InferResult:
    """Reconstruct and write the meshes; see `reconflow.pipeline.infer`."""
    return pipeline.infer(run, dataset, cameras, model, stage_progress("infer"))


@task(name="quality", cache_policy=NO_CACHE, persist_result=False)
def quality(run: RunRef, dataset: DatasetResult, cameras: CamerasResult, inferred: InferResult) -> QualityResult:
    """Measure the written mesh; see `reconflow.pipeline.quality`."""
    measured = pipeline.quality(run, dataset, cameras, inferred, stage_progress("quality"))
    artifacts.show_quality(run.request.model, measured)
    return measured


@task(name="preview", cache_policy=NO_CACHE, persist_result=False)
def preview(run: RunRef, inferred: InferResult) -> PreviewResult:
    """Draw the pictures; see `reconflow.pipeline.preview`."""
    previews = pipeline.preview(run, inferred, stage_progress("preview"))
    artifacts.show_previews(run.request.model, previews, pipeline.workspace_of(run).root)
    return previews


@task(
    name="package",
    retries=2,
    retry_delay_seconds=RETRY_DELAYS_S,
    retry_condition_fn=is_retryable,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def package(run: RunRef, outcomes: StageOutcomes, orchestration: dict[str, Any]) -> PackageResult:
    """Write report, run facts, manifest and archive; see `reconflow.pipeline.package`."""
    packaged = pipeline.package(run, outcomes, stage_progress("package"), orchestration)
    artifacts.show_summary(run.request.model, pipeline.summarise(run, replace(outcomes, package=packaged)))
    return packaged

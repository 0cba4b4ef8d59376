"""A run from its start to its end without Prefect: in which order stages run, what is kept of them, how a run ends.

Each stage function here returns what an earlier attempt kept, else runs the stage (`reconflow.stages`) where it is to
run and keeps its result. `tasks` and `flows` show them to Prefect; `run_pipeline` runs them one after another.

What computes is imported where it is called: a worker's run has to reach its first line before it needs any of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from reconflow import models
from reconflow.errors import Cancelled, ReconflowError, StorageRefusedError, StorageUnreachableError
from reconflow.execution import choose_isolation
from reconflow.failures import as_known_error, interruption
from reconflow.isolated_stage import infer_in_child
from reconflow.model_order import heeding, place_side_by_side, run_side_by_side
from reconflow.outputs.runs import RunLayout, new_run_id
from reconflow.progress import OnProgress, ignore_progress
from reconflow.request import RunRequest
from reconflow.run_context import ModelOutcomes, RunRef, RunSite, StageOutcomes, forget_fetched, open_site
from reconflow.run_lock import sole_attempt
from reconflow.stage_cache import CheckpointKeeper, checkpoint_key, discard, holder_of, remember
from reconflow.stage_results import (
    CamerasResult,
    DatasetResult,
    InferResult,
    ModelResult,
    ModelSummary,
    PackageResult,
    PreviewResult,
    QualityResult,
    RunSummary,
)
from reconflow.stage_spans import PROGRESS_STEPS, RunFraction
from reconflow.storage import LocalStore, open_store

__all__ = [
    "ModelOutcomes",
    "RunRef",
    "StageOutcomes",
    "as_known_error",
    "infer",
    "interruption",
    "layout_of",
    "load",
    "opened",
    "package",
    "place_models",
    "preview",
    "quality",
    "raise_failure",
    "record_failure",
    "run_models",
    "run_pipeline",
    "summarise",
    "transforms",
    "validate",
]

ABANDONED_AFTER_S: Final = 14 * 24 * 3600.0
"""When what unfinished runs have kept in a local folder goes, at the next run that is finished there."""


@contextmanager
def opened(run: RunRef, outcomes: StageOutcomes) -> Iterator[None]:
    """Hold a run for the length of the block, its store ready, and clean up behind it.

    What only the stages needed goes at the end: intermediate files, the dataset in memory, and, once the run is
    published, the results that were kept for another attempt and that no other unfinished run has need of.

    Raises:
        StorageUnreachableError, DiskFullError: The store cannot be written.
        JobNotReadyError: Another process is at work on the run.
    """
    from reconflow import stages

    store = open_store(run.request.out)
    store.prepare()
    with sole_attempt(lambda: store.open_workspace(run.run_id)) as workspace:
        try:
            with suppress(StorageUnreachableError, StorageRefusedError):  # left to the store's own expiry
                store.begin_attempt(run.run_id)
            yield
        finally:
            stages.forget_dataset()
            forget_fetched()
            if outcomes.package is not None:
                keys = [result.record.key for result in outcomes.done()]
                discard(store, [*keys, *map(checkpoint_key, filter(None, keys))], holder_of(run))
                if isinstance(store, LocalStore):  # nobody may ever run an expiry there
                    store.sweep_stages(ABANDONED_AFTER_S)
            store.discard_work(workspace)


def layout_of(run: RunRef, model: str | None = None) -> RunLayout:
    """Return where the files of one model's result stand; of the first model's without one."""
    return open_site(run).layout(model)


def validate(run: RunRef, on_progress: OnProgress = ignore_progress) -> DatasetResult:
    """Read the dataset and check it completely; see `stages.validate`.

    Raises:
        InputError: `details["faults"]` lists every fault.
    """
    from reconflow import stages
    from reconflow.datasets.loading import identify_dataset
    from reconflow.datasets.sources import describe_source

    site = open_site(run)
    digest = identify_dataset(site.dataset_folder)
    if digest is None:
        return stages.validate(site, on_progress)
    listing = describe_source(run.request.dataset).listing
    inputs = {"dataset": digest, "name": site.dataset_folder.name, "location": run.request.dataset}
    found = remember(site, "validate", inputs, DatasetResult, on_progress, lambda _: stages.validate(site, on_progress))
    return found.model_copy(update={"listing": listing}) if found.record.cached else found


def transforms(run: RunRef, dataset: DatasetResult, on_progress: OnProgress = ignore_progress) -> CamerasResult:
    """Find the cameras, or check those that came with the dataset; see `stages.transforms`.

    Raises:
        CalibrationAmbiguousError: The data does not decide them.
        CalibrationContradictedError: The data contradicts the supplied ones.
    """
    from reconflow import stages

    site = open_site(run)
    inputs = {"dataset": dataset.digest, "fov_deg": run.request.fov_deg}
    return remember(
        site, "transforms", inputs, CamerasResult, on_progress, lambda _: stages.transforms(site, dataset, on_progress)
    )


def load(run: RunRef, name: str, dataset: DatasetResult, on_progress: OnProgress = ignore_progress) -> ModelResult:
    """Make a model ready when the machine has what it needs, always anew; see `stages.load`."""
    from reconflow import stages

    return stages.load(open_site(run), name, dataset, heeding(on_progress))


def place_models(run: RunRef, dataset: DatasetResult) -> RunRef:
    """Return the run with the devices of its models when they can compute side by side; see `model_order`."""
    from reconflow import stages

    return place_side_by_side(run, lambda name, device: stages.needs_of(run.request, dataset, name, device))


def infer(
    run: RunRef,
    dataset: DatasetResult,
    cameras: CamerasResult,
    model: ModelResult,
    on_progress: OnProgress = ignore_progress,
) -> InferResult:
    """Reconstruct the object, in this process or in one of its own, from the last checkpoint on if there is one."""
    from reconflow import stages

    site, on_progress = open_site(run), heeding(on_progress)
    options = run.request.options(model.name)
    inputs = {
        "dataset": dataset.digest,
        "cameras": cameras.file.sha256,
        "model": [model.name, model.version, model.device],
        "options": [options.model_dump(mode="json", exclude={"weights"}), options.settings().model_dump(mode="json")],
        "weights": model.weights,
        "object_size_m": run.request.object_size_m,
    }

    beside = tuple(name for name in run.request.models() if run.side_by_side and name != model.name)

    def compute(key: str) -> InferResult:
        keeper = CheckpointKeeper(site, "infer", key)
        if choose_isolation(model.device, run.isolation) == "process":
            result = infer_in_child(site, dataset, cameras, model, on_progress, keeper)
        else:
            result = stages.infer(site, dataset, cameras, model, on_progress, keeper.in_process())
        return result.noting(*keeper.notes, beside=beside)

    return remember(site, "infer", inputs, InferResult, on_progress, compute)


def quality(
    run: RunRef,
    dataset: DatasetResult,
    cameras: CamerasResult,
    inferred: InferResult,
    on_progress: OnProgress = ignore_progress,
) -> QualityResult:
    """Measure the written GLB against the input views; see `stages.quality`."""
    from reconflow import stages

    site, on_progress = open_site(run), heeding(on_progress)
    inputs = {
        "dataset": dataset.digest,
        "cameras": cameras.file.sha256,
        "model": inferred.record.model,
        "reconstruction": inferred.file.sha256,
        "outputs": {ref.path: ref.sha256 for ref in inferred.outputs},
        "thresholds": run.thresholds.model_dump(mode="json"),
    }
    return remember(
        site,
        "quality",
        inputs,
        QualityResult,
        on_progress,
        lambda _: stages.quality(site, dataset, cameras, inferred, on_progress),
    )


def preview(run: RunRef, inferred: InferResult, on_progress: OnProgress = ignore_progress) -> PreviewResult:
    """Draw the mesh from every input camera, and turning; see `stages.preview`."""
    from reconflow import stages

    site, on_progress = open_site(run), heeding(on_progress)
    inputs = {"model": inferred.record.model, "reconstruction": inferred.file.sha256}
    return remember(
        site, "preview", inputs, PreviewResult, on_progress, lambda _: stages.preview(site, inferred, on_progress)
    )


def package(
    run: RunRef,
    outcomes: StageOutcomes,
    on_progress: OnProgress = ignore_progress,
    orchestration: dict[str, Any] | None = None,
) -> PackageResult:
    """Make the run visible to readers, always anew; see `stages.package`."""
    from reconflow import stages

    return stages.package(open_site(run), outcomes, on_progress, orchestration)


def raise_failure(run: RunRef, outcomes: StageOutcomes) -> None:
    """Raise when a model failed or the measured quality is below the thresholds; what there is is stored by then.

    Raises:
        QualityThresholdError: The quality is too low.
        ReconflowError: Why a model failed beside another one that did not.
    """
    from reconflow import stages

    failure = stages.first_failure(open_site(run), outcomes)
    if failure is not None:
        raise failure


def record_failure(
    run: RunRef, outcomes: StageOutcomes, error: ReconflowError, orchestration: dict[str, Any] | None = None
) -> None:
    """Store why a run failed: `error.json`, `run.json` and a manifest that says so, unless they stand or cannot."""
    from reconflow.packaging import RunFacts, write_failure

    if outcomes.package is not None or isinstance(error, StorageUnreachableError | StorageRefusedError):
        return
    site = open_site(run)
    write_failure(site.layout(), RunFacts(run.request, outcomes.done(), orchestration or {}), error)
    with suppress(StorageUnreachableError, StorageRefusedError):  # the error itself is told in any case
        open_store(run.request.out).publish(site.workspace)


def run_models(run: RunRef, outcomes: StageOutcomes, run_one: Callable[[str], None]) -> None:
    """Run the stages of one model after another, or of all at once where `place_models` found devices for all.

    Of several models one that fails does not stop the next; its error is noted for the end.

    Args:
        run: The run.
        outcomes: Takes note of failures.
        run_one: Runs all stages of one model.

    Raises:
        ReconflowError: Why the only model failed, or the first of them when none came to its end.
    """
    names = run.request.models()
    for name in names:
        outcomes.of(name)  # in the order that was asked for, whoever comes first

    def attempt(name: str) -> None:
        try:
            run_one(name)
        except Cancelled:
            raise
        except Exception as error:
            if len(names) == 1:
                raise
            outcomes.of(name).failure = _of_model(as_known_error(error), name)

    if run.side_by_side:
        run_side_by_side(names, attempt)
        models.release_models()
    else:
        for name in names:
            attempt(name)
            if len(names) > 1:
                models.release_models()
    if not outcomes.complete_models():
        raise_failure(run, outcomes)


def summarise(run: RunRef, outcomes: StageOutcomes) -> RunSummary:
    """Return a finished run in a few facts."""
    from reconflow.packaging import RunFacts

    assert outcomes.validate is not None
    assert outcomes.transforms is not None
    assert outcomes.package is not None
    site, results = open_site(run), outcomes.done()
    label = RunFacts(run.request, results, {}).label
    summaries = tuple(
        _summarise_model(site, name, outcomes.of(name), outcomes.package.location)
        for name in outcomes.complete_models()
    )
    reasons = [reason for found in outcomes.models.values() if found.quality for reason in found.quality.reasons]
    notes = [note for found in outcomes.models.values() if found.infer for note in found.infer.model_notes]
    records = [result.record for result in results]
    return RunSummary(
        run_id=run.run_id,
        location=outcomes.package.location,
        **summaries[0].model_dump(exclude={"model"}),
        fov_x_deg=outcomes.transforms.fov_x_deg,
        cameras=outcomes.transforms.method,
        seconds=round(sum(record.seconds for record in records), 3),
        stage_seconds={label(record): record.seconds for record in records},
        peak_rss_bytes=max(record.peak_rss_bytes for record in records),
        peak_gpu_bytes=max(record.peak_gpu_bytes for record in records),
        cached_stages=tuple(label(record) for record in records if record.cached),
        models=summaries,
        warnings=(*outcomes.validate.warnings, *outcomes.transforms.warnings, *notes, *reasons),
    )


def run_pipeline(
    request: RunRequest, on_progress: OnProgress = ignore_progress, *, run_id: str | None = None
) -> RunSummary:
    """Run all stages, without Prefect, and return the run's summary.

    What an earlier attempt at the same work has finished is not repeated, whatever its run id was.

    Args:
        request: What to reconstruct, how, and where to put it.
        on_progress: Hears the whole run's progress; may raise `Cancelled`.
        run_id: Of an earlier attempt, to put the result in its place; a new one when None.

    Raises:
        ReconflowError: Why the run failed; `error.json` stands beside what was stored.
    """
    run, outcomes = RunRef(run_id=run_id or new_run_id(), request=request), StageOutcomes()
    with opened(run, outcomes):
        try:
            return _run_stages(run, outcomes, on_progress)
        except KeyboardInterrupt:
            record_failure(run, outcomes, interruption())
            raise
        except Exception as error:
            known = as_known_error(error)
            record_failure(run, outcomes, known)
            if known is error:
                raise
            raise known from error


def _run_stages(run: RunRef, outcomes: StageOutcomes, on_progress: OnProgress) -> RunSummary:
    names = run.request.models()
    whole, telling = RunFraction(run.request.preset, names), threading.Lock()

    def heard(stage: str, model: str | None = None) -> OnProgress:
        def report(step: int, total: int, message: str) -> None:
            named = f"{model} {message}" if model is not None and len(names) > 1 else message
            with telling:
                done = whole.move_to(stage, model, step / max(total, 1))
                on_progress(round(PROGRESS_STEPS * done), PROGRESS_STEPS, named)

        return report

    outcomes.validate = dataset = validate(run, heard("validate"))
    outcomes.transforms = cameras = transforms(run, dataset, heard("transforms"))
    run = place_models(run, dataset)  # by what is free when they begin
    whole.side_by_side = run.side_by_side

    def run_one(name: str) -> None:
        found = outcomes.of(name)
        found.load = model = load(run, name, dataset, heard("load", name))
        found.infer = inferred = infer(run, dataset, cameras, model, heard("infer", name))
        found.quality = quality(run, dataset, cameras, inferred, heard("quality", name))
        found.preview = preview(run, inferred, heard("preview", name))

    run_models(run, outcomes, run_one)
    outcomes.package = package(run, outcomes, heard("package"))
    raise_failure(run, outcomes)
    return summarise(run, outcomes)


def _of_model(error: ReconflowError, model: str) -> ReconflowError:
    error.details.setdefault("model", model)
    return error


def _summarise_model(site: RunSite, name: str, found: ModelOutcomes, location: str) -> ModelSummary:
    assert found.infer is not None
    assert found.quality is not None
    layout = site.layout(name)
    return ModelSummary(
        model=name,
        mesh=f"{location}/{layout.glb.relative_to(layout.root).as_posix()}",
        report=f"{location}/{layout.report.relative_to(layout.root).as_posix()}",
        status=found.quality.status,
        psnr_db=found.quality.psnr_db,
        ssim=found.quality.ssim,
        mask_iou=found.quality.mask_iou,
        faces=found.infer.faces,
        vertices=found.infer.vertices,
    )

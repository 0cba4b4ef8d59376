"""The stages of a reconstruction as plain functions over a run's folders, and the order they run in without Prefect.

Each stage takes references, does one thing, writes files that appear whole or not at all, and returns a small result.
What a stage computes lives in the packages below; who retries, caches and displays lives above, in `tasks` and `flows`.
"""

from __future__ import annotations

import errno
import math
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from reconflow import models
from reconflow.cameras.calibration import Calibration, calibrate
from reconflow.datasets.dataset import Dataset
from reconflow.datasets.loading import load_dataset
from reconflow.datasets.sources import describe_source
from reconflow.errors import (
    Cancelled,
    DiskFullError,
    IncompleteResultsError,
    ModelOutOfMemoryError,
    QualityThresholdError,
    ReconflowError,
    StorageUnreachableError,
)
from reconflow.outputs.files import write_json
from reconflow.outputs.package import RunStatus, ScaleSource, write_package
from reconflow.outputs.previews import write_previews, write_turntable
from reconflow.outputs.runs import RunLayout, new_run_id
from reconflow.packaging import (
    RunFacts,
    error_facts,
    manifest_facts,
    run_source,
    write_failure,
    write_meshes,
    write_run_facts,
    write_run_report,
)
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.quality.measure import measure_quality
from reconflow.quality.report import QualityReport, QualityThresholds
from reconflow.reconstruction import Reconstruction
from reconflow.request import RunRequest
from reconflow.resources import available_memory_bytes, check_disk, check_memory, estimate_needs
from reconflow.result_frame import choose_result_frame, move_reconstruction
from reconflow.stage_files import (
    file_ref,
    load_calibration,
    load_reconstruction,
    resolve,
    save_calibration,
    save_reconstruction,
)
from reconflow.stage_results import (
    CamerasResult,
    DatasetResult,
    InferResult,
    ModelResult,
    PackageResult,
    PreviewResult,
    QualityResult,
    RunSummary,
    StageClock,
    StageResult,
)
from reconflow.stage_spans import stage_span
from reconflow.storage import Workspace, open_store


class RunRef(BaseModel, frozen=True, extra="forbid"):
    """One run: what was asked for, and under which identifier."""

    run_id: str
    request: RunRequest
    thresholds: QualityThresholds = QualityThresholds()


@dataclass
class StageOutcomes:
    """The results of the stages that have run so far; None for those that have not."""

    validate: DatasetResult | None = None
    transforms: CamerasResult | None = None
    load: ModelResult | None = None
    infer: InferResult | None = None
    quality: QualityResult | None = None
    preview: PreviewResult | None = None
    package: PackageResult | None = None

    def done(self) -> list[StageResult]:
        """Return the results that there are, in the order of the stages."""
        results = (getattr(self, field.name) for field in fields(self))
        return [result for result in results if result is not None]


def layout_of(run: RunRef) -> RunLayout:
    """Return where the run's files stand."""
    return RunLayout(workspace_of(run).root, run.run_id, run.request.model)


def workspace_of(run: RunRef) -> Workspace:
    """Return the run's folders, created when they do not exist."""
    return open_store(run.request.out).open_workspace(run.run_id)


def prepare(run: RunRef) -> None:
    """Make the place for the results ready.

    Raises:
        StorageUnreachableError, DiskFullError: It cannot be written.
    """
    open_store(run.request.out).prepare()


def close_run(run: RunRef) -> None:
    """Drop what only the stages needed: intermediate files and the dataset in memory."""
    _loaded.cache_clear()
    store = open_store(run.request.out)
    store.discard_work(store.open_workspace(run.run_id))


def validate(run: RunRef, on_progress: OnProgress = ignore_progress) -> DatasetResult:
    """Read the dataset and check it completely.

    Raises:
        InputError: `details["faults"]` lists every fault.
    """
    clock = StageClock("validate")
    on_progress(0, 1, "validate: reading the dataset")
    listing = describe_source(run.request.dataset).listing
    dataset = _loaded(run.request.dataset)
    return DatasetResult(
        record=clock.record(),
        location=run.request.dataset,
        listing=listing,
        name=dataset.name,
        layout=dataset.layout,
        digest=dataset.digest,
        views=tuple(view.name for view in dataset.views),
        image_hw=max(view.image_hw for view in dataset.views),
        pixels=sum(view.image_hw[0] * view.image_hw[1] for view in dataset.views),
        cameras_given=dataset.cameras is not None,
        mask_sources={view.name: view.mask_source.value for view in dataset.views},
        world_up=dataset.world_up,
        file_hashes=dataset.file_hashes,
        warnings=dataset.warnings,
    )


def transforms(run: RunRef, dataset: DatasetResult, on_progress: OnProgress = ignore_progress) -> CamerasResult:
    """Find the cameras, or check those that came with the dataset.

    Raises:
        CalibrationAmbiguousError: The data does not decide them.
        CalibrationContradictedError: The data contradicts the supplied ones.
    """
    clock = StageClock("transforms")
    fov = run.request.fov_deg
    calibration = calibrate(
        _dataset(dataset),
        named(on_progress, "transforms"),
        fov_x_rad=None if fov is None else math.radians(fov),
    )
    workspace = workspace_of(run)
    path = workspace.work / "cameras.npz"
    save_calibration(path, calibration)
    return CamerasResult(
        record=clock.record(),
        file=file_ref(path, workspace.work),
        method=calibration.method,
        fov_x_deg=math.degrees(calibration.fov_x_rad),
        fov_uncertainty_deg=calibration.fov_uncertainty_deg,
        confidence=calibration.confidence,
        warnings=calibration.warnings,
        photo_shifts_px={
            name: shift.shift_px for name, shift in zip(dataset.views, calibration.photo_shifts, strict=False) if shift
        },
    )


def load(run: RunRef, dataset: DatasetResult, on_progress: OnProgress = ignore_progress) -> ModelResult:
    """Check that the machine has room for the run, then make the model ready.

    Raises:
        MemoryExhaustedError, DiskFullError: It has not.
        ModelUnavailableError: This version has no such model.
    """
    clock = StageClock("load")
    on_progress(0, 1, f"load: making {run.request.model} ready")
    needs = estimate_needs(dataset.pixels, len(dataset.views), run.request.options().settings())
    available = available_memory_bytes()
    check_memory(needs, available)
    check_disk(needs, workspace_of(run).work)
    model = models.ready_model(run.request.model, "cpu")
    return ModelResult(
        record=clock.record(),
        name=model.name,
        version=model.version,
        device="cpu",
        needed_memory_bytes=needs.memory_bytes,
        available_memory_bytes=available,
    )


def infer(
    run: RunRef,
    dataset: DatasetResult,
    cameras: CamerasResult,
    model: ModelResult,
    on_progress: OnProgress = ignore_progress,
) -> InferResult:
    """Reconstruct the object and write the meshes that users open, in the result's frame."""
    clock = StageClock("infer")
    data, calibration = _dataset(dataset), _calibration(run, cameras)
    progress = named(on_progress, "infer")
    reconstruction = models.ready_model(model.name, model.device).reconstruct(
        data, calibration, run.request.options(), part_of(progress, 0.0, 0.97)
    )
    frame = choose_result_frame(
        reconstruction.textured.mesh,
        cameras_given=dataset.cameras_given,
        world_up=data.world_up,
        object_size_m=run.request.object_size_m,
    )
    reconstruction = move_reconstruction(reconstruction, frame)
    progress(97, 100, "writing the meshes")
    workspace = workspace_of(run)
    outputs = write_meshes(layout_of(run), reconstruction, frame, dataset.digest)
    path = workspace.work / f"{run.request.model}.npz"
    save_reconstruction(path, reconstruction)
    return InferResult(
        record=clock.record(),
        file=file_ref(path, workspace.work),
        outputs=tuple(file_ref(output, workspace.root) for output in outputs),
        vertices=len(reconstruction.textured.mesh.vertices),
        faces=len(reconstruction.textured.mesh.faces),
        frame=frame.to_dict(),
        model_seconds=reconstruction.timings_s,
    )


def quality(
    run: RunRef,
    dataset: DatasetResult,
    cameras: CamerasResult,
    inferred: InferResult,
    on_progress: OnProgress = ignore_progress,
) -> QualityResult:
    """Measure the written GLB, re-loaded, against the input views, and write `quality.json`."""
    clock = StageClock("quality")
    layout = layout_of(run)
    for output in inferred.outputs:
        resolve(output, layout.root)
    calibration, data = _calibration(run, cameras), _dataset(dataset)
    scale = float(inferred.frame["scale"])
    depth_scales = {
        view.name: scale * depth_scale
        for view, depth_scale in zip(data.views, calibration.depth_scales, strict=True)
        if depth_scale is not None
    }
    report = measure_quality(
        layout.glb,
        _reconstruction(run, inferred).cameras,
        data,
        depth_scales,
        thresholds=run.thresholds,
        on_progress=named(on_progress, "quality"),
    )
    write_json(layout.quality, report.model_dump(mode="json"))
    return QualityResult(
        record=clock.record(),
        file=file_ref(layout.quality, layout.root),
        status=report.status.value,
        reasons=report.reasons,
        psnr_db=report.mean.psnr_db,
        ssim=report.mean.ssim,
        mask_iou=report.mean.mask_iou,
        rows=tuple(
            view.model_dump(include={"view", "psnr_db", "ssim", "mask_iou", "depth_mae_levels"})
            for view in report.views
        ),
    )


def preview(run: RunRef, inferred: InferResult, on_progress: OnProgress = ignore_progress) -> PreviewResult:
    """Draw the mesh from every input camera, textured and as wireframe, and turning."""
    clock = StageClock("preview")
    layout, reconstruction = layout_of(run), _reconstruction(run, inferred)
    progress = named(on_progress, "preview")
    write_previews(reconstruction.textured, reconstruction.cameras, layout, on_progress=part_of(progress, 0.0, 0.4))
    write_turntable(reconstruction.textured, layout.turntable, on_progress=part_of(progress, 0.4, 1.0))
    names = [camera.name for camera in reconstruction.cameras]
    files = [layout.textured_preview(name) for name in names] + [layout.wireframe_preview(name) for name in names]
    return PreviewResult(
        record=clock.record(), files=tuple(file_ref(path, layout.root) for path in (*files, layout.turntable))
    )


def package(
    run: RunRef,
    outcomes: StageOutcomes,
    on_progress: OnProgress = ignore_progress,
    orchestration: dict[str, Any] | None = None,
) -> PackageResult:
    """Write the report, the run's facts, the archive and, last, the manifest that makes the run visible.

    A result below the thresholds is stored like any other, with its error beside it; `raise_quality_failure` comes
    after.

    Args:
        run: The run.
        outcomes: The results of all stages before this one.
        on_progress: Told about the parts.
        orchestration: Identifiers of whoever runs this, for `run.json`.
    """
    clock = StageClock("package")
    if outcomes.infer is None or outcomes.quality is None or outcomes.transforms is None or outcomes.validate is None:
        raise IncompleteResultsError("A stage has not run yet.", suggestion="Run the stages in their order.")
    layout, progress = layout_of(run), named(on_progress, "package")
    facts = RunFacts(run.request, outcomes.done(), orchestration or {})
    failure = _quality_failure(layout, outcomes.quality)
    status = RunStatus.FAILED if failure else RunStatus.COMPLETED
    progress(0, 3, "writing the report")
    write_run_report(
        layout,
        facts,
        _dataset(outcomes.validate),
        _calibration(run, outcomes.transforms),
        _reconstruction(run, outcomes.infer),
        QualityReport.model_validate_json(resolve(outcomes.quality.file, layout.root).read_bytes()),
        ScaleSource(outcomes.infer.frame["source"]),
        clock.record,
    )
    progress(1, 3, "writing the package")
    if failure is not None:
        write_json(layout.error, error_facts(layout, facts, failure))
    write_run_facts(layout, facts, status, under_way=clock.record())
    write_package(layout, manifest_facts(facts), status=status, source=run_source(facts))
    progress(3, 3, "done")
    return PackageResult(
        record=clock.record(),
        location=open_store(run.request.out).publish(workspace_of(run)),
        status=status.value,
        manifest=file_ref(layout.manifest, layout.root),
        archive=file_ref(layout.archive, layout.root),
    )


def raise_quality_failure(run: RunRef, outcomes: StageOutcomes) -> None:
    """Raise when the measured quality is below the thresholds; everything has been stored by then.

    Raises:
        QualityThresholdError: It is.
    """
    failure = None if outcomes.quality is None else _quality_failure(layout_of(run), outcomes.quality)
    if failure is not None:
        raise failure


def record_failure(
    run: RunRef, outcomes: StageOutcomes, error: ReconflowError, orchestration: dict[str, Any] | None = None
) -> None:
    """Store why a run failed: `error.json`, `run.json` and a manifest that says so, unless they stand or cannot."""
    if outcomes.package is None and not isinstance(error, StorageUnreachableError):
        write_failure(layout_of(run), RunFacts(run.request, outcomes.done(), orchestration or {}), error)


def interruption() -> Cancelled:
    """Return what is recorded of a run that was stopped from outside, by a signal."""
    return Cancelled("The run was interrupted.", suggestion="Run the same command again to start over.")


def as_known_error(error: Exception) -> ReconflowError:
    """Return the error under a code: itself, or what it means for the user.

    Args:
        error: Anything that a stage raised.
    """
    if isinstance(error, ReconflowError):
        return error
    if isinstance(error, MemoryError):
        known: ReconflowError = ModelOutOfMemoryError(
            "A stage ran out of memory.",
            suggestion="Close other programs, or choose the draft preset, a smaller resolution or texture size.",
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        known = DiskFullError(
            "The disk became full during the run.", suggestion="Free some space, or choose another --out folder."
        )
    else:
        known = ReconflowError(
            f"An unexpected fault ended the run ({type(error).__name__}).",
            suggestion="Run it again with --traceback and report what that shows; another preset or seed may work.",
            kind=type(error).__name__,
        )
    known.__cause__ = error
    return known


def summarise(run: RunRef, outcomes: StageOutcomes) -> RunSummary:
    """Return a finished run in a few facts."""
    assert outcomes.validate is not None
    assert outcomes.transforms is not None
    assert outcomes.infer is not None
    assert outcomes.quality is not None
    assert outcomes.package is not None
    records = [result.record for result in outcomes.done()]
    layout = layout_of(run)
    return RunSummary(
        run_id=run.run_id,
        location=outcomes.package.location,
        mesh=str(layout.glb),
        report=str(layout.report),
        status=outcomes.quality.status,
        psnr_db=outcomes.quality.psnr_db,
        ssim=outcomes.quality.ssim,
        mask_iou=outcomes.quality.mask_iou,
        faces=outcomes.infer.faces,
        vertices=outcomes.infer.vertices,
        fov_x_deg=outcomes.transforms.fov_x_deg,
        cameras=outcomes.transforms.method,
        seconds=round(sum(record.seconds for record in records), 3),
        stage_seconds={record.stage: record.seconds for record in records},
        peak_rss_bytes=max(record.peak_rss_bytes for record in records),
        warnings=(*outcomes.validate.warnings, *outcomes.transforms.warnings, *outcomes.quality.reasons),
    )


def run_pipeline(request: RunRequest, on_progress: OnProgress = ignore_progress) -> RunSummary:
    """Run all stages in this process, without Prefect, and return the run's summary.

    Args:
        request: What to reconstruct, how, and where to put it.
        on_progress: Hears the whole run's progress; may raise `Cancelled`.

    Raises:
        ReconflowError: Why the run failed; `error.json` stands beside what was stored.
    """
    run, outcomes = RunRef(run_id=new_run_id(), request=request), StageOutcomes()

    def heard(stage: str) -> OnProgress:
        return part_of(on_progress, *stage_span(stage, request.preset))

    prepare(run)
    try:
        outcomes.validate = dataset = validate(run, heard("validate"))
        outcomes.transforms = cameras = transforms(run, dataset, heard("transforms"))
        outcomes.load = model = load(run, dataset, heard("load"))
        outcomes.infer = inferred = infer(run, dataset, cameras, model, heard("infer"))
        outcomes.quality = quality(run, dataset, cameras, inferred, heard("quality"))
        outcomes.preview = preview(run, inferred, heard("preview"))
        outcomes.package = package(run, outcomes, heard("package"))
        raise_quality_failure(run, outcomes)
        return summarise(run, outcomes)
    except KeyboardInterrupt:
        record_failure(run, outcomes, interruption())
        raise
    except Exception as error:
        known = as_known_error(error)
        record_failure(run, outcomes, known)
        if known is error:
            raise
        raise known from error
    finally:
        close_run(run)


def named(on_progress: OnProgress, stage: str) -> OnProgress:
    """Put a stage's name before every message."""

    def report(step: int, total: int, message: str) -> None:
        on_progress(step, total, f"{stage}: {message}")

    return report


@lru_cache(maxsize=1)
def _loaded(location: str) -> Dataset:
    return load_dataset(Path(location))


def _dataset(ref: DatasetResult) -> Dataset:
    dataset = _loaded(ref.location)
    if dataset.digest != ref.digest:
        raise IncompleteResultsError(
            "The dataset has changed while the run was under way.", suggestion="Run the same command again."
        )
    return dataset


def _calibration(run: RunRef, ref: CamerasResult) -> Calibration:
    return load_calibration(resolve(ref.file, workspace_of(run).work))


def _reconstruction(run: RunRef, ref: InferResult) -> Reconstruction:
    return load_reconstruction(resolve(ref.file, workspace_of(run).work))


def _quality_failure(layout: RunLayout, measured: QualityResult) -> QualityThresholdError | None:
    if measured.status != "failure":
        return None
    return QualityThresholdError(
        f"The result is stored, but its quality is below the thresholds. {' '.join(measured.reasons)}",
        suggestion="Look at the report; better pictures, a given field of view or a higher preset may help.",
        run_id=layout.run_id,
        report=layout.report.relative_to(layout.root.parents[1]).as_posix(),
        psnr_db=measured.psnr_db,
        ssim=measured.ssim,
    )

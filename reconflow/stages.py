"""The stages of a reconstruction as plain functions over a run's folders on this machine.

Each stage takes references, does one thing, writes files that appear whole or not at all, and returns a small result.
What a stage computes lives in the packages below; in which order stages run, where, and whether at all when an earlier
attempt has kept its result, is decided above.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from reconflow import models
from reconflow.cameras.calibration import Calibration, calibrate
from reconflow.checkpoints import FileCheckpoint
from reconflow.datasets.dataset import Dataset
from reconflow.datasets.loading import load_dataset
from reconflow.datasets.sources import describe_source
from reconflow.errors import IncompleteResultsError, QualityThresholdError, ReconflowError
from reconflow.execution import check_device, choose_device, choose_gpu, choose_isolation
from reconflow.outputs.files import write_json
from reconflow.outputs.package import RunStatus, ScaleSource, write_package
from reconflow.outputs.previews import write_previews, write_turntable
from reconflow.packaging import (
    RunFacts,
    error_facts,
    manifest_facts,
    run_source,
    write_meshes,
    write_run_facts,
    write_run_report,
)
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.quality.measure import measure_quality
from reconflow.quality.report import QualityReport
from reconflow.reconstruction import Reconstruction
from reconflow.request import RunRequest
from reconflow.resources import (
    Needs,
    available_memory_bytes,
    check_disk,
    check_gpu_memory,
    check_memory,
    estimate_needs,
)
from reconflow.result_frame import choose_result_frame, move_reconstruction
from reconflow.run_context import RunSite, StageOutcomes
from reconflow.stage_child import Channel
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
    StageClock,
)
from reconflow.storage import open_store


def validate(site: RunSite, on_progress: OnProgress = ignore_progress) -> DatasetResult:
    """Read the dataset and check it completely.

    Raises:
        InputError: `details["faults"]` lists every fault.
    """
    clock = StageClock("validate")
    on_progress(0, 1, "validate: reading the dataset")
    listing = describe_source(site.run.request.dataset).listing
    dataset = _loaded(site.dataset_folder)
    return DatasetResult(
        record=clock.record(),
        location=site.run.request.dataset,
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


def transforms(site: RunSite, dataset: DatasetResult, on_progress: OnProgress = ignore_progress) -> CamerasResult:
    """Find the cameras, or check those that came with the dataset.

    Raises:
        CalibrationAmbiguousError: The data does not decide them.
        CalibrationContradictedError: The data contradicts the supplied ones.
    """
    clock = StageClock("transforms")
    fov = site.run.request.fov_deg
    calibration = calibrate(
        _dataset(site, dataset),
        named(on_progress, "transforms"),
        fov_x_rad=None if fov is None else math.radians(fov),
    )
    workspace = site.workspace
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


def load(site: RunSite, name: str, dataset: DatasetResult, on_progress: OnProgress = ignore_progress) -> ModelResult:
    """Check that the machine has what a model needs, then make the model ready.

    A model that gets a process of its own is made ready there.

    Raises:
        GpuUnavailableError: A GPU was asked for and there is none.
        MemoryExhaustedError, DiskFullError: There is not enough room.
        ModelUnavailableError: This version has no such model, or not on that device.
        WeightsMissingError, WeightsInvalidError: Its weights cannot be used.
    """
    clock = StageClock("load", name)
    on_progress(0, 1, f"load: making {name} ready")
    request = site.run.request
    device = choose_device(models.make_model(name), request.device)
    isolation = choose_isolation(device, site.run.isolation)
    isolated = isolation == "process"
    model = models.make_model(name) if isolated else models.known_model(name, device)
    gpu = choose_gpu(check_device(model, device), isolation, site.run.gpus.get(name))
    options = request.options(name)
    needs = needs_of(request, dataset, name, device)
    available = available_memory_bytes()
    check_memory(needs, available)
    check_gpu_memory(needs, gpu)
    check_disk(needs, site.workspace.work)
    weights = models.identify_weights(name, options, named(on_progress, "load"))
    if not isolated:
        models.ready_model(name, device)
    return ModelResult(
        record=clock.record(),
        name=model.name,
        version=model.version,
        device=device,
        needed_memory_bytes=needs.memory_bytes,
        available_memory_bytes=available,
        needed_gpu_bytes=needs.gpu_bytes,
        available_gpu_bytes=None if gpu is None else gpu.memory_free_bytes,
        gpu=None if gpu is None else gpu.uuid,
        weights=weights,
    )


def needs_of(request: RunRequest, dataset: DatasetResult, name: str, device: str) -> Needs:
    """Return what a model of a run needs of the machine, estimated.

    Args:
        request: What was asked for.
        dataset: Of the run.
        name: The model.
        device: What it computes on.
    """
    return estimate_needs(dataset.pixels, len(dataset.views), request.options(name).settings(), device)


def infer(
    site: RunSite,
    dataset: DatasetResult,
    cameras: CamerasResult,
    model: ModelResult,
    on_progress: OnProgress = ignore_progress,
    checkpoint: FileCheckpoint | None = None,
) -> InferResult:
    """Reconstruct the object and write the meshes that users open, in the result's frame."""
    clock = StageClock("infer", model.name)
    data, calibration = _dataset(site, dataset), _calibration(site, cameras)
    progress = named(on_progress, "infer")
    reconstruction = models.ready_model(model.name, model.device).reconstruct(
        data, calibration, site.run.request.options(model.name), part_of(progress, 0.0, 0.97), checkpoint
    )
    frame = choose_result_frame(
        reconstruction.textured.mesh,
        cameras_given=dataset.cameras_given,
        world_up=data.world_up,
        object_size_m=site.run.request.object_size_m,
    )
    reconstruction = move_reconstruction(reconstruction, frame)
    progress(97, 100, "writing the meshes")
    workspace = site.workspace
    outputs = write_meshes(site.layout(model.name), reconstruction, frame, dataset.digest)
    path = workspace.work / f"{model.name}.npz"
    save_reconstruction(path, reconstruction)
    record = clock.record()
    if checkpoint is not None and checkpoint.resumed:
        record = record.model_copy(update={"notes": ("Continued from a checkpoint of an earlier attempt.",)})
    return InferResult(
        record=record,
        file=file_ref(path, workspace.work),
        outputs=tuple(file_ref(output, workspace.root) for output in outputs),
        vertices=len(reconstruction.textured.mesh.vertices),
        faces=len(reconstruction.textured.mesh.faces),
        frame=frame.to_dict(),
        model_seconds=reconstruction.timings_s,
        licences=reconstruction.statistics.get("weights", {}).get("licences", {}),
        model_notes=tuple(reconstruction.statistics.get("notes", ())),
        engines=reconstruction.statistics.get("engines", {}),
    )


def infer_apart(arguments: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Run `infer` in a process of its own; see `reconflow.child_process`.

    Args:
        arguments: `site`, `dataset`, `cameras`, `model` as JSON-able objects, and the `checkpoint`'s path.
        channel: Told of progress and of every checkpoint that was written.

    Returns:
        The `InferResult`, JSON-able.
    """
    checkpoint = FileCheckpoint(Path(arguments["checkpoint"]), lambda path: channel.tell(checkpoint=str(path)))
    result = infer(
        RunSite.model_validate(arguments["site"]),
        DatasetResult.model_validate(arguments["dataset"]),
        CamerasResult.model_validate(arguments["cameras"]),
        ModelResult.model_validate(arguments["model"]),
        channel.progress,
        checkpoint,
    )
    return result.model_dump(mode="json")


def quality(
    site: RunSite,
    dataset: DatasetResult,
    cameras: CamerasResult,
    inferred: InferResult,
    on_progress: OnProgress = ignore_progress,
) -> QualityResult:
    """Measure the written GLB, re-loaded, against the input views, and write `quality.json`."""
    clock = StageClock("quality", inferred.record.model)
    layout = site.layout(inferred.record.model)
    for output in inferred.outputs:
        resolve(output, layout.root)
    calibration, data = _calibration(site, cameras), _dataset(site, dataset)
    scale = float(inferred.frame["scale"])
    depth_scales = {
        view.name: scale * depth_scale
        for view, depth_scale in zip(data.views, calibration.depth_scales, strict=True)
        if depth_scale is not None
    }
    report = measure_quality(
        layout.glb,
        _reconstruction(site, inferred).cameras,
        data,
        depth_scales,
        thresholds=site.run.thresholds,
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


def preview(site: RunSite, inferred: InferResult, on_progress: OnProgress = ignore_progress) -> PreviewResult:
    """Draw the mesh from every input camera, textured and as wireframe, and turning."""
    clock = StageClock("preview", inferred.record.model)
    layout, reconstruction = site.layout(inferred.record.model), _reconstruction(site, inferred)
    progress = named(on_progress, "preview")
    write_previews(reconstruction.textured, reconstruction.cameras, layout, on_progress=part_of(progress, 0.0, 0.4))
    write_turntable(reconstruction.textured, layout.turntable, on_progress=part_of(progress, 0.4, 1.0))
    names = [camera.name for camera in reconstruction.cameras]
    files = [layout.textured_preview(name) for name in names] + [layout.wireframe_preview(name) for name in names]
    return PreviewResult(
        record=clock.record(), files=tuple(file_ref(path, layout.root) for path in (*files, layout.turntable))
    )


def package(
    site: RunSite,
    outcomes: StageOutcomes,
    on_progress: OnProgress = ignore_progress,
    orchestration: dict[str, Any] | None = None,
) -> PackageResult:
    """Write the reports, the run's facts, the archive and, last, the manifest that makes the run visible.

    A result below the thresholds, or beside that of a model that failed, is stored like any other, with the error
    beside it; `first_failure` tells of it.

    Args:
        site: The run.
        outcomes: The results of all stages before this one.
        on_progress: Told about the parts.
        orchestration: Identifiers of whoever runs this, for `run.json`.
    """
    clock = StageClock("package")
    if outcomes.transforms is None or outcomes.validate is None or not outcomes.complete_models():
        raise IncompleteResultsError("A stage has not run yet.", suggestion="Run the stages in their order.")
    progress = named(on_progress, "package")
    layout, facts = site.layout(), RunFacts(site.run.request, outcomes.done(), orchestration or {})
    failure = first_failure(site, outcomes)
    status = RunStatus.FAILED if failure else RunStatus.COMPLETED
    progress(0, 3, "writing the report")
    write_reports(site, outcomes, clock)
    progress(1, 3, "writing the package")
    layout.error.unlink(missing_ok=True)
    if failure is not None:
        write_json(layout.error, error_facts(layout, facts, failure))
    write_run_facts(layout, facts, status, under_way=clock.record())
    others = [site.layout(model) for model in outcomes.complete_models()]
    write_package(layout, manifest_facts(facts), status=status, source=run_source(facts), others=others)
    progress(3, 3, "done")
    return PackageResult(
        record=clock.record(),
        location=open_store(site.run.request.out).publish(site.workspace),
        status=status.value,
        manifest=file_ref(layout.manifest, layout.root),
        archive=file_ref(layout.archive, layout.root),
    )


def write_reports(site: RunSite, outcomes: StageOutcomes, clock: StageClock) -> None:
    """Write the page about the result of every model all of whose stages have run.

    Args:
        site: The run.
        outcomes: The results so far.
        clock: Of the stage that does this.
    """
    assert outcomes.validate is not None
    assert outcomes.transforms is not None
    for model in outcomes.complete_models():
        found, layout = outcomes.of(model), site.layout(model)
        assert found.infer is not None
        assert found.quality is not None
        write_run_report(
            layout,
            RunFacts(site.run.request, outcomes.done(model), {}),
            _dataset(site, outcomes.validate),
            _calibration(site, outcomes.transforms),
            _reconstruction(site, found.infer),
            QualityReport.model_validate_json(resolve(found.quality.file, layout.root).read_bytes()),
            ScaleSource(found.infer.frame["source"]),
            clock.record,
        )


def first_failure(site: RunSite, outcomes: StageOutcomes) -> ReconflowError | None:
    """Return why a run has failed whose results are stored all the same; None when it has not.

    The error of a model that did not get to its end comes before a quality below the thresholds.
    """
    broken = [found.failure for found in outcomes.models.values() if found.failure is not None]
    poor = [_quality_failure(site, model, found.quality) for model, found in outcomes.models.items()]
    return next((error for error in (*broken, *poor) if error is not None), None)


def named(on_progress: OnProgress, stage: str) -> OnProgress:
    """Put a stage's name before every message."""

    def report(step: int, total: int, message: str) -> None:
        on_progress(step, total, f"{stage}: {message}")

    return report


def forget_dataset() -> None:
    """Drop the dataset that the stages of this process share."""
    _loaded.cache_clear()


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> Dataset:
    return load_dataset(folder)


def _dataset(site: RunSite, ref: DatasetResult) -> Dataset:
    dataset = _loaded(site.dataset_folder)
    if dataset.digest != ref.digest:
        raise IncompleteResultsError(
            "The dataset has changed while the run was under way.", suggestion="Run the same command again."
        )
    return dataset


def _calibration(site: RunSite, ref: CamerasResult) -> Calibration:
    return load_calibration(resolve(ref.file, site.workspace.work))


def _reconstruction(site: RunSite, ref: InferResult) -> Reconstruction:
    return load_reconstruction(resolve(ref.file, site.workspace.work))


def _quality_failure(site: RunSite, model: str, measured: QualityResult | None) -> QualityThresholdError | None:
    if measured is None or measured.status != "failure":
        return None
    layout, advice = site.layout(model), "better pictures, a given field of view or a higher preset may help."
    if model in models.WEIGHTS and site.run.request.random_weights is not None:
        advice = (
            f"the weights of {model} were random and can give no likeness. `reconflow weights fetch` gets real ones."
        )
    return QualityThresholdError(
        f"The result is stored, but its quality is below the thresholds. {' '.join(measured.reasons)}",
        suggestion=f"Look at the report; {advice}",
        run_id=layout.run_id,
        report=layout.report.relative_to(layout.root.parents[1]).as_posix(),
        psnr_db=measured.psnr_db,
        ssim=measured.ssim,
    )

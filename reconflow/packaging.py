"""Which facts of a run go into which of its files, put together from the writers in `reconflow.outputs`.

No formats here, and no decisions about the order of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import reconflow
from reconflow.cameras.calibration import Calibration
from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.formats import format_nerf, format_nerfstudio
from reconflow.datasets.dataset import Dataset
from reconflow.datasets.sources import canonical_location, describe_source, location_mark
from reconflow.errors import ReconflowError
from reconflow.outputs.files import write_json
from reconflow.outputs.gaussian_ply import write_gaussian_ply
from reconflow.outputs.glb import write_glb
from reconflow.outputs.obj import write_obj, write_texture
from reconflow.outputs.package import UNIT_TEXT, ManifestFacts, RunSource, RunStatus, ScaleSource, write_package
from reconflow.outputs.ply import write_ply
from reconflow.outputs.report import CalibrationSummary, ReportData, write_report
from reconflow.outputs.runs import RunLayout
from reconflow.quality.report import QualityReport
from reconflow.reconstruction import Reconstruction
from reconflow.request import RunRequest
from reconflow.resources import describe_machine
from reconflow.result_frame import ResultFrame
from reconflow.stage_results import CamerasResult, DatasetResult, InferResult, ModelResult, StageRecord, StageResult

LICENCES: Final = {"reconflow": "Apache-2.0"}
_PLACES: Final = {"dataset", "out", "weights"}
"""Fields of a request that say where something is; a package travels without them."""
AnyResult = TypeVar("AnyResult", bound=StageResult)
_METHOD_TEXTS: Final = {
    "depth": "The field of view was found from the depth renders and silhouettes.",
    "silhouettes": "The field of view was found from the silhouettes.",
}
_SURFACE_LOSSES: Final = ("rgb", "silhouette", "depth")
_GIVEN_BY_DATASET: Final = "The cameras came with the dataset and were checked against its pictures."
_GIVEN_BY_USER: Final = "The field of view was given by the user and checked against the pictures."
_ENGINES: Final = {"rendering": "numba", "atlas": "projective charts"}
_PHOTOS_OFF_DEPTH: Final = (
    "The photos are shifted against their depth renders (see Cameras); the surface was fitted to where the photos "
    "agree, near the depth."
)


@dataclass(frozen=True, eq=False)
class RunFacts:
    """Everything that the last files of a run are made of.

    Attributes:
        request: What was asked for.
        results: The stages' results, in order.
        orchestration: Identifiers of whoever ran the stages.
    """

    request: RunRequest
    results: Sequence[StageResult]
    orchestration: dict[str, Any]

    def result(self, kind: type[AnyResult]) -> AnyResult | None:
        """Return the first result of one kind, if that stage has run."""
        return next((result for result in self.results if isinstance(result, kind)), None)

    def label(self, record: StageRecord) -> str:
        """Return a stage's name, with its model's where the run has several."""
        several = len(self.request.models()) > 1 and record.model
        return f"{record.model} {record.stage}" if several else record.stage

    @property
    def records(self) -> list[StageRecord]:
        """What each stage took."""
        return [result.record for result in self.results]


def write_meshes(
    layout: RunLayout, reconstruction: Reconstruction, frame: ResultFrame, dataset_digest: str
) -> tuple[Path, ...]:
    """Write GLB, OBJ with material and texture, PLY, Gaussians if there are any, and the cameras in the mesh's frame.

    Args:
        layout: Where they go.
        reconstruction: Mesh and cameras in the result's frame.
        frame: What that frame is.
        dataset_digest: SHA-256 of the input, for the GLB's provenance.

    Returns:
        The files.
    """
    textured, unit = reconstruction.textured, UNIT_TEXT[frame.source]
    extras = {
        "generator": f"reconflow {reconflow.__version__}",
        "model": layout.model,
        "unit": unit,
        "dataset_sha256": dataset_digest,
    }
    write_texture(textured, layout.texture_kd)
    write_obj(textured, layout.obj, layout.mtl, layout.texture_kd, unit=unit)
    write_ply(textured, layout.ply, unit=unit)
    write_glb(textured, layout.glb, extras=extras)
    write_json(layout.transforms, cameras_file(reconstruction.cameras, unit))
    files = (layout.glb, layout.obj, layout.mtl, layout.texture_kd, layout.ply, layout.transforms)
    if reconstruction.gaussians is None:
        return files
    write_gaussian_ply(reconstruction.gaussians, layout.gaussians, unit=unit)
    return *files, layout.gaussians


def cameras_file(cameras: Sequence[PinholeCamera], unit: str) -> dict[str, Any]:
    """Return the run's `transforms.json`: NeRF's convention where it can say the cameras, else nerfstudio's.

    Args:
        cameras: In the mesh's frame.
        unit: What one unit is, for people.
    """
    extras = {"world_up": "+y", "unit": unit}
    if all(_is_plain(camera, cameras[0]) for camera in cameras):
        return format_nerf(cameras, extras=extras)
    return format_nerfstudio(cameras, folder="multi_views", **extras)


def write_run_facts(
    layout: RunLayout, facts: RunFacts, status: RunStatus, under_way: StageRecord | None = None
) -> None:
    """Write `run.json`: what differs between two equal runs.

    Args:
        layout: Where it goes.
        facts: Of the run.
        status: Of the run.
        under_way: What the stage that writes this has taken so far.
    """
    records = facts.records if under_way is None else [*facts.records, under_way]
    write_json(
        layout.run,
        {
            "run_id": layout.run_id,
            "model": layout.model,
            "status": status.value,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(sum(record.seconds for record in records), 3),
            "peak_rss_bytes": max((record.peak_rss_bytes for record in records), default=0),
            "peak_gpu_bytes": max((record.peak_gpu_bytes for record in records), default=0),
            "stages": [record.model_dump() for record in records],
            "isolation": max((record.isolation for record in records), default="none"),
            "results": {facts.label(result.record): result.model_dump(mode="json") for result in facts.results},
            "machine": describe_machine(),
            "orchestration": facts.orchestration,
        },
    )


def manifest_facts(facts: RunFacts) -> ManifestFacts | None:
    """Return what the manifest says of a run beside its files; None when the dataset was not read.

    Nothing in it differs between two equal runs.
    """
    dataset = facts.result(DatasetResult)
    if dataset is None:
        return None
    inferred, cameras = facts.result(InferResult), facts.result(CamerasResult)
    known = {"field_of_view_deg": cameras.fov_x_deg, "calibration": cameras.method} if cameras is not None else {}
    return ManifestFacts(
        model=facts.request.model,
        scale=ScaleSource(inferred.frame["source"]) if inferred is not None else ScaleSource.UNIT_RADIUS,
        world_up=dataset.world_up,
        options={
            **facts.request.model_dump(mode="json", exclude=_PLACES),
            "settings": _settings(facts.request),
            **known,
        },
        seed=facts.request.seed,
        engines=_ENGINES | {"device": _devices(facts)} | _chosen_engines(facts),
        photo_shifts=cameras.photo_shifts_px if cameras is not None else {},
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
        input_hashes=dataset.file_hashes,
        licences=LICENCES | {name: text for found in _inferred(facts) for name, text in found.licences.items()},
        weights={
            found.name: found.weights for found in facts.results if isinstance(found, ModelResult) and found.weights
        },
        notes=tuple(note for found in _inferred(facts) for note in found.model_notes),
    )


def _devices(facts: RunFacts) -> str:
    """Return what the models computed on; by model where they differ."""
    found = {result.name: result.device for result in facts.results if isinstance(result, ModelResult)}
    if len(set(found.values())) > 1:
        return ", ".join(f"{name}: {device}" for name, device in found.items())
    return next(iter(found.values()), facts.request.device.value)


def _chosen_engines(facts: RunFacts) -> dict[str, str]:
    return {task: engine for found in _inferred(facts) for task, engine in found.engines.items()}


def _inferred(facts: RunFacts) -> list[InferResult]:
    return [result for result in facts.results if isinstance(result, InferResult)]


def _settings(request: RunRequest) -> dict[str, Any]:
    """Return the numbers that the model ran with; by model where there are several."""
    names = request.models()
    settings = {name: request.options(name).settings().model_dump(mode="json") for name in names}
    return settings if len(names) > 1 else settings[names[0]]


def run_source(facts: RunFacts) -> RunSource:
    """Return what the manifest says of the run's origin, also when the dataset was refused."""
    dataset = facts.result(DatasetResult)
    models = [result for result in facts.results if isinstance(result, ModelResult)]
    return RunSource(
        location=location_mark(canonical_location(facts.request.dataset)),
        listing=dataset.listing if dataset is not None else _listing_now(facts.request.dataset),
        options=facts.request.model_dump(mode="json", exclude=_PLACES),
        model_versions={model.name: model.version for model in models},
    )


def _listing_now(location: str) -> str:
    try:
        return describe_source(location).listing
    except ReconflowError:
        return ""


def write_run_report(
    layout: RunLayout,
    facts: RunFacts,
    dataset: Dataset,
    calibration: Calibration,
    reconstruction: Reconstruction,
    measured: QualityReport,
    frame_source: ScaleSource,
    under_way: Callable[[], StageRecord] | None = None,
) -> None:
    """Write `report.html`.

    Args:
        layout: Where it goes.
        facts: Of the run.
        dataset: The input.
        calibration: Where the cameras came from.
        reconstruction: Mesh and cameras in the result's frame.
        measured: The quality.
        frame_source: What one unit is.
        under_way: Tells what the stage that writes this has taken so far.
    """
    request = facts.request
    seconds = {facts.label(record): record.seconds for record in facts.records}
    peak = max(record.peak_rss_bytes for record in facts.records)
    statistics = reconstruction.statistics
    unlike = () if statistics.get("photos_match_depth", True) else (_PHOTOS_OFF_DEPTH,)
    write_report(
        layout.report,
        ReportData(
            title=dataset.name,
            subtitle=f"{layout.model}, {request.preset}, run {layout.run_id}, reconflow {reconflow.__version__}",
            textured=reconstruction.textured,
            cameras=reconstruction.cameras,
            dataset=dataset,
            quality=measured,
            calibration=calibration_summary(calibration, dataset),
            unit=UNIT_TEXT[frame_source],
            turntable=layout.turntable.read_bytes(),
            losses=statistics.get("losses", {}),
            loss_levels=dict.fromkeys(_SURFACE_LOSSES, statistics.get("surface_levels", ())),
            timings_s=seconds,
            under_way_s=None if under_way is None else lambda: under_way().seconds,
            machine={"peak memory": f"{peak / 1e9:.2f} GB", **_machine_texts()},
            options=request.options(layout.model).settings().model_dump(mode="json"),
            warnings=(
                *dataset.warnings,
                *calibration.warnings,
                *unlike,
                *statistics.get("notes", ()),
                *measured.reasons,
            ),
            alignment=alignment_texts(statistics.get("registration")),
            licences=LICENCES | statistics.get("weights", {}).get("licences", {}),
        ),
    )


def calibration_summary(calibration: Calibration, dataset: Dataset) -> CalibrationSummary:
    """Return where the cameras came from, in words.

    Args:
        calibration: The run's.
        dataset: The input, whose views are in the order of the calibration's cameras.
    """
    given = calibration.method == "given"
    if given:
        source = _GIVEN_BY_DATASET if dataset.cameras is not None else _GIVEN_BY_USER
    else:
        source = _METHOD_TEXTS[calibration.method]
    sure = f"known to ±{calibration.fov_uncertainty_deg:.2f}°, confidence {calibration.confidence:.2f}"
    return CalibrationSummary(
        source=source,
        confidence="" if given else sure,
        residuals=calibration.residuals,
        photo_shifts_px={
            view.name: shift.shift_px
            for view, shift in zip(dataset.views, calibration.photo_shifts, strict=False)
            if shift
        },
        notes=calibration.warnings,
    )


def alignment_texts(registration: Mapping[str, Any] | None) -> dict[str, str]:
    """Return how well a generated mesh was aligned with the views, in words; nothing of a mesh that was not.

    Args:
        registration: As in the statistics of `reconviagen.export.finish`.
    """
    if registration is None:
        return {}
    found = registration["residuals"]
    orientation = "open: others fit about as well" if registration["ambiguous"] else "decided by the views"
    texts = {
        "orientation": f"{orientation} (confidence {registration['confidence']:.2f})",
        "overlap with the masks (IoU)": f"{found['mask_iou']:.3f}",
    }
    for kind in ("silhouette", "depth", "colour"):
        if f"{kind}_rms_px" in found:
            size = f"{found['picture_px']:.0f} px"
            texts[f"{kind}, root mean square"] = f"{found[f'{kind}_rms_px']:.2f} px of pictures of {size}"
    if "rotation_sigma_deg" in found:
        texts["rotation known to"] = f"±{found['rotation_sigma_deg']:.2g}°"
        texts["scale known to"] = f"±{100 * found['scale_sigma']:.2g} %"
        texts["place known to"] = f"±{100 * found['translation_sigma']:.2g} % of the object's radius"
    return texts


def _machine_texts() -> dict[str, str]:
    """Return the machine's facts for people; amounts of memory in GB."""
    texts = {}
    for name, value in describe_machine().items():
        if name.endswith("_bytes"):
            shown = f"{value / 1e9:.1f} GB" if isinstance(value, int) else "unknown"
            texts[name.removesuffix("_bytes").replace("_", " ")] = shown
        else:
            texts[name.replace("_", " ")] = str(value)
    return texts


def _is_plain(camera: PinholeCamera, first: PinholeCamera) -> bool:
    (fx, fy), (cx, cy), (height, width) = camera.focal_px, camera.centre_px, camera.image_hw
    square = abs(fx / fy - 1) <= 1e-9
    centred = abs(cx - width / 2) <= 1e-6 * width and abs(cy - height / 2) <= 1e-6 * height
    return square and centred and abs(camera.fov_x_rad - first.fov_x_rad) <= 1e-9


def write_failure(layout: RunLayout, facts: RunFacts, error: ReconflowError) -> None:
    """Write `error.json`, `run.json`, and the manifest of a run that failed before its end.

    Args:
        layout: The run.
        facts: Of the stages that finished.
        error: Why it failed.
    """
    write_json(layout.error, error_facts(layout, facts, error))
    write_run_facts(layout, facts, RunStatus.FAILED)
    write_package(layout, manifest_facts(facts), status=RunStatus.FAILED, source=run_source(facts))


def error_facts(layout: RunLayout, facts: RunFacts, error: ReconflowError) -> dict[str, Any]:
    """Return the content of `error.json`."""
    done = [facts.label(record) for record in facts.records]
    model = str(error.details.get("model", layout.model))
    return {**error.to_dict(), "run_id": layout.run_id, "model": model, "finished_stages": done}

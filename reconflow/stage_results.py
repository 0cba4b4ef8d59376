"""What each stage says when it is done: small, JSON-able, and referring to files by name and checksum. No behaviour.

Imports nothing heavy, so that a command line can read a summary.
"""

from __future__ import annotations

import time
from typing import Any, Final, Literal, Self

from pydantic import BaseModel

from reconflow.resources import MIB, peak_gpu_bytes, peak_rss_bytes


class FileRef(BaseModel, frozen=True, extra="forbid"):
    """A file of a run by name and content, cheap to pass between stages."""

    path: str
    """Relative to the folder that the stage works in, with forward slashes."""
    sha256: str
    bytes: int


GPU_FLUCTUATION_BYTES: Final = 64 * MIB


class MemoryRecord(BaseModel, frozen=True, extra="forbid"):
    """What memory was in use before a stage that ran in a process of its own, and is when that process is gone."""

    rss_before_bytes: int
    """Of the process that waited for the stage."""
    rss_after_bytes: int
    gpu_free_before_bytes: tuple[int, ...] = ()
    """Per GPU that the stage could see."""
    gpu_free_after_bytes: tuple[int, ...] = ()

    @property
    def gpu_missing_bytes(self) -> int:
        """How much less is free on all GPUs together than before; 0 where that is no more than others' fluctuation."""
        pairs = zip(self.gpu_free_before_bytes, self.gpu_free_after_bytes, strict=True)
        missing = (max(before - after, 0) for before, after in pairs)
        return sum(lost for lost in missing if lost > GPU_FLUCTUATION_BYTES)


class StageRecord(BaseModel, frozen=True, extra="forbid"):
    """How a stage went, and what it took of the machine."""

    stage: str
    model: str = ""
    """The model that the stage was about; empty for what all models share."""
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    """Of the process that computed, up to the stage's end."""
    peak_gpu_bytes: int = 0
    """The most GPU memory that this process had taken for arrays up to the stage's end."""
    key: str = ""
    """Under which the result is kept for a later attempt; empty for what is always done anew."""
    cached: bool = False
    """Whether the result was kept by an earlier attempt; then times and memory are that attempt's."""
    isolation: Literal["none", "process"] = "none"
    """Whether the stage ran in a process of its own."""
    beside: tuple[str, ...] = ()
    """The models that computed at the same time."""
    memory: MemoryRecord | None = None
    notes: tuple[str, ...] = ()
    """What was unusual about the way to the result."""


class StageClock:
    """Measures one stage from its construction to `record`.

    Args:
        stage: The stage's name.
        model: The model that it is about, if any.
    """

    def __init__(self, stage: str, model: str = "") -> None:
        self._stage = stage
        self._model = model
        self._started_s = time.perf_counter()
        self._started_cpu_s = time.process_time()

    def record(self) -> StageRecord:
        """Return what the stage has taken so far."""
        return StageRecord(
            stage=self._stage,
            model=self._model,
            seconds=round(time.perf_counter() - self._started_s, 3),
            cpu_seconds=round(time.process_time() - self._started_cpu_s, 3),
            peak_rss_bytes=peak_rss_bytes(),
            peak_gpu_bytes=peak_gpu_bytes(),
        )


class StageResult(BaseModel, frozen=True, extra="forbid"):
    """Base of every stage's result."""

    record: StageRecord

    @property
    def work_files(self) -> tuple[FileRef, ...]:
        """The files that later stages need, in the run's folder for intermediate files."""
        return ()

    @property
    def run_files(self) -> tuple[FileRef, ...]:
        """The files that belong to the result, in the run's folder."""
        return ()

    def noting(self, *notes: str, **changes: Any) -> Self:
        """Return the same result with further notes and other changes to its record."""
        record = self.record.model_copy(update={"notes": (*self.record.notes, *notes), **changes})
        return self.model_copy(update={"record": record})


class DatasetResult(StageResult, frozen=True, extra="forbid"):
    """A dataset that passed validation."""

    location: str
    listing: str = ""
    """Digest of the dataset's listing, taken before it was read."""
    name: str
    layout: str
    digest: str
    views: tuple[str, ...]
    image_hw: tuple[int, int]
    """Height and width of the largest photo, pixels."""
    pixels: int
    """Of all photos together."""
    cameras_given: bool
    mask_sources: dict[str, str]
    world_up: str
    file_hashes: dict[str, str]
    warnings: tuple[str, ...]


class CamerasResult(StageResult, frozen=True, extra="forbid"):
    """The cameras that the run uses."""

    file: FileRef
    method: str
    """`given`, `depth` or `silhouettes`."""
    fov_x_deg: float
    """Of the first view."""
    fov_uncertainty_deg: float
    confidence: float
    warnings: tuple[str, ...]
    photo_shifts_px: dict[str, tuple[float, float]] = {}
    """By view, how far the photo lies off its depth render: right, down; views where that was measured."""

    @property
    def work_files(self) -> tuple[FileRef, ...]:
        """The cameras."""
        return (self.file,)


class ModelResult(StageResult, frozen=True, extra="forbid"):
    """A model that is ready, on a machine that has room for it."""

    name: str
    version: str
    device: str
    needed_memory_bytes: int
    available_memory_bytes: int | None
    needed_gpu_bytes: int = 0
    available_gpu_bytes: int | None = None
    """Of the GPU that it computes on; None without one."""
    gpu: str | None = None
    """That GPU's lasting identifier."""
    weights: str = ""
    """A name for the content of its weights; empty for a model without."""


class InferResult(StageResult, frozen=True, extra="forbid"):
    """A reconstruction in the result's frame, and the files that users open."""

    file: FileRef
    outputs: tuple[FileRef, ...]
    vertices: int
    faces: int
    frame: dict[str, Any]
    model_seconds: dict[str, float]
    licences: dict[str, str] = {}
    """Of the weights that made it, by where they are from."""
    model_notes: tuple[str, ...] = ()
    """What the model says of its result."""
    engines: dict[str, str] = {}
    """Which engines the model chose, by what they did."""

    @property
    def work_files(self) -> tuple[FileRef, ...]:
        """The reconstruction as arrays."""
        return (self.file,)

    @property
    def run_files(self) -> tuple[FileRef, ...]:
        """The meshes, and their cameras."""
        return self.outputs


class QualityResult(StageResult, frozen=True, extra="forbid"):
    """How good the packaged mesh is."""

    file: FileRef
    status: str
    reasons: tuple[str, ...]
    psnr_db: float
    ssim: float
    mask_iou: float
    rows: tuple[dict[str, Any], ...]
    """Per view: `view`, `psnr_db`, `ssim`, `mask_iou`, `depth_mae_levels`."""

    @property
    def run_files(self) -> tuple[FileRef, ...]:
        """The measures."""
        return (self.file,)


class PreviewResult(StageResult, frozen=True, extra="forbid"):
    """Pictures of the result."""

    files: tuple[FileRef, ...]

    @property
    def run_files(self) -> tuple[FileRef, ...]:
        """The pictures."""
        return self.files


class PackageResult(StageResult, frozen=True, extra="forbid"):
    """The finished run."""

    location: str
    status: str
    manifest: FileRef
    archive: FileRef


class ModelSummary(BaseModel, frozen=True, extra="forbid"):
    """What one model of a finished run came to."""

    model: str
    mesh: str
    """The textured mesh, binary glTF."""
    report: str
    """The page about the result."""
    status: str
    """`normal`, `warning` or `failure`: the class of the quality."""
    psnr_db: float
    ssim: float
    mask_iou: float
    faces: int
    vertices: int


class RunSummary(BaseModel, frozen=True, extra="forbid"):
    """A finished run in a few facts; of several models, those of the first one, and of all under `models`."""

    run_id: str
    location: str
    """The run's folder."""
    mesh: str
    """The textured mesh, binary glTF."""
    report: str
    """The page about the result."""
    status: str
    """`normal`, `warning` or `failure`: the class of the quality."""
    psnr_db: float
    ssim: float
    mask_iou: float
    faces: int
    vertices: int
    fov_x_deg: float
    cameras: str
    """How they were found: `given`, `depth` or `silhouettes`."""
    seconds: float
    """Of all stages together."""
    stage_seconds: dict[str, float]
    peak_rss_bytes: int
    peak_gpu_bytes: int = 0
    """The most GPU memory that a stage had taken; 0 when none was used."""
    cached_stages: tuple[str, ...] = ()
    """Whose results an earlier attempt had kept."""
    models: tuple[ModelSummary, ...] = ()
    warnings: tuple[str, ...]

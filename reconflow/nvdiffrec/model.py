"""The nvdiffrec model: carve, fit the surface, unwrap, fit the texture. The order of these steps and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from reconflow.cameras.calibration import Calibration
from reconflow.checkpoints import Checkpoint
from reconflow.datasets.dataset import Dataset
from reconflow.errors import GpuUnavailableError
from reconflow.geometry.atlas import unwrap
from reconflow.geometry.depth import SurfaceObservation, observe
from reconflow.geometry.facts import mesh_facts
from reconflow.nvdiffrec.geometry_fit import AGREEING, RECONCILING
from reconflow.nvdiffrec.initial import initial_surface
from reconflow.nvdiffrec.options import NvdiffrecOptions
from reconflow.nvdiffrec.photos import Photo, prepare_photo
from reconflow.nvdiffrec.surface_fit import FitState, SurfaceSchedule, fit_surface
from reconflow.nvdiffrec.texture import Corrections, fit_texture
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.reconstruction import Reconstruction

_MISMATCH_SHARE = 0.002
"""Photos shifted against their depth renders by more than this part of their width do not match them."""
_RECONCILING_FACTOR = 4
"""Where they do not, the surface has farther to go: so many times the steps."""


class NvdiffrecModel:
    """Geometry and texture fitted to the views through the differentiable renderer."""

    name: ClassVar[str] = "nvdiffrec"
    version: ClassVar[str] = "1"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def load(self, device: str = "cpu") -> None:
        """Make ready; this model has no weights.

        Args:
            device: "cpu".

        Raises:
            GpuUnavailableError: Another device was asked for; this version fits on the CPU.
        """
        if device != "cpu":
            raise GpuUnavailableError(
                f"nvdiffrec runs on the CPU in this version, not on {device!r}.",
                suggestion="Choose the device cpu.",
                device=device,
            )

    def reconstruct(
        self,
        dataset: Dataset,
        calibration: Calibration,
        options: NvdiffrecOptions,
        on_progress: OnProgress = ignore_progress,
        checkpoint: Checkpoint | None = None,
    ) -> Reconstruction:
        """Fit a textured mesh to a calibrated dataset.

        Args:
            dataset: Views with masks, and depth where there is any.
            calibration: Its cameras and depth scales.
            options: How to fit.
            on_progress: Receiver of progress; may raise `Cancelled`.
            checkpoint: Keeps the surface after its start and after every round of its fit. A fit that goes on from
                one ends exactly as an uninterrupted one.

        Returns:
            The mesh in the frame of the calibration's cameras.

        Raises:
            ModelConvergenceError: The views have no common solid, or the fit diverged.
        """
        settings = options.settings()
        texture_size = options.texture_size or min(settings.texture_size, _finest_useful_texture(dataset))
        timings: dict[str, float] = {}
        with _timed(timings, "initial_surface"):
            observations = _observe(dataset, calibration)
            on_progress(20, 1000, "carving the first surface")
            state = None if checkpoint is None else FitState.load(checkpoint)
            if state is None:
                carving = part_of(on_progress, 0.02, 0.1)
                start = initial_surface(observations, settings.grid_resolution, settings.target_faces, carving)
                state = FitState(start)
                if checkpoint is not None:
                    state.save(checkpoint)
        with _timed(timings, "surface_fit"):
            disagree = _photos_disagree(dataset, calibration)
            schedule = SurfaceSchedule(
                steps=settings.steps * (_RECONCILING_FACTOR if disagree else 1),
                longest_side=settings.resolution,
                weights=RECONCILING if disagree else AGREEING,
                paint=Corrections.UNGUARDED if disagree and settings.paint_rims else Corrections.GUARDED,
            )
            views = list(zip(dataset.views, calibration.cameras, strict=True))
            fit_progress = part_of(on_progress, 0.1, 0.7)
            mesh, losses, levels = fit_surface(state, observations, views, schedule, fit_progress, checkpoint)
        with _timed(timings, "texture_fit"):
            on_progress(700, 1000, "unwrapping the surface")
            photos = _photos(dataset, calibration, texture_size)
            atlas = unwrap(mesh, texture_size)
            on_progress(750, 1000, "painting the texture")
            painted, texture_facts = fit_texture(
                mesh,
                atlas,
                photos,
                texture_size,
                settings.texture_steps,
                part_of(on_progress, 0.75, 1.0),
                corrections=Corrections.LEAST_SQUARES if disagree else Corrections.GUARDED,
            )
        losses["texture_rgb_mse"] = texture_facts.pop("rgb_mse")
        statistics: dict[str, Any] = {
            "losses": losses,
            "surface_levels": levels,
            "settings": settings.model_dump() | {"texture_size": texture_size},
            "photos_match_depth": not disagree,
            "texture": texture_facts,
            "atlas": vars(atlas.facts),
            "genus": mesh_facts(mesh).genus,
        }
        return Reconstruction(painted, calibration.cameras, statistics, timings)

    def release(self) -> None:
        """Give memory back; this model keeps none between calls."""


def _observe(dataset: Dataset, calibration: Calibration) -> list[SurfaceObservation]:
    return [
        observe(view, camera, scale)
        for view, camera, scale in zip(dataset.views, calibration.cameras, calibration.depth_scales, strict=True)
    ]


def _photos(dataset: Dataset, calibration: Calibration, longest_side: int) -> list[Photo]:
    return [
        prepare_photo(view, camera, longest_side)
        for view, camera in zip(dataset.views, calibration.cameras, strict=True)
    ]


def _finest_useful_texture(dataset: Dataset) -> int:
    """Twice the photos' side: about three texels per photo pixel on the object, beyond which nothing is gained."""
    return 2 * max(max(view.image_hw) for view in dataset.views)


def _photos_disagree(dataset: Dataset, calibration: Calibration) -> bool:
    """Tell whether any photo is shifted against its own depth render, as far as that could be measured."""
    widths = (view.image_hw[1] for view in dataset.views)
    return any(
        shift is not None and max(map(abs, shift.shift_px)) > _MISMATCH_SHARE * width
        for width, shift in zip(widths, calibration.photo_shifts, strict=False)
    )


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 3)

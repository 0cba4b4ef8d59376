"""The nvdiffrec model: carve, fit the surface, unwrap, fit the texture. The order of these steps and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from reconflow.cameras.calibration import Calibration
from reconflow.datasets.dataset import Dataset
from reconflow.errors import GpuUnavailableError
from reconflow.geometry.atlas import unwrap
from reconflow.geometry.depth import SurfaceObservation, observe
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.nvdiffrec.geometry_fit import FitWeights, fit_geometry, view_targets
from reconflow.nvdiffrec.initial import initial_surface
from reconflow.nvdiffrec.options import FitSettings, NvdiffrecOptions
from reconflow.nvdiffrec.photos import Photo, prepare_photo
from reconflow.nvdiffrec.texture import fit_texture
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.reconstruction import Reconstruction

_DRAFT_TEXTURE = 1024
"""Side of the provisional texture with which colours take part in the surface fit, texels."""
_COLOUR_SHARE = 0.4
"""The last part of the surface fit, in which colours take part."""


class NvdiffrecModel:
    """Geometry and texture fitted to the views through the differentiable renderer."""

    name: ClassVar[str] = "nvdiffrec"
    version: ClassVar[str] = "1"

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
    ) -> Reconstruction:
        """Fit a textured mesh to a calibrated dataset.

        Args:
            dataset: Views with masks, and depth where there is any.
            calibration: Its cameras and depth scales.
            options: How to fit.
            on_progress: Receiver of progress; may raise `Cancelled`.

        Returns:
            The mesh in the frame of the calibration's cameras.

        Raises:
            ModelConvergenceError: The views have no common solid, or the fit diverged.
        """
        settings = options.settings()
        timings: dict[str, float] = {}
        with _timed(timings, "initial_surface"):
            observations = _observe(dataset, calibration)
            on_progress(20, 1000, "carving the first surface")
            mesh = initial_surface(observations, settings.grid_resolution, settings.target_faces)
        with _timed(timings, "surface_fit"):
            mesh, losses = _fit_surface(
                mesh, observations, dataset, calibration, settings, part_of(on_progress, 0.1, 0.7)
            )
        with _timed(timings, "texture_fit"):
            photos = _photos(dataset, calibration, settings.texture_size)
            atlas = unwrap(mesh, settings.texture_size)
            on_progress(750, 1000, "unwrapping the surface")
            painted, texture_facts = fit_texture(
                mesh, atlas, photos, settings.texture_size, settings.texture_steps, part_of(on_progress, 0.75, 1.0)
            )
        losses["texture_rgb_mse"] = texture_facts.pop("rgb_mse")
        statistics: dict[str, Any] = {
            "losses": losses,
            "settings": settings.model_dump(),
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


def _fit_surface(
    mesh: TriangleMesh,
    observations: list[SurfaceObservation],
    dataset: Dataset,
    calibration: Calibration,
    settings: FitSettings,
    on_progress: OnProgress,
) -> tuple[TriangleMesh, dict[str, Any]]:
    """Fit to silhouettes and depth first, then with colours through a provisional texture."""
    photos = _photos(dataset, calibration, settings.resolution)
    colour_steps = round(settings.steps * _COLOUR_SHARE)
    shape_steps = settings.steps - colour_steps
    targets = view_targets(observations, photos, FitWeights(), with_colour=False)
    shape = fit_geometry(mesh, targets, photos, shape_steps, on_progress=part_of(on_progress, 0.0, 0.5))
    painted = _paint_provisionally(shape.mesh, photos)
    targets = view_targets(observations, photos, FitWeights(), with_colour=True)
    full = fit_geometry(
        shape.mesh, targets, photos, colour_steps, painted=painted, on_progress=part_of(on_progress, 0.55, 1.0)
    )
    losses: dict[str, Any] = {name: list(curve) for name, curve in shape.losses.items()}
    for name, curve in full.losses.items():
        losses.setdefault(name, []).extend([step + shape_steps, value] for step, value in curve)
    return full.mesh, losses


def _paint_provisionally(mesh: TriangleMesh, photos: list[Photo]) -> TexturedMesh:
    painted, _ = fit_texture(mesh, unwrap(mesh, _DRAFT_TEXTURE), photos, _DRAFT_TEXTURE, 1)
    return painted


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 3)

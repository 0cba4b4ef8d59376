"""A textured mesh fitted to the views from any first surface: fit the surface, unwrap it, fit the texture.

The order of these steps and nothing else. Where the first surface comes from, and who paints what no photo shows, is
the caller's to say: carved and continued for nvdiffrec, generated for the refinement of reconviagen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from reconflow.cameras.calibration import Calibration
from reconflow.checkpoints import Checkpoint
from reconflow.datasets.dataset import Dataset
from reconflow.geometry.atlas import Atlas, unwrap
from reconflow.geometry.depth import SurfaceObservation, observe
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.nvdiffrec.geometry_fit import AGREEING, RECONCILING
from reconflow.nvdiffrec.options import FitSettings
from reconflow.nvdiffrec.photos import Photo, prepare_photo
from reconflow.nvdiffrec.surface_fit import FitState, SurfaceSchedule, fit_surface
from reconflow.nvdiffrec.texture import Corrections, fit_texture
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.reconstruction import Reconstruction

_MISMATCH_SHARE = 0.002
"""Photos shifted against their depth renders by more than this part of their width do not match them."""
_RECONCILING_FACTOR = 4
"""Where they do not, the surface has farther to go: so many times the steps."""

FirstSurface = Callable[[Sequence[SurfaceObservation], OnProgress], TriangleMesh]
"""Gives the surface to start from: an oriented manifold, evenly cut, within the face budget."""


class Painter(Protocol):
    """Paints an unwrapped mesh so that it looks like the photos; `fit_texture` is one."""

    def __call__(
        self,
        mesh: TriangleMesh,
        atlas: Atlas,
        photos: Sequence[Photo],
        size: int,
        steps: int,
        on_progress: OnProgress,
        *,
        corrections: Corrections,
    ) -> tuple[TexturedMesh, dict[str, Any]]:
        """Return the painted mesh and, as `fit_texture` does, statistics with `rgb_mse`."""


def fit_to_views(
    dataset: Dataset,
    calibration: Calibration,
    settings: FitSettings,
    first_surface: FirstSurface,
    on_progress: OnProgress = ignore_progress,
    checkpoint: Checkpoint | None = None,
    *,
    paint: Painter = fit_texture,
) -> Reconstruction:
    """Fit a textured mesh to a calibrated dataset.

    Args:
        dataset: Views with masks, and depth where there is any.
        calibration: Its cameras and depth scales.
        settings: How to fit.
        first_surface: Gives the surface to start from, in the cameras' world.
        on_progress: Receiver of progress; may raise `Cancelled`.
        checkpoint: Keeps the surface after its start and after every round of its fit. A fit that goes on from one
            ends exactly as an uninterrupted one.
        paint: Paints the fitted surface.

    Returns:
        The mesh in the frame of the calibration's cameras, connected like the first surface.

    Raises:
        ModelConvergenceError: There is no first surface, or the fit diverged.
    """
    timings: dict[str, float] = {}
    with timed(timings, "initial_surface"):
        observations = observe_views(dataset, calibration)
        state = None if checkpoint is None else FitState.load(checkpoint)
        if state is None:
            state = FitState(first_surface(observations, part_of(on_progress, 0.0, 0.1)))
            if checkpoint is not None:
                state.save(checkpoint)
    with timed(timings, "surface_fit"):
        disagree = _photos_disagree(dataset, calibration)
        schedule = _surface_schedule(settings, disagree=disagree)
        views = list(zip(dataset.views, calibration.cameras, strict=True))
        fit_progress = part_of(on_progress, 0.1, 0.7)
        mesh, losses, levels = fit_surface(state, observations, views, schedule, fit_progress, checkpoint)
    with timed(timings, "texture_fit"):
        on_progress(700, 1000, "unwrapping the surface")
        photos = photos_of(dataset, calibration, settings.texture_size)
        atlas = unwrap(mesh, settings.texture_size)
        on_progress(750, 1000, "painting the texture")
        painted, texture_facts = paint(
            mesh,
            atlas,
            photos,
            settings.texture_size,
            settings.texture_steps,
            part_of(on_progress, 0.75, 1.0),
            corrections=Corrections.LEAST_SQUARES if disagree else Corrections.GUARDED,
        )
    losses["texture_rgb_mse"] = texture_facts.pop("rgb_mse")
    statistics: dict[str, Any] = {
        "losses": losses,
        "surface_levels": levels,
        "settings": settings.model_dump(),
        "photos_match_depth": not disagree,
        "texture": texture_facts,
        "atlas": vars(atlas.facts),
        "genus": mesh_facts(mesh).genus,
    }
    return Reconstruction(painted, calibration.cameras, statistics, timings)


def _surface_schedule(settings: FitSettings, *, disagree: bool) -> SurfaceSchedule:
    """Return how the surface is fitted, which depends on whether photos and depth renders disagree."""
    return SurfaceSchedule(
        steps=settings.steps * (_RECONCILING_FACTOR if disagree else 1),
        longest_side=settings.resolution,
        weights=RECONCILING if disagree else AGREEING,
        paint=Corrections.UNGUARDED if disagree and settings.paint_rims else Corrections.GUARDED,
    )


def useful_settings(settings: FitSettings, dataset: Dataset, texture_size: int | None) -> FitSettings:
    """Return settings whose texture is no finer than is of use, unless its size was asked for.

    That is twice the photos' side: about three texels per photo pixel on the object, beyond which nothing is gained.

    Args:
        settings: The preset's, overridden by what was given.
        dataset: The views.
        texture_size: What was asked for.
    """
    finest = 2 * max(max(view.image_hw) for view in dataset.views)
    return settings.model_copy(update={"texture_size": texture_size or min(settings.texture_size, finest)})


def observe_views(dataset: Dataset, calibration: Calibration) -> list[SurfaceObservation]:
    """Return what each view of a calibrated dataset knows of the surface."""
    return [
        observe(view, camera, scale)
        for view, camera, scale in zip(dataset.views, calibration.cameras, calibration.depth_scales, strict=True)
    ]


def photos_of(dataset: Dataset, calibration: Calibration, longest_side: int) -> list[Photo]:
    """Return the photos of a calibrated dataset, shrunk to a longest side in pixels where they are larger."""
    return [
        prepare_photo(view, camera, longest_side)
        for view, camera in zip(dataset.views, calibration.cameras, strict=True)
    ]


@contextmanager
def timed(timings: dict[str, float], name: str) -> Iterator[None]:
    """Note the seconds that the block takes."""
    start = time.perf_counter()
    yield
    timings[name] = round(time.perf_counter() - start, 3)


def _photos_disagree(dataset: Dataset, calibration: Calibration) -> bool:
    """Tell whether any photo is shifted against its own depth render, as far as that could be measured."""
    widths = (view.image_hw[1] for view in dataset.views)
    return any(
        shift is not None and max(map(abs, shift.shift_px)) > _MISMATCH_SHARE * width
        for width, shift in zip(widths, calibration.photo_shifts, strict=False)
    )

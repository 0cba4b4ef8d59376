"""The order in which a surface is fitted: shape alone, then shape and colours in turn, from coarse to fine pictures.

A photo can only pull on the surface once the surface is painted, and the paint is only right once the surface is. So
both are fitted in turn; small pictures first, because a colour edge pulls no farther than it is blurred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from reconflow.cameras.camera import PinholeCamera
from reconflow.datasets.dataset import View
from reconflow.geometry.atlas import unwrap
from reconflow.geometry.depth import SurfaceObservation
from reconflow.geometry.mesh import TriangleMesh
from reconflow.nvdiffrec.geometry_fit import AGREEING, FitWeights, fit_geometry, view_targets
from reconflow.nvdiffrec.photos import prepare_photo
from reconflow.nvdiffrec.texture import fit_texture
from reconflow.progress import OnProgress, ignore_progress, part_of

_SHAPE_SHARE = 0.15
"""Part of the steps that fit silhouettes and depth alone."""
_SHAPE_SIDE = 512
"""Longest side of the pictures in that part, pixels."""
_LEVELS = ((0.25, 0.4), (0.5, 0.7), (1.0, 1.0))
"""Per level of the part with colours: share of the longest side, share of all steps done at its end."""
_STEPS_PER_ROUND = 100
"""After so many steps the surface is painted anew."""
_TEXTURE_SIDE = 1024
"""Side of the provisional texture, texels."""


@dataclass(frozen=True)
class SurfaceSchedule:
    """How long a surface is fitted, at which resolution, and what decides.

    Attributes:
        steps: Iterations in all.
        longest_side: Longest side of the largest pictures fitted to, pixels.
        weights: How strongly each term pulls once colours take part.
    """

    steps: int
    longest_side: int
    weights: FitWeights = AGREEING


@dataclass(frozen=True)
class FitLevel:
    """A stretch of the fit whose loss values can be compared: equal pictures, equal terms.

    Attributes:
        from_step: Its first step.
        longest_side: Of its pictures, pixels.
        with_colour: Whether the photos' colours take part.
    """

    from_step: int
    longest_side: int
    with_colour: bool


def fit_surface(
    mesh: TriangleMesh,
    observations: Sequence[SurfaceObservation],
    views: Sequence[tuple[View, PinholeCamera]],
    schedule: SurfaceSchedule,
    on_progress: OnProgress = ignore_progress,
) -> tuple[TriangleMesh, dict[str, list[list[float]]], list[dict[str, Any]]]:
    """Fit a surface to all views.

    Args:
        mesh: Where to start.
        observations: What each view knows of the surface.
        views: The views with their cameras, at the photos' resolution.
        schedule: How long and how fine.
        on_progress: Receiver of progress.

    Returns:
        mesh: The fitted surface, connected like `mesh`.
        losses: Per term a list of [step, value]. Values of different levels are of different pictures.
        levels: Where the levels begin: the fields of `FitLevel`, by ascending step.
    """
    losses: dict[str, list[list[float]]] = {}
    levels: list[FitLevel] = []
    done = 0

    def run(steps: int, longest_side: int, *, with_colour: bool) -> None:
        nonlocal mesh, done
        if steps == 0:
            return
        if not levels or (levels[-1].longest_side, levels[-1].with_colour) != (longest_side, with_colour):
            levels.append(FitLevel(done, longest_side, with_colour))
        photos = [prepare_photo(view, camera, longest_side) for view, camera in views]
        weights = schedule.weights if with_colour else AGREEING
        painted = None
        if with_colour:
            size = min(_TEXTURE_SIDE, 2 * longest_side)
            painted, _ = fit_texture(mesh, unwrap(mesh, size), photos, size, 1)
        fit = fit_geometry(
            mesh,
            view_targets(observations, photos, weights, with_colour=with_colour),
            photos,
            steps,
            painted=painted,
            weights=weights,
            on_progress=part_of(on_progress, done / schedule.steps, (done + steps) / schedule.steps),
        )
        for name, curve in fit.losses.items():
            losses.setdefault(name, []).extend([step + done, value] for step, value in curve)
        mesh, done = fit.mesh, done + steps

    run(round(_SHAPE_SHARE * schedule.steps), min(_SHAPE_SIDE, schedule.longest_side), with_colour=False)
    for side_share, share_until in _LEVELS:
        longest_side = max(64, round(side_share * schedule.longest_side))
        for steps in _rounds(round(share_until * schedule.steps) - done):
            run(steps, longest_side, with_colour=True)
    return mesh, losses, [asdict(level) for level in levels]


def _rounds(steps: int) -> list[int]:
    """Split a number of steps into nearly equal rounds."""
    count = max(1, round(steps / _STEPS_PER_ROUND))
    return [steps * (k + 1) // count - steps * k // count for k in range(count)]

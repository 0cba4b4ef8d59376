"""Calibration of a dataset: which cameras took it, how deep its depth renders are, and how far that can be trusted.

The decisions live here; the fit itself in `calibration_fit.py` (depth) and `silhouette_fit.py` (masks alone).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from reconflow.cameras.calibration_fit import Fit, Problem, fit, starting_scales
from reconflow.cameras.calibration_views import PreparedViews, SamplePoints, prepare_views
from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.fit_quality import fov_uncertainty, relative_rise, residual_summary
from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_rig
from reconflow.datasets.dataset import Dataset
from reconflow.errors import CalibrationAmbiguousError
from reconflow.progress import OnProgress, ignore_progress

MAX_UNCERTAINTY_DEG: Final = 0.5
"""A field of view that is known less well than this (one sigma) is not known."""

DECIDED_WITHIN_DEG: Final = 0.6
"""Both the contradictions and the overlap of the views must get worse this far from the solution."""

LEAST_RISE: Final = 0.005
"""By how much they must get worse, as a fraction of what coinciding surfaces earn."""

_START_FOVS_DEG: Final = (12, 18, 25, 32, 40, 48, 56, 64, 72, 80, 90, 100)
_COARSE_BLURS: Final = (0.05, 0.02)
_MIDDLE_BLURS: Final = (0.03, 0.01, 0.005)
_FINE_BLURS: Final = (0.005, 0.002, 0.0)
_PAIRS_COARSE, _PAIRS_FINE = 10_000, 70_000


@dataclass(frozen=True, eq=False)
class Calibration:
    """Where the views were taken from, and how deep their depth renders are.

    Attributes:
        cameras: In the order of the dataset's views, at the photos' resolution. Unless cameras were given: the
            six-axis rig at distance 1, so that the camera distance is the world unit.
        depth_scales: Per view the depth along the optical axis of the largest code (`DepthImage.max_value`), world
            units; None without a depth render.
        fov_x_rad: Horizontal field of view of the first view, radians.
        fov_uncertainty_deg: One standard deviation of the field of view, degrees; 0 when it was given.
        confidence: 0 to 1: the probability that the field of view is right within half a degree, times the share of
            tests that agree.
        method: "given", "depth" or "silhouettes".
        residuals: What is left, overall and per view (`front.overlap_rms_levels`, ...); see `residual_summary`.
        warnings: What is unusual but usable, sentences for a person.
    """

    cameras: tuple[PinholeCamera, ...]
    depth_scales: tuple[float | None, ...]
    fov_x_rad: float
    fov_uncertainty_deg: float
    confidence: float
    method: str
    residuals: dict[str, float]
    warnings: tuple[str, ...] = ()


def calibrate(
    dataset: Dataset, on_progress: OnProgress = ignore_progress, *, fov_x_rad: float | None = None
) -> Calibration:
    """Find the cameras of a six-view dataset, or check those that came with it, and the scales of its depth renders.

    Args:
        dataset: What to calibrate.
        on_progress: Told about the progress; may raise `Cancelled`.
        fov_x_rad: The field of view, when the caller knows it; not estimated then.

    Raises:
        CalibrationAmbiguousError: When the views do not decide the field of view.
    """
    views = prepare_views(dataset)
    on_progress(1, 4, "views prepared")
    return _from_depth(dataset, views, on_progress)


def _from_depth(dataset: Dataset, views: PreparedViews, on_progress: OnProgress) -> Calibration:
    best = _best_start(dataset, views)
    on_progress(2, 4, "field of view found")
    problem = _problem(dataset, views, best[0], _PAIRS_FINE)
    solution = fit(problem, best[1].zoom, best[1].scales, _FINE_BLURS, fit_zoom=True)
    on_progress(3, 4, "field of view refined")
    fov = zoomed_fov(best[0], solution.zoom)
    cameras = _rig(dataset, fov)
    sigma = fov_uncertainty(problem, solution)
    rise = relative_rise(problem, solution, DECIDED_WITHIN_DEG)
    if sigma > MAX_UNCERTAINTY_DEG or rise < LEAST_RISE:
        raise _ambiguous(fov, sigma, rise)
    return Calibration(
        cameras=cameras,
        depth_scales=tuple(float(s) if s > 0 else None for s in solution.scales),
        fov_x_rad=fov,
        fov_uncertainty_deg=sigma,
        confidence=math.erf(0.5 / (sigma * math.sqrt(2))),
        method="depth",
        residuals=residual_summary(problem, solution),
    )


def _ambiguous(fov_x_rad: float, sigma_deg: float, rise: float) -> CalibrationAmbiguousError:
    return CalibrationAmbiguousError(
        "The six views do not decide the field of view: other values explain them as well "
        f"(best guess {math.degrees(fov_x_rad):.1f}°).",
        suggestion="Supply a transforms.json with the cameras, or give the field of view. "
        "Round and box-shaped objects look the same through different lenses.",
        best_fov_x_deg=math.degrees(fov_x_rad),
        uncertainty_deg=min(sigma_deg, 180.0),
        relative_rise=rise,
        decided_within_deg=DECIDED_WITHIN_DEG,
    )


def _best_start(dataset: Dataset, views: PreparedViews) -> tuple[float, Fit]:
    starts = []
    for degrees in _START_FOVS_DEG:
        problem = _problem(dataset, views, math.radians(degrees), _PAIRS_COARSE)
        start = fit(problem, 0.0, starting_scales(problem, 0.0), _COARSE_BLURS, fit_zoom=False, steps=4)
        starts.append((start.net_cost, math.radians(degrees), start.scales))
    starts.sort(key=lambda s: s[0])
    refined = []
    for _, fov, scales in starts[:3]:
        problem = _problem(dataset, views, fov, _PAIRS_COARSE)
        refined.append((fov, fit(problem, 0.0, scales, _MIDDLE_BLURS, fit_zoom=True)))
    return min(refined, key=lambda r: r[1].net_cost)


def zoomed_fov(fov_x_rad: float, zoom: float) -> float:
    """Return the field of view after multiplying the focal length by exp(zoom), radians."""
    return 2.0 * math.atan(math.tan(0.5 * fov_x_rad) * math.exp(-zoom))


def _rig(dataset: Dataset, fov_x_rad: float) -> tuple[PinholeCamera, ...]:
    rigs = (six_axis_rig(fov_x_rad, 1.0, view.image_hw) for view in dataset.views)
    return tuple(rig[VIEW_NAMES.index(view.name)] for rig, view in zip(rigs, dataset.views, strict=True))


def _problem(dataset: Dataset, views: PreparedViews, fov_x_rad: float, pairs: int) -> Problem:
    return Problem.of(views, sample_for(views, pairs), _rig(dataset, fov_x_rad))


def sample_for(views: PreparedViews, pairs: int) -> SamplePoints:
    """Sample so that points times other views stays within a budget."""
    count = len(views.names)
    faces = int(np.clip(pairs / (count * (count - 1)), 20, 4000))
    return views.sample(faces, faces // 6)

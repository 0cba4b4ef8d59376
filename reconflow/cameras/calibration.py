"""Calibration of a dataset: which cameras took it, how deep its depth renders are, and how far that can be trusted.

The decisions live here; the fit itself in `calibration_fit.py` (depth) and `silhouette_fit.py` (masks alone).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.calibration_fit import Fit, Problem, fit, starting_scales
from reconflow.cameras.calibration_rims import with_photo_rims
from reconflow.cameras.calibration_views import (
    PreparedViews,
    SamplePoints,
    is_coarse,
    prepare_views,
    with_unbiased_depth,
)
from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.fit_quality import fov_uncertainty, relative_rise, residual_summary
from reconflow.cameras.photo_alignment import PhotoShift, photo_shift
from reconflow.cameras.silhouette_fit import Valley, fov_from_silhouettes, rim_misses
from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_rig
from reconflow.cameras.view_mixups import explaining_mixup
from reconflow.datasets.dataset import Dataset
from reconflow.errors import CalibrationAmbiguousError, CalibrationContradictedError
from reconflow.progress import OnProgress, ignore_progress

MAX_UNCERTAINTY_DEG: Final = 0.6
"""A field of view that is known less well than this (one sigma) is not known."""

DECIDED_WITHIN_DEG: Final = 0.6
"""Both the contradictions and the overlap of the views must get worse this far from the solution."""

LEAST_RISE: Final = 0.005
"""By how much they must get worse, as a fraction of what coinciding surfaces earn."""

MAX_SILHOUETTE_UNCERTAINTY_DEG: Final = 1.0
"""The same for silhouettes alone."""

GIVEN_FOV_TOLERANCE_DEG: Final = 1.5
"""Given cameras may differ by this, plus four standard deviations, from what the data says."""

MAX_VIOLATION: Final = 0.12
"""Share of points outside other masks, or in front of other surfaces, beyond which cameras contradict the data."""

SUSPECT_VIOLATION: Final = 0.01
"""The share beyond which pictures may be mixed up: good datasets have 0.004 at most, mixed-up ones 0.014 and more."""

MAX_RIM_MISS: Final = 0.004
"""Root mean square miss of the silhouettes' rims, as a fraction of the picture, beyond which cameras contradict."""

_SILHOUETTE_FOVS_DEG: Final = np.arange(12.0, 104.1, 4.0)
_LARGEST_BIAS_DEG: Final = 0.5
"""Smoothed terraces put the field of view 0.25° off at most; what moves it further has lost its way."""
_ALLOWED_SIGMAS: Final = np.linspace(-2.0, 2.0, 17)
_START_FOVS_DEG: Final = (12, 18, 25, 32, 40, 48, 56, 64, 72, 80, 90, 100)
_MIDDLE_FOV_DEG: Final = 45
_COARSE_BLURS: Final = (0.05, 0.02)
_MIDDLE_BLURS: Final = (0.03, 0.01, 0.005)
_FINE_BLURS: Final = (0.005, 0.002, 0.0)
_PAIRS_COARSE, _PAIRS_FINE = 10_000, 70_000
_PAIRS_MIXUPS_ROUGH, _PAIRS_MIXUPS = 3_000, 20_000


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
        photo_shifts: Per view how the photo lies against the depth render; None where it could not be measured.
        warnings: What is unusual but usable, sentences for a person.
    """

    cameras: tuple[PinholeCamera, ...]
    depth_scales: tuple[float | None, ...]
    fov_x_rad: float
    fov_uncertainty_deg: float
    confidence: float
    method: str
    residuals: dict[str, float]
    photo_shifts: tuple[PhotoShift | None, ...] = ()
    warnings: tuple[str, ...] = ()


def calibrate(
    dataset: Dataset, on_progress: OnProgress = ignore_progress, *, fov_x_rad: float | None = None
) -> Calibration:
    """Find the cameras of a six-view dataset, or check those that came with it, and the scales of its depth renders.

    Args:
        dataset: What to calibrate.
        on_progress: Told about the progress; may raise `Cancelled`.
        fov_x_rad: The six-axis rig's field of view, when the caller knows it; it is checked, not estimated.

    Raises:
        CalibrationAmbiguousError: When the views do not decide the field of view.
        CalibrationContradictedError: When given cameras, or the meaning of the depth, disagree with the data, or
            when pictures look exchanged, mirrored or turned.
    """
    _check_names(dataset)
    views = prepare_views(dataset)
    on_progress(1, 4, "views prepared")
    shifts = tuple(photo_shift(view) for view in dataset.views)
    on_progress(2, 4, "photos aligned")
    if dataset.cameras is not None or fov_x_rad is not None:
        cameras = dataset.cameras or _rig(dataset, fov_x_rad or 0.0)
        found = _given(views, cameras, is_rig=dataset.cameras is None)
    elif views.has_depth.sum() >= 2:
        found = _from_depth(dataset, views, shifts)
    else:
        found = _from_silhouettes(dataset, views, shifts)
    if views.has_depth.sum() >= 2 and any(is_coarse(view) for view in dataset.views):
        found = _polished(dataset, with_unbiased_depth(views, dataset), found)
    on_progress(4, 4, "calibrated")
    contradictions = _violation_warnings(found.residuals) if dataset.cameras is None else ()
    warnings = (*found.warnings, *contradictions, *_shift_warnings(dataset, shifts))
    return replace(found, photo_shifts=shifts, warnings=warnings)


def _check_names(dataset: Dataset) -> None:
    if dataset.cameras is None and sorted(view.name for view in dataset.views) != sorted(VIEW_NAMES):
        raise CalibrationAmbiguousError(
            "Only the six-axis rig (" + ", ".join(VIEW_NAMES) + ") can be calibrated from its pictures.",
            suggestion="Supply a transforms.json with the cameras.",
            views=[view.name for view in dataset.views],
        )


def _from_depth(dataset: Dataset, views: PreparedViews, shifts: Sequence[PhotoShift | None]) -> Calibration:
    start_fov, start = _best_start(dataset, views)
    problem = _problem(dataset, views, start_fov, _PAIRS_FINE)
    solution = fit(problem, start.zoom, start.scales, _FINE_BLURS, fit_zoom=True)
    fov = zoomed_fov(start_fov, solution.zoom)
    sigma = fov_uncertainty(problem, solution)
    rise = relative_rise(problem, solution, DECIDED_WITHIN_DEG)
    residuals = residual_summary(problem, solution)
    if _is_suspect(residuals):
        _check_mixups(views, _rig(dataset, fov))
    if sigma > MAX_UNCERTAINTY_DEG or rise < LEAST_RISE:
        return _from_both(dataset, views, shifts, fov)
    _check_violations(residuals, "The depth renders do not fit one rig of six cameras")
    return _calibration(_rig(dataset, fov), solution.scales, sigma, "depth", residuals)


def _from_both(
    dataset: Dataset, views: PreparedViews, shifts: Sequence[PhotoShift | None], depth_fov_rad: float
) -> Calibration:
    """Let the silhouettes decide the field of view where overlapping depth cannot, as on bottles and boxes."""
    rims = with_photo_rims(views, dataset, shifts)
    found = fov_from_silhouettes(rims, lambda fov: _rig(dataset, fov), _SILHOUETTE_FOVS_DEG)
    cameras = _rig(dataset, math.radians(found.best))
    miss_px = _rim_miss(views, cameras)
    if miss_px > MAX_RIM_MISS * int(views.sizes_hw.max()):
        _check_mixups(views, _rig(dataset, math.radians(_MIDDLE_FOV_DEG)))
    _check_rims(views, miss_px, "No field of view makes the six silhouettes fit one object")
    if found.sigma > MAX_SILHOUETTE_UNCERTAINTY_DEG:
        raise _ambiguous(math.degrees(depth_fov_rad), found.best, found.sigma)
    problem, solution = _fitted_scales(views, cameras)
    residuals = residual_summary(problem, solution)
    if _is_suspect(residuals):
        cameras, solution, residuals = _least_contradicted(dataset, views, found)
    _check_violations(residuals, "The depth renders do not fit the cameras that the silhouettes imply")
    return _calibration(cameras, solution.scales, found.sigma, "silhouettes", residuals)


def _polished(dataset: Dataset, views: PreparedViews, found: Calibration) -> Calibration:
    """Fit the depth scales once more, and the field of view if depth has decided it, to depth without a bias.

    What the views say against each other stays as it was found, with depth that never reaches beyond its neighbours'.
    """
    problem = Problem.of(views, sample_for(views, _PAIRS_FINE), found.cameras)
    scales = np.array([scale or 0.0 for scale in found.depth_scales])
    solution = fit(problem, 0.0, scales, _FINE_BLURS, fit_zoom=found.method == "depth")
    fov = zoomed_fov(found.fov_x_rad, solution.zoom)
    if abs(math.degrees(fov - found.fov_x_rad)) > _LARGEST_BIAS_DEG:
        fov, solution = found.fov_x_rad, fit(problem, 0.0, scales, _FINE_BLURS, fit_zoom=False)
    cameras = _rig(dataset, fov) if found.method == "depth" else found.cameras
    known = tuple(float(scale) if scale > 0 else None for scale in solution.scales)
    return replace(found, cameras=cameras, depth_scales=known, fov_x_rad=cameras[0].fov_x_rad)


def _least_contradicted(
    dataset: Dataset, views: PreparedViews, found: Valley
) -> tuple[tuple[PinholeCamera, ...], Fit, dict[str, float]]:
    """Choose among the fields of view that the silhouettes allow by what the depth renders say against them.

    They cannot decide it alone, but on a wheel, say, they contradict each other where it is a degree too wide.
    """
    doubts = []
    for sigmas in _ALLOWED_SIGMAS:
        cameras = _rig(dataset, math.radians(found.best + sigmas * found.sigma))
        residuals = residual_summary(*_fitted_scales(views, cameras, _PAIRS_COARSE))
        doubts.append(sigmas**2 + (_violation(residuals) / SUSPECT_VIOLATION) ** 2)
    best = found.best + _ALLOWED_SIGMAS[np.argmin(doubts)] * found.sigma
    cameras = _rig(dataset, math.radians(best))
    problem, solution = _fitted_scales(views, cameras)
    return cameras, solution, residual_summary(problem, solution)


def _from_silhouettes(dataset: Dataset, views: PreparedViews, shifts: Sequence[PhotoShift | None]) -> Calibration:
    rims = with_photo_rims(views, dataset, shifts)
    found = fov_from_silhouettes(rims, lambda fov: _rig(dataset, fov), _SILHOUETTE_FOVS_DEG)
    cameras = _rig(dataset, math.radians(found.best))
    residuals = {"rim_miss_px": _rim_miss(views, cameras)}
    _check_rims(views, residuals["rim_miss_px"], "No field of view makes the six silhouettes fit one object")
    if found.sigma > MAX_SILHOUETTE_UNCERTAINTY_DEG:
        raise _ambiguous(None, found.best, found.sigma)
    return _calibration(cameras, np.zeros(len(views.names)), found.sigma, "silhouettes", residuals)


def _given(views: PreparedViews, cameras: tuple[PinholeCamera, ...], *, is_rig: bool) -> Calibration:
    """Take cameras as they are, fit the depth scales, and hold the cameras against the data."""
    residuals = {"rim_miss_px": _rim_miss(views, cameras)}
    has_depth = views.has_depth.sum() >= 2
    if not (is_rig and has_depth):
        _check_rims(views, residuals["rim_miss_px"], "The given cameras contradict the silhouettes")
    if not has_depth:
        return _calibration(cameras, np.zeros(len(views.names)), 0.0, "given", residuals)
    problem, solution = _fitted_scales(views, cameras)
    residuals |= residual_summary(problem, solution)
    if is_rig:
        if _is_suspect(residuals):
            _check_mixups(views, cameras)
        _check_rims(views, residuals["rim_miss_px"], "The given cameras contradict the silhouettes")
    _check_violations(residuals, "The given cameras contradict the depth renders")
    free = fit(problem, solution.zoom, solution.scales, (0.02, *_FINE_BLURS), fit_zoom=True)
    sigma = fov_uncertainty(problem, free)
    given_deg = math.degrees(cameras[0].fov_x_rad)
    found_deg = math.degrees(zoomed_fov(cameras[0].fov_x_rad, free.zoom))
    residuals["fov_difference_deg"] = found_deg - given_deg
    decided = sigma <= MAX_UNCERTAINTY_DEG and relative_rise(problem, free, DECIDED_WITHIN_DEG) >= LEAST_RISE
    if decided and abs(found_deg - given_deg) > GIVEN_FOV_TOLERANCE_DEG + 4 * sigma:
        raise CalibrationContradictedError(
            f"The given field of view is {given_deg:.2f}°, but the depth renders say {found_deg:.2f}° ± {sigma:.2f}°.",
            suggestion="Check camera_angle_x (horizontal, radians) in transforms.json, or leave the file out.",
            given_fov_x_deg=given_deg,
            found_fov_x_deg=found_deg,
            uncertainty_deg=sigma,
        )
    warnings: tuple[str, ...] = ()
    if decided and abs(found_deg - given_deg) > 0.3 + 4 * sigma:
        warnings = (
            f"The given field of view, {given_deg:.2f}°, was used; the depth renders suggest {found_deg:.2f}°.",
        )
    return replace(_calibration(cameras, solution.scales, 0.0, "given", residuals), warnings=warnings)


def _calibration(
    cameras: tuple[PinholeCamera, ...],
    scales: NDArray[np.float64],
    sigma_deg: float,
    method: str,
    residuals: dict[str, float],
) -> Calibration:
    within_half_a_degree = math.erf(0.5 / (max(sigma_deg, 1e-6) * math.sqrt(2)))
    return Calibration(
        cameras=cameras,
        depth_scales=tuple(float(scale) if scale > 0 else None for scale in scales),
        fov_x_rad=cameras[0].fov_x_rad,
        fov_uncertainty_deg=sigma_deg,
        confidence=within_half_a_degree * residuals.get("agreement", 1.0),
        method=method,
        residuals=residuals,
    )


def _fitted_scales(
    views: PreparedViews, cameras: tuple[PinholeCamera, ...], pairs: int = _PAIRS_FINE
) -> tuple[Problem, Fit]:
    few = Problem.of(views, sample_for(views, _PAIRS_COARSE), cameras)
    guess = starting_scales(few, 0.0)
    start = fit(few, 0.0, guess, (*_COARSE_BLURS, *_MIDDLE_BLURS), fit_zoom=False)
    problem = few.with_points(sample_for(views, pairs))
    # Blurred, a view may slide behind the others' surfaces; the guess is often nearer than where it ends then.
    fits = [fit(problem, 0.0, scales, _FINE_BLURS, fit_zoom=False) for scales in (start.scales, guess)]
    return problem, min(fits, key=lambda found: found.net_cost)


def _rim_miss(views: PreparedViews, cameras: tuple[PinholeCamera, ...]) -> float:
    misses = rim_misses(views, views.rims(200), cameras)
    return float(np.sqrt(np.mean(np.minimum(misses, 50.0) ** 2)))


def _check_rims(views: PreparedViews, miss_px: float, what: str) -> None:
    size = int(views.sizes_hw.max())
    if miss_px > MAX_RIM_MISS * size:
        raise CalibrationContradictedError(
            f"{what}: rays along their rims miss the other views' outlines by {100 * miss_px / size:.1f} % of the "
            "picture's width on average.",
            suggestion="Check which picture is which view, that none is mirrored, and the axes of the cameras "
            "(OpenGL camera-to-world: x right, y up, looking along -z).",
            rim_miss_fraction=miss_px / size,
            accepted=MAX_RIM_MISS,
        )


def _check_violations(residuals: dict[str, float], what: str) -> None:
    for name, words in (("mask_violation", "outside other silhouettes"), ("front_violation", "in front of surfaces")):
        if residuals[name] > MAX_VIOLATION:
            raise CalibrationContradictedError(
                f"{what}: {100 * residuals[name]:.0f} % of their points lie {words} that other views see.",
                suggestion="Check which picture is which view, that none is mirrored, and that the depth is linear "
                "along the optical axis (value = z / z_max, 0 = background), not inverted and not along the ray.",
                **{name: residuals[name]},
                accepted=MAX_VIOLATION,
            )


def _is_suspect(residuals: dict[str, float]) -> bool:
    return _violation(residuals) > SUSPECT_VIOLATION


def _violation(residuals: dict[str, float]) -> float:
    return max(residuals.get("mask_violation", 0.0), residuals.get("front_violation", 0.0))


def _check_mixups(views: PreparedViews, cameras: tuple[PinholeCamera, ...]) -> None:
    """Refuse pictures that contradict each other on the rig, and would not if some were exchanged or turned back."""
    rough, fine = (
        Problem.of(views, sample_for(views, pairs), cameras) for pairs in (_PAIRS_MIXUPS_ROUGH, _PAIRS_MIXUPS)
    )
    mixup = explaining_mixup(rough, fine, SUSPECT_VIOLATION)
    if mixup is None:
        return
    what = ", or ".join(mixup.descriptions)
    raise CalibrationContradictedError(
        f"The pictures look mixed up: {what}. As they are, {100 * mixup.violation_as_given:.1f} % of their points lie "
        f"outside other silhouettes or in front of surfaces that other views see, and "
        f"{100 * mixup.overlap_as_given:.0f} % on such surfaces; without that, {100 * mixup.violation:.1f} % and "
        f"{100 * mixup.overlap:.0f} %.",
        suggestion="Rename the files or turn the pictures, photos and depth renders alike, to match the six-axis rig, "
        "or supply a transforms.json with the cameras that they were taken with.",
        mixups=list(mixup.descriptions),
        violation=mixup.violation_as_given,
        violation_without=mixup.violation,
        overlap=mixup.overlap_as_given,
        overlap_without=mixup.overlap,
        accepted=SUSPECT_VIOLATION,
    )


def _violation_warnings(residuals: dict[str, float]) -> tuple[str, ...]:
    if not _is_suspect(residuals):
        return ()
    mask, front = residuals["mask_violation"], residuals["front_violation"]
    warning = (
        f"The views contradict each other: {100 * mask:.1f} % of the points lie outside other silhouettes, and "
        f"{100 * front:.1f} % in front of surfaces that other views see. Check that no picture is exchanged, "
        "mirrored, turned or of another state of the object."
    )
    return (warning,)


def _shift_warnings(dataset: Dataset, shifts: tuple[PhotoShift | None, ...]) -> tuple[str, ...]:
    return tuple(
        f"{view.name}: the photo lies {math.hypot(*shift.shift_px):.0f} px off its depth render."
        for view, shift in zip(dataset.views, shifts, strict=True)
        if shift is not None and math.hypot(*shift.shift_px) > 0.004 * max(view.image_hw)
    )


def _ambiguous(depth_deg: float | None, silhouettes_deg: float, sigma_deg: float) -> CalibrationAmbiguousError:
    known = math.isfinite(sigma_deg)
    return CalibrationAmbiguousError(
        "The six views do not decide the field of view: a range of values explains them equally well.",
        suggestion="Supply a transforms.json with the cameras, or give the field of view. "
        "Round and cube-like objects look the same through different lenses.",
        depth_suggests_deg=depth_deg,
        silhouettes_suggest_deg=silhouettes_deg if known else None,
        silhouettes_uncertainty_deg=sigma_deg if known else None,
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

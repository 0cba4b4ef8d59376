"""What silhouettes alone say about the cameras: every ray that grazes one must touch the visual hull of the others.

A ray through a silhouette's rim meets the object somewhere, and that point lies inside all other silhouettes. With a
wrong field of view some rays miss the other views' cones. Round objects miss nothing at any field of view, which shows
as a flat curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.cameras.calibration_fit import common_target
from reconflow.cameras.calibration_kernels import signed_outside
from reconflow.cameras.calibration_views import PreparedViews, SamplePoints
from reconflow.cameras.camera import PinholeCamera

FloatArray = NDArray[np.float64]

_SAMPLES, _REFINEMENTS, _REACH = 96, 3, 0.8
_WIDTH_PX: Final = 3.0
_FLANK_PX: Final = {False: (0.12, 0.7), True: (0.04, 0.3)}
"""Root mean square misses, pixels, between which a flank is straight: above the rims' noise, below saturation. Of
silhouettes in whole pixels, and of finer ones."""

_RIM_BIAS_PX: Final = {False: 0.06, True: 0.015}
"""Error that all rims may share: straight edges along the pixel rows are rounded alike; so are soft ones read wrong."""

_ARCS, _RESAMPLINGS = 12, 60
_COARSE_RIMS, _FINE_RIMS = 100, 400


@dataclass(frozen=True, eq=False)
class Valley:
    """The field of view that silhouettes suggest: `best` and its standard deviation `sigma`, both in degrees."""

    best: float
    sigma: float


def fov_from_silhouettes(
    views: PreparedViews, cameras_of: Callable[[float], tuple[PinholeCamera, ...]], fovs_deg: FloatArray
) -> Valley:
    """Find the field of view at which every silhouette's rim touches the hull of the others.

    Args:
        views: The prepared views.
        cameras_of: The cameras, at the photos' resolution, for a field of view in radians.
        fovs_deg: (F,) fields of view to look at first, evenly spaced.
    """
    rims = views.rims(_COARSE_RIMS)
    misses = np.array([rim_misses(views, rims, cameras_of(np.radians(fov))) for fov in fovs_deg])
    saturated = _WIDTH_PX**2 * misses**2 / (_WIDTH_PX**2 + misses**2)
    start, reach = fovs_deg[np.argmin(saturated.mean(axis=1))], 2.0 * (fovs_deg[1] - fovs_deg[0])
    fine = np.linspace(start - reach, start + reach, 21)
    fine = fine[fine > 1.0]
    if views.sharp:
        fine = _narrowed(fine, np.array([rim_misses(views, rims, cameras_of(np.radians(fov))) for fov in fine]))
    rims = views.rims(_FINE_RIMS)
    misses = np.array([rim_misses(views, rims, cameras_of(np.radians(fov))) for fov in fine])
    return valley(fine, misses, rims, sharp=views.sharp)


def _narrowed(fovs_deg: FloatArray, misses: FloatArray) -> FloatArray:
    """The same number of fields of view, spread over the part of a valley that is used."""
    root = np.sqrt((_WIDTH_PX**2 * misses**2 / (_WIDTH_PX**2 + misses**2)).mean(axis=1))
    used = np.flatnonzero(root < max(_FLANK_PX[True][1], 2.0 * root.min()))
    low, high = max(int(used.min()) - 1, 0), min(int(used.max()) + 1, len(root) - 1)
    return np.linspace(fovs_deg[low], fovs_deg[high], len(fovs_deg))


def rim_misses(views: PreparedViews, rims: SamplePoints, cameras: Sequence[PinholeCamera]) -> FloatArray:
    """Return how far each rim ray passes outside the hull of the other silhouettes.

    Args:
        views: The prepared views.
        rims: Pixels at the rims, from `PreparedViews.rims`.
        cameras: Cameras at the photos' resolution.

    Returns:
        (P,) distance, working pixels of the view that the ray misses most; 0 for a ray that touches.
    """
    focal, centre = views.intrinsics_px(cameras)
    poses = np.array([camera.cam_from_world for camera in cameras])
    target = common_target(poses)
    middle = -(poses[:, 2, :3] @ target + poses[:, 2, 3])
    misses = np.empty(len(rims.view))
    _misses(rims.view, rims.px, views.outside_px, views.sizes_hw, focal, centre, poses, middle, misses)
    return misses


def valley(fovs_deg: FloatArray, misses: FloatArray, rims: SamplePoints, *, sharp: bool = False) -> Valley:
    """Locate the field of view with the fewest misses and say how well it is determined.

    On both sides of the truth the root of the mean squared miss rises like a straight line. The two lines, extended
    to zero, enclose the answer; drawing the rims' arcs again and again shows how far it moves.

    Args:
        fovs_deg: (F,) evenly spaced fields of view.
        misses: (F, P) misses at each of them.
        rims: The P rim points.
        sharp: Whether the silhouettes are finer than whole pixels.
    """
    cost = _WIDTH_PX**2 * misses**2 / (_WIDTH_PX**2 + misses**2)
    arcs = _arc_of(rims)
    count = int(arcs.max()) + 1
    by_arc = np.stack([np.bincount(arcs, row, minlength=count) for row in cost])
    sizes = np.bincount(arcs, minlength=count)
    random = np.random.default_rng(0)
    draws = (np.arange(count), *random.integers(0, count, (_RESAMPLINGS, count)))
    curves = (np.sqrt(by_arc[:, drawn].sum(axis=1) / sizes[drawn].sum()) for drawn in draws)
    brackets = [_bracket(fovs_deg, curve, _FLANK_PX[sharp]) for curve in curves]
    low, high, slope = np.array(brackets).T
    if not np.isfinite(low[0] + high[0]) or np.mean(np.isfinite(low + high)) < 0.9:
        return Valley(float(fovs_deg[np.argmin(cost.mean(axis=1))]), np.inf)
    middle = 0.5 * (low + high)
    spread = np.nanvar(middle[1:]) + (0.25 * (high[0] - low[0])) ** 2 + (_RIM_BIAS_PX[sharp] / slope[0]) ** 2
    return Valley(float(middle[0]), float(np.sqrt(spread)))


def _bracket(fovs_deg: FloatArray, root: FloatArray, between: tuple[float, float]) -> tuple[float, float, float]:
    """Where the two flanks of a valley, extended, reach zero, and the flatter slope; NaN when a flank is missing."""
    lowest = int(np.argmin(root))
    ends, slopes = [], []
    for side in (slice(None, lowest), slice(lowest + 1, None)):
        x, y = fovs_deg[side], root[side]
        flank = (y > between[0]) & (y < between[1])
        if flank.sum() < 2:
            return np.nan, np.nan, np.nan
        slope, offset = np.polyfit(x[flank], y[flank], 1)
        ends.append(-offset / slope)
        slopes.append(abs(slope))
    return ends[0], ends[1], min(slopes)


def _arc_of(rims: SamplePoints) -> NDArray[np.int64]:
    arcs = np.empty(len(rims.view), dtype=np.int64)
    for view in np.unique(rims.view):
        own = rims.view == view
        around = rims.px[own] - rims.px[own].mean(axis=0)
        turn = (np.arctan2(around[:, 1], around[:, 0]) / (2 * np.pi)) % 1.0
        arcs[own] = view * _ARCS + np.minimum((turn * _ARCS).astype(np.int64), _ARCS - 1)
    return np.unique(arcs, return_inverse=True)[1]


@njit(cache=True)
def _worst(
    a: int,
    x: float,
    y: float,
    depth: float,
    outside_px: NDArray[np.float32],
    sizes_hw: NDArray[np.int64],
    focal_px: FloatArray,
    centre_px: FloatArray,
    poses: FloatArray,
) -> float:
    """Largest signed distance outside another view's silhouette, of the point at a depth on a ray of view a."""
    cx, cy, cz = x * depth - poses[a, 0, 3], y * depth - poses[a, 1, 3], -depth - poses[a, 2, 3]
    wx = poses[a, 0, 0] * cx + poses[a, 1, 0] * cy + poses[a, 2, 0] * cz
    wy = poses[a, 0, 1] * cx + poses[a, 1, 1] * cy + poses[a, 2, 1] * cz
    wz = poses[a, 0, 2] * cx + poses[a, 1, 2] * cy + poses[a, 2, 2] * cz
    worst = -1e9
    for b in range(len(poses)):
        if b == a:
            continue
        px = poses[b, 0, 0] * wx + poses[b, 0, 1] * wy + poses[b, 0, 2] * wz + poses[b, 0, 3]
        py = poses[b, 1, 0] * wx + poses[b, 1, 1] * wy + poses[b, 1, 2] * wz + poses[b, 1, 3]
        far = -(poses[b, 2, 0] * wx + poses[b, 2, 1] * wy + poses[b, 2, 2] * wz + poses[b, 2, 3])
        if far < 1e-6:
            return 1e9
        u = centre_px[b, 0] + focal_px[b, 0] * px / far - 0.5
        v = centre_px[b, 1] - focal_px[b, 1] * py / far - 0.5
        distance, _, _ = signed_outside(outside_px[b], sizes_hw[b, 0], sizes_hw[b, 1], u, v)
        worst = max(worst, distance)
    return worst


@njit(cache=True)
def _misses(
    view: NDArray[np.int64],
    px: FloatArray,
    outside_px: NDArray[np.float32],
    sizes_hw: NDArray[np.int64],
    focal_px: FloatArray,
    centre_px: FloatArray,
    poses: FloatArray,
    middle: FloatArray,
    misses: FloatArray,
) -> None:
    for i in range(len(view)):
        a = view[i]
        x = (px[i, 0] - centre_px[a, 0]) / focal_px[a, 0]
        y = -(px[i, 1] - centre_px[a, 1]) / focal_px[a, 1]
        low, high = (1.0 - _REACH) * middle[a], (1.0 + _REACH) * middle[a]
        best, best_depth, samples = 1e9, middle[a], _SAMPLES
        for _ in range(_REFINEMENTS):
            step = (high - low) / (samples - 1)
            for k in range(samples):
                worst = _worst(a, x, y, low + k * step, outside_px, sizes_hw, focal_px, centre_px, poses)
                if worst < best:
                    best, best_depth = worst, low + k * step
            low, high, samples = best_depth - step, best_depth + step, 9
        misses[i] = max(best, 0.0)

"""How good a calibration fit is: the uncertainty of its field of view, and its residuals in words a report can print.

The uncertainty must not trust the number of points. Rounding errors are shared by all pixels of one terrace, on a
symmetric object even by all views, and a wrong model errs in the same way everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.calibration_fit import WIDTH, Fit, Problem, Residuals, Unknowns, fit
from reconflow.cameras.calibration_kernels import IN_FRONT, OUTSIDE_MASK, SAME_SURFACE

FloatArray = NDArray[np.float64]

_UNSMOOTHED: Final = 2.0
"""Rounding error taken to be left in all pixels of a terrace alike, in standard deviations; set by experiment, so that
the uncertainty covers the errors on random objects."""

_TILE_PX: Final = 24
_CODES: Final = 1 << 17


def fov_uncertainty(problem: Problem, solution: Fit) -> float:
    """Return one standard deviation of the horizontal field of view of the first view, degrees.

    Three parts, added in quadrature: independent errors (inverse Gauss-Newton matrix), errors shared within clusters
    of points (the sandwich estimator, for the worst of three ways to form clusters), and rounding shared by terraces.
    """
    unknowns = Unknowns(problem, solution.scales, fit_zoom=True)
    system = unknowns.system(solution.zoom, solution.scales, 0.0, np.ones(len(problem.points.view)))
    if system.hessian[0, 0] < 1e-3:
        return math.inf
    row = np.linalg.pinv(system.hessian + 1e-9 * np.eye(unknowns.count), hermitian=True)[0]
    influence = system.gradient @ row
    shared = max(_clustered(influence, clusters) for clusters in _clusterings(problem))
    variance = max(row[0], 0.0) + shared**2 + _rounding_part(problem, solution, unknowns, row) ** 2
    return degrees_per_zoom(problem, solution.zoom) * math.sqrt(variance)


def relative_rise(problem: Problem, solution: Fit, degrees: float) -> float:
    """Return how much worse the fit gets when the field of view is moved, all scales fitted again.

    Two measures must agree: the contradictions between views, and those less what coinciding surfaces earn. On
    asymmetric objects both have their minimum at the truth. On round ones contradictions vanish when the views are
    pulled apart, and overlap grows when they are pushed together, so one of the two falls.

    Args:
        problem: What was fitted.
        solution: Its solution.
        degrees: How far the field of view is moved to either side.

    Returns:
        The smallest rise of the four, as a fraction of what coinciding surfaces earn; negative when one falls.
    """
    base = fit(problem, solution.zoom, solution.scales, (0.0,), fit_zoom=False)
    earned = base.cost - base.net_cost
    if earned <= 0.0:
        return 0.0
    rises = []
    for side in (-1.0, 1.0):
        zoom = solution.zoom + side * degrees / degrees_per_zoom(problem, solution.zoom)
        moved = fit(problem, zoom, solution.scales, (0.002, 0.0), fit_zoom=False, steps=5)
        rises += [moved.cost - base.cost, moved.net_cost - base.net_cost]
    return min(rises) / earned


def residual_summary(problem: Problem, solution: Fit) -> dict[str, float]:
    """Return what is left after the fit, as plain numbers.

    `mask_violation`: share of points outside another view's mask by more than a pixel; `front_violation`: share in
    front of another view's surface, beyond rounding; `overlap`: share that lies on another view's surface;
    `overlap_rms_levels`: how far those are off along the optical axis, in 8-bit grey levels; `agreement`: share of
    tests within the robust loss. The same per view as `<view>.<name>`, of points lifted from that view.
    """
    r = problem.residuals(solution.zoom, solution.scales)
    levels = _off_levels(r)
    summary = _summary(r, levels, np.ones(len(problem.points.view), dtype=bool))
    for index, name in enumerate(problem.views.names):
        own = problem.points.view == index
        if own.any():
            summary |= {f"{name}.{key}": value for key, value in _summary(r, levels, own).items()}
    return summary


def degrees_per_zoom(problem: Problem, zoom: float) -> float:
    """Return by how many degrees the first view's field of view narrows per unit of zoom."""
    tangent = 0.5 * problem.views.sizes_hw[0, 1] / (problem.focal_px[0, 0] * math.exp(zoom))
    return math.degrees(2.0 * tangent / (1.0 + tangent * tangent))


def _off_levels(r: Residuals) -> FloatArray:
    # derivative 2 is -(surface depth) / (expected error), so the quotient is the relative error of the depth.
    depth_in_errors = np.where(r.kind >= IN_FRONT, r.derivative[..., 2], -np.inf)
    return np.where(r.kind == SAME_SURFACE, 255.0 * r.residual / depth_in_errors, 0.0)


def _summary(r: Residuals, levels: FloatArray, own: NDArray[np.bool_]) -> dict[str, float]:
    kind, residual = r.kind[own], r.residual[own]
    coincide = (kind == SAME_SURFACE) & (np.abs(residual) < WIDTH)
    agree = np.where(kind == SAME_SURFACE, coincide, np.abs(residual) < 2 * WIDTH)
    off = levels[own][coincide]
    return {
        "mask_violation": float(np.mean(((kind == OUTSIDE_MASK) & (residual > 1.0)).any(axis=1))),
        "front_violation": float(np.mean(((kind == IN_FRONT) & (residual < -1.0)).any(axis=1))),
        "overlap": float(np.mean(coincide.any(axis=1))),
        "overlap_rms_levels": float(np.sqrt(np.mean(off**2))) if off.size else 0.0,
        "agreement": float(np.mean(agree[kind > 0])) if (kind > 0).any() else 1.0,
    }


def _clusterings(problem: Problem) -> Iterator[NDArray[np.int64]]:
    points = problem.points
    yield points.view
    yield points.view * _CODES + _codes(problem)
    tile = (points.px // _TILE_PX).astype(np.int64)
    yield (points.view * 1024 + tile[:, 1]) * 1024 + tile[:, 0]


def _codes(problem: Problem) -> NDArray[np.int64]:
    step = problem.views.rounding[problem.points.view] / 0.3
    codes: NDArray[np.int64] = np.round(problem.points.value / step).astype(np.int64)
    return codes


def _clustered(influence: FloatArray, cluster: NDArray[np.int64]) -> float:
    _, index = np.unique(cluster, return_inverse=True)
    return float(np.sqrt(np.sum(np.bincount(index, influence) ** 2)))


def _rounding_part(problem: Problem, solution: Fit, unknowns: Unknowns, row: FloatArray) -> float:
    """Standard deviation of the zoom when every terrace's depth is off by a rounding error of its own.

    The worse of two cases: terraces of different views err apart, or (a symmetric object) together.
    """
    points = problem.points
    r = problem.residuals(solution.zoom, solution.scales)
    wide = np.where(r.kind == SAME_SURFACE, WIDTH, 2 * WIDTH)
    weight = np.where(r.kind > 0, (wide**2 / (wide**2 + r.residual**2)) ** 2, 0.0)
    padded = np.append(row, 0.0)
    own, other = padded[unknowns.column[1 + points.view]], padded[unknowns.column[1:]]
    d = r.derivative
    pull = weight * (d[..., 0] * row[0] + d[..., 1] * own[:, None] + d[..., 2] * other)
    error = _UNSMOOTHED * problem.views.rounding[points.view] / points.value
    # Each surface enters twice: as the points of its view, and as the surface that other views' points are held to.
    shift = 2.0 * (pull * d[..., 1]).sum(axis=1) * error
    codes = _codes(problem)
    return max(_clustered(shift, points.view * _CODES + codes), _clustered(shift, codes))

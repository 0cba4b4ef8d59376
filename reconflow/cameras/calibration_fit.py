"""The fit of one focal length and per-view depth scales to prepared views of known poses. No thresholds, no errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.calibration_kernels import hold_against_views, normal_equations
from reconflow.cameras.calibration_views import PreparedViews, SamplePoints
from reconflow.cameras.camera import PinholeCamera

FloatArray = NDArray[np.float64]

WIDTH: Final = 3.0
"""Width of the robust loss, in expected errors."""


@dataclass(frozen=True, eq=False)
class Problem:
    """What is fitted: the views' fixed poses and intrinsics, and the points held against them.

    Attributes:
        views: The prepared views.
        points: Back-projected pixels.
        focal_px: (V, 2) focal lengths at zoom 0, working pixels.
        centre_px: (V, 2) principal points, working pixels.
        cam_from_world: (V, 4, 4).
    """

    views: PreparedViews
    points: SamplePoints
    focal_px: FloatArray
    centre_px: FloatArray
    cam_from_world: FloatArray

    @classmethod
    def of(cls, views: PreparedViews, points: SamplePoints, cameras: Sequence[PinholeCamera]) -> Problem:
        """Collect the problem for cameras given at the photos' resolution."""
        focal, centre = views.intrinsics_px(cameras)
        return cls(views, points, focal, centre, np.array([camera.cam_from_world for camera in cameras]))

    def with_points(self, points: SamplePoints) -> Problem:
        """Return the same problem for other points."""
        return replace(self, points=points)

    def residuals(self, zoom: float, scales: FloatArray, blur: float = 0.0) -> Residuals:
        """Hold every point against every other view.

        Args:
            zoom: Natural logarithm of the factor on the focal lengths.
            scales: (V,) depth scales, world units.
            blur: Further expected error of every distance, world units.
        """
        shape = (len(self.points.view), len(self.focal_px))
        out = Residuals(np.empty(shape), np.empty(shape, dtype=np.int8), np.empty((*shape, 3)))
        hold_against_views(
            self.points.view,
            self.points.px,
            self.points.value,
            self.points.slope,
            self.views.values,
            self.views.outside_px,
            self.views.sizes_hw,
            self.focal_px * np.exp(zoom),
            self.centre_px,
            self.cam_from_world,
            scales,
            self.views.rounding,
            blur,
            out.residual,
            out.kind,
            out.derivative,
        )
        return out


@dataclass(frozen=True, eq=False)
class Residuals:
    """(P, V) `residual` and `kind`, and (P, V, 3) `derivative`; see `hold_against_views`."""

    residual: FloatArray
    kind: NDArray[np.int8]
    derivative: FloatArray


@dataclass(frozen=True, eq=False)
class Fit:
    """A solution.

    Attributes:
        zoom: Natural logarithm of the factor on the focal lengths.
        scales: (V,) world depth of the value 1; 0 without depth.
        cost: How much the views contradict each other, robustly.
        net_cost: The cost minus what coinciding surfaces earn: negative when views have much in common.
    """

    zoom: float
    scales: FloatArray
    cost: float
    net_cost: float


def starting_scales(problem: Problem, zoom: float, rounds: int = 4) -> FloatArray:
    """Guess depth scales from extents: a view's nearest point is the extent that the other views see towards it.

    Args:
        problem: Views with their poses.
        zoom: Natural logarithm of the factor on the focal lengths.
        rounds: Repetitions; each halves what is left of the first guess.

    Returns:
        (V,) world depth of value 1; the known scales where the encoding is metric, 0 without depth.
    """
    views, points = problem.views, problem.points
    fitted = np.flatnonzero(views.has_depth & (views.known_scale == 0))
    poses = problem.cam_from_world
    scales = np.where(views.has_depth, views.known_scale, 0.0)
    middle = common_target(poses)
    distance = np.ones(len(scales))
    for v in fitted:
        distance[v] = -(poses[v, 2, :3] @ middle + poses[v, 2, 3])
        scales[v] = distance[v] / np.median(points.value[points.view == v])
    world = _lift(problem, zoom, scales)
    for _ in range(rounds):
        for v in fitted:
            own = points.view == v
            depth = -(world[~own] @ poses[v, 2, :3] + poses[v, 2, 3])
            if len(depth) == 0:
                continue
            nearest = np.percentile(depth, 0.1)
            scales[v] = max(nearest, 0.05 * distance[v]) / np.percentile(points.value[own], 0.1)
        world = _lift(problem, zoom, scales)
    return scales


@dataclass(frozen=True, eq=False)
class System:
    """The robust cost at one place, with the (n, n) Gauss-Newton matrix and (P, n) gradient of its half."""

    cost: float
    hessian: FloatArray
    gradient: FloatArray


class Unknowns:
    """Which numbers are fitted, as one vector: the zoom (when free), then the logarithms of the unknown scales."""

    def __init__(self, problem: Problem, scales: FloatArray, *, fit_zoom: bool) -> None:
        self.problem, self.fixed_scales, self.fit_zoom = problem, scales, fit_zoom
        self.views = np.flatnonzero(problem.views.has_depth & (problem.views.known_scale == 0))
        self.column = np.full(1 + len(scales), -1)
        self.column[0] = 0 if fit_zoom else -1
        self.column[1 + self.views] = np.arange(len(self.views)) + int(fit_zoom)
        self.count = len(self.views) + int(fit_zoom)

    def split(self, theta: FloatArray, zoom: float) -> tuple[float, FloatArray]:
        """Return zoom and (V,) scales of a vector; `zoom` is used when it is not fitted."""
        scales = self.fixed_scales.copy()
        scales[self.views] = np.exp(theta[int(self.fit_zoom) :])
        return float(theta[0]) if self.fit_zoom else zoom, scales

    def system(self, zoom: float, scales: FloatArray, blur: float, weights: FloatArray, reward: float = 0.0) -> System:
        """Evaluate the cost and its linearisation."""
        r = self.problem.residuals(zoom, scales, blur)
        gradient = np.empty((len(weights), self.count))
        cost, hessian = normal_equations(
            self.problem.points.view,
            r.residual,
            r.kind,
            r.derivative,
            weights,
            WIDTH,
            self.column,
            self.count,
            gradient,
            reward,
        )
        return System(cost, np.asarray(hessian, dtype=np.float64), gradient)


def fit(
    problem: Problem,
    zoom: float,
    scales: FloatArray,
    blurs: Sequence[float],
    *,
    fit_zoom: bool,
    steps: int = 12,
    weights: FloatArray | None = None,
) -> Fit:
    """Levenberg-Marquardt on the robust cost, from coarse to fine.

    Args:
        problem: What is fitted.
        zoom: Start of the zoom.
        scales: (V,) start of the scales; known ones and zeros stay.
        blurs: Expected errors added in each round, world units, largest first.
        fit_zoom: Whether the zoom moves.
        steps: Most iterations per round.
        weights: (P,) weights of the points.
    """
    unknowns = Unknowns(problem, scales, fit_zoom=fit_zoom)
    weights = np.ones(len(problem.points.view)) if weights is None else weights
    theta = np.concatenate([[zoom] if fit_zoom else [], np.log(scales[unknowns.views])])
    now = System(0.0, np.zeros((0, 0)), np.zeros((0, 0)))
    for blur in blurs:
        now = unknowns.system(*unknowns.split(theta, zoom), blur, weights)
        damping = 1e-3
        for _ in range(steps if unknowns.count else 0):
            moved = _descend(unknowns, theta, zoom, blur, weights, now, damping)
            if moved is None:
                break
            gain = now.cost - moved[1].cost
            theta, now, damping = moved
            if gain < 1e-5 * abs(now.cost):
                break
    zoom, scales = unknowns.split(theta, zoom)
    return Fit(zoom, scales, now.cost, unknowns.system(zoom, scales, blurs[-1], weights, reward=1.0).cost)


def _descend(
    unknowns: Unknowns, theta: FloatArray, zoom: float, blur: float, weights: FloatArray, now: System, damping: float
) -> tuple[FloatArray, System, float] | None:
    """Take one step that lowers the cost, or return None when even the shortest does not."""
    gradient = now.gradient.sum(axis=0)
    while damping < 1e4:
        damped: FloatArray = now.hessian + np.diag(damping * np.diag(now.hessian) + 1e-9)
        trial = theta + np.clip(np.linalg.solve(damped, -gradient), -0.2, 0.2)
        then = unknowns.system(*unknowns.split(trial, zoom), blur, weights)
        if then.cost < now.cost:
            return trial, then, max(damping / 10, 1e-6)
        damping *= 10
    return None


def common_target(cam_from_world: FloatArray) -> FloatArray:
    """Return the (3,) point nearest to all optical axes of (V, 4, 4) poses: roughly where the object is."""
    rotations, shifts = cam_from_world[:, :3, :3], cam_from_world[:, :3, 3]
    centres = -np.einsum("vji,vj->vi", rotations, shifts)
    axes = rotations[:, 2]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    target: FloatArray = np.linalg.lstsq(across.sum(axis=0), np.einsum("vij,vj->i", across, centres), rcond=None)[0]
    return target


def _lift(problem: Problem, zoom: float, scales: FloatArray) -> FloatArray:
    points = problem.points
    v = points.view
    depth = scales[v] * points.value
    focal = problem.focal_px[v] * np.exp(zoom)
    xy = (points.px - problem.centre_px[v]) / focal * depth[:, None] * [1.0, -1.0]
    cam = np.concatenate([xy, -depth[:, None]], axis=1) - problem.cam_from_world[v, :3, 3]
    world: FloatArray = np.einsum("pij,pi->pj", problem.cam_from_world[v, :3, :3], cam)
    return world

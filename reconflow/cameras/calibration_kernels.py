"""Numba kernels of the calibration: depth terraces smoothed within their rounding, and points held against views.

Nothing here decides anything; every loop writes disjoint outputs in a fixed order, single-threaded.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

FloatGrid: TypeAlias = NDArray[np.floating[Any]]
Pair: TypeAlias = tuple[float, float]
Triple: TypeAlias = tuple[float, float, float]

NO_TEST, OUTSIDE_MASK, IN_FRONT, SAME_SURFACE = 0, 1, 2, 3

STEEPEST = 6.0
"""Depth change within a pixel, in pixel widths, beyond which neighbours belong to different surfaces."""

MASK_SLACK_PX, FRONT_SLACK = 0.75, 3.0
"""What one-sided tests forgive, in pixels and expected errors: noise must not pull on them."""

LEAST_FACING, LEAST_ALIKE = 0.1, 0.7
"""Cosines: how much a surface must face a camera to be seen, and how alike normals of one surface are."""


@njit(cache=True)
def smooth_within_rounding(
    counts: FloatGrid, half_width: float, top: float, join: float, sweeps: int, relaxation: float
) -> FloatGrid:
    """Undo rounding: the smoothest values that still round to the stored counts.

    Successive over-relaxation of Laplace's equation inside each pixel's rounding interval. Neighbours further apart
    than `join` counts are not joined, so that edges and steep flanks, which need no help, stay.

    Args:
        counts: (H, W) stored values, 0 = nothing.
        half_width: Half of the rounding interval, counts.
        top: Largest possible value, counts.
        join: Largest difference between neighbours on one surface, counts.
        sweeps: Passes over the image.
        relaxation: Over-relaxation, 1 to 2.

    Returns:
        (H, W) float64 values, counts.
    """
    height, width = counts.shape
    values = counts.astype(np.float64)
    for sweep in range(sweeps):
        for step_y in range(height):
            y = step_y if sweep % 2 == 0 else height - 1 - step_y
            for step_x in range(width):
                x = step_x if sweep % 2 == 0 else width - 1 - step_x
                centre = counts[y, x]
                if centre == 0:
                    continue
                total, number = 0.0, 0
                for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                    yy, xx = y + dy, x + dx
                    if 0 <= yy < height and 0 <= xx < width:
                        other = counts[yy, xx]
                        if other > 0 and abs(other - centre) <= join:
                            total += values[yy, xx]
                            number += 1
                if number > 0:
                    moved = values[y, x] + relaxation * (total / number - values[y, x])
                    values[y, x] = min(max(moved, centre - half_width), min(centre + half_width, top))
    return values


@njit(cache=True)
def _bilinear(grid: FloatGrid, x: float, y: float) -> tuple[float, float, float]:
    """Value and x, y derivatives at grid coordinates that lie within the grid."""
    height, width = grid.shape
    x0, y0 = min(max(int(np.floor(x)), 0), width - 2), min(max(int(np.floor(y)), 0), height - 2)
    fx, fy = x - x0, y - y0
    a, b = grid[y0, x0], grid[y0, x0 + 1]
    c, d = grid[y0 + 1, x0], grid[y0 + 1, x0 + 1]
    value = (a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy
    return value, (b - a) * (1 - fy) + (d - c) * fy, (c - a) * (1 - fx) + (d - b) * fx


@njit(cache=True, inline="always")
def _rotate(m: FloatGrid, x: float, y: float, z: float) -> tuple[float, float, float]:
    return (
        m[0, 0] * x + m[0, 1] * y + m[0, 2] * z,
        m[1, 0] * x + m[1, 1] * y + m[1, 2] * z,
        m[2, 0] * x + m[2, 1] * y + m[2, 2] * z,
    )


@njit(cache=True, inline="always")
def _dot(a: Triple, b: Triple) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@njit(cache=True, inline="always")
def _length(a: Triple) -> float:
    return float(np.sqrt(a[0] ** 2 + a[1] ** 2 + a[2] ** 2))


@njit(cache=True, inline="always")
def _surface_gradient(
    px: float, py: float, depth: float, du: float, dv: float, scale: float, fx: float, fy: float
) -> tuple[float, float, float]:
    """Gradient, in the camera's frame, of "how far behind the surface"; it points into the object.

    Args:
        px: Point in the camera's frame, x.
        py: y.
        depth: -z.
        du: Derivative of the value image along x, per pixel.
        dv: Along y.
        scale: Depth of the value 1.
        fx: Focal length along x, pixels.
        fy: Along y.
    """
    gu, gv = scale * du * fx / depth, -scale * dv * fy / depth
    return -gu, -gv, -1.0 - (gu * px + gv * py) / depth


@njit(cache=True)
def _reaches(values: FloatGrid, x0: int, y0: int, depth: float, scale: float) -> bool:
    """Whether a surface within a pixel of the cell at (x0, y0) is as near as `depth`.

    The edge of a near surface lies anywhere between the last sample on it and the first one beyond. A face seen edge
    on has all its points there, and must not count as being in front of what lies beyond.
    """
    height, width = values.shape
    for y in range(max(y0 - 1, 0), min(y0 + 3, height)):
        for x in range(max(x0 - 1, 0), min(x0 + 3, width)):
            if 0.0 < values[y, x] * scale <= depth:
                return True
    return False


@njit(cache=True)
def signed_outside(grid: FloatGrid, height: int, width: int, u: float, v: float) -> tuple[float, float, float]:
    """Signed distance to a silhouette and its derivatives at any grid coordinates, also beyond the image."""
    iu, iv = min(max(u, 0.0), width - 1.0), min(max(v, 0.0), height - 1.0)
    distance, du, dv = _bilinear(grid[:height, :width], iu, iv)
    beyond = np.hypot(u - iu, v - iv)
    if beyond > 0:
        return max(distance, 0.0) + beyond, (u - iu) / beyond, (v - iv) / beyond
    return distance, du, dv


@njit(cache=True)
def _between_views(cam_from_world: FloatGrid) -> tuple[FloatGrid, FloatGrid]:
    """Return what takes a point from each view's frame to each other's: rotations (V, V, 3, 3), shifts (V, V, 3)."""
    views = len(cam_from_world)
    b_from_a, shift = np.zeros((views, views, 3, 3)), np.zeros((views, views, 3))
    for a in range(views):
        for b in range(views):
            for j in range(3):
                shift[a, b, j] = cam_from_world[b, j, 3]
                for k in range(3):
                    for m in range(3):
                        b_from_a[a, b, j, k] += cam_from_world[b, j, m] * cam_from_world[a, k, m]
                    shift[a, b, j] -= b_from_a[a, b, j, k] * cam_from_world[a, k, 3]
    return b_from_a, shift


@njit(cache=True)
def hold_against_views(
    point_view: NDArray[np.int64],
    point_px: FloatGrid,
    point_value: FloatGrid,
    point_slope: FloatGrid,
    values: FloatGrid,
    outside_px: FloatGrid,
    sizes_hw: NDArray[np.int64],
    focal_px: FloatGrid,
    centre_px: FloatGrid,
    cam_from_world: FloatGrid,
    scales: FloatGrid,
    rounding: FloatGrid,
    blur: float,
    residual: FloatGrid,
    kind: NDArray[np.int8],
    derivative: FloatGrid,
) -> None:
    """Back-project points of every view and compare them with every other view.

    Args:
        point_view: (P,) view of each point.
        point_px: (P, 2) pixel coordinates, x then y.
        point_value: (P,) depth as a fraction of the view's scale.
        point_slope: (P, 2) derivatives of the value, per pixel along x and y; NaN on edges.
        values: (V, H, W) depth as a fraction of the view's scale, 0 = nothing; padded to one size.
        outside_px: (V, H, W) signed distance to the mask, positive outside, pixels.
        sizes_hw: (V, 2) true (height, width) of each view.
        focal_px: (V, 2).
        centre_px: (V, 2).
        cam_from_world: (V, 4, 4).
        scales: (V,) world depth of the value 1; 0 for a view without depth.
        rounding: (V,) standard deviation of a stored depth, as a fraction of the scale.
        blur: Further standard deviation of every distance, world units; large ones make the fit coarse.
        residual: (P, V) out: OUTSIDE_MASK: distance to the silhouette's cone; else distance behind (positive) or
            in front of (negative) the surface; both in units of the expected error.
        kind: (P, V) out: NO_TEST; OUTSIDE_MASK; SAME_SURFACE: the point lies like B's surface and should coincide with
            it; IN_FRONT: it does not, and is in front.
        derivative: (P, V, 3) out: of the residual by ln focal length, ln scale of the point's view, ln scale of the
            other view.
    """
    views = len(focal_px)
    b_from_a, shift = _between_views(cam_from_world)
    for i in range(len(point_view)):
        a = point_view[i]
        depth_a = scales[a] * point_value[i]
        fax, fay = focal_px[a, 0], focal_px[a, 1]
        xa, ya = (point_px[i, 0] - centre_px[a, 0]) / fax, -(point_px[i, 1] - centre_px[a, 1]) / fay
        na = _surface_gradient(
            xa * depth_a, ya * depth_a, depth_a, point_slope[i, 0], point_slope[i, 1], scales[a], fax, fay
        )
        length = _length(na)
        unit = (na[0] / length, na[1] / length, na[2] / length)
        for b in range(views):
            kind[i, b], residual[i, b] = NO_TEST, 0.0
            derivative[i, b, :] = 0.0
            turn, step = b_from_a[a, b], shift[a, b]
            px, py, pz = _rotate(turn, xa * depth_a, ya * depth_a, -depth_a)
            point = (px + step[0], py + step[1], pz + step[2])
            depth = -point[2]
            if b == a or depth < 1e-6:
                continue
            fx, fy = focal_px[b, 0], focal_px[b, 1]
            centred = (fx * point[0] / depth, -fy * point[1] / depth)
            u, v = centre_px[b, 0] + centred[0] - 0.5, centre_px[b, 1] + centred[1] - 0.5
            height, width = sizes_hw[b, 0], sizes_hw[b, 1]
            # How the point moves in B's frame: with its depth, and with the focal length.
            ray = _rotate(turn, xa, ya, -1.0)
            zoomed = _rotate(turn, -xa * depth_a, -ya * depth_a, 0.0)
            distance, ou, ov = signed_outside(outside_px[b], height, width, u, v)
            if distance > MASK_SLACK_PX:
                pixel_a, pixel_b = depth_a / fax, depth / fx
                weight = pixel_b / np.sqrt((0.4 * pixel_b) ** 2 + (0.4 * pixel_a) ** 2 + blur**2)
                kind[i, b], residual[i, b] = OUTSIDE_MASK, (distance - MASK_SLACK_PX) * weight
                _derive_outside((ou, ov), (fx, fy), point, centred, ray, zoomed, weight, depth_a, derivative[i, b])
            elif scales[b] > 0 and distance <= 0:
                kind[i, b], residual[i, b] = _test_surface(
                    values[b, :height, :width],
                    (u, v),
                    (fx, fy),
                    point,
                    centred,
                    ray,
                    zoomed,
                    _rotate(turn, unit[0], unit[1], unit[2]),
                    depth_a,
                    scales[b],
                    (rounding[a] * scales[a], rounding[b] * scales[b]),
                    blur,
                    derivative[i, b],
                )


@njit(cache=True, inline="always")
def _derive_outside(
    slope: Pair,
    focal: Pair,
    point: Triple,
    centred: Pair,
    ray: Triple,
    zoomed: Triple,
    weight: float,
    depth_a: float,
    derivative: FloatGrid,
) -> None:
    """Write the derivatives of a weighted distance to a silhouette into `derivative`, (3,).

    `slope` has the distance's derivatives along x and y of the picture; the others are those of `_test_surface`.
    """
    (ou, ov), (px, py, pz) = slope, point
    gu, gv = ou * focal[0] / -pz, -ov * focal[1] / -pz
    gz = (gu * px + gv * py) / -pz
    derivative[0] = weight * (gu * zoomed[0] + gv * zoomed[1] + gz * zoomed[2] + ou * centred[0] + ov * centred[1])
    derivative[1] = weight * depth_a * (gu * ray[0] + gv * ray[1] + gz * ray[2])


@njit(cache=True, inline="always")
def _test_surface(
    values: FloatGrid,
    place: Pair,
    focal: Pair,
    point: Triple,
    centred: Pair,
    ray: Triple,
    zoomed: Triple,
    n: Triple,
    depth_a: float,
    scale: float,
    roundings: Pair,
    blur: float,
    derivative: FloatGrid,
) -> tuple[int, float]:
    """Compare a point of view A with the surface that view B sees there.

    Args:
        values: (H, W) B's depth as a fraction of its scale.
        place: Where B sees the point, grid coordinates.
        focal: B's focal lengths, pixels.
        point: In B's frame.
        centred: Where B sees it from its principal point, pixels.
        ray: How the point moves with its depth in A.
        zoomed: How it moves with the logarithm of the focal length.
        n: Normal of A's surface in B's frame, into the object.
        depth_a: Depth in A.
        scale: World depth of B's value 1.
        roundings: Standard deviations of stored depths in A and B, world units.
        blur: Further standard deviation, world units.
        derivative: (3,) out; stays when there is no test.

    Returns:
        What kind of test it is, and its residual.
    """
    (u, v), (px, py, pz) = place, point
    depth = -pz
    pixel_b = depth / focal[0]
    height, width = values.shape
    x0, y0 = min(int(u), width - 2), min(int(v), height - 2)
    q0, q1, q2, q3 = values[y0, x0], values[y0, x0 + 1], values[y0 + 1, x0], values[y0 + 1, x0 + 1]
    low, high = min(min(q0, q1), min(q2, q3)), max(max(q0, q1), max(q2, q3))
    if low <= 0 or (high - low) * scale > STEEPEST * pixel_b:
        return NO_TEST, 0.0
    surface, du, dv = _bilinear(values, u, v)
    nb = _surface_gradient(px, py, depth, du, dv, scale, focal[0], focal[1])
    nb_length = _length(nb)
    behind = depth - scale * surface
    # Only a surface that faces B and lies like B's own can be the one that B sees.
    facing = _dot(n, point) / _length(point)
    alike = _dot(n, nb) / nb_length
    same = facing > LEAST_FACING and alike > LEAST_ALIKE
    if behind > 0 and not same:
        return NO_TEST, 0.0
    along = _dot(nb, ray)
    error = np.sqrt(
        (roundings[0] * along) ** 2 + roundings[1] ** 2 + (0.1 * pixel_b * nb_length) ** 2 + (blur * nb_length) ** 2
    )
    kind, residual = SAME_SURFACE, behind / error
    if not same:
        if behind > -FRONT_SLACK * error or _reaches(values, x0, y0, depth, scale):
            return NO_TEST, 0.0
        kind, residual = IN_FRONT, behind / error + FRONT_SLACK
    derivative[0] = (_dot(nb, zoomed) - scale * (du * centred[0] + dv * centred[1])) / error
    derivative[1] = along * depth_a / error
    derivative[2] = -scale * surface / error
    return kind, residual


@njit(cache=True)
def normal_equations(
    point_view: NDArray[np.int64],
    residual: FloatGrid,
    kind: NDArray[np.int8],
    derivative: FloatGrid,
    weights: FloatGrid,
    width: float,
    column: NDArray[np.int64],
    columns: int,
    gradient: FloatGrid,
    reward: float,
) -> tuple[float, FloatGrid]:
    """Sum the robust cost and its Gauss-Newton system.

    The loss is Geman-McClure, w² r² / (w² + r²), of width w for pairs on the same surface, where occlusion is usual,
    and 2 w for one-sided tests. A pair on the same surface can earn w², so that cameras which make views coincide win
    over cameras that leave them nothing in common: the cost of a perfect fit is negative then.

    Args:
        point_view: (P,) view of each point.
        residual: (P, V) from `hold_against_views`; likewise `kind` and `derivative`.
        kind: (P, V).
        derivative: (P, V, 3).
        weights: (P,) of the points.
        width: w, in expected errors.
        column: (1 + V,) column of the focal length and of each view's scale, negative where it is not fitted.
        columns: Number of columns.
        gradient: (P, columns) out: each point's part of half the cost's gradient.
        reward: 1 to let coinciding surfaces earn, 0 for contradictions only.

    Returns:
        cost, and the (columns, columns) matrix.
    """
    hessian = np.zeros((columns, columns))
    gradient[:] = 0.0
    cost = 0.0
    row = np.zeros(columns)
    for i in range(len(point_view)):
        for b in range(residual.shape[1]):
            if kind[i, b] == NO_TEST:
                continue
            r = residual[i, b]
            wide = width if kind[i, b] == SAME_SURFACE else 2 * width
            shrink = wide * wide / (wide * wide + r * r)
            cost += weights[i] * shrink * r * r
            if kind[i, b] == SAME_SURFACE:
                cost -= reward * weights[i] * width * width
            w = weights[i] * shrink * shrink
            row[:] = 0.0
            for j, c in ((0, column[0]), (1, column[1 + point_view[i]]), (2, column[1 + b])):
                if c >= 0:
                    row[c] = derivative[i, b, j]
            for j in range(columns):
                if row[j] != 0.0:
                    gradient[i, j] += w * r * row[j]
                    for k in range(columns):
                        hessian[j, k] += w * row[j] * row[k]
    return cost, hessian

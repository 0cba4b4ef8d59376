"""What a depth render says about the surface: an interval per pixel, and a smooth depth inside it. One view at a time.

A stored value v of a relative depth render stands for any depth in [(v - 1/2), (v + 1/2)] / max_value * z_max. On an
8-bit render these intervals are over half a percent of the camera distance wide, and their centres form terraces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

from reconflow.cameras.camera import PinholeCamera
from reconflow.datasets.dataset import DepthEncoding, DepthImage, View
from reconflow.parallel import row_bands, run_jobs, thread_count

_JUMP_LEVELS = 4.0
"""Neighbouring pixels that differ by more than this many stored levels, beyond what their slope explains, belong to
different surfaces."""
_STEEPEST = 4.0
"""A surface may recede by this many of its own pixels' widths from one pixel to the next; more is a jump."""
_DAMPING = 0.6
"""Of the Jacobi steps; the iteration is stable below 0.75."""


@dataclass(frozen=True, eq=False)
class SurfaceObservation:
    """What one view knows of the surface, at the resolution of its depth render (or its mask when it has none).

    Attributes:
        camera: The view at this resolution.
        mask: (h, w) bool, where the object is.
        mask_distance_px: (h, w) float32, signed distance to the mask's border, negative inside, pixels.
        depth: (h, w) float32, the smooth depth along the optical axis, world units; 0 where unknown. None without
            depth.
        half_width: (h, w) float32, half the width of the interval that the stored value allows, world units.
        frame_cuts_object: Whether the mask touches the image's border, so that outside the frame nothing is known.
    """

    camera: PinholeCamera
    mask: NDArray[np.bool_]
    mask_distance_px: NDArray[np.float32]
    depth: NDArray[np.float32] | None
    half_width: NDArray[np.float32] | None
    frame_cuts_object: bool


def observe(view: View, camera: PinholeCamera, depth_scale: float | None) -> SurfaceObservation:
    """Turn one view of a dataset into what it says about the surface.

    Args:
        view: The view.
        camera: Its camera, at the photo's resolution.
        depth_scale: World depth of the stored value `max_value`; None for a view without usable depth.
    """
    if view.depth is None or (depth_scale is None and view.depth.encoding is DepthEncoding.RELATIVE_Z):
        mask = view.mask
        return SurfaceObservation(camera, mask, signed_mask_distance(mask), None, None, _touches_border(mask))
    image_hw = (view.depth.values.shape[0], view.depth.values.shape[1])
    mask = _mask_at(view, image_hw)
    centre, half_width = depth_interval(view.depth, depth_scale)
    centre = np.where(mask, centre, np.float32(0))
    smooth = smooth_inside_intervals(centre, half_width)
    return SurfaceObservation(
        camera.resized(image_hw), mask, signed_mask_distance(mask), smooth, half_width, _touches_border(mask)
    )


def depth_interval(depth: DepthImage, depth_scale: float | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the centre and half width of the depth interval of every pixel.

    Args:
        depth: Stored values.
        depth_scale: World depth of `max_value` (RELATIVE_Z); ignored for METRIC_Z.

    Returns:
        centre: (h, w) float32, world units, 0 where there is no value.
        half_width: (h, w) float32, world units.
    """
    if depth.encoding is DepthEncoding.METRIC_Z:
        per_level = float(depth.unit or 0.0)
    else:
        per_level = float(depth_scale or 0.0) / depth.max_value
    centre = depth.values.astype(np.float32) * np.float32(per_level)
    return centre, np.full(centre.shape, 0.5 * per_level, np.float32)


def signed_mask_distance(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the (h, w) signed distance from every pixel's centre to the mask's border, negative inside, pixels."""
    if mask.all() or not mask.any():
        return np.full(mask.shape, -1e3 if mask.any() else 1e3, np.float32)
    outside = ndimage.distance_transform_edt(~mask)
    inside = ndimage.distance_transform_edt(mask)
    distance: NDArray[np.float32] = np.where(mask, 0.5 - inside, outside - 0.5).astype(np.float32)
    return distance


def smooth_inside_intervals(
    centre: NDArray[np.float32], half_width: NDArray[np.float32], iterations: int = 60
) -> NDArray[np.float32]:
    """Find a smooth depth that stays inside every pixel's interval, so that terraces become slopes.

    A thin plate is relaxed coarse to fine and clamped to the intervals after every sweep; it does not reach across
    depth jumps. (A membrane would flatten every bulge to the far end of its interval.)

    Args:
        centre: (h, w) interval centres, world units; 0 = no surface.
        half_width: (h, w) half widths, world units.
        iterations: Sweeps per scale.

    Returns:
        (h, w) float32 depth, world units; 0 where `centre` is 0.
    """
    lower, upper = centre - half_width, centre + half_width
    depth = centre.astype(np.float32).copy()
    for stride in (16, 8, 4, 2, 1):
        for _ in range(max(iterations // (4 if stride > 1 else 1), 1)):
            result = depth.copy()
            run_jobs(
                [
                    partial(_relax, depth, result, centre, half_width, lower, upper, stride, start, stop)
                    for start, stop in row_bands(depth.shape[0], thread_count())
                ]
            )
            depth = result
    return depth


@njit(cache=True, nogil=True)
def _relax(
    depth: NDArray[np.float32],
    result: NDArray[np.float32],
    centre: NDArray[np.float32],
    half_width: NDArray[np.float32],
    lower: NDArray[np.float32],
    upper: NDArray[np.float32],
    stride: int,
    start: int,
    stop: int,
) -> None:
    """Take one damped Jacobi step of the 1-D biharmonic equations along both axes, then clamp to the intervals."""
    height, width = depth.shape
    for y in range(start, stop):
        for x in range(width):
            c = centre[y, x]
            if c == 0.0:
                continue
            limit = 2 * _JUMP_LEVELS * half_width[y, x]
            total, count = np.float32(0.0), 0
            for axis in range(2):
                dy, dx = (stride, 0) if axis == 0 else (0, stride)
                if y - 2 * dy < 0 or x - 2 * dx < 0 or y + 2 * dy >= height or x + 2 * dx >= width:
                    continue
                a2, a1 = centre[y - 2 * dy, x - 2 * dx], centre[y - dy, x - dx]
                b1, b2 = centre[y + dy, x + dx], centre[y + 2 * dy, x + 2 * dx]
                if a2 == 0.0 or a1 == 0.0 or b1 == 0.0 or b2 == 0.0:
                    continue
                if abs(a1 - 2 * c + b1) > limit or abs(a2 - 2 * a1 + c) > limit or abs(c - 2 * b1 + b2) > limit:
                    continue
                if abs(a1 - b1) > 2 * stride * limit:
                    continue
                near = depth[y - dy, x - dx] + depth[y + dy, x + dx]
                far = depth[y - 2 * dy, x - 2 * dx] + depth[y + 2 * dy, x + 2 * dx]
                total += (4 * near - far) / 6
                count += 1
            if count > 0:
                smooth = depth[y, x] + np.float32(_DAMPING) * (total / count - depth[y, x])
                result[y, x] = min(max(smooth, lower[y, x]), upper[y, x])


def resample_depth(observation: SurfaceObservation, image_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return a view's smooth depth at another resolution's pixel centres, never mixing two surfaces.

    Args:
        observation: The view; it must have depth.
        image_hw: (height, width), pixels.

    Returns:
        (H, W) float32, world units; 0 where unknown.
    """
    assert observation.depth is not None
    assert observation.half_width is not None
    if observation.depth.shape == image_hw:
        return observation.depth
    result = np.zeros(image_hw, np.float32)
    _resample(observation.depth, depth_jump(observation), result)
    return result


def depth_jump(observation: SurfaceObservation) -> float:
    """Return by how much neighbouring pixels of one surface may differ, world units; 0 without depth.

    Coarsely stored depth allows a number of levels, finely stored depth the slope of a steep surface.
    """
    depth, half_width = observation.depth, observation.half_width
    if depth is None or half_width is None or not (depth > 0).any():
        return 0.0
    pixel = float(np.median(depth[depth > 0])) / observation.camera.focal_px[0]
    return max(2 * _JUMP_LEVELS * float(half_width.max()), _STEEPEST * pixel)


@njit(cache=True, nogil=True)
def _resample(depth: NDArray[np.float32], jump: float, result: NDArray[np.float32]) -> None:
    height, width = depth.shape
    rows, columns = result.shape
    for row in range(rows):
        for column in range(columns):
            py = min(max((row + 0.5) * height / rows - 0.5, 0.0), height - 1.001)
            px = min(max((column + 0.5) * width / columns - 0.5, 0.0), width - 1.001)
            y0, x0 = int(py), int(px)
            result[row, column] = sample_depth(depth, x0, y0, px - x0, py - y0, jump)


@njit(cache=True, nogil=True)
def sample_depth(depth: NDArray[np.float32], x0: int, y0: int, ax: float, ay: float, jump: float) -> float:
    """Bilinear depth between four pixels of one surface; the nearest pixel's where they are of different surfaces."""
    a, b, c, d = depth[y0, x0], depth[y0, x0 + 1], depth[y0 + 1, x0], depth[y0 + 1, x0 + 1]
    low, high = min(min(a, b), min(c, d)), max(max(a, b), max(c, d))
    if low > 0 and high - low <= jump:
        return float((a * (1 - ax) + b * ax) * (1 - ay) + (c * (1 - ax) + d * ax) * ay)
    return float(depth[y0 + int(ay + 0.5), x0 + int(ax + 0.5)])


def _mask_at(view: View, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    assert view.depth is not None
    has_value = view.depth.values > 0
    if view.image_hw == image_hw:
        near = view.mask
    else:
        rows = ((np.arange(image_hw[0]) + 0.5) * view.image_hw[0] / image_hw[0]).astype(np.intp)
        columns = ((np.arange(image_hw[1]) + 0.5) * view.image_hw[1] / image_hw[1]).astype(np.intp)
        near = view.mask[np.ix_(rows, columns)]
    if view.depth.encoding is DepthEncoding.METRIC_Z:
        return near
    grown: NDArray[np.bool_] = ndimage.binary_dilation(near, iterations=2)
    return has_value & grown


def _touches_border(mask: NDArray[np.bool_]) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())

"""Texels and faces: which face covers each texel of an atlas, and filling the texels that none covers.

Textures have row 0 on top (v = 1); the centre of texel (row, column) of an H x W texture is at
u = (column + 0.5) / W, v = 1 - (row + 0.5) / H.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

_SUBTEXEL_BITS = 12


def rasterize_atlas(
    uvs: NDArray[np.floating], uv_faces: NDArray[np.int32], image_hw: tuple[int, int]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Find the face under every texel's centre.

    Corners are rounded to 1/4096 texel, then the test is exact: the centre of a texel on a common edge belongs to
    exactly one of the two faces, so neighbours leave no gap and no texel is claimed twice. Faces may run either way
    round; where faces overlap the lowest index wins.

    Args:
        uvs: (T, 2) texture coordinates in [0, 1], v up.
        uv_faces: (F, 3) indices into `uvs`.
        image_hw: (height, width) of the texture, texels.

    Returns:
        face: (H, W) int32 face index, -1 where there is none.
        bary: (H, W, 2) float32 barycentric weights of the face's corners 0 and 1; zero where there is no face.
    """
    height, width = image_hw
    scale = np.array([width, height], dtype=np.float64) * (1 << _SUBTEXEL_BITS)
    fixed = np.rint(np.asarray(uvs, dtype=np.float64) * scale).astype(np.int64)
    return _rasterize(fixed, np.ascontiguousarray(uv_faces, dtype=np.int32), height, width)


def count_coverage(
    uvs: NDArray[np.floating], uv_faces: NDArray[np.int32], image_hw: tuple[int, int]
) -> NDArray[np.int32]:
    """Count the faces over every texel's centre, (H, W) int32, by the same exact rule as `rasterize_atlas`."""
    height, width = image_hw
    scale = np.array([width, height], dtype=np.float64) * (1 << _SUBTEXEL_BITS)
    fixed = np.rint(np.asarray(uvs, dtype=np.float64) * scale).astype(np.int64)
    return _count(fixed, np.ascontiguousarray(uv_faces, dtype=np.int32), height, width)


def dilate(
    texture: NDArray[np.float32], filled: NDArray[np.bool_], rings: int = 8, *, everywhere: bool = True
) -> NDArray[np.float32]:
    """Fill the texels that have no value, smoothly and without seams around those that have one.

    Up to `rings` texels away, ring by ring, a texel gets the mean of its (up to eight) neighbours that have a value;
    farther away the mean of ever coarser neighbourhoods (push-pull), so that mip levels don't bleed.

    Args:
        texture: (H, W, C), linear values.
        filled: (H, W), True where `texture` holds a value; these texels are returned unchanged.
        rings: How far the exact continuation reaches, texels.
        everywhere: Whether to fill beyond the rings; bilinear lookups on the surface need one ring only.

    Returns:
        (H, W, C) float32; all zero where nothing is filled.
    """
    values = np.where(filled[:, :, None], texture, np.float32(0)).astype(np.float32)
    known = _grow_rings(values, np.ascontiguousarray(filled), rings)
    return _push_pull(values, known) if everywhere and not known.all() else values


@njit(cache=True)
def _inside(ax: int, ay: int, bx: int, by: int, px: int, py: int) -> tuple[bool, int]:
    """Tell whether p is left of edge a-b, or on it where the edge runs up or, level, right; and twice the area."""
    dx, dy = bx - ax, by - ay
    value = dx * (py - ay) - dy * (px - ax)
    return value > 0 or (value == 0 and (dy > 0 or (dy == 0 and dx > 0))), value


@njit(cache=True)
def _rasterize(
    fixed: NDArray[np.int64], faces: NDArray[np.int32], height: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    owner = np.full((height, width), -1, dtype=np.int32)
    bary = np.zeros((height, width, 2), dtype=np.float32)
    for f in range(faces.shape[0]):
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        area = _doubled_area(fixed, i0, i1, i2)
        if area == 0:
            continue
        j1, j2 = (i1, i2) if area > 0 else (i2, i1)
        x0, x1, y0, y1 = _texel_box(fixed, i0, i1, i2, height, width)
        for y in range(y0, y1 + 1):
            py = _centre(y)
            for x in range(x0, x1 + 1):
                if owner[height - 1 - y, x] >= 0:
                    continue
                px = _centre(x)
                in0, w0 = _inside(fixed[j1, 0], fixed[j1, 1], fixed[j2, 0], fixed[j2, 1], px, py)
                in1, w1 = _inside(fixed[j2, 0], fixed[j2, 1], fixed[i0, 0], fixed[i0, 1], px, py)
                in2, w2 = _inside(fixed[i0, 0], fixed[i0, 1], fixed[j1, 0], fixed[j1, 1], px, py)
                if in0 and in1 and in2:
                    owner[height - 1 - y, x] = f
                    bary[height - 1 - y, x, 0] = w0 / abs(area)
                    bary[height - 1 - y, x, 1] = (w1 if area > 0 else w2) / abs(area)
    return owner, bary


@njit(cache=True)
def _count(fixed: NDArray[np.int64], faces: NDArray[np.int32], height: int, width: int) -> NDArray[np.int32]:
    count = np.zeros((height, width), dtype=np.int32)
    for f in range(faces.shape[0]):
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        area = _doubled_area(fixed, i0, i1, i2)
        if area == 0:
            continue
        j1, j2 = (i1, i2) if area > 0 else (i2, i1)
        x0, x1, y0, y1 = _texel_box(fixed, i0, i1, i2, height, width)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                px, py = _centre(x), _centre(y)
                in0, _ = _inside(fixed[j1, 0], fixed[j1, 1], fixed[j2, 0], fixed[j2, 1], px, py)
                in1, _ = _inside(fixed[j2, 0], fixed[j2, 1], fixed[i0, 0], fixed[i0, 1], px, py)
                in2, _ = _inside(fixed[i0, 0], fixed[i0, 1], fixed[j1, 0], fixed[j1, 1], px, py)
                if in0 and in1 and in2:
                    count[height - 1 - y, x] += 1
    return count


@njit(cache=True)
def _doubled_area(fixed: NDArray[np.int64], i: int, j: int, k: int) -> int:
    x1, y1 = fixed[j, 0] - fixed[i, 0], fixed[j, 1] - fixed[i, 1]
    x2, y2 = fixed[k, 0] - fixed[i, 0], fixed[k, 1] - fixed[i, 1]
    return int(x1 * y2 - y1 * x2)


@njit(cache=True)
def _centre(texel: int) -> int:
    return (texel << _SUBTEXEL_BITS) + (1 << (_SUBTEXEL_BITS - 1))


@njit(cache=True)
def _texel_box(fixed: NDArray[np.int64], i: int, j: int, k: int, height: int, width: int) -> tuple[int, int, int, int]:
    low_x = min(fixed[i, 0], fixed[j, 0], fixed[k, 0]) >> _SUBTEXEL_BITS
    high_x = max(fixed[i, 0], fixed[j, 0], fixed[k, 0]) >> _SUBTEXEL_BITS
    low_y = min(fixed[i, 1], fixed[j, 1], fixed[k, 1]) >> _SUBTEXEL_BITS
    high_y = max(fixed[i, 1], fixed[j, 1], fixed[k, 1]) >> _SUBTEXEL_BITS
    return max(low_x, 0), min(high_x, width - 1), max(low_y, 0), min(high_y, height - 1)


@njit(cache=True)
def _grow_rings(values: NDArray[np.float32], filled: NDArray[np.bool_], rings: int) -> NDArray[np.bool_]:
    """Fill `values` ring by ring around the filled texels; return which texels have a value then."""
    height, width, channels = values.shape
    ring_of = np.where(filled, 0, -1).astype(np.int32)
    front = np.flatnonzero(filled.ravel())
    for ring in range(1, rings + 1):
        found = np.empty(min(8 * front.shape[0], height * width), dtype=np.int64)
        count = 0
        for texel in front:
            y, x = texel // width, texel % width
            for ny in range(max(y - 1, 0), min(y + 2, height)):
                for nx in range(max(x - 1, 0), min(x + 2, width)):
                    if ring_of[ny, nx] < 0:
                        ring_of[ny, nx] = ring
                        found[count] = ny * width + nx
                        count += 1
        front = found[:count].copy()
        for texel in front:
            y, x = texel // width, texel % width
            weight = 0
            for ny in range(max(y - 1, 0), min(y + 2, height)):
                for nx in range(max(x - 1, 0), min(x + 2, width)):
                    if 0 <= ring_of[ny, nx] < ring:
                        weight += 1
                        for c in range(channels):
                            values[y, x, c] += values[ny, nx, c]
            for c in range(channels):
                values[y, x, c] /= weight
    return ring_of >= 0


def _push_pull(values: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Fill from a pyramid of means over the known texels of 2 x 2 blocks, upsampled bilinearly."""
    if known.all() or known.size == 1:
        return values
    means, mean_known = _halved(values, known)
    _fill_bilinearly(values, known, _push_pull(means, mean_known))
    return values


@njit(cache=True)
def _halved(values: NDArray[np.float32], known: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Average the known texels of each 2 x 2 block; blocks without any are zero and unknown."""
    height, width, channels = values.shape
    means = np.zeros(((height + 1) // 2, (width + 1) // 2, channels), dtype=np.float32)
    counts = np.zeros(means.shape[:2], dtype=np.int32)
    for y in range(height):
        for x in range(width):
            if known[y, x]:
                counts[y // 2, x // 2] += 1
                for c in range(channels):
                    means[y // 2, x // 2, c] += values[y, x, c]
    for y in range(means.shape[0]):
        for x in range(means.shape[1]):
            for c in range(channels):
                means[y, x, c] /= max(counts[y, x], 1)
    return means, counts > 0


@njit(cache=True)
def _fill_bilinearly(values: NDArray[np.float32], known: NDArray[np.bool_], coarse: NDArray[np.float32]) -> None:
    """Write the unknown texels of `values` from a texture of half the size: weights 3/4 and 1/4 along each axis."""
    height, width, channels = values.shape
    last_y, last_x = coarse.shape[0] - 1, coarse.shape[1] - 1
    for y in range(height):
        near_y, far_y = y // 2, min(max(y // 2 + (1 if y % 2 else -1), 0), last_y)
        for x in range(width):
            if known[y, x]:
                continue
            near_x, far_x = x // 2, min(max(x // 2 + (1 if x % 2 else -1), 0), last_x)
            for c in range(channels):
                near = 0.75 * coarse[near_y, near_x, c] + 0.25 * coarse[near_y, far_x, c]
                far = 0.75 * coarse[far_y, near_x, c] + 0.25 * coarse[far_y, far_x, c]
                values[y, x, c] = 0.75 * near + 0.25 * far

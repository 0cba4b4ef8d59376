"""Compiled texture lookups and their derivatives, one image at a time. No torch, no defaults, no checks.

All levels of a mip stack lie behind each other in one (texels, C) array; a table holds (first texel, height, width)
of each. Row 0 of a texture is at v = 0. Filter modes: 0 nearest, 1 linear, 2 linear in the nearest level, 3 linear in
both neighbouring levels. Boundary modes: 0 wrap, 1 clamp, 2 zero outside.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

_WRAP, _ZERO = 0, 2
_NEAREST, _MIP_NEAREST, _MIP_LINEAR = 0, 2, 3


@njit(cache=True, nogil=True)
def _bounded(index: int, size: int, boundary: int) -> int:
    """Return the texel index that stands for `index`, -1 for none; wrapping expects -1 <= index <= size."""
    if boundary == _WRAP:
        return index + size if index < 0 else index - size if index >= size else index
    if index < 0:
        return -1 if boundary == _ZERO else 0
    if index >= size:
        return -1 if boundary == _ZERO else size - 1
    return index


@njit(cache=True, nogil=True)
def _axis(coordinate: float, size: int, boundary: int, shift: float) -> tuple[int, float]:
    """Return the texel left of a coordinate along one axis, and the fraction towards the next one."""
    if not abs(coordinate) < 1e9:
        coordinate = 0.0
    if boundary == _WRAP:
        coordinate -= math.floor(coordinate)
    else:
        coordinate = min(max(coordinate, -2.0), 3.0)
    position = coordinate * size - shift
    whole = math.floor(position)
    return int(whole), position - whole


@njit(cache=True, nogil=True)
def _taps(level: I64, u: float, v: float, boundary: int) -> tuple[int, int, int, int, float, float]:
    """Return the four texels of a bilinear lookup (-1: none) and the weights of the right and the upper ones."""
    start, height, width = level[0], level[1], level[2]
    x, p = _axis(u, width, boundary, 0.5)
    y, q = _axis(v, height, boundary, 0.5)
    x0, x1 = _bounded(x, width, boundary), _bounded(x + 1, width, boundary)
    y0, y1 = _bounded(y, height, boundary), _bounded(y + 1, height, boundary)
    row0, row1 = start + y0 * width, start + y1 * width
    i00 = row0 + x0 if x0 >= 0 and y0 >= 0 else -1
    i01 = row0 + x1 if x1 >= 0 and y0 >= 0 else -1
    i10 = row1 + x0 if x0 >= 0 and y1 >= 0 else -1
    i11 = row1 + x1 if x1 >= 0 and y1 >= 0 else -1
    return i00, i01, i10, i11, p, q


@njit(cache=True, nogil=True)
def _nearest(level: I64, u: float, v: float, boundary: int) -> int:
    """Return the texel that holds a point, -1 for none."""
    x, _ = _axis(u, level[2], boundary, 0.0)
    y, _ = _axis(v, level[1], boundary, 0.0)
    x, y = _bounded(x, level[2], boundary), _bounded(y, level[1], boundary)
    return level[0] + y * level[2] + x if x >= 0 and y >= 0 else -1


@njit(cache=True, nogil=True)
def _is_zero(grad: F32, row: int, col: int) -> bool:
    """Tell whether a pixel has no gradient, as background that the caller masks."""
    for k in range(grad.shape[2]):  # noqa: SIM110 - Numba compiles no generator expressions
        if grad[row, col, k] != 0.0:
            return False
    return True


@njit(cache=True, nogil=True)
def _texel(texels: F32, index: int, channel: int) -> float:
    return float(texels[np.uint64(index), np.uint64(channel)]) if index >= 0 else 0.0


@njit(cache=True, nogil=True)
def _major_axis(table: I64, da: F32) -> tuple[float, float, float, float, float]:
    """Return the squared major axis of a pixel's footprint in texels of level 0, and its derivative by `da`.

    It is the larger eigenvalue of J J^T, J the derivative of the texel position by the pixel position.
    """
    height, width = float(table[0, 1]), float(table[0, 2])
    ux, uy, vx, vy = da[0] * width, da[1] * width, da[2] * height, da[3] * height
    a, b, c = ux * ux + uy * uy, ux * vx + uy * vy, vx * vx + vy * vy
    half = 0.5 * (a - c)
    root = math.sqrt(half * half + b * b)
    major = 0.5 * (a + c) + root
    by_a, by_c, by_b = 0.5, 0.5, 0.0
    if root > 0.0:
        by_a += 0.5 * half / root
        by_c -= 0.5 * half / root
        by_b = b / root
    return (
        major,
        (2.0 * by_a * ux + by_b * vx) * width,
        (2.0 * by_a * uy + by_b * vy) * width,
        (2.0 * by_c * vx + by_b * ux) * height,
        (2.0 * by_c * vy + by_b * uy) * height,
    )


@njit(cache=True, nogil=True)
def _level(table: I64, footprint: F32, offset: F32, row: int, col: int) -> tuple[float, bool]:
    """Return the mip level of a pixel, and whether it lies strictly between the first and the last level."""
    level = 0.0
    if footprint.shape[0] > 0:
        major = _major_axis(table, footprint[row, col])[0]
        level = 0.5 * math.log2(major) if major > 1e-30 else -50.0
    if offset.shape[0] > 0:
        level += offset[row, col]
    last = table.shape[0] - 1.0
    if not level > 0.0:
        return 0.0, False
    if level >= last:
        return last, False
    return level, True


@njit(cache=True, nogil=True)
def _levels_of_pixel(
    table: I64, footprint: F32, offset: F32, mode: int, row: int, col: int
) -> tuple[int, int, float, bool]:
    """Return the two levels a pixel reads, the second one's weight, and whether that weight can change."""
    if mode < _MIP_NEAREST:
        return 0, 0, 0.0, False
    level, free = _level(table, footprint, offset, row, col)
    if mode == _MIP_NEAREST:
        chosen = math.floor(level + 0.5)
        return chosen, chosen, 0.0, False
    lower = math.floor(level)
    return lower, min(lower + 1, table.shape[0] - 1), level - lower, free


@njit(cache=True, nogil=True)
def texture_forward(
    texels: F32, table: I64, uv: F32, footprint: F32, offset: F32, mode: int, boundary: int, out: F32
) -> None:
    """Look up one image: uv (H, W, 2) to out (H, W, C); footprint (H, W, 4) and offset (H, W) may be empty."""
    height, width, channels = out.shape
    for row in range(height):
        for col in range(width):
            u, v = float(uv[row, col, 0]), float(uv[row, col, 1])
            if mode == _NEAREST:
                index = _nearest(table[0], u, v, boundary)
                for k in range(channels):
                    out[row, col, k] = _texel(texels, index, k)
                continue
            lower, upper, blend, _ = _levels_of_pixel(table, footprint, offset, mode, row, col)
            out[row, col, :] = 0.0
            for which in range(2):
                share = blend if which == 1 else 1.0 - blend
                if share == 0.0:
                    continue
                i00, i01, i10, i11, p, q = _taps(table[upper if which == 1 else lower], u, v, boundary)
                for k in range(channels):
                    low = (1.0 - p) * _texel(texels, i00, k) + p * _texel(texels, i01, k)
                    high = (1.0 - p) * _texel(texels, i10, k) + p * _texel(texels, i11, k)
                    out[row, col, k] += share * ((1.0 - q) * low + q * high)


@njit(cache=True, nogil=True)
def texture_gradient_of_texels(
    table: I64,
    uv: F32,
    footprint: F32,
    offset: F32,
    mode: int,
    boundary: int,
    grad_out: F32,
    start: int,
    stop: int,
    grad_texels: F32,
) -> None:
    """Add one image's gradient to the texels in [start, stop), in raster order."""
    height, width, channels = grad_out.shape
    for row in range(height):
        for col in range(width):
            if _is_zero(grad_out, row, col):
                continue
            u, v = float(uv[row, col, 0]), float(uv[row, col, 1])
            if mode == _NEAREST:
                index = _nearest(table[0], u, v, boundary)
                if start <= index < stop:
                    for k in range(channels):
                        grad_texels[index, k] += grad_out[row, col, k]
                continue
            lower, upper, blend, _ = _levels_of_pixel(table, footprint, offset, mode, row, col)
            for which in range(2):
                share = blend if which == 1 else 1.0 - blend
                if share == 0.0:
                    continue
                i00, i01, i10, i11, p, q = _taps(table[upper if which == 1 else lower], u, v, boundary)
                _add_texel(grad_texels, i00, start, stop, share * (1.0 - p) * (1.0 - q), grad_out[row, col])
                _add_texel(grad_texels, i01, start, stop, share * p * (1.0 - q), grad_out[row, col])
                _add_texel(grad_texels, i10, start, stop, share * (1.0 - p) * q, grad_out[row, col])
                _add_texel(grad_texels, i11, start, stop, share * p * q, grad_out[row, col])


@njit(cache=True, nogil=True)
def _add_texel(grad_texels: F32, index: int, start: int, stop: int, weight: float, grad: F32) -> None:
    if start <= index < stop:
        for k in range(grad.shape[0]):
            grad_texels[np.uint64(index), np.uint64(k)] += weight * grad[k]


@njit(cache=True, nogil=True)
def texture_gradient_of_uv(
    texels: F32,
    table: I64,
    uv: F32,
    footprint: F32,
    offset: F32,
    mode: int,
    boundary: int,
    grad_out: F32,
    grad_uv: F32,
    grad_footprint: F32,
    grad_offset: F32,
) -> None:
    """Write one image's gradient by uv, and by footprint and offset where those are not empty."""
    if mode == _NEAREST:
        return
    height, width, channels = grad_out.shape
    for row in range(height):
        for col in range(width):
            if _is_zero(grad_out, row, col):
                continue
            u, v = float(uv[row, col, 0]), float(uv[row, col, 1])
            lower, upper, blend, free = _levels_of_pixel(table, footprint, offset, mode, row, col)
            by_level = by_u = by_v = 0.0
            for which in range(2):
                share = blend if which == 1 else 1.0 - blend
                if share == 0.0 and not free:
                    continue
                level = upper if which == 1 else lower
                i00, i01, i10, i11, p, q = _taps(table[level], u, v, boundary)
                for k in range(channels):
                    t00, t01 = _texel(texels, i00, k), _texel(texels, i01, k)
                    t10, t11 = _texel(texels, i10, k), _texel(texels, i11, k)
                    g = float(grad_out[row, col, k])
                    low, high = (1.0 - p) * t00 + p * t01, (1.0 - p) * t10 + p * t11
                    value = (1.0 - q) * low + q * high
                    by_level += g * value if which == 1 else -g * value
                    by_u += share * g * ((1.0 - q) * (t01 - t00) + q * (t11 - t10)) * table[level, 2]
                    by_v += share * g * (high - low) * table[level, 1]
            grad_uv[row, col, 0] = by_u
            grad_uv[row, col, 1] = by_v
            if free:
                if grad_offset.shape[0] > 0:
                    grad_offset[row, col] = by_level
                if grad_footprint.shape[0] > 0:
                    major, d0, d1, d2, d3 = _major_axis(table, footprint[row, col])
                    scale = by_level * 0.5 / (math.log(2.0) * major)
                    grad_footprint[row, col, 0] = scale * d0
                    grad_footprint[row, col, 1] = scale * d1
                    grad_footprint[row, col, 2] = scale * d2
                    grad_footprint[row, col, 3] = scale * d3

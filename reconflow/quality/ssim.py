"""Structural similarity of two pictures, fast. One measure, one window: the Gaussian one of the original paper.

Wang, Bovik, Sheikh, Simoncelli 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity",
eq. 13, with C1 = (0.01 L)^2, C2 = (0.03 L)^2, L = 1, a Gaussian window of sigma 1.5 cut at 3.5 sigma (11 x 11 taps),
population covariances, and the mean over channels and over the pixels whose window lies inside the picture. This is
what scikit-image computes with `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1`.

It is fast because only four fields are filtered (x, y, x^2 + y^2, xy: the variances enter as their sum), because the
window is separable and symmetric, and because rows pass through a ring of eleven, so that nothing leaves the cache.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.errors import ValidationFailedError

SIGMA_PX: Final = 1.5
RADIUS_PX: Final = int(3.5 * SIGMA_PX + 0.5)
_C1: Final = 0.01**2
_C2: Final = 0.03**2


def ssim(first_srgb: NDArray[Any], second_srgb: NDArray[Any]) -> float:
    """Return the mean structural similarity of two colour pictures, float64 throughout; 1 when they are equal.

    Args:
        first_srgb: (H, W, C) display values in [0, 1], at least 11 pixels wide and high.
        second_srgb: The same shape.

    Raises:
        ValidationFailedError: The shapes differ, or a side is shorter than the window.
    """
    if first_srgb.ndim != 3 or first_srgb.shape != second_srgb.shape:
        raise ValidationFailedError(
            f"SSIM compares pictures of one size; these are {first_srgb.shape} and {second_srgb.shape}.",
            suggestion="Resize one of them first.",
            shapes=[list(first_srgb.shape), list(second_srgb.shape)],
        )
    height, width, channels = first_srgb.shape
    window = 2 * RADIUS_PX + 1
    if min(height, width) < window:
        raise ValidationFailedError(
            f"SSIM needs pictures of at least {window} x {window} pixels; these are {width} x {height}.",
            suggestion="Measure at a higher resolution.",
            image_hw=[height, width],
        )
    x, y = (
        np.ascontiguousarray(image, dtype=np.float64).reshape(height, width * channels)
        for image in (first_srgb, second_srgb)
    )
    total = _ssim_sum(x, y, channels, _half_window())
    return float(total / ((height - 2 * RADIUS_PX) * (width - 2 * RADIUS_PX) * channels))


def _half_window() -> NDArray[np.float64]:
    """Return the window's weights from its centre outwards, (RADIUS_PX + 1,), summing to 1 over all taps."""
    taps = np.exp(-0.5 * (np.arange(RADIUS_PX + 1) / SIGMA_PX) ** 2)
    weights: NDArray[np.float64] = taps / (taps[0] + 2 * taps[1:].sum())
    return weights


@njit(cache=True, nogil=True)
def _ssim_sum(x: NDArray[np.float64], y: NDArray[np.float64], step: int, weights: NDArray[np.float64]) -> float:
    """Sum the similarity over the inner pixels; rows are (W * C), neighbours in a row stand `step` apart."""
    height, width = x.shape
    radius = len(weights) - 1
    window = 2 * radius + 1
    inner = width - 2 * radius * step
    ring = np.empty((window, 4, inner))
    fields = np.empty((4, width))
    mixed = np.empty((4, inner))
    similarity = np.empty(inner)
    total = 0.0
    for row in range(height):
        for j in range(width):
            a, b = x[row, j], y[row, j]
            fields[0, j] = a
            fields[1, j] = b
            fields[2, j] = a * a + b * b
            fields[3, j] = a * b
        for q in range(4):
            _filter_row(fields[q], ring[row % window, q], step, weights)
        if row < window - 1:
            continue
        for q in range(4):
            _mix_rows(ring, q, row - radius, mixed[q], weights)
        for j in range(inner):
            ux, uy = mixed[0, j], mixed[1, j]
            square, product = ux * ux + uy * uy, ux * uy
            top = (2.0 * product + _C1) * (2.0 * (mixed[3, j] - product) + _C2)
            similarity[j] = top / ((square + _C1) * (mixed[2, j] - square + _C2))
        for j in range(inner):
            total += similarity[j]
    return total


@njit(cache=True, nogil=True)
def _filter_row(
    source: NDArray[np.float64], target: NDArray[np.float64], step: int, weights: NDArray[np.float64]
) -> None:
    """Filter one row horizontally into `target`, the inner part."""
    inner, radius = len(target), len(weights) - 1
    centre = radius * step
    for k in range(0, radius + 1, 2):
        near, far = k * step, (k + 1) * step
        _add_pairs(
            target,
            source[centre - near : centre - near + inner],
            source[centre + near : centre + near + inner],
            source[centre - far : centre - far + inner],
            source[centre + far : centre + far + inner],
            0.5 * weights[0] if k == 0 else weights[k],
            weights[k + 1],
            k == 0,
        )


@njit(cache=True, nogil=True)
def _mix_rows(
    ring: NDArray[np.float64], q: int, centre: int, target: NDArray[np.float64], weights: NDArray[np.float64]
) -> None:
    """Filter field `q` vertically over the ring's rows into `target`."""
    window, radius = ring.shape[0], len(weights) - 1
    for k in range(0, radius + 1, 2):
        _add_pairs(
            target,
            ring[(centre - k) % window, q],
            ring[(centre + k) % window, q],
            ring[(centre - k - 1) % window, q],
            ring[(centre + k + 1) % window, q],
            0.5 * weights[0] if k == 0 else weights[k],
            weights[k + 1],
            k == 0,
        )


@njit(cache=True, nogil=True)
def _add_pairs(
    target: NDArray[np.float64],
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    c: NDArray[np.float64],
    d: NDArray[np.float64],
    near: float,
    far: float,
    first: bool,  # noqa: FBT001 - a compiled kernel takes positional arguments only
) -> None:
    """Add near * (a + b) + far * (c + d) to the target, or set it when it is the first."""
    if first:
        for j in range(len(target)):
            target[j] = near * (a[j] + b[j]) + far * (c[j] + d[j])
    else:
        for j in range(len(target)):
            target[j] += near * (a[j] + b[j]) + far * (c[j] + d[j])

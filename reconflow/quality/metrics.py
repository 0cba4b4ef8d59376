"""How far a picture, a mask or a depth map is from its reference. Single measures on arrays; no rendering, no files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_PSNR_DB: Final = 100.0
"""What equal pictures get: a finite number survives JSON and means."""


def squared_error(first_srgb: NDArray[Any], second_srgb: NDArray[Any]) -> NDArray[np.float64]:
    """Return (H, W) the squared difference of two (H, W, 3) pictures in [0, 1], averaged over the channels."""
    difference = first_srgb.astype(np.float64) - second_srgb.astype(np.float64)
    error: NDArray[np.float64] = np.square(difference).mean(axis=-1)
    return error


def psnr_db(mean_squared_error: float) -> float:
    """Return the peak signal-to-noise ratio for data range 1, decibels, at most `MAX_PSNR_DB`."""
    return min(MAX_PSNR_DB, -10.0 * math.log10(max(mean_squared_error, 1e-30)))


def mask_iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Return intersection over union of two masks; 1 when both are empty."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0


@dataclass(frozen=True)
class DepthError:
    """How far a rendered depth map is from the stored one, over the pixels where both see the object.

    Attributes:
        mae_levels: Mean absolute difference, in counts of the stored encoding.
        rmse_levels: Root mean square difference, in the same counts.
        mae_relative: Mean absolute difference of z, as a fraction of the stored z.
        rmse_relative: Root mean square of the same fraction.
        max_value: The count that stands for the encoding's full range, 255 or 65535.
        z_of_max: World z of that count: the per-view scale used.
        overlap: Pixels compared, as a fraction of the pixels where either sees the object.
    """

    mae_levels: float
    rmse_levels: float
    mae_relative: float
    rmse_relative: float
    max_value: int
    z_of_max: float
    overlap: float


def fit_depth_scale(values: NDArray[np.uint16], depth: NDArray[Any], max_value: int) -> float | None:
    """Return the world z that `max_value` stands for: the median over all pixels that both maps fill.

    The median of single ratios, so that mismatched silhouettes do not pull it. None when the maps do not overlap.

    Args:
        values: (h, w) stored counts, 0 = none.
        depth: (h, w) along the optical axis, world units, 0 = none.
        max_value: The count of the full range.
    """
    both = (values > 0) & (depth > 0)
    if not both.any():
        return None
    return float(np.median(depth[both].astype(np.float64) / values[both]) * max_value)


def depth_error(values: NDArray[np.uint16], depth: NDArray[Any], max_value: int, z_of_max: float) -> DepthError | None:
    """Compare a rendered depth map with a stored one.

    Args:
        values: (h, w) stored counts, linear in z, 0 = none.
        depth: (h, w) rendered, along the optical axis, world units, 0 = none.
        max_value: The count of the full range.
        z_of_max: World z of that count.

    Returns:
        The errors, or None when the maps do not overlap.
    """
    both = (values > 0) & (depth > 0)
    if not both.any():
        return None
    stored = values[both].astype(np.float64)
    difference = depth[both].astype(np.float64) * (max_value / z_of_max) - stored
    relative = difference / stored
    return DepthError(
        mae_levels=float(np.abs(difference).mean()),
        rmse_levels=float(np.sqrt(np.square(difference).mean())),
        mae_relative=float(np.abs(relative).mean()),
        rmse_relative=float(np.sqrt(np.square(relative).mean())),
        max_value=max_value,
        z_of_max=z_of_max,
        overlap=int(both.sum()) / int(((values > 0) | (depth > 0)).sum()),
    )

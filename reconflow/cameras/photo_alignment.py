"""How a photo lies against the depth render of its view: a shift in the image plane. Nothing three-dimensional.

The outline of the depth's mask is laid over the photo's colour edges and moved until it covers the strongest ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from reconflow.cameras.calibration_views import clean_mask
from reconflow.datasets.dataset import View

FloatArray = NDArray[np.float64]

_SIZE: Final = 512
_REACH: Final = 0.03
_LEAST_GAIN: Final = 1.1
"""An outline must cover edges this much stronger than where it lies now, else it stays."""


@dataclass(frozen=True)
class PhotoShift:
    """How far a photo's object lies from its depth render's.

    Attributes:
        shift_px: (dx, dy) in photo pixels, x right and y down: a depth pixel at p belongs to the photo at p + shift.
        score_before: Mean strength of the photo's edges under the mask's outline as it lies, relative to the photo's
            mean near the object; 1 means no relation.
        score_after: The same at the shift.
    """

    shift_px: tuple[float, float]
    score_before: float
    score_after: float


def photo_shift(view: View) -> PhotoShift | None:
    """Measure how the photo of a view lies against its depth render.

    Returns:
        The shift (zero when no other position is clearly better), or None without depth or without edges.
    """
    if view.depth is None:
        return None
    edges = _edges(view.rgb_srgb)
    mask = _resized(clean_mask(view.depth.values > 0).astype(np.float64), edges.shape) >= 0.5
    outline = mask ^ ndimage.binary_erosion(mask)
    near = ndimage.binary_dilation(outline, iterations=max(1, round(_REACH * _SIZE)))
    level = float(edges[near].mean()) if near.any() else 0.0
    if level < 1e-3:
        return None
    reach = round(_REACH * max(edges.shape))
    scores = _scores(edges, outline, reach) / level
    before = float(scores[reach, reach])
    y, x = np.unravel_index(int(np.argmax(scores)), scores.shape)
    after = float(scores[y, x])
    if after < _LEAST_GAIN * before:
        return PhotoShift((0.0, 0.0), before, before)
    dy, dx = y - reach + _vertex(scores[:, x], int(y)), x - reach + _vertex(scores[y], int(x))
    scale = view.image_hw[1] / edges.shape[1]
    return PhotoShift((float(dx * scale), float(dy * scale)), before, after)


def _edges(rgb_srgb: NDArray[np.uint8]) -> FloatArray:
    """(h, w) strength of the photo's colour edges at the working size; strong edges count alike."""
    height, width = rgb_srgb.shape[:2]
    factor = max(1.0, max(height, width) / _SIZE)
    small = Image.fromarray(rgb_srgb).resize((round(width / factor), round(height / factor)), Image.Resampling.BOX)
    colour = np.asarray(small, dtype=np.float64) / 255.0
    smooth = [ndimage.gaussian_gradient_magnitude(colour[..., channel], 1.0) for channel in range(3)]
    strongest: FloatArray = np.max(smooth, axis=0)
    return np.minimum(strongest, 0.05) / 0.05


def _scores(edges: FloatArray, outline: NDArray[np.bool_], reach: int) -> FloatArray:
    """(2 reach + 1, 2 reach + 1) mean edge strength under the outline moved by every whole shift, rows being y."""
    blurred = ndimage.gaussian_filter(edges, 1.0)
    padded = np.pad(blurred, reach)
    ys, xs = np.nonzero(outline)
    size = 2 * reach + 1
    scores = np.empty((size, size))
    for dy in range(size):
        for dx in range(size):
            scores[dy, dx] = padded[ys + dy, xs + dx].mean()
    return scores


def _vertex(line: FloatArray, at: int) -> float:
    """Offset of a parabola's vertex from the largest of three neighbouring samples."""
    if at in (0, len(line) - 1):
        return 0.0
    left, centre, right = line[at - 1 : at + 2]
    bend = left - 2 * centre + right
    return float(0.5 * (left - right) / bend) if bend < 0 else 0.0


def _resized(image: FloatArray, hw: tuple[int, ...]) -> FloatArray:
    resized = Image.fromarray(image.astype(np.float32)).resize((hw[1], hw[0]), Image.Resampling.BOX)
    return np.asarray(resized, dtype=np.float64)

"""Telling an object from a plain background by colour alone; the last resort of `masks`, and a check on the others.

The background is modelled as one colour plane per channel (a colour that may change linearly across the picture),
fitted robustly to the picture's rim. A pixel's distance is its largest channel's difference from that plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_WORK_PX: Final = 256
_RIM_SHARE: Final = 0.04
_MAX_NOISE: Final = 12.0
_MIN_INLIERS: Final = 0.7
_MIN_THRESHOLD: Final = 12.0
_ROWS_PER_BLOCK: Final = 256


@dataclass(frozen=True, eq=False)
class BackgroundModel:
    """A plain background.

    Attributes:
        plane: (3, 3) per channel (constant, slope in x, slope in y), 8-bit levels over coordinates 0 to 1.
        noise: Robust standard deviation of the rim around the plane, 8-bit levels.
        inlier_share: Share of the rim that the plane explains, 0 to 1.
    """

    plane: NDArray[np.float64]
    noise: float
    inlier_share: float

    @property
    def usable(self) -> bool:
        """Whether the rim is plain enough to tell an object from it."""
        return self.noise <= _MAX_NOISE and self.inlier_share >= _MIN_INLIERS

    @property
    def threshold(self) -> float:
        """Distance from which a pixel counts as object, 8-bit levels."""
        return max(_MIN_THRESHOLD, 5.0 * self.noise)

    def distance(self, rgb_srgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the (H, W) distance of each pixel from the background, 8-bit levels.

        Args:
            rgb_srgb: (H, W, 3), any size: the plane is stretched over it.
        """
        height, width = rgb_srgb.shape[:2]
        x = (np.arange(width, dtype=np.float32) + 0.5) / width
        y = (np.arange(height, dtype=np.float32) + 0.5) / height
        distance = np.empty((height, width), np.uint8)
        plane = self.plane.astype(np.float32)
        for start in range(0, height, _ROWS_PER_BLOCK):
            rows = slice(start, min(start + _ROWS_PER_BLOCK, height))
            worst = np.zeros((rows.stop - rows.start, width), np.float32)
            for channel in range(3):
                expected = plane[channel, 0] + plane[channel, 1] * x + (plane[channel, 2] * y[rows])[:, None]
                np.maximum(worst, np.abs(rgb_srgb[rows, :, channel] - expected), out=worst)
            distance[rows] = np.minimum(np.rint(worst), 255).astype(np.uint8)
        return distance


def fit_background(rgb_srgb: NDArray[np.uint8]) -> BackgroundModel:
    """Fit the background to a picture's rim.

    Args:
        rgb_srgb: (H, W, 3) display values.
    """
    small = shrunk(rgb_srgb, _WORK_PX).astype(np.float64)
    height, width = small.shape[:2]
    rim_px = max(2, round(_RIM_SHARE * min(height, width)))
    rim = np.zeros((height, width), bool)
    rim[:rim_px], rim[-rim_px:], rim[:, :rim_px], rim[:, -rim_px:] = True, True, True, True
    ys, xs = np.nonzero(rim)
    design = np.stack([np.ones(len(xs)), (xs + 0.5) / width, (ys + 0.5) / height], axis=1)
    colours = small[rim]
    inlier = np.abs(colours - np.median(colours, axis=0)).max(axis=1) <= 4 * _MAX_NOISE
    plane = np.zeros((3, 3))
    plane[:, 0] = np.median(colours, axis=0)
    noise = float("inf")
    for _ in range(4):
        if inlier.mean() < 0.3:
            break
        plane = _least_squares(design[inlier], colours[inlier]).T
        residual = np.abs(colours - design @ plane.T).max(axis=1)
        noise = 1.4826 * float(np.median(residual[inlier]))
        inlier = residual <= max(_MIN_THRESHOLD, 4.0 * noise)
    return BackgroundModel(plane, noise, float(inlier.mean()))


def _least_squares(design: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve the normal equations with sums in one fixed order, so that the thread count cannot change the result."""
    solution: NDArray[np.float64] = np.linalg.solve(
        np.einsum("ni,nj->ij", design, design), np.einsum("ni,nc->ic", design, values)
    )
    return solution


def shrunk(image: NDArray[np.uint8], longest_px: int) -> NDArray[np.uint8]:
    """Return a picture averaged down so that its longer side has at most `longest_px` pixels.

    Args:
        image: (H, W) or (H, W, 3).
        longest_px: Longest side wanted.
    """
    factor = -(-max(image.shape[:2]) // longest_px)
    return image if factor <= 1 else np.asarray(Image.fromarray(image).reduce(factor))

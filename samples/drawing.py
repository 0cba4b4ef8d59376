"""Which triangle each sample of a picture sees, and values interpolated there. No colours, no light.

A plain z-buffer over pinhole cameras; the frames are those of `reconflow.cameras.camera`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera, project_points


@dataclass(frozen=True, eq=False)
class Visible:
    """What a camera sees, one entry for each sample on the object.

    Attributes:
        sample: (S,) flat index of the sample in the (H, W) raster.
        weights: (S, 3) perspective-correct weights of the triangle's corners.
        corners: (S, 3) vertex indices of those corners.
        depth: (S,) along the optical axis, world units.
    """

    sample: NDArray[np.int64]
    weights: NDArray[np.float64]
    corners: NDArray[np.int32]
    depth: NDArray[np.float64]

    def interpolate(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return per-vertex values (V, ...) at the samples, (S, ...)."""
        return np.asarray(np.einsum("sk,sk...->s...", self.weights, values[self.corners]))


def find_visible(
    vertices: NDArray[np.float64], faces: NDArray[np.int32], camera: PinholeCamera, rows: slice | None = None
) -> Visible:
    """Return what a camera sees at the centres of its pixels.

    Args:
        vertices: (V, 3) world units, all in front of the camera.
        faces: (F, 3).
        camera: Its pixels are the samples; give one at several times the resolution to supersample.
        rows: Only these pixel rows; all by default.
    """
    height, width = camera.image_hw
    first, last, _ = (rows or slice(None)).indices(height)
    points, depth = (np.asarray(part, dtype=np.float64) for part in project_points(vertices, camera))
    triangle = _nearest_triangle(points, 1.0 / depth, faces, first, last, width)
    sample = np.flatnonzero(triangle.ravel() >= 0)
    corners = faces[triangle.ravel()[sample]]
    centre = np.stack([sample % width + 0.5, sample // width + first + 0.5], axis=1)
    flat = _corner_weights(points[corners], centre) / depth[corners]
    nearness = flat.sum(axis=1)
    return Visible(sample + first * width, flat / nearness[:, None], corners, 1.0 / nearness)


def _corner_weights(corners_px: NDArray[np.float64], points_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the screen-space barycentric weights (S, 3) of points in their triangles (S, 3, 2)."""
    to = corners_px - points_px[:, None]
    areas = np.stack([_cross(to[:, 1], to[:, 2]), _cross(to[:, 2], to[:, 0]), _cross(to[:, 0], to[:, 1])], axis=1)
    return np.asarray(areas / areas.sum(axis=1, keepdims=True))


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


@njit(cache=True)
def _nearest_triangle(
    points: NDArray[np.float64],
    nearness: NDArray[np.float64],
    faces: NDArray[np.int32],
    first: int,
    last: int,
    width: int,
) -> NDArray[np.int32]:
    """Fill a (last - first, width) raster with the index of the nearest triangle at each pixel's centre, else -1."""
    winner = np.full((last - first, width), -1, np.int32)
    best = np.zeros((last - first, width))
    for f in range(len(faces)):
        a, b, c = faces[f]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        top, bottom = (
            max(int(np.ceil(min(ay, by, cy) - 0.5)), first),
            min(int(np.floor(max(ay, by, cy) - 0.5)), last - 1),
        )
        left, right = max(int(np.ceil(min(ax, bx, cx) - 0.5)), 0), min(int(np.floor(max(ax, bx, cx) - 0.5)), width - 1)
        for row in range(top, bottom + 1):
            y = row + 0.5
            for column in range(left, right + 1):
                x = column + 0.5
                wa = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area
                wb = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area
                wc = ((ax - x) * (by - y) - (ay - y) * (bx - x)) / area
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                near = wa * nearness[a] + wb * nearness[b] + wc * nearness[c]
                if near > best[row - first, column]:
                    best[row - first, column], winner[row - first, column] = near, f
    return winner

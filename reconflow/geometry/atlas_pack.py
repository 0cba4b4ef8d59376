"""Packing flat charts into a square: bitmaps placed lowest first, turned by quarter turns. Nothing about surfaces.

Every chart becomes a bitmap of the cells that it touches or comes nearer to than half a gutter. Bitmaps are placed from
the longest to the shortest outline, each in the quarter turn and place where its upper edge is lowest, then leftmost;
free holes inside and between charts are used. The scale, as a share of the one at which the texture would be full, is
searched by bisection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.errors import ModelConvergenceError
from reconflow.geometry.atlas_flatten import FlatCharts

_PRECISION = 1.008
_MAX_SHARE, _MIN_SHARE = 0.97, 0.01


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the flat points lie in the texture.

    Attributes:
        texels: (T, 2) float64 positions, texels from the lower left corner, x right, y up.
        scale: Texels per world unit, the same for all charts.
    """

    texels: NDArray[np.float64]
    scale: float


def pack_charts(flat: FlatCharts, texture_size: int, gutter: int, cells: int = 1024) -> Packing:
    """Find the largest scale at which all charts fit.

    Args:
        flat: Charts in the plane.
        texture_size: Side of the square texture, texels.
        gutter: Smallest distance between charts, along x or along y, texels; half of it is kept to the border.
        cells: Largest number of bitmap cells along a side.

    Raises:
        ModelConvergenceError: Even at a tiny scale the charts' gutters do not fit.
    """
    bitmaps = _Bitmaps.of(flat, texture_size, 0.5 * gutter)
    grid = min(texture_size, cells)
    rough = bitmaps.largest(max(grid // 4, 16), 0.0, _MAX_SHARE, 1.02)
    # Coarse bitmaps are too large by a fraction of a cell, so that finer ones fit at a slightly larger scale.
    best = None if rough is None else bitmaps.largest(grid, rough.share, min(1.06 * rough.share, 1.0), _PRECISION)
    best = best or rough or bitmaps.largest(grid, 0.0, _MAX_SHARE, _PRECISION)
    if best is None:
        raise ModelConvergenceError(
            "The surface falls into more texture patches than the texture has room for.",
            suggestion="Use a larger texture or a smoother, smaller mesh.",
            patches=len(flat.sizes),
            texture_size=texture_size,
        )
    texels = _texel_positions(flat, best.scale, best.cell, 0.5 * gutter, best.places, best.turns, best.shapes)
    return Packing(texels, best.scale)


@dataclass(frozen=True, eq=False)
class _Placement:
    """Where bitmaps fit: scale (texels per unit) and its share of the ideal one, cell size, and each chart's place."""

    share: float
    scale: float
    cell: float
    places: NDArray[np.int64]
    turns: NDArray[np.int64]
    shapes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Bitmaps:
    """The charts' triangles grouped by chart, in the order of placing, and the texture that they go into."""

    triangles: NDArray[np.float64]
    first: NDArray[np.int64]
    sizes: NDArray[np.float64]
    order: NDArray[np.int64]
    texture_size: int
    margin: float

    @classmethod
    def of(cls, flat: FlatCharts, texture_size: int, margin: float) -> _Bitmaps:
        by_chart = np.argsort(flat.labels, kind="stable").astype(np.int32)
        first = np.searchsorted(flat.labels[by_chart], np.arange(len(flat.sizes) + 1))
        longest_first = np.argsort(-flat.sizes.sum(axis=1), kind="stable").astype(np.int64)
        return cls(flat.points[flat.faces[by_chart]], first, flat.sizes, longest_first, texture_size, margin)

    def largest(self, grid: int, low: float, high: float, precision: float) -> _Placement | None:
        """Search the largest share between two, the lower known to fit if it is positive, at which all charts fit."""
        total = 0.5 * float(np.abs(_cross(self.triangles)).sum())
        ideal = self.texture_size / math.sqrt(max(total, 1e-30))
        cell = self.texture_size / grid
        share = math.sqrt(low * high) if low > 0 else 0.8
        best: _Placement | None = None
        while high > precision * low and share > _MIN_SHARE:
            scale = ideal * share
            fits, *where = _place_all(
                self.triangles, self.first, self.sizes, self.order, scale / cell, self.margin / cell, grid
            )
            if fits:
                low, best = share, _Placement(share, scale, cell, *where)
            else:
                high = share
            share = math.sqrt(low * high) if low > 0 else 0.85 * share
        return best


def _cross(triangles: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    return np.asarray(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0], dtype=np.float64)


def _texel_positions(
    flat: FlatCharts,
    scale: float,
    cell: float,
    margin: float,
    places: NDArray[np.int64],
    turns: NDArray[np.int64],
    shapes: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Turn and move every point as its chart's bitmap was; `shapes` are the unturned bitmaps' (width, height)."""
    x, y = (flat.points * scale + margin).T
    width, height = (shapes[flat.point_charts] * cell).T
    turn = turns[flat.point_charts]
    turned_x = np.choose(turn, [x, height - y, width - x, y])
    turned_y = np.choose(turn, [y, x, height - y, width - x])
    corner = places[flat.point_charts] * cell
    return np.stack([turned_x + corner[:, 0], turned_y + corner[:, 1]], axis=1)


@njit(cache=True)
def _place_all(
    triangles: NDArray[np.float64],
    first: NDArray[np.int64],
    sizes: NDArray[np.float64],
    order: NDArray[np.int64],
    scale: float,
    margin: float,
    grid: int,
) -> tuple[bool, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Place all charts at a scale (cells per world unit) with a margin in cells; False when one does not fit."""
    n_charts = sizes.shape[0]
    places = np.zeros((n_charts, 2), dtype=np.int64)
    turns = np.zeros(n_charts, dtype=np.int64)
    shapes = np.zeros((n_charts, 2), dtype=np.int64)
    occupied = np.zeros((grid, grid), dtype=np.bool_)
    runs = np.empty((grid, grid), dtype=np.int32)
    for y in range(grid):
        _update_runs(occupied, runs, y)
    for chart in order:
        width = max(math.ceil(sizes[chart, 0] * scale + 2.0 * margin), 1)
        height = max(math.ceil(sizes[chart, 1] * scale + 2.0 * margin), 1)
        if min(width, height) > grid:
            return False, places, turns, shapes
        shapes[chart, 0], shapes[chart, 1] = width, height
        mask = _cover(triangles, first[chart], first[chart + 1], scale, margin, width, height)
        best_top, best_x, best_y, best_turn = grid + 1, 0, 0, -1
        best_mask = mask
        for turn in range(4):
            if turn > 0:
                mask = _quarter_turn(mask)
            x, y = _lowest_place(_spans(mask), mask.shape[1], mask.shape[0], runs, best_top)
            if x >= 0:
                best_top, best_x, best_y, best_turn, best_mask = y + mask.shape[0], x, y, turn, mask
        if best_turn < 0:
            return False, places, turns, shapes
        places[chart, 0], places[chart, 1], turns[chart] = best_x, best_y, best_turn
        for y in range(best_mask.shape[0]):
            for x in range(best_mask.shape[1]):
                if best_mask[y, x]:
                    occupied[best_y + y, best_x + x] = True
            _update_runs(occupied, runs, best_y + y)
    return True, places, turns, shapes


@njit(cache=True)
def _cover(
    triangles: NDArray[np.float64], begin: int, end: int, scale: float, margin: float, width: int, height: int
) -> NDArray[np.bool_]:
    """Mark the cells that, grown by the margin on each side, touch a triangle."""
    mask = np.zeros((height, width), dtype=np.bool_)
    reach = 0.5 + margin
    for k in range(begin, end):
        p = triangles[k] * scale + margin
        x0 = max(math.floor(p[:, 0].min() - margin), 0)
        x1 = min(math.floor(p[:, 0].max() + margin), width - 1)
        y0 = max(math.floor(p[:, 1].min() - margin), 0)
        y1 = min(math.floor(p[:, 1].max() + margin), height - 1)
        for y in range(y0, y1 + 1):
            for x in range(x0, x1 + 1):
                if mask[y, x]:
                    continue
                touched = True
                for i in range(3):
                    ex, ey = p[(i + 1) % 3, 0] - p[i, 0], p[(i + 1) % 3, 1] - p[i, 1]
                    inside = ex * (y + 0.5 - p[i, 1]) - ey * (x + 0.5 - p[i, 0])
                    if inside < -reach * (abs(ex) + abs(ey)):
                        touched = False
                mask[y, x] = touched
    return mask


@njit(cache=True)
def _quarter_turn(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Turn a bitmap counter-clockwise (rows run up): cell (x, y) goes to (height - 1 - y, x)."""
    height, width = mask.shape
    turned = np.zeros((width, height), dtype=np.bool_)
    for y in range(height):
        for x in range(width):
            turned[x, height - 1 - y] = mask[y, x]
    return turned


@njit(cache=True)
def _spans(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return (S, 3) runs of set cells as (y, x, length), longest first."""
    height, width = mask.shape
    spans = np.empty((height * (width // 2 + 1), 3), dtype=np.int32)
    count = 0
    for y in range(height):
        x = 0
        while x < width:
            if not mask[y, x]:
                x += 1
                continue
            begin = x
            while x < width and mask[y, x]:
                x += 1
            spans[count, 0], spans[count, 1], spans[count, 2] = y, begin, x - begin
            count += 1
    return spans[:count][np.argsort(-spans[:count, 2], kind="mergesort")]


@njit(cache=True)
def _lowest_place(
    spans: NDArray[np.int32], width: int, height: int, runs: NDArray[np.int32], best_top: int
) -> tuple[int, int]:
    """Return the lowest, then leftmost free place whose top stays under `best_top`; (-1, -1) for none."""
    grid = runs.shape[0]
    for y in range(min(grid - height, best_top - height - 1) + 1):
        x = 0
        while x + width <= grid:
            blocked_until = -1
            for k in range(spans.shape[0]):
                at = x + spans[k, 1]
                run = runs[y + spans[k, 0], at]
                if run >= spans[k, 2]:
                    continue
                stop = at + max(run, 0)
                blocked_until = stop - runs[y + spans[k, 0], stop] - spans[k, 1]
                break
            if blocked_until < 0:
                return x, y
            x = blocked_until
    return -1, -1


@njit(cache=True)
def _update_runs(occupied: NDArray[np.bool_], runs: NDArray[np.int32], y: int) -> None:
    """Recompute, for one row, how many cells from each on are free (positive) or occupied (negative)."""
    grid = occupied.shape[1]
    for x in range(grid - 1, -1, -1):
        step = -1 if occupied[y, x] else 1
        same = x + 1 < grid and occupied[y, x + 1] == occupied[y, x]
        runs[y, x] = runs[y, x + 1] + step if same else step

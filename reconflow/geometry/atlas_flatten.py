"""Laying charts flat: orthographic projection, overlap test, evening out the stretch, turning. No packing.

The plane's frame is right-handed with the viewer (x right, y up, the chart's direction towards the viewer), so that
counter-clockwise faces stay counter-clockwise and nothing is mirrored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.geometry.atlas_charts import Charts, Surface
from reconflow.geometry.mesh import TriangleMesh

_TURNS = 45
_MAX_CELLS = 4096


@dataclass(frozen=True, eq=False)
class FlatCharts:
    """Charts in the plane, each in its own frame with its lowest corner at the origin.

    Attributes:
        labels: (F,) int32 chart of each face.
        points: (T, 2) float64 flattened vertices, world units; each belongs to one chart.
        point_charts: (T,) int32 chart of each point, ascending.
        faces: (F, 3) int32 indices into `points`.
        sizes: (C, 2) extents of the charts, world units.
    """

    labels: NDArray[np.int32]
    points: NDArray[np.float64]
    point_charts: NDArray[np.int32]
    faces: NDArray[np.int32]
    sizes: NDArray[np.float64]


def flatten_charts(mesh: TriangleMesh, charts: Charts) -> FlatCharts:
    """Project each chart along its direction and make its average stretch the same in all directions.

    An affine map per chart undoes the average foreshortening, so that its area in the plane equals that on the
    surface; being affine it cannot make faces overlap.
    """
    n_charts = len(charts.directions)
    keys = charts.labels[:, None].astype(np.int64) * len(mesh.vertices) + mesh.faces
    unique, faces = np.unique(keys, return_inverse=True)
    faces = faces.reshape(-1, 3).astype(np.int32)
    point_charts = (unique // len(mesh.vertices)).astype(np.int32)
    positions = mesh.vertices.astype(np.float64)[unique % len(mesh.vertices)]
    right, up = plane_axes(charts.directions)
    points = np.stack([np.einsum("ti,ti->t", positions, axes[point_charts]) for axes in (right, up)], axis=1)
    points = np.einsum("tij,tj->ti", _evening(mesh, faces, points, charts.labels, n_charts)[point_charts], points)
    points, sizes = _turned_upright(points, np.searchsorted(point_charts, np.arange(n_charts + 1)))
    return FlatCharts(charts.labels, points, point_charts, faces, sizes)


def split_overlaps(mesh: TriangleMesh, charts: Charts, surface: Surface) -> Charts:
    """Cut charts whose projection covers itself into connected parts that don't.

    Faces are admitted to a part in the order of their distance along the surface from its first face, unless they
    overlap a face already in it.
    """
    labels, directions = charts.labels.copy(), charts.directions
    right, up = plane_axes(directions)
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    flat = np.stack([np.einsum("fci,fi->fc", corners, axes[labels]) for axes in (right, up)], axis=2)
    order = np.argsort(labels, kind="stable").astype(np.int32)
    start = np.searchsorted(labels[order], np.arange(len(directions) + 1))
    conflicts = _overlapping_pairs(flat, order, start)
    if len(conflicts) == 0:
        return charts
    both = np.concatenate([conflicts, conflicts[:, ::-1]])
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    first = np.searchsorted(both[:, 0], np.arange(len(labels) + 1))
    parts, n_parts = _grow_parts(labels, surface.neighbours, first, np.ascontiguousarray(both[:, 1]))
    owner = np.empty(n_parts, dtype=np.int64)
    owner[parts] = labels
    return Charts(parts, directions[owner])


def plane_axes(directions: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (C, 3) right and (C, 3) up unit vectors, so that right x up = direction; up is near +y, or -z or +z."""
    vertical = np.abs(directions[:, 1]) > 0.99
    reference = np.where(
        vertical[:, None], np.array([0.0, 0.0, -1.0]) * np.sign(directions[:, 1:2]), np.array([0.0, 1.0, 0.0])
    )
    right = np.cross(reference, directions)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return right, np.cross(directions, right)


def _evening(
    mesh: TriangleMesh, faces: NDArray[np.int32], points: NDArray[np.float64], labels: NDArray[np.int32], n_charts: int
) -> NDArray[np.float64]:
    """Return (C, 2, 2) maps that make each chart's mean squared stretch isotropic and its area the surface's."""
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    e1, e2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    flat = points[faces]
    u1, u2 = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    g11, g12, g22 = (np.einsum("fi,fi->f", a, b) for a, b in ((e1, e1), (e1, e2), (e2, e2)))
    squared = g11 * g22 - g12 * g12
    area = 0.5 * np.sqrt(np.maximum(squared, 0.0))
    inverse = np.divide(area, squared, out=np.zeros_like(area), where=squared > 1e-30)
    # J J^T of the map surface -> plane is U G^-1 U^T with the edges' Gram matrix G; summed with area as weight.
    sums = np.zeros((n_charts, 2, 2))
    for i, j in ((0, 0), (0, 1), (1, 1)):
        value = g22 * u1[:, i] * u1[:, j] + g11 * u2[:, i] * u2[:, j]
        value -= g12 * (u1[:, i] * u2[:, j] + u2[:, i] * u1[:, j])
        sums[:, i, j] = sums[:, j, i] = np.bincount(labels, weights=value * inverse, minlength=n_charts)
    flat_area = np.bincount(labels, weights=0.5 * (u1[:, 0] * u2[:, 1] - u1[:, 1] * u2[:, 0]), minlength=n_charts)
    true_area = np.bincount(labels, weights=area, minlength=n_charts)
    sound = (np.linalg.det(sums) > 1e-30) & (flat_area > 1e-3 * true_area) & (true_area > 0)
    values, vectors = np.linalg.eigh(np.where(sound[:, None, None], sums, np.eye(2)))
    values = np.maximum(values, 1e-2 * values[:, 1:])
    roots = vectors @ (vectors / np.sqrt(values)[:, None, :]).transpose(0, 2, 1)
    shrink = np.linalg.det(roots) * np.where(sound, flat_area, 1.0)
    scale = np.sqrt(np.where(sound, true_area, 1.0) / shrink)
    return np.where(sound[:, None, None], roots * scale[:, None, None], np.eye(2))


@njit(cache=True)
def _turned_upright(
    points: NDArray[np.float64], start: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Turn each chart so that its bounding box is smallest, in steps of two degrees, and move its corner to zero."""
    turned = np.empty_like(points)
    sizes = np.zeros((start.shape[0] - 1, 2))
    for chart in range(start.shape[0] - 1):
        best_area, best_angle = np.inf, 0.0
        for step in range(_TURNS + 1):
            angle = 0.0 if step == _TURNS else 0.5 * math.pi * step / _TURNS
            low_x, low_y, width, height = _bounds(points, start[chart], start[chart + 1], angle)
            if width * height < best_area * (1.0 - 1e-9):
                best_area, best_angle = width * height, angle
        low_x, low_y, width, height = _bounds(points, start[chart], start[chart + 1], best_angle)
        cos, sin = math.cos(best_angle), math.sin(best_angle)
        for k in range(start[chart], start[chart + 1]):
            turned[k, 0] = cos * points[k, 0] - sin * points[k, 1] - low_x
            turned[k, 1] = sin * points[k, 0] + cos * points[k, 1] - low_y
        sizes[chart, 0], sizes[chart, 1] = width, height
    return turned, sizes


@njit(cache=True)
def _bounds(points: NDArray[np.float64], begin: int, end: int, angle: float) -> tuple[float, float, float, float]:
    cos, sin = math.cos(angle), math.sin(angle)
    low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
    for k in range(begin, end):
        x = cos * points[k, 0] - sin * points[k, 1]
        y = sin * points[k, 0] + cos * points[k, 1]
        low_x, low_y, high_x, high_y = min(low_x, x), min(low_y, y), max(high_x, x), max(high_y, y)
    return low_x, low_y, high_x - low_x, high_y - low_y


@njit(cache=True)
def _overlapping_pairs(
    flat: NDArray[np.float64], order: NDArray[np.int32], start: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Return (P, 2) pairs of faces of one chart whose (F, 3, 2) projections overlap beyond rounding."""
    found = [(np.int32(0), np.int32(0)) for _ in range(0)]
    for chart in range(start.shape[0] - 1):
        members = order[start[chart] : start[chart + 1]]
        if members.shape[0] > 1:
            _overlaps_in_chart(flat, members, found)
    pairs = np.empty((len(found), 2), dtype=np.int32)
    for k in range(len(found)):
        pairs[k, 0], pairs[k, 1] = found[k]
    return pairs


@njit(cache=True)
def _overlaps_in_chart(
    flat: NDArray[np.float64], members: NDArray[np.int32], found: list[tuple[np.int32, np.int32]]
) -> None:
    """Append a chart's overlapping pairs, found through a grid of cells as large as the average face's box."""
    n = members.shape[0]
    low, high = np.empty((n, 2)), np.empty((n, 2))
    for k in range(n):
        for i in range(2):
            values = flat[members[k], :, i]
            low[k, i], high[k, i] = values.min(), values.max()
    base = np.array([low[:, 0].min(), low[:, 1].min()])
    cell = max((high - low).sum() / (2 * n), 1e-30)
    columns = _cell(high[:, 0].max(), base[0], cell, _MAX_CELLS) + 1
    rows = _cell(high[:, 1].max(), base[1], cell, _MAX_CELLS) + 1
    start, entries = _sorted_into_cells(low, high, base, cell, columns, rows)
    for c in range(columns * rows):
        for i in range(start[c], start[c + 1]):
            for j in range(i + 1, start[c + 1]):
                f, g = entries[i], entries[j]
                # Each pair is judged in one cell only: where the lowest corner common to both boxes lies.
                x = _cell(max(low[f, 0], low[g, 0]), base[0], cell, columns)
                y = _cell(max(low[f, 1], low[g, 1]), base[1], cell, rows)
                if y * columns + x == c and _overlap(flat[members[f]], flat[members[g]], 1e-7 * cell):
                    found.append((members[f], members[g]))


@njit(cache=True)
def _sorted_into_cells(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    base: NDArray[np.float64],
    cell: float,
    columns: int,
    rows: int,
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """List the boxes that reach into each cell: those of cell c are entries[start[c] : start[c + 1]]."""
    start = np.zeros(columns * rows + 1, dtype=np.int64)
    entries = np.empty(0, dtype=np.int32)
    for filling in range(2):
        for k in range(low.shape[0]):
            for y in range(_cell(low[k, 1], base[1], cell, rows), _cell(high[k, 1], base[1], cell, rows) + 1):
                for x in range(_cell(low[k, 0], base[0], cell, columns), _cell(high[k, 0], base[0], cell, columns) + 1):
                    if filling:
                        start[y * columns + x] -= 1
                        entries[start[y * columns + x]] = k
                    else:
                        start[y * columns + x] += 1
        if not filling:
            start = np.cumsum(start)
            entries = np.empty(start[-1], dtype=np.int32)
    return start, entries


@njit(cache=True)
def _cell(value: float, base: float, cell: float, limit: int) -> int:
    return min(int((value - base) / cell), limit - 1)


@njit(cache=True)
def _overlap(a: NDArray[np.float64], b: NDArray[np.float64], tolerance: float) -> bool:
    """Separating-axis test of two counter-clockwise triangles; touching is not overlapping."""
    for turn in range(2):
        p, q = (a, b) if turn == 0 else (b, a)
        for i in range(3):
            ex, ey = p[(i + 1) % 3, 0] - p[i, 0], p[(i + 1) % 3, 1] - p[i, 1]
            length = math.sqrt(ex * ex + ey * ey)
            deepest = -np.inf
            for j in range(3):
                deepest = max(deepest, ex * (q[j, 1] - p[i, 1]) - ey * (q[j, 0] - p[i, 0]))
            if deepest <= tolerance * length:
                return False
    return True


@njit(cache=True)
def _grow_parts(
    labels: NDArray[np.int32], neighbours: NDArray[np.int32], first: NDArray[np.int64], rivals: NDArray[np.int32]
) -> tuple[NDArray[np.int32], int]:
    """Flood connected parts of equal label that hold no two rivals."""
    n_faces = labels.shape[0]
    parts = np.full(n_faces, -1, dtype=np.int32)
    queue = np.empty(n_faces, dtype=np.int32)
    seen = np.full(n_faces, -1, dtype=np.int32)
    n_parts = 0
    for seed in range(n_faces):
        if parts[seed] >= 0:
            continue
        parts[seed] = n_parts
        queue[0] = seed
        head, tail = 0, 1
        while head < tail:
            f = queue[head]
            head += 1
            for k in range(3):
                g = neighbours[f, k]
                if g < 0 or parts[g] >= 0 or seen[g] == n_parts or labels[g] != labels[seed]:
                    continue
                seen[g] = n_parts
                free = True
                for j in range(first[g], first[g + 1]):
                    if parts[rivals[j]] == n_parts:
                        free = False
                if free:
                    parts[g] = n_parts
                    queue[tail] = g
                    tail += 1
        n_parts += 1
    return parts, n_parts

"""Closing small holes in a surface: which triangles span a loop of boundary edges. Moves no vertex, adds none.

A loop is spanned by the triangulation of least area among all that use its vertices alone (Barequet and Sharir,
"Filling gaps in the boundary of a polyhedron", 1995).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.topology import twin_half_edges

_FORBIDDEN: Final = 1e30


@dataclass(frozen=True)
class Filling:
    """What was filled: `holes`, by so many `faces`; `left_open` loops are too long or cannot be spanned."""

    holes: int
    faces: int
    left_open: int


def fill_holes(mesh: TriangleMesh, max_edges: int) -> tuple[TriangleMesh, Filling]:
    """Close every hole of at most so many boundary edges.

    Args:
        mesh: Oriented and manifold.
        max_edges: Longest loop that is closed, edges.

    Returns:
        The mesh with the new faces at the end, still an oriented manifold, and what was done.
    """
    loops = boundary_loops(mesh.faces)
    points = mesh.vertices.astype(np.float64)
    edges = _directed_edges(mesh.faces)
    new: list[NDArray[np.int32]] = []
    left_open = 0
    for loop in loops:
        patch = _span(loop, points, edges) if len(loop) <= max_edges else None
        if patch is None:
            left_open += 1
            continue
        new.append(patch)
        edges |= _directed_edges(patch)
    faces = np.concatenate([mesh.faces, *new]).astype(np.int32)
    return TriangleMesh(mesh.vertices, faces), Filling(len(new), sum(map(len, new)), left_open)


def boundary_loops(faces: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    """Return the vertex loops along which a mesh is open, each running the way that faces closing it run.

    Args:
        faces: (F, 3) of an oriented manifold.
    """
    twins = twin_half_edges(faces)
    open_edges = np.flatnonzero(twins < 0)
    corners = faces.reshape(-1)
    ends = faces[open_edges // 3, (open_edges % 3 + 1) % 3]
    following = dict(zip(ends.tolist(), corners[open_edges].tolist(), strict=True))
    loops = []
    while following:
        start = min(following)
        loop, here = [start], following.pop(start)
        while here != start and here in following:
            loop.append(here)
            here = following.pop(here)
        if here == start and len(loop) >= 3:
            loops.append(np.array(loop, dtype=np.int32))
    return loops


def _directed_edges(faces: NDArray[np.int32]) -> set[tuple[int, int]]:
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return set(map(tuple, pairs.tolist()))


def _span(
    loop: NDArray[np.int32], points: NDArray[np.float64], edges: set[tuple[int, int]]
) -> NDArray[np.int32] | None:
    """Return the (n - 2, 3) faces of least cost that span a loop; None when its chords are edges already."""
    count = len(loop)
    allowed = np.ones((count, count), dtype=np.bool_)
    names = loop.tolist()
    for i in range(count):
        for j in range(i + 2, count):
            if (i, j) != (0, count - 1):
                allowed[i, j] = (names[i], names[j]) not in edges and (names[j], names[i]) not in edges
    cost, split = _least_area(np.ascontiguousarray(points[loop]), allowed)
    if not cost < _FORBIDDEN:
        return None
    faces, spans = [], [(0, count - 1)]
    while spans:
        low, high = spans.pop()
        if high - low < 2:
            continue
        middle = int(split[low, high])
        faces.append((names[low], names[middle], names[high]))
        spans += [(low, middle), (middle, high)]
    return np.array(faces, dtype=np.int32)


@njit(cache=True)
def _least_area(points: NDArray[np.float64], allowed: NDArray[np.bool_]) -> tuple[float, NDArray[np.int32]]:
    """Fill the table of the cheapest triangulations of every run of the loop, shortest runs first.

    A triangle costs its area and a share of its longest edge's square, so that flat loops get no needles.
    """
    count = points.shape[0]
    cost = np.zeros((count, count))
    split = np.zeros((count, count), dtype=np.int32)
    for length in range(2, count):
        for low in range(count - length):
            high = low + length
            best, at = _FORBIDDEN, low + 1
            if allowed[low, high]:
                for middle in range(low + 1, high):
                    a = points[middle] - points[low]
                    b = points[high] - points[low]
                    c = points[high] - points[middle]
                    nx, ny, nz = a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]
                    area = 0.5 * np.sqrt(nx * nx + ny * ny + nz * nz)
                    longest = max((a * a).sum(), (b * b).sum(), (c * c).sum())
                    total = cost[low, middle] + cost[middle, high] + area + 0.05 * longest
                    if total < best:
                        best, at = total, middle
            cost[low, high] = best
            split[low, high] = at
    return cost[0, count - 1], split

"""Local edits of an oriented manifold mesh held as half-edges: collapse, flip, split, with the guards that keep it one.

Half-edges as in `topology`: `origin[h]` is the vertex where half-edge `h` starts (-1 in removed faces), `twin[h]` its
twin (-1 on a boundary), `leaving[v]` one half-edge that starts in `v` (-1 for removed vertices). Edits keep all three
consistent. What to edit, and in which order, is decided elsewhere.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

MAX_VALENCE = 256
"""Vertices with more neighbours than this are left alone."""

_NEEDLE = 0.05
_THIN = 0.3

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]


@njit(cache=True, inline="always")
def after(h: int) -> int:
    """Return the next half-edge of the same face."""
    return h + 1 if h % 3 < 2 else h - 2


@njit(cache=True, inline="always")
def before(h: int) -> int:
    """Return the previous half-edge of the same face."""
    return h - 1 if h % 3 > 0 else h + 2


@njit(cache=True)
def leaving_half_edges(origin: Ints, n_vertices: int) -> Ints:
    """Return one (V,) outgoing half-edge per vertex, the lowest; -1 for vertices without faces."""
    leaving = np.full(n_vertices, -1, dtype=np.int32)
    for h in range(origin.shape[0]):
        v = origin[h]
        if v >= 0 and leaving[v] < 0:
            leaving[v] = h
    return leaving


@njit(cache=True)
def gather_ring(v: int, twin: Ints, leaving: Ints, ring: Ints) -> tuple[int, bool]:
    """Write the half-edges leaving `v` into `ring`.

    Returns:
        count: How many; 0 when there are more than `ring` holds.
        closed: False when `v` lies on a boundary.
    """
    count = 0
    first = leaving[v]
    h = first
    while h >= 0:
        if count == ring.shape[0]:
            return 0, False
        ring[count] = h
        count += 1
        h = twin[before(h)]
        if h == first:
            return count, True
    h = twin[first]
    while h >= 0:
        h = after(h)
        if count == ring.shape[0]:
            return 0, False
        ring[count] = h
        count += 1
        h = twin[h]
    return count, False


@njit(cache=True)
def are_neighbours(a: int, b: int, origin: Ints, twin: Ints, leaving: Ints, ring: Ints) -> bool:
    """Tell whether an edge joins `a` and `b`; overwrites `ring`."""
    count, closed = gather_ring(a, twin, leaving, ring)
    found = False
    for k in range(count):
        found |= origin[after(ring[k])] == b or (not closed and origin[before(ring[k])] == b)
    return found


@njit(cache=True)
def may_collapse(h: int, origin: Ints, twin: Ints, leaving: Ints, ring: Ints, other_ring: Ints) -> bool:
    """Tell whether removing the start of `h` by merging it into its end keeps the surface's topology.

    The link condition: the two ends share exactly the two vertices opposite to the edge, which keep three neighbours.
    On success `ring` holds the half-edges leaving the start, which is not on a boundary.
    """
    t = twin[h]
    if t < 0:
        return False
    a, b, c, d = origin[h], origin[t], origin[before(h)], origin[before(t)]
    if c == d:
        return False
    count_b, closed_b = gather_ring(b, twin, leaving, other_ring)
    count_a, closed_a = gather_ring(a, twin, leaving, ring)
    if not closed_a or count_a == 0 or count_b == 0:
        return False
    for k in range(count_a):
        w = origin[after(ring[k])]
        if w in (b, c, d):
            continue
        for j in range(count_b):
            if origin[after(other_ring[j])] == w or (not closed_b and origin[before(other_ring[j])] == w):
                return False
    for w in (c, d):
        count, closed = gather_ring(w, twin, leaving, other_ring)
        if count < (4 if closed else 3):
            return False
    return True


@njit(cache=True)
def collapse(h: int, count: int, origin: Ints, twin: Ints, leaving: Ints, ring: Ints) -> None:
    """Merge the start of `h` into its end; `ring` holds the `count` half-edges leaving the start."""
    t = twin[h]
    a, b, c, d = origin[h], origin[t], origin[before(h)], origin[before(t)]
    for k in range(count):
        origin[ring[k]] = b
    outer_c, inner_c = twin[after(h)], twin[before(h)]
    outer_d, inner_d = twin[before(t)], twin[after(t)]
    twin[inner_c] = outer_c
    if outer_c >= 0:
        twin[outer_c] = inner_c
    twin[inner_d] = outer_d
    if outer_d >= 0:
        twin[outer_d] = inner_d
    leaving[a] = -1
    leaving[b] = inner_c
    leaving[c] = after(inner_c)
    leaving[d] = inner_d
    for i in range(3):
        for face in (h // 3, t // 3):
            origin[3 * face + i] = -1
            twin[3 * face + i] = -1


@njit(cache=True)
def flip(h: int, origin: Ints, twin: Ints, leaving: Ints) -> None:
    """Replace the inner edge a-b of the quadrilateral a-d-b-c by d-c."""
    h1, h2 = after(h), before(h)
    t = twin[h]
    t1, t2 = after(t), before(t)
    a, b, c, d = origin[h], origin[t], origin[h2], origin[t2]
    across_bc, across_ad, across_db = twin[h1], twin[t1], twin[t2]
    origin[h], origin[h1], origin[h2] = a, d, c
    origin[t], origin[t1], origin[t2] = c, d, b
    _link(h, across_ad, twin)
    _link(t1, across_db, twin)
    _link(t2, across_bc, twin)
    _link(h1, t, twin)
    leaving[a], leaving[b], leaving[c], leaving[d] = h, t2, h2, h1


@njit(cache=True)
def split(h: int, middle: int, n_faces: int, origin: Ints, twin: Ints, leaving: Ints) -> int:
    """Insert vertex `middle` into an edge, writing the one or two new faces behind the first `n_faces`.

    Returns:
        The new number of faces.
    """
    h1, h2 = after(h), before(h)
    t = twin[h]
    a, b, c = origin[h], origin[h1], origin[h2]
    k = 3 * n_faces
    across_bc = twin[h1]
    origin[h1] = middle
    origin[k], origin[k + 1], origin[k + 2] = middle, b, c
    twin[k] = -1
    _link(k + 1, across_bc, twin)
    _link(h1, k + 2, twin)
    leaving[middle], leaving[a], leaving[b], leaving[c] = h1, h, k + 1, h2
    if t < 0:
        return n_faces + 1
    t1, t2 = after(t), before(t)
    d = origin[t2]
    g = k + 3
    across_ad = twin[t1]
    origin[t1] = middle
    origin[g], origin[g + 1], origin[g + 2] = middle, a, d
    _link(g + 1, across_ad, twin)
    _link(t1, g + 2, twin)
    _link(h, g, twin)
    _link(t, k, twin)
    leaving[d] = t2
    return n_faces + 2


@njit(cache=True, inline="always")
def _link(h: int, other: int, twin: Ints) -> None:
    twin[h] = other
    if other >= 0:
        twin[other] = h


@njit(cache=True)
def area_vector(p: Floats, q: Floats, r: Floats) -> tuple[float, float, float]:
    """Return twice the area of triangle p-q-r along its normal."""
    ux, uy, uz = q[0] - p[0], q[1] - p[1], q[2] - p[2]
    wx, wy, wz = r[0] - p[0], r[1] - p[1], r[2] - p[2]
    return uy * wz - uz * wy, uz * wx - ux * wz, ux * wy - uy * wx


@njit(cache=True)
def squared_distance(p: Floats, q: Floats) -> float:
    """Return the squared distance of two points."""
    return float((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2 + (p[2] - q[2]) ** 2)


@njit(cache=True)
def shape_quality(p: Floats, q: Floats, r: Floats) -> float:
    """Return 1 for an equilateral triangle, 0 for one without area: 2 sqrt(3) |2A| / (sum of squared edges)."""
    nx, ny, nz = area_vector(p, q, r)
    edges = squared_distance(p, q) + squared_distance(q, r) + squared_distance(r, p)
    return 0.0 if edges <= 0.0 else 2.0 * math.sqrt(3.0) * math.sqrt(nx * nx + ny * ny + nz * nz) / edges


@njit(cache=True)
def keeps_faces_upright(
    target: Floats, ring: Ints, count: int, skip: int, origin: Ints, points: Floats, min_cos: float, min_quality: float
) -> bool:
    """Tell whether moving the vertex that `ring` leaves to `target` turns or squashes none of its faces.

    Faces that contain vertex `skip` (-1 for none) do not matter. A face may end below `min_quality` only if it was
    hardly better before. The direction of needles is not worth keeping; thin faces must agree with the fan's mean
    normal, lest they turn over step by step.
    """
    mx, my, mz = 0.0, 0.0, 0.0
    for k in range(count):
        old = points[origin[ring[k]]]
        ax, ay, az = area_vector(old, points[origin[after(ring[k])]], points[origin[before(ring[k])]])
        mx, my, mz = mx + ax, my + ay, mz + az
    for k in range(count):
        q, r = origin[after(ring[k])], origin[before(ring[k])]
        if skip in (q, r):
            continue
        old = points[origin[ring[k]]]
        bx, by, bz = area_vector(target, points[q], points[r])
        new_quality = shape_quality(target, points[q], points[r])
        old_quality = shape_quality(old, points[q], points[r])
        if new_quality < 1e-4 or (new_quality < min_quality and new_quality < 0.8 * old_quality):
            return False
        if min(old_quality, new_quality) < _THIN and mx * bx + my * by + mz * bz <= 0.0:
            return False
        if old_quality > _NEEDLE:
            ax, ay, az = area_vector(old, points[q], points[r])
            length = np.sqrt((ax * ax + ay * ay + az * az) * (bx * bx + by * by + bz * bz))
            if ax * bx + ay * by + az * bz < min_cos * length:
                return False
    return True


@njit(cache=True)
def compact(origin: Ints, n_faces: int, n_vertices: int) -> tuple[Ints, Ints]:
    """Drop removed faces and vertices.

    Returns:
        faces: (F', 3) in the new vertex numbering.
        kept: (V',) old index of each vertex that some face uses.
    """
    renumbered = np.full(n_vertices, -1, dtype=np.int32)
    for h in range(3 * n_faces):
        if origin[h] >= 0:
            renumbered[origin[h]] = 0
    n_kept = 0
    kept = np.empty(n_vertices, dtype=np.int32)
    for v in range(n_vertices):
        if renumbered[v] == 0:
            renumbered[v] = n_kept
            kept[n_kept] = v
            n_kept += 1
    faces = np.empty((n_faces, 3), dtype=np.int32)
    n_alive = 0
    for f in range(n_faces):
        if origin[3 * f] >= 0:
            for i in range(3):
                faces[n_alive, i] = renumbered[origin[3 * f + i]]
            n_alive += 1
    return faces[:n_alive].copy(), kept[:n_kept].copy()

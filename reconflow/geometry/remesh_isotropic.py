"""The four moves of isotropic remeshing: split, collapse, flip, relax. Kernels; their public face is `remesh`.

Botsch and Kobbelt, "A remeshing approach to multiresolution modeling", 2004: edges longer than 4/3 of the target are
split, shorter than 4/5 collapsed, flips bring valences towards six (four on boundaries), vertices relax tangentially.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from reconflow.geometry.remesh_kernels import (
    MAX_VALENCE,
    Floats,
    Ints,
    after,
    are_neighbours,
    area_vector,
    before,
    collapse,
    flip,
    gather_ring,
    keeps_faces_upright,
    leaving_half_edges,
    may_collapse,
    shape_quality,
    split,
    squared_distance,
)

_LONG = 4.0 / 3.0
_SHORT = 4.0 / 5.0
_MIN_COS = 0.5
_MIN_QUALITY = 0.2


@njit(cache=True)
def count_long(points: Floats, sizing: Floats, origin: Ints, twin: Ints) -> int:
    """Count the edges longer than 4/3 of the target length at their ends."""
    count = 0
    for h in range(origin.shape[0]):
        if origin[h] >= 0 and h > twin[h]:
            a, b = origin[h], origin[after(h)]
            limit = _LONG * min(sizing[a], sizing[b])
            if squared_distance(points[a], points[b]) > limit * limit:
                count += 1
    return count


@njit(cache=True)
def split_long(
    points: Floats, sizing: Floats, origin: Ints, twin: Ints, n_vertices: int, n_faces: int
) -> tuple[int, int]:
    """Halve the long edges; the arrays must have room for one vertex and two faces per long edge.

    Returns:
        The new numbers of vertices and faces in use.
    """
    leaving = leaving_half_edges(origin[: 3 * n_faces], points.shape[0])
    last = 3 * n_faces
    room = points.shape[0] - n_vertices
    for h in range(last):
        t = twin[h]
        if origin[h] < 0 or h < t or room == 0:
            continue
        a, b = origin[h], origin[after(h)]
        limit = _LONG * min(sizing[a], sizing[b])
        if squared_distance(points[a], points[b]) <= limit * limit:
            continue
        points[n_vertices] = 0.5 * (points[a] + points[b])
        sizing[n_vertices] = 0.5 * (sizing[a] + sizing[b])
        n_faces = split(h, n_vertices, n_faces, origin, twin, leaving)
        n_vertices += 1
        room -= 1
    return n_vertices, n_faces


@njit(cache=True)
def collapse_short(points: Floats, sizing: Floats, origin: Ints, twin: Ints) -> int:
    """Collapse edges shorter than 4/5 of the target unless that makes a long edge, a turned or a thin face."""
    leaving = leaving_half_edges(origin, points.shape[0])
    ring = np.empty(MAX_VALENCE, dtype=np.int32)
    other = np.empty(MAX_VALENCE, dtype=np.int32)
    collapsed = 0
    for start in range(origin.shape[0]):
        if origin[start] < 0 or twin[start] < 0 or start > twin[start]:
            continue
        for side in range(2):
            h = start if side == 0 else twin[start]
            a, b = origin[h], origin[after(h)]
            limit = _SHORT * min(sizing[a], sizing[b])
            if squared_distance(points[a], points[b]) >= limit * limit:
                break
            if not may_collapse(h, origin, twin, leaving, ring, other):
                continue
            count, _ = gather_ring(a, twin, leaving, ring)
            fits = True
            for k in range(count):
                w = origin[after(ring[k])]
                longest = _LONG * min(sizing[w], sizing[b])
                if squared_distance(points[w], points[b]) > longest * longest:
                    fits = False
            if not fits or not keeps_faces_upright(points[b], ring, count, b, origin, points, _MIN_COS, _MIN_QUALITY):
                continue
            collapse(h, count, origin, twin, leaving, ring)
            collapsed += 1
            break
    return collapsed


@njit(cache=True)
def flip_for_valence(points: Floats, origin: Ints, twin: Ints) -> int:
    """Flip edges where that brings the four valences nearer to their ideal without turning or thinning a face."""
    n_vertices = points.shape[0]
    leaving = leaving_half_edges(origin, n_vertices)
    ring = np.empty(MAX_VALENCE, dtype=np.int32)
    valence = np.zeros(n_vertices, dtype=np.int32)
    ideal = np.full(n_vertices, 6, dtype=np.int32)
    for h in range(origin.shape[0]):
        if origin[h] >= 0:
            valence[origin[h]] += 1
            if twin[h] < 0:
                valence[origin[after(h)]] += 1
                ideal[origin[h]] = 4
                ideal[origin[after(h)]] = 4
    flips = 0
    for h in range(origin.shape[0]):
        t = twin[h]
        if origin[h] < 0 or t < h:
            continue
        a, b, c, d = origin[h], origin[t], origin[before(h)], origin[before(t)]
        if c == d or valence[a] < 4 or valence[b] < 4:
            continue
        now = (valence[a] - ideal[a]) ** 2 + (valence[b] - ideal[b]) ** 2
        now += (valence[c] - ideal[c]) ** 2 + (valence[d] - ideal[d]) ** 2
        then = (valence[a] - 1 - ideal[a]) ** 2 + (valence[b] - 1 - ideal[b]) ** 2
        then += (valence[c] + 1 - ideal[c]) ** 2 + (valence[d] + 1 - ideal[d]) ** 2
        if then >= now or not _flip_is_flat(points[a], points[b], points[c], points[d]):
            continue
        if are_neighbours(c, d, origin, twin, leaving, ring):
            continue
        flip(h, origin, twin, leaving)
        valence[a] -= 1
        valence[b] -= 1
        valence[c] += 1
        valence[d] += 1
        flips += 1
    return flips


@njit(cache=True)
def _flip_is_flat(a: Floats, b: Floats, c: Floats, d: Floats) -> bool:
    """Tell whether both new faces keep the direction of both old ones and a decent shape."""
    old = min(shape_quality(a, b, c), shape_quality(b, a, d))
    new = min(shape_quality(a, d, c), shape_quality(d, b, c))
    if new < _MIN_QUALITY and new <= old:
        return False
    for ox, oy, oz in (area_vector(a, b, c), area_vector(b, a, d)):
        for nx, ny, nz in (area_vector(a, d, c), area_vector(d, b, c)):
            length = np.sqrt((ox * ox + oy * oy + oz * oz) * (nx * nx + ny * ny + nz * nz))
            if ox * nx + oy * ny + oz * nz < 0.8 * length:
                return False
    return True


@njit(cache=True)
def relaxed_positions(points: Floats, sizing: Floats, origin: Ints, twin: Ints) -> Floats:
    """Return (V, 3) each vertex moved in its tangent plane to the weighted centre of its faces' centroids.

    Weights are area over squared target length, so that graded meshes stay graded. Boundary vertices stay.
    """
    n_vertices = points.shape[0]
    centre = np.zeros((n_vertices, 3))
    normal = np.zeros((n_vertices, 3))
    weight = np.zeros(n_vertices)
    fixed = np.zeros(n_vertices, dtype=np.bool_)
    for f in range(origin.shape[0] // 3):
        if origin[3 * f] < 0:
            continue
        a, b, c = origin[3 * f], origin[3 * f + 1], origin[3 * f + 2]
        nx, ny, nz = area_vector(points[a], points[b], points[c])
        size = (sizing[a] + sizing[b] + sizing[c]) / 3.0
        share = np.sqrt(nx * nx + ny * ny + nz * nz) / (size * size)
        for i in range(3):
            v = origin[3 * f + i]
            centre[v] += share * (points[a] + points[b] + points[c]) / 3.0
            weight[v] += share
            normal[v, 0] += nx
            normal[v, 1] += ny
            normal[v, 2] += nz
            if twin[3 * f + i] < 0:
                fixed[v] = True
                fixed[origin[after(3 * f + i)]] = True
    moved = points.copy()
    for v in range(n_vertices):
        length = np.sqrt((normal[v] ** 2).sum())
        if fixed[v] or weight[v] <= 0.0 or length <= 0.0:
            continue
        step = centre[v] / weight[v] - points[v]
        unit = normal[v] / length
        moved[v] = points[v] + step - unit * (step * unit).sum()
    return moved


@njit(cache=True)
def move_upright(points: Floats, targets: Floats, origin: Ints, twin: Ints) -> int:
    """Move each vertex to its target, or half way, or not at all: no face may turn or get thin. In index order."""
    leaving = leaving_half_edges(origin, points.shape[0])
    ring = np.empty(MAX_VALENCE, dtype=np.int32)
    refused = 0
    for v in range(points.shape[0]):
        if leaving[v] < 0:
            continue
        count, closed = gather_ring(v, twin, leaving, ring)
        if not closed or count == 0:
            continue
        done = False
        for share in (1.0, 0.5, 0.25):
            target = points[v] + share * (targets[v] - points[v])
            if keeps_faces_upright(target, ring, count, -1, origin, points, _MIN_COS, _MIN_QUALITY):
                points[v] = target
                done = True
                break
        if not done:
            refused += 1
    return refused

"""Fewer faces by collapsing edges in the order of quadric error. One algorithm; its public face is `remesh.decimate`.

Garland and Heckbert, "Surface simplification using quadric error metrics", 1997: a vertex carries the sum of squared
distances to the planes of the faces it stands for. A small share of the squared distance to the vertices themselves is
added, which spreads vertices evenly over flat parts and keeps the 3x3 systems solvable.
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.geometry.remesh_kernels import (
    MAX_VALENCE,
    Floats,
    Ints,
    after,
    area_vector,
    collapse,
    gather_ring,
    keeps_faces_upright,
    leaving_half_edges,
    may_collapse,
)

_POINT_SHARE = 1e-3
_MIN_COS = 0.3
_MIN_QUALITY = 0.1


@njit(cache=True)
def collapse_to_budget(
    points: Floats, origin: Ints, twin: Ints, target_faces: int, max_error: float
) -> tuple[int, NDArray[np.int32]]:
    """Collapse the cheapest edges until `target_faces` remain, or no edge may go; edits the arrays in place.

    Args:
        points: (V, 3) vertex positions, world units.
        origin: (3F,) from `topology`.
        twin: (3F,) from `topology`.
        target_faces: Where to stop.
        max_error: Largest root of the quadric error per area that a collapse may cost, world units; inf for any.

    Returns:
        n_faces: Faces left.
        leaving: (V,) a half-edge leaving each vertex that is left.
    """
    n_vertices = points.shape[0]
    leaving = leaving_half_edges(origin, n_vertices)
    quadrics, on_boundary = _vertex_quadrics(points, origin, twin)
    version = np.zeros(n_vertices, dtype=np.int64)
    ring = np.empty(MAX_VALENCE, dtype=np.int32)
    other = np.empty(MAX_VALENCE, dtype=np.int32)
    target = np.empty(3)
    heap = [(0.0, 0, 0)]
    heap.clear()
    for h in range(origin.shape[0]):
        if h < twin[h]:
            _push(heap, h, points, origin, twin, quadrics, on_boundary, version, target)
    n_faces = origin.shape[0] // 3
    while n_faces > target_faces and len(heap) > 0:
        _, h, stamp = heappop(heap)
        if origin[h] < 0 or version[origin[h]] + version[origin[after(h)]] != stamp:
            continue
        if on_boundary[origin[h]]:
            h = int(twin[h])
        a, b = origin[h], origin[after(h)]
        cost = _placement(a, b, points, quadrics, on_boundary, target)
        if cost > max_error * max_error * (quadrics[a, 10] + quadrics[b, 10]):
            continue
        if not may_collapse(h, origin, twin, leaving, ring, other):
            continue
        count, _ = gather_ring(a, twin, leaving, ring)
        count_b, _ = gather_ring(b, twin, leaving, other)
        if not keeps_faces_upright(target, ring, count, b, origin, points, _MIN_COS, _MIN_QUALITY):
            continue
        if not keeps_faces_upright(target, other, count_b, a, origin, points, _MIN_COS, _MIN_QUALITY):
            continue
        collapse(h, count, origin, twin, leaving, ring)
        points[b] = target
        quadrics[b] += quadrics[a]
        n_faces -= 2
        version[b] += 1
        count_b, _ = gather_ring(b, twin, leaving, other)
        for k in range(count_b):
            _push(heap, other[k], points, origin, twin, quadrics, on_boundary, version, target)
    return n_faces, leaving


@njit(cache=True)
def _vertex_quadrics(points: Floats, origin: Ints, twin: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    """Return (V, 11): the symmetric A (6), b (3), c (1) of x'Ax - 2b'x + c, and the area; and who is on a boundary."""
    n_vertices = points.shape[0]
    quadrics = np.zeros((n_vertices, 11))
    on_boundary = np.zeros(n_vertices, dtype=np.bool_)
    for f in range(origin.shape[0] // 3):
        p, q, r = points[origin[3 * f]], points[origin[3 * f + 1]], points[origin[3 * f + 2]]
        nx, ny, nz = area_vector(p, q, r)
        length = np.sqrt(nx * nx + ny * ny + nz * nz)
        for i in range(3):
            if twin[3 * f + i] < 0:
                on_boundary[origin[3 * f + i]] = True
                on_boundary[origin[after(3 * f + i)]] = True
        if length <= 0.0:
            continue
        nx, ny, nz, area = nx / length, ny / length, nz / length, length / 6.0
        offset = nx * p[0] + ny * p[1] + nz * p[2]
        for i in range(3):
            quadric = quadrics[origin[3 * f + i]]
            x = points[origin[3 * f + i]]
            quadric[0] += area * (nx * nx + _POINT_SHARE)
            quadric[1] += area * nx * ny
            quadric[2] += area * nx * nz
            quadric[3] += area * (ny * ny + _POINT_SHARE)
            quadric[4] += area * ny * nz
            quadric[5] += area * (nz * nz + _POINT_SHARE)
            quadric[6] += area * (nx * offset + _POINT_SHARE * x[0])
            quadric[7] += area * (ny * offset + _POINT_SHARE * x[1])
            quadric[8] += area * (nz * offset + _POINT_SHARE * x[2])
            quadric[9] += area * (offset * offset + _POINT_SHARE * (x[0] * x[0] + x[1] * x[1] + x[2] * x[2]))
            quadric[10] += area
    return quadrics, on_boundary


@njit(cache=True)
def _placement(
    a: int, b: int, points: Floats, quadrics: Floats, on_boundary: NDArray[np.bool_], target: Floats
) -> float:
    """Write the best common position of `a` and `b` into `target` and return its quadric error."""
    q = quadrics[a] + quadrics[b]
    xx, xy, xz, yy, yz, zz = q[0], q[1], q[2], q[3], q[4], q[5]
    c00, c01, c02 = yy * zz - yz * yz, xz * yz - xy * zz, xy * yz - xz * yy
    determinant = xx * c00 + xy * c01 + xz * c02
    if on_boundary[b]:
        target[:] = points[b]
    elif determinant <= 1e-12 * (xx + yy + zz) ** 3:
        target[:] = 0.5 * (points[a] + points[b])
    else:
        c11, c12, c22 = xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy
        target[0] = (c00 * q[6] + c01 * q[7] + c02 * q[8]) / determinant
        target[1] = (c01 * q[6] + c11 * q[7] + c12 * q[8]) / determinant
        target[2] = (c02 * q[6] + c12 * q[7] + c22 * q[8]) / determinant
    x, y, z = target[0], target[1], target[2]
    error = xx * x * x + yy * y * y + zz * z * z + 2.0 * (xy * x * y + xz * x * z + yz * y * z)
    error += q[9] - 2.0 * (q[6] * x + q[7] * y + q[8] * z)
    return float(max(error, 0.0))


@njit(cache=True)
def _push(
    heap: list[tuple[float, int, int]],
    h: int,
    points: Floats,
    origin: Ints,
    twin: Ints,
    quadrics: Floats,
    on_boundary: NDArray[np.bool_],
    version: NDArray[np.int64],
    target: Floats,
) -> None:
    a, b = origin[h], origin[after(h)]
    if twin[h] < 0 or (on_boundary[a] and on_boundary[b]):
        return
    if on_boundary[a]:
        a, b = b, a
    cost = _placement(a, b, points, quadrics, on_boundary, target)
    wide = h + 0  # Numba then holds it in 64 bits, as the heap does
    heappush(heap, (float(cost), wide, int(version[a] + version[b])))

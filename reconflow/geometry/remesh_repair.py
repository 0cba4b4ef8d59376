"""Turning a triangle soup with shared indices into an oriented manifold without slivers. Never fills holes.

Faces around an edge with more than two of them are paired so that each pair bounds one wedge of the solid; vertices
where several fans meet are split, one copy per fan. Faces without area go by collapsing or flipping an edge, never by
deletion, so that no crack opens.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.geometry.components import remove_unreferenced
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh_kernels import (
    MAX_VALENCE,
    Floats,
    Ints,
    after,
    are_neighbours,
    area_vector,
    before,
    collapse,
    compact,
    flip,
    gather_ring,
    leaving_half_edges,
    may_collapse,
    shape_quality,
    squared_distance,
)
from reconflow.geometry.topology import corner_fans, edge_table, twin_half_edges

_SLIVER_PASSES = 8


def fix_non_manifold(mesh: TriangleMesh, min_quality: float = 1e-3) -> TriangleMesh:
    """Make every edge have at most two faces and every vertex one fan, and remove faces without area.

    Args:
        mesh: Faces by shared indices, outward winding.
        min_quality: Faces below this shape quality (1 equilateral, 0 without area) are removed where the topology
            permits.

    Returns:
        The same surface; closed if the input was closed and wound consistently. Copies of split vertices lie at equal
        positions.
    """
    faces = _without_repeats(mesh.faces)
    twins = _paired_at_crowded_edges(mesh.vertices, faces, twin_half_edges(faces))
    labels, n_labels = corner_fans(twins)
    owner = np.empty(n_labels, dtype=np.int64)
    owner[labels] = faces.reshape(-1)
    apart = TriangleMesh(np.ascontiguousarray(mesh.vertices[owner]), labels.reshape(-1, 3))
    return remove_slivers(apart, twins, min_quality)


def remove_slivers(mesh: TriangleMesh, twins: NDArray[np.int32], min_quality: float) -> TriangleMesh:
    """Collapse the shortest edge of needles and flip the longest edge of caps, in passes, keeping the topology.

    Args:
        mesh: An oriented manifold mesh.
        twins: (3F,) its half-edges' twins.
        min_quality: Faces below this shape quality are treated.
    """
    points = mesh.vertices.astype(np.float64)
    origin, twin = mesh.faces.reshape(-1).copy(), twins.copy()
    for _ in range(_SLIVER_PASSES):
        if _treat_slivers(points, origin, twin, min_quality) == 0:
            break
    faces, kept = compact(origin, len(mesh.faces), len(points))
    return remove_unreferenced(TriangleMesh(mesh.vertices[kept], faces))


def _without_repeats(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Drop faces naming a vertex twice, copies of a face, and pairs of equal faces back to back."""
    distinct = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])
    faces = faces[distinct]
    ordered = np.sort(faces, axis=1)
    is_even = np.zeros(len(faces), dtype=bool)
    for roll in range(3):
        is_even |= np.all(np.roll(faces, roll, axis=1) == ordered, axis=1)
    _, group, size = np.unique(ordered, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    keep = size[group] == 1
    for repeated in np.flatnonzero(size > 1):
        members = np.flatnonzero(group == repeated)
        surplus = int(is_even[members].sum()) * 2 - len(members)
        if surplus != 0:
            keep[members[is_even[members] == (surplus > 0)][0]] = True
    return np.ascontiguousarray(faces[keep], dtype=np.int32)


def _paired_at_crowded_edges(
    vertices: NDArray[np.float32], faces: NDArray[np.int32], twins: NDArray[np.int32]
) -> NDArray[np.int32]:
    """Pair the half-edges of edges with more than two faces, in the order of their angle round the edge."""
    table = edge_table(faces)
    crowded = np.flatnonzero(table.face_counts > 2)
    if len(crowded) == 0:
        return twins
    paired = twins.copy()
    points = vertices.astype(np.float64)
    half_edges = np.flatnonzero(np.isin(table.face_edges.reshape(-1), crowded))
    groups = table.face_edges.reshape(-1)[half_edges]
    for edge in crowded:
        around = half_edges[groups == edge]
        low, high = table.edges[edge]
        axis = points[high] - points[low]
        first = np.eye(3)[int(np.abs(axis).argmin())]
        side = np.cross(axis, first)
        up = np.cross(axis / max(float(np.linalg.norm(axis)), 1e-30), side)
        spokes = points[faces[around // 3, (around % 3 + 2) % 3]] - points[low]
        ascending = faces[around // 3, around % 3] == low
        # At equal angles the wedge's end comes first, so that a wedge of no width does not swallow its neighbour.
        order = np.lexsort((~ascending, np.arctan2(spokes @ up, spokes @ side)))
        around, ascending = around[order], ascending[order]
        for k in range(len(around)):
            if ascending[k] and not ascending[k - 1]:
                paired[around[k]], paired[around[k - 1]] = around[k - 1], around[k]
    return paired


@njit(cache=True)
def _treat_slivers(points: Floats, origin: Ints, twin: Ints, min_quality: float) -> int:
    leaving = leaving_half_edges(origin, points.shape[0])
    ring = np.empty(MAX_VALENCE, dtype=np.int32)
    other = np.empty(MAX_VALENCE, dtype=np.int32)
    edits = 0
    for f in range(origin.shape[0] // 3):
        if origin[3 * f] < 0:
            continue
        p, q, r = points[origin[3 * f]], points[origin[3 * f + 1]], points[origin[3 * f + 2]]
        if shape_quality(p, q, r) >= min_quality:
            continue
        shortest, longest = 3 * f, 3 * f
        low, high = np.inf, -1.0
        for h in range(3 * f, 3 * f + 3):
            length = squared_distance(points[origin[h]], points[origin[after(h)]])
            if length < low:
                shortest, low = h, length
            if length > high:
                longest, high = h, length
        if low <= 0.04 * high:
            edits += _collapse_either_way(shortest, origin, twin, leaving, ring, other)
        elif _may_flip(longest, points, origin, twin, leaving, ring):
            flip(longest, origin, twin, leaving)
            edits += 1
    return edits


@njit(cache=True)
def _collapse_either_way(h: int, origin: Ints, twin: Ints, leaving: Ints, ring: Ints, other: Ints) -> int:
    for end in range(2):
        side = h if end == 0 else twin[h]
        if side >= 0 and may_collapse(side, origin, twin, leaving, ring, other):
            count, _ = gather_ring(origin[side], twin, leaving, ring)
            collapse(side, count, origin, twin, leaving, ring)
            return 1
    return 0


@njit(cache=True)
def _may_flip(h: int, points: Floats, origin: Ints, twin: Ints, leaving: Ints, ring: Ints) -> bool:
    """Tell whether flipping keeps the topology and leaves two faces better than the worse one was."""
    t = twin[h]
    if t < 0:
        return False
    a, b, c, d = origin[h], origin[t], origin[before(h)], origin[before(t)]
    if c == d or are_neighbours(c, d, origin, twin, leaving, ring):
        return False
    for v in (a, b):
        count, closed = gather_ring(v, twin, leaving, ring)
        if count < (4 if closed else 2):
            return False
    pa, pb, pc, pd = points[a], points[b], points[c], points[d]
    if min(shape_quality(pa, pd, pc), shape_quality(pd, pb, pc)) <= shape_quality(pa, pb, pc):
        return False
    nx, ny, nz = area_vector(pb, pa, pd)
    ux, uy, uz = area_vector(pa, pd, pc)
    wx, wy, wz = area_vector(pd, pb, pc)
    return ux * nx + uy * ny + uz * nz >= 0.0 and wx * nx + wy * ny + wz * nz >= 0.0

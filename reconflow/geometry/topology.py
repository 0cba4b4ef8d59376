"""Who touches whom in a triangle mesh: edges, twins of half-edges, connected parts. Index work only, no positions.

Half-edge `3 * f + i` runs from corner `i` of face `f` to corner `(i + 1) % 3`. Its twin is the half-edge of the face on
the other side of the same edge, running the other way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class EdgeTable:
    """The undirected edges of a mesh, in ascending order of (smaller, larger) vertex index.

    Attributes:
        edges: (E, 2) int32 vertex indices, smaller first.
        face_edges: (F, 3) int32; the edge from corner `i` to corner `(i + 1) % 3` of each face.
        face_counts: (E,) int32 number of faces on each edge: 1 on a boundary, 2 inside, more where non-manifold.
    """

    edges: NDArray[np.int32]
    face_edges: NDArray[np.int32]
    face_counts: NDArray[np.int32]


def edge_table(faces: NDArray[np.int32]) -> EdgeTable:
    """Enumerate the edges of (F, 3) faces by shared vertex indices."""
    n_vertices = int(faces.max()) + 1 if len(faces) else 0
    edges, face_edges, counts = _number_edges(np.ascontiguousarray(faces, dtype=np.int32), n_vertices)
    return EdgeTable(edges, face_edges, counts)


def twin_half_edges(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Pair the half-edges of a mesh.

    Args:
        faces: (F, 3) vertex indices.

    Returns:
        (3F,) int32 twin of each half-edge; -1 where the edge has no partner: on boundaries, on edges with more than
        two faces and where two neighbours are wound against each other.
    """
    table = edge_table(faces)
    return _pair_half_edges(np.ascontiguousarray(faces, dtype=np.int32), table.face_edges, table.face_counts)


def face_neighbours(faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the (F, 3) face across each edge, edge `i` running from corner `i` to `(i + 1) % 3`; -1 for none."""
    twins = twin_half_edges(faces)
    return np.where(twins >= 0, twins // 3, -1).astype(np.int32).reshape(-1, 3)


def fan_counts(faces: NDArray[np.int32], twins: NDArray[np.int32], n_vertices: int) -> NDArray[np.int32]:
    """Count the separate fans of faces around each vertex; more than one makes the vertex non-manifold.

    Args:
        faces: (F, 3) vertex indices.
        twins: (3F,) from `twin_half_edges`.
        n_vertices: V.

    Returns:
        (V,) int32; 0 for vertices without faces.
    """
    labels, n_labels = corner_fans(twins)
    owner = np.empty(n_labels, dtype=np.int64)
    owner[labels] = faces.reshape(-1)
    return np.bincount(owner, minlength=n_vertices).astype(np.int32)


def corner_fans(twins: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """Group the corners that meet in one vertex and are connected through paired edges.

    Args:
        twins: (3F,) from `twin_half_edges`.

    Returns:
        labels: (3F,) int32 fan of each corner, numbered in the order of first appearance.
        n_labels: Number of fans.
    """
    labels, n_labels = _label_fans(np.ascontiguousarray(twins, dtype=np.int32))
    return labels, int(n_labels)


def edge_connected_faces(faces: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """Label the pieces of a mesh that are connected through shared edges, whatever their winding.

    Args:
        faces: (F, 3) vertex indices.

    Returns:
        labels: (F,) int32, numbered in the order of first appearance.
        n_labels: Number of pieces.
    """
    table = edge_table(faces)
    labels, n_labels = _join_by_edges(table.face_edges, len(table.edges))
    return labels, int(n_labels)


def connected_labels(neighbours: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """Label the connected parts of a graph given as a table of neighbours.

    Args:
        neighbours: (N, K) int32, symmetric; -1 for no neighbour.

    Returns:
        labels: (N,) int32, numbered in the order of first appearance.
        n_labels: Number of parts.
    """
    labels, n_labels = _flood(np.ascontiguousarray(neighbours, dtype=np.int32))
    return labels, int(n_labels)


@njit(cache=True)
def _number_edges(
    faces: NDArray[np.int32], n_vertices: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    n_faces = faces.shape[0]
    start = np.zeros(n_vertices + 1, dtype=np.int64)
    for f in range(n_faces):
        for i in range(3):
            start[min(faces[f, i], faces[f, (i + 1) % 3]) + 1] += 1
    for v in range(n_vertices):
        start[v + 1] += start[v]
    cursor = start[:-1].copy()
    bucket = np.empty(3 * n_faces, dtype=np.int64)
    for f in range(n_faces):
        for i in range(3):
            low = min(faces[f, i], faces[f, (i + 1) % 3])
            bucket[cursor[low]] = 3 * f + i
            cursor[low] += 1
    edges = np.empty((3 * n_faces, 2), dtype=np.int32)
    counts = np.zeros(3 * n_faces, dtype=np.int32)
    face_edges = np.empty((n_faces, 3), dtype=np.int32)
    n_edges = 0
    for v in range(n_vertices):
        size = start[v + 1] - start[v]
        high = np.empty(size, dtype=np.int64)
        for k in range(size):
            h = bucket[start[v] + k]
            high[k] = max(faces[h // 3, h % 3], faces[h // 3, (h % 3 + 1) % 3])
        order = np.argsort(high, kind="mergesort")
        for k in range(size):
            h = bucket[start[v] + order[k]]
            if k == 0 or high[order[k]] != high[order[k - 1]]:
                edges[n_edges, 0] = v
                edges[n_edges, 1] = high[order[k]]
                n_edges += 1
            counts[n_edges - 1] += 1
            face_edges[h // 3, h % 3] = n_edges - 1
    return edges[:n_edges].copy(), face_edges, counts[:n_edges].copy()


@njit(cache=True)
def _pair_half_edges(
    faces: NDArray[np.int32], face_edges: NDArray[np.int32], counts: NDArray[np.int32]
) -> NDArray[np.int32]:
    n_faces = faces.shape[0]
    first = np.full(counts.shape[0], -1, dtype=np.int32)
    twins = np.full(3 * n_faces, -1, dtype=np.int32)
    for h in range(3 * n_faces):
        edge = face_edges[h // 3, h % 3]
        if counts[edge] != 2:
            continue
        if first[edge] < 0:
            first[edge] = h
            continue
        other = first[edge]
        if faces[h // 3, h % 3] == faces[other // 3, (other % 3 + 1) % 3] and h // 3 != other // 3:
            twins[h] = other
            twins[other] = h
    return twins


@njit(cache=True)
def _label_fans(twins: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    labels = np.full(twins.shape[0], -1, dtype=np.int32)
    n_labels = 0
    for seed in range(twins.shape[0]):
        if labels[seed] >= 0:
            continue
        corner = seed
        while corner >= 0 and labels[corner] < 0:  # one way round: across the half-edge that enters the corner
            labels[corner] = n_labels
            corner = twins[corner + 2 if corner % 3 == 0 else corner - 1]
        corner = twins[seed]
        while corner >= 0:  # the other way: across the half-edge that leaves it
            corner = corner + 1 if corner % 3 < 2 else corner - 2
            if labels[corner] >= 0:
                break
            labels[corner] = n_labels
            corner = twins[corner]
        n_labels += 1
    return labels, n_labels


@njit(cache=True)
def _flood(neighbours: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    n = neighbours.shape[0]
    labels = np.full(n, -1, dtype=np.int32)
    stack = np.empty(n, dtype=np.int32)
    n_labels = 0
    for seed in range(n):
        if labels[seed] >= 0:
            continue
        labels[seed] = n_labels
        stack[0] = seed
        top = 1
        while top > 0:
            top -= 1
            node = stack[top]
            for k in range(neighbours.shape[1]):
                other = neighbours[node, k]
                if other >= 0 and labels[other] < 0:
                    labels[other] = n_labels
                    stack[top] = other
                    top += 1
        n_labels += 1
    return labels, n_labels


@njit(cache=True)
def _join_by_edges(face_edges: NDArray[np.int32], n_edges: int) -> tuple[NDArray[np.int32], int]:
    n_faces = face_edges.shape[0]
    parent = np.arange(n_faces, dtype=np.int32)
    lowest = np.full(n_edges, -1, dtype=np.int32)
    for f in range(n_faces):
        for i in range(3):
            edge = face_edges[f, i]
            if lowest[edge] < 0:
                lowest[edge] = f
                continue
            a, b = f, lowest[edge]
            while parent[a] != a:
                parent[a] = parent[parent[a]]
                a = parent[a]
            while parent[b] != b:
                parent[b] = parent[parent[b]]
                b = parent[b]
            if a < b:
                parent[b] = a
            else:
                parent[a] = b
    labels = np.full(n_faces, -1, dtype=np.int32)
    n_labels = 0
    for f in range(n_faces):
        root = f
        while parent[root] != root:
            root = parent[root]
        if labels[root] < 0:
            labels[root] = n_labels
            n_labels += 1
        labels[f] = labels[root]
    return labels, n_labels

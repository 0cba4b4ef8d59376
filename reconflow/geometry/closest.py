"""Nearest points on a triangle mesh, found through its nearest vertices and samples. Distances only, no rays."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from reconflow.geometry.mesh import TriangleMesh


class SurfaceLocator:
    """Answers for many points which point of a mesh is nearest.

    Only the faces at the few nearest vertices and samples are looked at. Faces longer than `spacing` carry samples at
    about that distance, so the answer is exact for points within about a spacing of the surface, and an upper bound
    of the distance elsewhere.
    """

    def __init__(self, mesh: TriangleMesh, spacing: float, nearest: int = 4) -> None:
        self._points = mesh.vertices.astype(np.float64)
        self._faces = np.ascontiguousarray(mesh.faces, dtype=np.int32)
        samples, sampled_faces = _samples_of_long_faces(self._points[self._faces], spacing)
        self._tree = cKDTree(np.concatenate([self._points, samples]))
        self._nearest = min(nearest, len(self._points) + len(samples))
        start, incident = _faces_of_vertices(self._faces, len(self._points))
        self._start = np.concatenate([start, start[-1] + 1 + np.arange(len(samples))])
        self._incident = np.concatenate([incident, sampled_faces])

    def project(
        self, points: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]:
        """Move points to the surface.

        Args:
            points: (N, 3), world units.

        Returns:
            on_surface: (N, 3) nearest points.
            face: (N,) int32 the face they lie on.
            bary: (N, 3) barycentric weights of the face's corners.
        """
        _, candidates = self._tree.query(points, k=self._nearest)
        candidates = np.ascontiguousarray(candidates.reshape(len(points), -1), dtype=np.int64)
        return _project(
            np.ascontiguousarray(points), candidates, self._points, self._faces, self._start, self._incident
        )

    def sample(
        self, face: NDArray[np.int32], bary: NDArray[np.float64], values: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Interpolate (V,) or (V, C) vertex values of the mesh at points returned by `project`."""
        weights = bary if values.ndim == 1 else bary[:, :, None]
        return np.asarray((values[self._faces[face]] * weights).sum(axis=1), dtype=np.float64)


def _samples_of_long_faces(
    corners: NDArray[np.float64], spacing: float
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Halve the (F, 3, 3) faces at their longest edges until none exceeds the spacing.

    Returns:
        centres: (S, 3) centres of the pieces of divided faces.
        face: (S,) int32 the face of each.
    """
    face = np.arange(len(corners), dtype=np.int32)
    divided = np.zeros(len(corners), dtype=bool)
    pieces: list[tuple[NDArray[np.float64], NDArray[np.int32]]] = []
    while len(corners):
        edges = np.linalg.norm(np.roll(corners, -1, axis=1) - corners, axis=2)
        long = edges.max(axis=1) > spacing
        done = ~long & divided
        pieces.append((corners[done].mean(axis=1), face[done]))
        corners, face = corners[long], face[long]
        turn = (edges[long].argmax(axis=1)[:, None] + np.arange(3)) % 3
        a, b, c = np.take_along_axis(corners, turn[:, :, None], axis=1).transpose(1, 0, 2)
        middle = 0.5 * (a + b)
        corners = np.concatenate([np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)])
        face = np.concatenate([face, face])
        divided = np.ones(len(face), dtype=bool)
    return np.concatenate([centres for centres, _ in pieces]), np.concatenate([faces for _, faces in pieces])


@njit(cache=True)
def _faces_of_vertices(faces: NDArray[np.int32], n_vertices: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    start = np.zeros(n_vertices + 1, dtype=np.int64)
    for f in range(faces.shape[0]):
        for i in range(3):
            start[faces[f, i] + 1] += 1
    for v in range(n_vertices):
        start[v + 1] += start[v]
    cursor = start[:-1].copy()
    incident = np.empty(3 * faces.shape[0], dtype=np.int32)
    for f in range(faces.shape[0]):
        for i in range(3):
            incident[cursor[faces[f, i]]] = f
            cursor[faces[f, i]] += 1
    return start, incident


@njit(cache=True)
def _project(
    points: NDArray[np.float64],
    candidates: NDArray[np.int64],
    vertices: NDArray[np.float64],
    faces: NDArray[np.int32],
    start: NDArray[np.int64],
    incident: NDArray[np.int32],
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64]]:
    n = points.shape[0]
    on_surface = np.empty((n, 3))
    best_face = np.full(n, -1, dtype=np.int32)
    best_bary = np.zeros((n, 3))
    for i in range(n):
        best = np.inf
        px, py, pz = points[i]
        for k in range(candidates.shape[1]):
            v = candidates[i, k]
            for j in range(start[v], start[v + 1]):
                f = incident[j]
                a, b, c = vertices[faces[f, 0]], vertices[faces[f, 1]], vertices[faces[f, 2]]
                wb, wc = _nearest_weights(px, py, pz, a, b, c)
                wa = 1.0 - wb - wc
                x = wa * a[0] + wb * b[0] + wc * c[0]
                y = wa * a[1] + wb * b[1] + wc * c[1]
                z = wa * a[2] + wb * b[2] + wc * c[2]
                distance = (x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2
                if distance < best:
                    best = distance
                    best_face[i] = f
                    best_bary[i, 0], best_bary[i, 1], best_bary[i, 2] = wa, wb, wc
                    on_surface[i, 0], on_surface[i, 1], on_surface[i, 2] = x, y, z
    return on_surface, best_face, best_bary


@njit(cache=True)
def _nearest_weights(
    px: float, py: float, pz: float, a: NDArray[np.float64], b: NDArray[np.float64], c: NDArray[np.float64]
) -> tuple[float, float]:
    """Return the weights of `b` and `c` in the point of triangle a-b-c nearest to p.

    The unconstrained solution when it lies inside, else the best of the three edges.
    """
    e0x, e0y, e0z = b[0] - a[0], b[1] - a[1], b[2] - a[2]
    e1x, e1y, e1z = c[0] - a[0], c[1] - a[1], c[2] - a[2]
    dx, dy, dz = px - a[0], py - a[1], pz - a[2]
    g00 = e0x * e0x + e0y * e0y + e0z * e0z
    g01 = e0x * e1x + e0y * e1y + e0z * e1z
    g11 = e1x * e1x + e1y * e1y + e1z * e1z
    r0 = dx * e0x + dy * e0y + dz * e0z
    r1 = dx * e1x + dy * e1y + dz * e1z
    determinant = g00 * g11 - g01 * g01
    if determinant > 1e-14 * g00 * g11:
        s = (g11 * r0 - g01 * r1) / determinant
        t = (g00 * r1 - g01 * r0) / determinant
        if s >= 0.0 and t >= 0.0 and s + t <= 1.0:
            return s, t
    s0 = 0.0 if g00 <= 0.0 else min(max(r0 / g00, 0.0), 1.0)
    t1 = 0.0 if g11 <= 0.0 else min(max(r1 / g11, 0.0), 1.0)
    g22 = g00 - 2.0 * g01 + g11
    u = 0.0 if g22 <= 0.0 else min(max((g00 - g01 + r1 - r0) / g22, 0.0), 1.0)
    best_s, best_t = s0, 0.0
    best = g00 * s0 * s0 - 2.0 * r0 * s0
    error = g11 * t1 * t1 - 2.0 * r1 * t1
    if error < best:
        best_s, best_t, best = 0.0, t1, error
    s, t = 1.0 - u, u
    error = g00 * s * s + 2.0 * g01 * s * t + g11 * t * t - 2.0 * (r0 * s + r1 * t)
    if error < best:
        best_s, best_t = s, t
    return best_s, best_t

"""Elementary measures of a triangle mesh's faces and vertices: areas and normals. Nothing that changes a mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reconflow.geometry.mesh import TriangleMesh


def face_area_vectors(mesh: TriangleMesh) -> NDArray[np.float64]:
    """Return (F, 3) vectors along the faces' outward normals, as long as the faces' areas, squared world units."""
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    return np.asarray(0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), dtype=np.float64)


def face_areas(mesh: TriangleMesh) -> NDArray[np.float64]:
    """Return the (F,) areas of the faces, squared world units."""
    return np.asarray(np.linalg.norm(face_area_vectors(mesh), axis=1), dtype=np.float64)


def face_normals(mesh: TriangleMesh) -> NDArray[np.float64]:
    """Return the (F, 3) outward unit normals of the faces; zero for faces without area."""
    return unit_rows(face_area_vectors(mesh))


def vertex_normals(mesh: TriangleMesh) -> NDArray[np.float64]:
    """Return the (V, 3) area-weighted unit normals of the vertices; zero for vertices without faces."""
    vectors = face_area_vectors(mesh)
    total = np.empty((len(mesh.vertices), 3))
    for axis in range(3):
        weights = np.repeat(vectors[:, axis], 3)
        total[:, axis] = np.bincount(mesh.faces.reshape(-1), weights=weights, minlength=len(mesh.vertices))
    return unit_rows(total)


def unit_rows(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale the rows of (N, 3) vectors to length one; zero rows stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0), dtype=np.float64)

"""The connected pieces of a mesh: labelling them, keeping the ones that matter, dropping unused vertices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reconflow.errors import ModelConvergenceError
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.surface import face_areas
from reconflow.geometry.topology import edge_connected_faces


def face_components(mesh: TriangleMesh) -> tuple[NDArray[np.int32], int]:
    """Label the pieces that are connected through shared edges, whatever their winding.

    Returns:
        labels: (F,) int32, numbered in the order of first appearance.
        n_components: Number of pieces.
    """
    return edge_connected_faces(mesh.faces)


def keep_components(mesh: TriangleMesh, min_share: float = 0.01) -> TriangleMesh:
    """Drop the small pieces of a mesh, and the vertices that only they used; the largest stays in any case.

    Args:
        mesh: Any mesh.
        min_share: Smallest part of the total area that a piece must have to stay, 0 to 1.

    Raises:
        ModelConvergenceError: The mesh has no area.
    """
    areas = face_areas(mesh)
    total = float(areas.sum())
    if total <= 0.0:
        raise ModelConvergenceError(
            "The surface is empty.",
            suggestion="Check that the masks of all views show the object.",
            faces=len(mesh.faces),
        )
    labels, n_components = face_components(mesh)
    shares = np.bincount(labels, weights=areas, minlength=n_components) / total
    keep = shares >= min_share
    keep[int(shares.argmax())] = True
    return submesh(mesh, keep[labels])


def submesh(mesh: TriangleMesh, face_mask: NDArray[np.bool_]) -> TriangleMesh:
    """Return the faces where (F,) `face_mask` holds, with only the vertices they use, in their old order."""
    return remove_unreferenced(TriangleMesh(mesh.vertices, mesh.faces[face_mask]))


def remove_unreferenced(mesh: TriangleMesh) -> TriangleMesh:
    """Drop the vertices that no face uses; the others keep their order."""
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[mesh.faces.reshape(-1)] = True
    renumbered = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return TriangleMesh(np.ascontiguousarray(mesh.vertices[used]), renumbered[mesh.faces].astype(np.int32))

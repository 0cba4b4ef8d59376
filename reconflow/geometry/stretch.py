"""How much a texture is stretched on a surface, and where its seams run. Measures any UV layout, makes none.

Stretch after Sander, Snyder, Gortler and Hoppe, "Texture mapping progressive meshes", 2001: the singular values of the
map from texture to surface, scaled so that a layout without distortion has stretch one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.surface import face_areas
from reconflow.geometry.topology import twin_half_edges


@dataclass(frozen=True)
class Stretch:
    """Stretch of a whole layout.

    Attributes:
        l2: Root mean square over area and directions; 1 without distortion.
        linf: Largest stretch of any face in any direction; 1 without distortion.
        flipped_faces: Faces that run clockwise in the texture.
        collapsed_faces: Faces without area in the texture, left out of the two norms.
    """

    l2: float
    linf: float
    flipped_faces: int
    collapsed_faces: int


def measure_stretch(mesh: TriangleMesh, uvs: NDArray[np.floating], uv_faces: NDArray[np.int32]) -> Stretch:
    """Measure a layout.

    Args:
        mesh: The surface.
        uvs: (T, 2) texture coordinates, v up.
        uv_faces: (F, 3) indices into `uvs`.
    """
    areas = face_areas(mesh)
    uv_areas = signed_uv_areas(uvs, uv_faces)
    largest, smallest = stretch_values(mesh, uvs, uv_faces)
    used = np.isfinite(largest) & (areas > 0)
    scale = float(np.sqrt(np.abs(uv_areas[used]).sum() / areas[used].sum())) if used.any() else 1.0
    squared = 0.5 * (largest[used] ** 2 + smallest[used] ** 2)
    return Stretch(
        l2=scale * float(np.sqrt((squared * areas[used]).sum() / areas[used].sum())) if used.any() else float("inf"),
        linf=scale * float(largest[used].max(initial=0.0)),
        flipped_faces=int(np.count_nonzero(uv_areas < 0)),
        collapsed_faces=int(np.count_nonzero(~used)),
    )


def stretch_values(
    mesh: TriangleMesh, uvs: NDArray[np.floating], uv_faces: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (F,) largest and (F,) smallest world lengths per texture length; inf for faces without texture area."""
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    flat = uvs.astype(np.float64)[uv_faces]
    e1, e2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    u1, u2 = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    doubled = u1[:, 0] * u2[:, 1] - u1[:, 1] * u2[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        along_u = (e1 * u2[:, 1:] - e2 * u1[:, 1:]) / doubled[:, None]
        along_v = (e2 * u1[:, :1] - e1 * u2[:, :1]) / doubled[:, None]
        a, b, c = (np.einsum("fi,fi->f", p, q) for p, q in ((along_u, along_u), (along_u, along_v), (along_v, along_v)))
        root = np.sqrt((a - c) ** 2 + 4.0 * b * b)
        largest, smallest = np.sqrt(0.5 * (a + c + root)), np.sqrt(np.maximum(0.5 * (a + c - root), 0.0))
    flat_face = doubled == 0
    return np.where(flat_face, np.inf, largest), np.where(flat_face, np.inf, smallest)


def signed_uv_areas(uvs: NDArray[np.floating], uv_faces: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the (F,) areas of the faces in the unit square, negative where they run clockwise."""
    flat = uvs.astype(np.float64)[uv_faces]
    u1, u2 = flat[:, 1] - flat[:, 0], flat[:, 2] - flat[:, 0]
    return np.asarray(0.5 * (u1[:, 0] * u2[:, 1] - u1[:, 1] * u2[:, 0]), dtype=np.float64)


def seam_edges(mesh: TriangleMesh, uv_faces: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the half-edges, one per edge, across which the texture is not continuous; boundaries are no seams.

    Args:
        mesh: The surface.
        uv_faces: (F, 3) texture vertex of each corner.

    Returns:
        (S,) int32; half-edge `3 * f + i` runs from corner `i` of face `f` to the next.
    """
    twins = twin_half_edges(mesh.faces)
    half_edges = np.flatnonzero(np.arange(len(twins)) < twins)
    others = twins[half_edges]
    flat = uv_faces.reshape(-1)
    following = np.roll(uv_faces, -1, axis=1).reshape(-1)
    torn = (flat[half_edges] != following[others]) | (following[half_edges] != flat[others])
    return np.asarray(half_edges[torn], dtype=np.int32)


def seam_length(mesh: TriangleMesh, uv_faces: NDArray[np.int32]) -> float:
    """Return the total length of the seams on the surface, world units."""
    seams = seam_edges(mesh, uv_faces)
    starts = mesh.faces.reshape(-1)[seams]
    ends = np.roll(mesh.faces, -1, axis=1).reshape(-1)[seams]
    points = mesh.vertices.astype(np.float64)
    return float(np.linalg.norm(points[starts] - points[ends], axis=1).sum())

"""Meshes with known facts, generated: closed iso-surfaces of simple solids, and a few by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from reconflow.geometry.mesh import TriangleMesh

Points = NDArray[np.float64]


def iso_surface(distance: Callable[[Points], Points], resolution: int = 48, extent: float = 1.3) -> TriangleMesh:
    """Extract the zero level of a signed distance (negative inside) sampled on a cube of half-size `extent`."""
    axis = np.linspace(-extent, extent, resolution)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    vertices, faces, _, _ = marching_cubes(-distance(grid), 0.0, gradient_direction="ascent")
    step = axis[1] - axis[0]
    return TriangleMesh((vertices * step - extent).astype(np.float32), faces.astype(np.int32))


def sphere(p: Points) -> Points:
    return np.linalg.norm(p, axis=-1) - 1.0


def torus(p: Points, centre_x: float = 0.0, major: float = 0.8, minor: float = 0.3) -> Points:
    ring = np.hypot(p[..., 0] - centre_x, p[..., 1]) - major
    return np.hypot(ring, p[..., 2]) - minor


def double_torus(p: Points) -> Points:
    return np.minimum(torus(p, -0.55, 0.5, 0.17), torus(p, 0.55, 0.5, 0.17))


def thin_post(p: Points) -> Points:
    disc = np.maximum(np.hypot(p[..., 0], p[..., 2]) - 0.8, np.abs(p[..., 1] + 0.8) - 0.2)
    post = np.maximum(np.hypot(p[..., 0], p[..., 2]) - 0.09, np.abs(p[..., 1]) - 1.0)
    return np.minimum(disc, post)


def box_with_hole(p: Points) -> Points:
    box = np.max(np.abs(p) - np.array([0.9, 0.7, 0.5]), axis=-1)
    return np.maximum(box, 0.35 - np.hypot(p[..., 0], p[..., 1]))


def bumpy_sphere(p: Points) -> Points:
    bumps = np.sin(9 * p[..., 0]) * np.sin(9 * p[..., 1]) * np.sin(9 * p[..., 2])
    return sphere(p) + 0.12 * bumps


def torus_knot(p: Points, turns: int = 160, radius: float = 0.17) -> Points:
    """A trefoil tube: the distance to densely sampled points of the curve."""
    from scipy.spatial import cKDTree

    t = np.linspace(0, 2 * np.pi, turns * 8, endpoint=False)
    ring = 0.65 + 0.3 * np.cos(3 * t)
    curve = np.stack([ring * np.cos(2 * t), ring * np.sin(2 * t), 0.3 * np.sin(3 * t)], axis=-1)
    distance, _ = cKDTree(curve).query(p.reshape(-1, 3))
    return np.asarray(distance).reshape(p.shape[:-1]) - radius


SOLIDS: dict[str, tuple[Callable[[Points], Points], int]] = {
    "sphere": (sphere, 0),
    "torus": (torus, 1),
    "double_torus": (double_torus, 2),
    "thin_post": (thin_post, 0),
    "box_with_hole": (box_with_hole, 1),
    "bumpy_sphere": (bumpy_sphere, 0),
    "torus_knot": (torus_knot, 1),
}
"""Each solid's signed distance and the genus of its surface."""


def tetrahedron() -> TriangleMesh:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
    return TriangleMesh(vertices, np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=np.int32))


def cube(low: tuple[float, float, float] = (0, 0, 0), size: float = 1.0) -> TriangleMesh:
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float32)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    return TriangleMesh(corners * size + np.array(low, dtype=np.float32), np.array(faces, dtype=np.int32))


def joined(*meshes: TriangleMesh) -> TriangleMesh:
    """Put meshes side by side in one, sharing nothing."""
    offsets = np.cumsum([0, *(len(mesh.vertices) for mesh in meshes[:-1])])
    return TriangleMesh(
        np.concatenate([mesh.vertices for mesh in meshes]),
        np.concatenate([mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=True)]).astype(np.int32),
    )

"""Objects to register: known meshes seen by known cameras, moved by random similarity transforms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.geometry.depth import SurfaceObservation, observe
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import Similarity, rotation_angle_deg
from reconflow.rendering.shade import Render, render_depth
from tests.nvdiffrec.painted_objects import stored, view_of


def random_similarity(seed: int) -> Similarity:
    rng = np.random.default_rng(seed)
    return Similarity(float(np.exp(rng.uniform(-1, 1))), Rotation.random(rng=rng).as_matrix(), rng.uniform(-2, 2, 3))


def observations_of(
    mesh: TriangleMesh, size: int = 256, *, bits: int | None = 8, fov_rad: float = 0.8, distance: float = 3.0
) -> list[SurfaceObservation]:
    """What six views of a mesh know, through 8-bit depth renders or through masks alone."""
    cameras: tuple[PinholeCamera, ...] = six_axis_rig(fov_rad, distance, (size, size))
    found = []
    for camera in cameras:
        depth = render_depth(mesh, camera)
        render = Render(np.ones((size, size, 3), np.float32), (depth > 0).astype(np.float32), depth)
        image, scale = (None, None) if bits is None else stored(depth, bits)
        found.append(observe(view_of(camera.name, render, image), camera, scale))
    return found


def errors(found: Similarity, truth: Similarity, mesh_in_world: TriangleMesh) -> tuple[float, float, float]:
    """Rotation (degrees), scale (relative) and translation (radii, of the object's centre) errors."""
    centre = 0.5 * (mesh_in_world.vertices.min(axis=0) + mesh_in_world.vertices.max(axis=0)).astype(np.float64)
    radius = float(np.linalg.norm(mesh_in_world.vertices - centre, axis=1).max())
    in_mesh: NDArray[np.float64] = truth.inverse().apply(centre)
    return (
        rotation_angle_deg(found.rotation, truth.rotation),
        abs(found.scale / truth.scale - 1.0),
        float(np.linalg.norm(found.apply(in_mesh) - centre)) / radius,
    )

"""How far a mesh is from the true one: distances, F-scores and normals from points sampled on both. No images.

Lengths are in units of the true mesh's bounding sphere about the centre of its box. Of the truth only what some camera
sees is asked for; of the result everything counts, hidden parts included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from reconflow.cameras.camera import PinholeCamera, project_points
from reconflow.geometry.closest import SurfaceLocator
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.surface import face_areas, face_normals
from reconflow.rendering.shade import render_depth

Points = NDArray[np.float64]

_VISIBILITY_PX = 1024
"""Width of the depth maps that decide what a camera sees, pixels."""


@dataclass(frozen=True)
class GeometryScores:
    """How well two surfaces agree.

    Attributes:
        chamfer: Mean of the two mean distances, true radii.
        fscore_1pct: Harmonic mean of precision and recall at a hundredth of the true radius.
        fscore_2pct: The same at two hundredths.
        normal_consistency: Mean |cosine| between the normals of nearest points, mean of both directions.
        visible_share: Part of the true surface that a camera sees.
    """

    chamfer: float
    fscore_1pct: float
    fscore_2pct: float
    normal_consistency: float
    visible_share: float


def read_true_mesh(path: Path) -> TriangleMesh:
    """Read a PLY file, vertices in one place joined."""
    import trimesh

    loaded: Any = trimesh.load(path, force="mesh", process=False)
    vertices, index = np.unique(np.asarray(loaded.vertices, np.float32), axis=0, return_inverse=True)
    return TriangleMesh(vertices, index.reshape(-1)[np.asarray(loaded.faces)].astype(np.int32))


def compare_surfaces(
    result: TriangleMesh, truth: TriangleMesh, cameras: Sequence[PinholeCamera], samples: int = 100_000, seed: int = 0
) -> GeometryScores:
    """Compare two meshes in one frame.

    Args:
        result: What was reconstructed.
        truth: What it should be.
        cameras: Whoever sees the object; what none of them sees of the truth is not asked for.
        samples: Points drawn on each surface.
        seed: Of the drawing.
    """
    centre = (truth.vertices.max(axis=0) + truth.vertices.min(axis=0)).astype(np.float64) / 2
    radius = float(np.linalg.norm(truth.vertices - centre, axis=1).max())
    rng = np.random.default_rng(seed)
    result_points, result_normals = _sample(result, samples, rng)
    true_points, true_normals = _sample(truth, samples, rng)
    seen = np.zeros(samples, bool)
    for camera in cameras:
        seen |= _is_seen(true_points, truth, camera, radius)
    to_truth, to_truth_cosine = _distances(result_points, result_normals, truth, radius)
    to_result, to_result_cosine = _distances(true_points[seen], true_normals[seen], result, radius)
    return GeometryScores(
        chamfer=float(to_truth.mean() + to_result.mean()) / 2,
        fscore_1pct=_fscore(to_truth, to_result, 0.01),
        fscore_2pct=_fscore(to_truth, to_result, 0.02),
        normal_consistency=float(to_truth_cosine.mean() + to_result_cosine.mean()) / 2,
        visible_share=float(seen.mean()),
    )


def _sample(mesh: TriangleMesh, count: int, rng: np.random.Generator) -> tuple[Points, Points]:
    """Draw (count, 3) points evenly over the area, with their faces' normals."""
    areas = face_areas(mesh)
    face = rng.choice(len(areas), count, p=areas / areas.sum())
    corners = mesh.vertices.astype(np.float64)[mesh.faces[face]]
    root, share = np.sqrt(rng.random((count, 1))), rng.random((count, 1))
    points = (1 - root) * corners[:, 0] + root * (1 - share) * corners[:, 1] + root * share * corners[:, 2]
    return points, face_normals(mesh)[face]


def _distances(points: Points, normals: Points, mesh: TriangleMesh, radius: float) -> tuple[Points, Points]:
    """Return (N,) distances to a mesh, in radii, and (N,) |cosine| with the normal there."""
    nearest, face, _ = SurfaceLocator(mesh, 0.02 * radius, nearest=8).project(points)
    cosine = np.abs((face_normals(mesh)[face] * normals).sum(axis=1))
    return np.linalg.norm(nearest - points, axis=1) / radius, cosine


def _is_seen(points: Points, mesh: TriangleMesh, camera: PinholeCamera, radius: float) -> NDArray[np.bool_]:
    """Tell which points of a mesh lie on the surface that a camera sees, to within a pixel's slope."""
    height, width = camera.image_hw
    view = camera.resized((round(height * _VISIBILITY_PX / width), _VISIBILITY_PX))
    behind = ndimage.maximum_filter(render_depth(mesh, view), size=3)
    pixels, depth = project_points(points, view)
    column, row = np.floor(pixels).astype(np.int64).T
    inside = (depth > 0) & (column >= 0) & (row >= 0) & (column < view.image_hw[1]) & (row < view.image_hw[0])
    seen = np.zeros(len(points), bool)
    seen[inside] = depth[inside] <= behind[row[inside], column[inside]] + 2e-3 * radius
    return seen


def _fscore(to_truth: Points, to_result: Points, limit: float) -> float:
    precision, recall = float((to_truth < limit).mean()), float((to_result < limit).mean())
    return 2 * precision * recall / max(precision + recall, 1e-12)

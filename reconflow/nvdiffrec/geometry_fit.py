"""The surface fitted to the views: vertices moved by gradients of the differentiable renderer, topology kept.

Three terms pull on the surface: silhouettes, depth outside the interval that a stored value allows, and colour. A
bi-Laplacian term keeps what no view sees smooth and turns 8-bit depth terraces into slopes, since inside its interval
the depth does not pull at all. Steps are preconditioned (`large_steps`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from reconflow.errors import ModelConvergenceError
from reconflow.geometry.depth import SurfaceObservation, resample_depth
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.nvdiffrec.large_steps import PreconditionedDescent
from reconflow.nvdiffrec.photos import Photo
from reconflow.progress import OnProgress, ignore_progress
from reconflow.rendering.colour import linear_from_srgb_u8
from reconflow.rendering.fused import FusedRenderer, ViewTarget

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class FitWeights:
    """How strongly each term pulls; lengths are in units of the mean edge length."""

    silhouette: float = 1.0
    depth: float = 1.0
    rgb: float = 1.0
    smoothness: float = 0.02
    precondition: float = 20.0
    learning_rate: float = 0.15


@dataclass(frozen=True, eq=False)
class GeometryFit:
    """A fitted surface and how it got there.

    Attributes:
        mesh: The surface, connected like the one it started from.
        losses: Per term a list of [step, value].
    """

    mesh: TriangleMesh
    losses: dict[str, list[list[float]]] = field(default_factory=dict)


def view_targets(
    observations: Sequence[SurfaceObservation], photos: Sequence[Photo], *, with_colour: bool
) -> list[ViewTarget]:
    """Say what every view should look like.

    Args:
        observations: What each view knows of the surface.
        photos: The photos, at the resolution to fit at.
        with_colour: Whether colours pull on the surface.
    """
    targets = []
    for observation, photo in zip(observations, photos, strict=True):
        depth, tolerance = None, 0.0
        if observation.depth is not None and observation.half_width is not None:
            depth = resample_depth(observation, photo.camera.image_hw)
            tolerance = float(observation.half_width.max())
        rgb = photo.over_white if with_colour else None
        targets.append(ViewTarget(rgb_linear=rgb, coverage=photo.coverage, depth=depth, depth_tolerance=tolerance))
    return targets


def fit_geometry(
    mesh: TriangleMesh,
    targets: Sequence[ViewTarget],
    photos: Sequence[Photo],
    steps: int,
    *,
    painted: TexturedMesh | None = None,
    weights: FitWeights | None = None,
    on_progress: OnProgress = ignore_progress,
) -> GeometryFit:
    """Move the vertices of a mesh so that its renders match the views.

    Args:
        mesh: Where to start; closed and evenly cut.
        targets: What to match, one per photo.
        photos: Whose cameras to render with.
        steps: Iterations.
        painted: The mesh with a texture, when colours take part.
        weights: How strongly each term pulls.
        on_progress: Receiver of progress; called every step.

    Raises:
        ModelConvergenceError: The positions became infinite.
    """
    weights = weights or FitWeights()
    renderer = _renderer(mesh, photos, painted)
    texture = None if painted is None else linear_from_srgb_u8(painted.base_colour_srgb)
    edge = _mean_edge(mesh)
    descent = PreconditionedDescent(
        mesh, smoothness=weights.precondition, learning_rate=weights.learning_rate * edge, betas=(0.9, 0.99)
    )
    vertices: Float64 = mesh.vertices.astype(np.float64)
    losses: dict[str, list[list[float]]] = {}
    for step in range(steps):
        result = renderer.step(vertices.astype(np.float32), texture, targets)
        gradient = result.grad_vertices.astype(np.float64)
        bend = descent.laplacian @ vertices
        gradient += weights.smoothness * (descent.laplacian @ bend) / edge**2
        for name, value in result.losses.items():
            losses.setdefault(name, []).append([step, value])
        vertices = descent.step(gradient, _rate(step, steps))
        on_progress(step + 1, steps, "fitting the surface")
    if not np.isfinite(vertices).all():
        raise ModelConvergenceError(
            "The surface fit diverged.",
            suggestion="Check the cameras; if they are right, report the dataset's description.",
            steps=steps,
        )
    return GeometryFit(TriangleMesh(vertices.astype(np.float32), mesh.faces), losses)


def _renderer(mesh: TriangleMesh, photos: Sequence[Photo], painted: TexturedMesh | None) -> FusedRenderer:
    cameras = [photo.camera for photo in photos]
    if painted is None:
        return FusedRenderer(mesh.faces, cameras)
    return FusedRenderer(mesh.faces, cameras, uvs=painted.uvs, uv_faces=painted.uv_faces)


def _rate(step: int, steps: int) -> float:
    """Full speed for two thirds, then down to a tenth."""
    rest = max(0.0, (step / max(steps, 1) - 0.67) / 0.33)
    return 1.0 - 0.9 * rest


def _mean_edge(mesh: TriangleMesh) -> float:
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    return float(np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).mean())

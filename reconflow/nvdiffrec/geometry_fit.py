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
from scipy import ndimage

from reconflow.colour import linear_from_srgb_u8
from reconflow.errors import ModelConvergenceError
from reconflow.geometry.depth import SurfaceObservation, resample_depth
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.nvdiffrec.large_steps import PreconditionedDescent
from reconflow.nvdiffrec.photos import Photo
from reconflow.nvdiffrec.texel_views import depth_edges
from reconflow.progress import OnProgress, ignore_progress
from reconflow.rendering.fused import FusedRenderer, ViewTarget

Float64 = NDArray[np.float64]

_DEAD_ZONE = 0.5
"""Part of a stored value's interval, around its smooth depth, within which the depth does not pull."""


@dataclass(frozen=True)
class FitWeights:
    """How strongly each term pulls, summed over the pixels of all views.

    Attributes:
        silhouette: On the squared coverage error of a pixel.
        depth: On a squared depth error, in squared pixels of the image plane.
        rgb: On the squared linear colour error of a pixel.
        smoothness: On |L v|^2 of a vertex, in squared mean edge lengths.
        precondition: s of the large steps, in squared edges.
        learning_rate: Length of a step, in mean edge lengths.
    """

    silhouette: float = 1.0
    depth: float = 0.05
    rgb: float = 1.0
    smoothness: float = 0.2
    precondition: float = 25.0
    learning_rate: float = 0.3


AGREEING = FitWeights()
"""For photos that match their depth renders: the depth decides, colours refine."""
RECONCILING = FitWeights(depth=0.002, rgb=10.0, smoothness=0.1, precondition=10.0)
"""For photos that do not: the surface moves to where the photos agree with each other, near the depth."""


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
    observations: Sequence[SurfaceObservation],
    photos: Sequence[Photo],
    weights: FitWeights,
    *,
    with_colour: bool,
) -> list[ViewTarget]:
    """Say what every view should look like.

    Args:
        observations: What each view knows of the surface.
        photos: The photos, at the resolution to fit at.
        weights: How strongly each term pulls.
        with_colour: Whether colours pull on the surface.
    """
    return [
        _view_target(observation, photo, weights, with_colour=with_colour)
        for observation, photo in zip(observations, photos, strict=True)
    ]


def _view_target(
    observation: SurfaceObservation, photo: Photo, weights: FitWeights, *, with_colour: bool
) -> ViewTarget:
    rgb = photo.over_white if with_colour else None
    if observation.depth is None or observation.half_width is None:
        return ViewTarget(
            coverage=photo.coverage, rgb_linear=rgb, silhouette_weight=weights.silhouette, rgb_weight=weights.rgb
        )
    depth = resample_depth(observation, photo.camera.image_hw)
    tolerance = float(observation.half_width.max())
    pixels_per_unit = photo.camera.focal_px[0] / float(np.median(depth[depth > 0]))
    knee = max(tolerance, 0.5 / pixels_per_unit)
    reliable = ~ndimage.binary_dilation(depth_edges(depth, photo.camera.focal_px[0]), iterations=1)
    return ViewTarget(
        coverage=photo.coverage,
        rgb_linear=rgb,
        depth=depth,
        depth_tolerance=_DEAD_ZONE * tolerance,
        depth_knee=knee,
        rgb_weight=weights.rgb,
        silhouette_weight=weights.silhouette,
        depth_weight=np.where(reliable, np.float32(weights.depth * knee * pixels_per_unit**2), np.float32(0)),
    )


def fit_geometry(
    mesh: TriangleMesh,
    targets: Sequence[ViewTarget],
    photos: Sequence[Photo],
    steps: int,
    *,
    painted: TexturedMesh | None = None,
    weights: FitWeights = AGREEING,
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
    renderer = _renderer(mesh, photos, painted)
    texture = None if painted is None else linear_from_srgb_u8(painted.base_colour_srgb)
    edge = _mean_edge(mesh)
    descent = PreconditionedDescent(
        mesh, smoothness=weights.precondition, learning_rate=weights.learning_rate * edge, betas=(0.85, 0.98)
    )
    pixels = sum(photo.coverage.size for photo in photos)
    vertices: Float64 = mesh.vertices.astype(np.float64)
    losses: dict[str, list[list[float]]] = {}
    for step in range(steps):
        result = renderer.step(vertices.astype(np.float32), texture, targets)
        gradient = pixels * result.grad_vertices.astype(np.float64)
        bend = descent.laplacian @ vertices
        gradient += 2 * weights.smoothness * (descent.laplacian @ bend) / edge**2
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

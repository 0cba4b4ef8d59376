"""From the generated mesh's own frame to the input cameras': which similarity transform, and how sure that is.

A cover of all rotations is tried on small pictures, the most promising placements are refined on larger ones, and the
best is taken. The best placement of another orientation says how much the views decide: a symmetric object has several
equally good ones, and the result says so. The order of these steps lives here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconflow.errors import ModelConvergenceError, ValidationFailedError
from reconflow.geometry.depth import SurfaceObservation
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import Similarity, rotation_angle_deg
from reconflow.nvdiffrec.photos import Photo
from reconflow.progress import OnProgress, ignore_progress
from reconflow.reconviagen.registration_fit import Refined, refine
from reconflow.reconviagen.registration_search import distinct, rough_placements
from reconflow.reconviagen.registration_views import make_targets

Float32 = NDArray[np.float32]

AMBIGUOUS_BELOW: Final = 0.25
"""Confidence below which another orientation fits about as well."""
MOST_SIGMA_DEG: Final = 1.5
"""A rotation known less well than this (one standard deviation) is not known."""

_SEARCH_SIDE, _FIRST_SIDE, _SECOND_SIDE = 48, 64, 128
_FIRST_KEPT, _SECOND_KEPT = 14, 4
_SEARCH_CELLS, _REFINE_CELLS = 14, 48
_NOISE: Final = 0.02
"""Misfits below this are what pixels alone cause."""
_TIE: Final = 0.004


@dataclass(frozen=True, eq=False)
class Registration:
    """Where a mesh lies in front of the cameras.

    Attributes:
        world_from_mesh: The transform.
        confidence: 0 to 1: by how much the next best orientation fits worse; near 0 when the object is symmetric.
        ambiguous: Whether the views leave the orientation open; the transform is then one of several.
        residuals: JSON-able: `mask_iou`, `silhouette_rms_px`, `depth_rms_px`, `colour_rms_px` (of pictures of
            `picture_px`; those that took part), `depth_error` (mean, in the object's radii, clipped), and one
            standard deviation each of rotation (degrees), scale and translation (radii); `runner_up` and `best` are
            the misfits that the confidence compares.
    """

    world_from_mesh: Similarity
    confidence: float
    ambiguous: bool
    residuals: dict[str, float]


def register(
    mesh: TriangleMesh,
    observations: Sequence[SurfaceObservation],
    *,
    colours: Float32 | None = None,
    photos: Sequence[Photo] | None = None,
    longest_side: int = 512,
    on_progress: OnProgress = ignore_progress,
) -> Registration:
    """Find the similarity transform that puts a mesh where the views show it.

    Args:
        mesh: In its own frame.
        observations: What each view knows of the surface: its mask, and its depth where there is any.
        colours: (V, 3) float32 linear light of the mesh's vertices; they take part when photos are given.
        photos: In the order of the observations.
        longest_side: Of the pictures in the last refinement, pixels.
        on_progress: Receiver of progress; may raise `Cancelled`.

    Raises:
        ValidationFailedError: There are no views, or the mesh is empty.
        ModelConvergenceError: The mesh cannot be brought to overlap with the views.
    """
    _check(mesh, observations)
    use_colours = colours is not None and photos is not None
    photos = photos if use_colours else None
    colours = colours if use_colours else None
    own = _to_unit_radius(mesh)
    unit = own.apply_to_mesh(mesh)
    on_progress(0, 10, "looking for the object's orientation")
    small, small_colours = clustered(unit, colours, _SEARCH_CELLS)
    rough = rough_placements(small, make_targets(observations, photos, _SEARCH_SIDE), small_colours)
    medium, medium_colours = clustered(unit, colours, _REFINE_CELLS)
    targets = make_targets(observations, photos, _FIRST_SIDE)
    refined = []
    for number, placement in enumerate(rough[:_FIRST_KEPT]):
        on_progress(2, 10, f"refining orientation {number + 1}")
        refined.append(refine(medium, medium_colours, targets, placement.world_from_mesh, 10, (14.0, 3.0)).placement)
    on_progress(6, 10, "comparing orientations")
    rivals = distinct(sorted(refined, key=lambda placement: placement.misfit.total))[:_SECOND_KEPT]
    targets = make_targets(observations, photos, _SECOND_SIDE)
    compared = [refine(medium, medium_colours, targets, r.world_from_mesh, 6, (8.0, 3.0)).placement for r in rivals]
    compared = distinct(sorted(compared, key=lambda placement: placement.misfit.total))
    best = compared[0].misfit.total
    level = [placement for placement in compared if placement.misfit.total <= best + _TIE]
    chosen = min(level, key=lambda placement: rotation_angle_deg(placement.world_from_mesh.rotation, np.eye(3)))
    runner_up = compared[1].misfit.total if len(compared) > 1 else 1.0
    on_progress(8, 10, "aligning with the views")
    final = refine(
        unit, colours, make_targets(observations, photos, longest_side), chosen.world_from_mesh, 5, (8.0, 3.0)
    )
    if final.placement.misfit.silhouette > 0.9:
        raise ModelConvergenceError(
            "The generated object could not be aligned with the views.",
            suggestion="Check that the views show one object, and that its masks are right.",
            silhouette=final.placement.misfit.silhouette,
        )
    on_progress(10, 10, "aligned")
    return _result(final, own, best, runner_up, longest_side)


def clustered(mesh: TriangleMesh, colours: Float32 | None, cells: int) -> tuple[TriangleMesh, Float32 | None]:
    """Merge the vertices within each cell of a grid; of use for silhouettes, not a sound surface.

    Args:
        mesh: Any mesh.
        colours: (V, 3) of its vertices.
        cells: Along the longest side of its box.

    Returns:
        The coarse mesh and its colours; the mesh itself when it has no more vertices than the grid would leave.
    """
    low, high = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    if len(mesh.vertices) <= 4 * cells * cells:
        return mesh, colours
    cell = np.floor((mesh.vertices - low) / (float((high - low).max()) / cells)).astype(np.int64)
    key = (cell[:, 0] * (cells + 1) + cell[:, 1]) * (cells + 1) + cell[:, 2]
    _, merged, count = np.unique(key, return_inverse=True, return_counts=True)
    faces = merged.reshape(-1)[mesh.faces].astype(np.int32)
    apart = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0])

    def mean(values: Float32) -> Float32:
        sums = [np.bincount(merged.reshape(-1), weights=values[:, c], minlength=len(count)) for c in range(3)]
        return (np.stack(sums, axis=1) / count[:, None]).astype(np.float32)

    return TriangleMesh(mean(mesh.vertices), faces[apart]), None if colours is None else mean(colours)


def _to_unit_radius(mesh: TriangleMesh) -> Similarity:
    """Centre the mesh's box on the origin and put its farthest vertex at distance 1."""
    used = mesh.vertices[np.unique(mesh.faces)].astype(np.float64)
    centre = 0.5 * (used.min(axis=0) + used.max(axis=0))
    radius = float(np.linalg.norm(used - centre, axis=1).max())
    return Similarity(1.0 / radius, np.eye(3), -centre / radius)


def _check(mesh: TriangleMesh, observations: Sequence[SurfaceObservation]) -> None:
    seen = sum(bool(observation.mask.any()) for observation in observations)
    if seen == 0 or len(mesh.faces) == 0 or float(np.ptp(mesh.vertices[mesh.faces.reshape(-1)], axis=0).max()) <= 0:
        raise ValidationFailedError(
            "There is nothing to align: the views or the mesh are empty.",
            suggestion="Check that the views show the object.",
            views=len(observations),
            faces=len(mesh.faces),
        )


def _result(final: Refined, own: Similarity, best: float, runner_up: float, picture_px: int) -> Registration:
    sigma_deg = float(np.degrees(np.linalg.norm(final.sigma[:3])))
    found = final.placement.misfit
    confidence = float(np.clip((runner_up - best) / (runner_up + _NOISE), 0.0, 1.0))
    ambiguous = confidence < AMBIGUOUS_BELOW or not sigma_deg <= MOST_SIGMA_DEG
    residuals = {
        "mask_iou": 1.0 - found.silhouette,
        "depth_error": found.depth,
        "picture_px": float(picture_px),
        "best": best,
        "runner_up": runner_up,
        **{f"{kind}_rms_px": value for kind, value in final.rms_px.items()},
    }
    if np.isfinite(final.sigma).all():
        residuals |= {
            "rotation_sigma_deg": sigma_deg,
            "scale_sigma": float(final.sigma[3]),
            "translation_sigma": float(np.linalg.norm(final.sigma[4:])),
        }
    return Registration(final.placement.world_from_mesh.after(own), confidence, ambiguous, residuals)

"""The surface a fit starts from: carved, freed of floaters, smoothed below the carving grid's noise, evenly cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from reconflow.errors import ModelConvergenceError
from reconflow.geometry.carving import bounding_grid, carve, extract_surface
from reconflow.geometry.depth import SurfaceObservation
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh import fix_non_manifold, remesh_to_budget
from reconflow.nvdiffrec.large_steps import conjugate_gradient, edge_laplacian
from reconflow.nvdiffrec.pieces import keep_shown_pieces
from reconflow.progress import OnProgress, ignore_progress, part_of

_CARVING = "carving the first surface"
_SMOOTHING = 2.0
"""Weight of the squared Laplacian against staying put, in squared edges of the carving grid's surface."""


def initial_surface(
    observations: Sequence[SurfaceObservation],
    grid_resolution: int,
    target_faces: int,
    on_progress: OnProgress = ignore_progress,
) -> TriangleMesh:
    """Carve and remesh the surface that all views agree on.

    Args:
        observations: What every view knows.
        grid_resolution: Cells along the longest side.
        target_faces: Face budget.
        on_progress: Receiver of progress.

    Returns:
        Closed, oriented and manifold; one piece, or several that views show apart.

    Raises:
        ModelConvergenceError: The views have no common solid, or it could not be made watertight.
    """
    grid = bounding_grid(observations, grid_resolution)
    on_progress(0, 100, _CARVING)
    field = carve(observations, grid)
    on_progress(20, 100, _CARVING)
    carved = extract_surface(field, grid)
    on_progress(40, 100, _CARVING)
    mesh = keep_shown_pieces(fix_non_manifold(carved), observations)
    on_progress(50, 100, _CARVING)
    smooth = smooth_surface(mesh, _SMOOTHING)
    mesh = remesh_to_budget(smooth, target_faces, iterations=4, on_progress=part_of(on_progress, 0.6, 1.0))
    facts = mesh_facts(mesh)
    if not facts.watertight:
        raise ModelConvergenceError(
            "The surface carved from the views is not closed.",
            suggestion="Check the masks: an object cut by the frame or a mask with holes leaves the surface open.",
            boundary_edges=facts.boundary_edges,
            non_manifold_edges=facts.non_manifold_edges,
        )
    return mesh


def smooth_surface(mesh: TriangleMesh, weight: float) -> TriangleMesh:
    """Minimise |v - v0|^2 + weight * |L v|^2 over the vertex positions (implicit bi-Laplacian smoothing).

    Args:
        mesh: The surface.
        weight: Strength, in squared edge lengths.
    """
    laplacian = edge_laplacian(mesh.faces, len(mesh.vertices))
    degree = sparse.diags(1.0 / laplacian.diagonal())
    averaged = degree @ laplacian
    system = (sparse.identity(len(mesh.vertices)) + weight * (averaged.T @ averaged)).tocsr()
    start = mesh.vertices.astype(np.float64)
    columns = [
        conjugate_gradient(system, start[:, axis], start[:, axis], tolerance=1e-6, max_iterations=100)
        for axis in range(3)
    ]
    return TriangleMesh(np.stack(columns, axis=1).astype(np.float32), mesh.faces)

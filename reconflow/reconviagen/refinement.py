"""A generated object as the start of nvdiffrec's fit: the surface made fit for it, then fitted and painted.

What is unusual about the start is said in notes, never passed over. The fit itself is `nvdiffrec.fitting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from reconflow.cameras.calibration import Calibration
from reconflow.checkpoints import Checkpoint
from reconflow.datasets.dataset import Dataset
from reconflow.geometry.components import keep_components
from reconflow.geometry.depth import SurfaceObservation
from reconflow.geometry.facts import MeshFacts, mesh_facts
from reconflow.geometry.holes import fill_holes
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh import fix_non_manifold, remesh_to_budget
from reconflow.nvdiffrec.fitting import Painter, fit_to_views
from reconflow.nvdiffrec.options import FitSettings
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.reconstruction import Reconstruction
from reconflow.reconviagen.export import LEAST_PIECE, FinishSettings, Placed, gaussian_painter
from reconflow.reconviagen.refinement_start import RefinementStart, WithStart

_LONGEST_HOLE: Final = 250
"""Boundary edges of the longest hole that is closed before the fit; longer ones stay open, and a note says so."""


def finish_refined(
    start: RefinementStart,
    dataset: Dataset,
    calibration: Calibration,
    settings: FinishSettings,
    refinement: FitSettings,
    on_progress: OnProgress = ignore_progress,
    checkpoint: Checkpoint | None = None,
) -> Reconstruction:
    """Turn a placed object into a textured mesh that was fitted to the views, starting from the generated surface.

    Args:
        start: The generated object where the cameras see it.
        dataset: The views that it was generated from.
        calibration: Their cameras and depth scales.
        settings: How the Gaussians are pictured.
        refinement: How the surface is fitted and painted.
        on_progress: Receiver of progress; may raise `Cancelled`.
        checkpoint: Keeps the start and the state of the fit.

    Returns:
        The reconstruction; statistics of `export.finish` and of `fit_to_views`, with `refinement`: what the fit started
        from, and `notes`: for people.

    Raises:
        ModelConvergenceError: The surface is empty, or the fit diverged.
    """
    paint = gaussian_painter(start.gaussians, start.placed.world_from_generator, settings)
    keeper = None if checkpoint is None else WithStart(checkpoint, start)
    fitted = refine(start.placed, dataset, calibration, refinement, paint, on_progress, keeper)
    return replace(fitted, gaussians=start.gaussians.transformed(start.placed.world_from_generator))


def refine(
    placed: Placed,
    dataset: Dataset,
    calibration: Calibration,
    settings: FitSettings,
    paint: Painter,
    on_progress: OnProgress = ignore_progress,
    checkpoint: Checkpoint | None = None,
) -> Reconstruction:
    """Fit a placed object to the views, starting from its surface; as `finish_refined`, without Gaussians.

    Args:
        placed: The generated object where the cameras see it.
        dataset: The views.
        calibration: Their cameras and depth scales.
        settings: How it is fitted and painted.
        paint: Paints the fitted surface.
        on_progress: Receiver of progress; may raise `Cancelled`.
        checkpoint: As in `fit_to_views`.

    Raises:
        ModelConvergenceError: The surface is empty, or the fit diverged.
    """
    surface = fit_for_fitting(placed.mesh, settings.target_faces, part_of(on_progress, 0.0, 0.1))
    start, fitting = mesh_facts(surface), part_of(on_progress, 0.1, 1.0)

    def generated_surface(_: Sequence[SurfaceObservation], __: OnProgress) -> TriangleMesh:
        return surface

    fitted = fit_to_views(dataset, calibration, settings, generated_surface, fitting, checkpoint, paint=paint)
    refinement = {
        "from": "the generated mesh, aligned with the views",
        "faces": start.faces,
        "components": start.components,
        "boundary_edges": start.boundary_edges,
        "mask_iou": placed.found.residuals["mask_iou"],
        "settings": fitted.statistics["settings"],
    }
    told = {"refinement": refinement, "notes": refinement_notes(placed, start)}
    return replace(fitted, statistics={**fitted.statistics, **placed.facts(), **told})


def fit_for_fitting(mesh: TriangleMesh, target_faces: int, on_progress: OnProgress = ignore_progress) -> TriangleMesh:
    """Make a surface what a fit can start from: an oriented manifold, evenly cut, holes closed as far as they can be.

    Args:
        mesh: Any surface with outward winding, in one piece or several.
        target_faces: Face budget.
        on_progress: Receiver of progress.

    Returns:
        All pieces but specks. Holes of more than 250 edges stay open.

    Raises:
        ModelConvergenceError: The surface is empty.
    """
    on_progress(0, 100, "preparing the generated surface")
    sound = keep_components(fix_non_manifold(mesh), LEAST_PIECE)
    closed, _ = fill_holes(sound, _LONGEST_HOLE)
    return remesh_to_budget(closed, target_faces, iterations=4, on_progress=part_of(on_progress, 0.2, 1.0))


def refinement_notes(placed: Placed, start: MeshFacts) -> list[str]:
    """Return what people are told of a refinement: what it started from, and what speaks against trusting it.

    Args:
        placed: The generated mesh, aligned.
        start: Of the surface that the fit started from.
    """
    doubts = placed.notes()
    overlap = placed.found.residuals["mask_iou"]
    told = (
        "The mesh was refined by nvdiffrec's fit to the views, which started from the generated mesh instead of a "
        f"carved one. Aligned with the views, that overlapped their masks with an IoU of {overlap:.3f}."
    )
    notes = [told, *doubts]
    if doubts:
        notes.append("A fit that starts far off may not find the object: compare with the model nvdiffrec.")
    if start.boundary_edges:
        notes.append(f"The generated mesh has openings ({start.boundary_edges} boundary edges), which the fit keeps.")
    return notes

"""Which pieces of a carved surface belong to the object: those without which the views' masks stay empty somewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconflow.geometry.components import face_components, keep_components, submesh
from reconflow.geometry.depth import SurfaceObservation
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.surface import face_areas
from reconflow.rendering.raster import rasterize_view

_LEAST_AREA: Final = 0.001
"""Share of the whole area; smaller pieces are not looked at."""
_LEAST_SHOWN: Final = 0.005
"""Share of a view's mask that a piece has to fill where no larger piece does."""
_LEAST_VIEWS: Final = 2
"""In so many views: what one alone shows may be an error of its mask or depth."""


def keep_shown_pieces(mesh: TriangleMesh, observations: Sequence[SurfaceObservation]) -> TriangleMesh:
    """Drop floaters: pieces that hide behind or before others in the views, or that hardly any view shows.

    Carving leaves whatever no view contradicts, so that a piece proves nothing by being there. It belongs to the object
    when it fills parts of masks that the larger pieces leave empty.

    Args:
        mesh: What was carved.
        observations: The views that it was carved from.

    Returns:
        The largest piece and all others that are needed.

    Raises:
        ModelConvergenceError: The mesh has no area.
    """
    mesh = keep_components(mesh, _LEAST_AREA)
    labels, n_pieces = face_components(mesh)
    if n_pieces == 1:
        return mesh
    largest_first = np.argsort(-np.bincount(labels, weights=face_areas(mesh)), kind="stable")
    empty = [observation.mask for observation in observations]
    kept = np.zeros(n_pieces, dtype=bool)
    for piece in largest_first:
        alone = submesh(mesh, labels == piece)
        filled = [pixels & _cover(alone, seen) for pixels, seen in zip(empty, observations, strict=True)]
        kept[piece] = not kept.any() or _views_that_show(filled, observations) >= _LEAST_VIEWS
        if kept[piece]:
            empty = [pixels & ~new for pixels, new in zip(empty, filled, strict=True)]
    return submesh(mesh, kept[labels])


def _views_that_show(filled: Sequence[NDArray[np.bool_]], observations: Sequence[SurfaceObservation]) -> int:
    pairs = zip(filled, observations, strict=True)
    return sum(pixels.sum() >= _LEAST_SHOWN * max(seen.mask.sum(), 1) for pixels, seen in pairs)


def _cover(mesh: TriangleMesh, observation: SurfaceObservation) -> NDArray[np.bool_]:
    """Return the pixels whose centre the mesh covers."""
    covered: NDArray[np.bool_] = rasterize_view(mesh.vertices, mesh.faces, observation.camera).face_id >= 0
    return covered

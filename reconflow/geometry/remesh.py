"""Changing how a surface is cut into triangles: fewer faces, even faces, sound faces. The shape itself stays.

All functions keep an oriented manifold surface one, with its genus and its boundary, and are deterministic. The
kernels live in `remesh_kernels`, `remesh_quadric`, `remesh_isotropic` and `remesh_repair`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from reconflow.errors import ValidationFailedError
from reconflow.geometry.closest import SurfaceLocator
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh_isotropic import (
    collapse_short,
    count_long,
    flip_for_valence,
    move_upright,
    relaxed_positions,
    split_long,
)
from reconflow.geometry.remesh_kernels import compact
from reconflow.geometry.remesh_quadric import collapse_to_budget
from reconflow.geometry.remesh_repair import fix_non_manifold, remove_slivers
from reconflow.geometry.surface import face_areas, vertex_normals
from reconflow.geometry.topology import edge_table, fan_counts, twin_half_edges
from reconflow.progress import OnProgress, ignore_progress, part_of

__all__ = [
    "adaptive_sizing",
    "decimate",
    "edge_length_for_faces",
    "fix_non_manifold",
    "remesh_isotropic",
    "remesh_to_budget",
]

_NEEDLE_QUALITY = 0.05
_LEAST_SURPLUS, _MOST_SURPLUS = 0.98, 1.08
_AREA_OF_UNIT_EDGE = math.sqrt(3.0) / 4.0


def decimate(mesh: TriangleMesh, target_faces: int, max_error: float = math.inf) -> TriangleMesh:
    """Collapse edges in the order of quadric error until a face budget is met.

    No collapse may change the topology, turn a face or make a thin one, so that the result can have more faces than
    asked for when nothing else may go.

    Args:
        mesh: Oriented and manifold; boundaries are kept as they are.
        target_faces: Number of faces wanted; a mesh with fewer is returned as it is.
        max_error: Largest root-mean-square distance to the planes of the replaced faces, world units.

    Raises:
        ValidationFailedError: The mesh is not manifold; `fix_non_manifold` makes it so.
    """
    twins = _require_manifold(mesh)
    if len(mesh.faces) <= target_faces:
        return mesh
    points = mesh.vertices.astype(np.float64)
    origin = mesh.faces.reshape(-1).copy()
    collapse_to_budget(points, origin, twins, target_faces, max_error)
    faces, kept = compact(origin, len(mesh.faces), len(points))
    return TriangleMesh(points[kept].astype(np.float32), faces)


def remesh_isotropic(
    mesh: TriangleMesh,
    target_edge: float | NDArray[np.floating],
    iterations: int = 5,
    on_progress: OnProgress = ignore_progress,
) -> TriangleMesh:
    """Cut the surface into nearly equilateral triangles of a wanted edge length.

    Args:
        mesh: Oriented and manifold; boundary vertices never move.
        target_edge: Edge length, world units: one for all, or (V,) one per vertex of `mesh`, interpolated between.
        iterations: Rounds of split, collapse, flip, relax; new vertices are put back on the input's surface in each.
        on_progress: Called before every round.

    Raises:
        ValidationFailedError: The mesh is not manifold, or a target length is not positive.
    """
    _require_manifold(mesh)
    wanted = np.broadcast_to(np.asarray(target_edge, dtype=np.float64), (len(mesh.vertices),))
    if not (np.all(np.isfinite(wanted)) and np.all(wanted > 0)):
        raise ValidationFailedError(
            "The target edge length must be a positive number everywhere.",
            suggestion="Give one length in world units, or one per vertex.",
            smallest=float(np.min(wanted)),
        )
    locator = SurfaceLocator(mesh, spacing=2.0 * float(np.median(wanted)))
    sound = remove_slivers(mesh, twin_half_edges(mesh.faces), _NEEDLE_QUALITY)
    points, faces = sound.vertices.astype(np.float64), sound.faces
    twins = twin_half_edges(faces)
    _, face, bary = locator.project(points)
    sizing = locator.sample(face, bary, wanted)
    for number in range(iterations):
        on_progress(number, iterations, "remeshing")
        points, sizing, faces, twins = _split(points, sizing, faces, twins)
        points, sizing, faces, twins = _collapse(points, sizing, faces, twins)
        origin = faces.reshape(-1)
        flip_for_valence(points, origin, twins)
        targets, face, bary = locator.project(relaxed_positions(points, sizing, origin, twins))
        move_upright(points, targets, origin, twins)
        sizing = locator.sample(face, bary, wanted)
    return TriangleMesh(points.astype(np.float32), faces)


def remesh_to_budget(
    mesh: TriangleMesh,
    target_faces: int,
    iterations: int = 5,
    adaptivity: float = 0.0,
    on_progress: OnProgress = ignore_progress,
) -> TriangleMesh:
    """Remesh isotropically to a budget of faces, which is never exceeded and missed by a few per cent at most.

    Where the first count is off by more, the lengths are corrected and the surface is remeshed again, twice at most;
    the last surplus goes by `decimate`.

    Args:
        mesh: Oriented and manifold.
        target_faces: The budget.
        iterations: As in `remesh_isotropic`.
        adaptivity: As in `adaptive_sizing`.
        on_progress: Called before every round of remeshing, with numbers that never fall.

    Raises:
        ValidationFailedError: As in `remesh_isotropic`.
    """
    sizing = adaptive_sizing(mesh, target_faces, adaptivity)
    result = remesh_isotropic(mesh, sizing, iterations, part_of(on_progress, 0.0, 0.4))
    for attempt in range(2):
        surplus = len(result.faces) / target_faces
        if _LEAST_SURPLUS <= surplus <= _MOST_SURPLUS:
            break
        sizing = sizing * math.sqrt(surplus / 1.02)
        part = part_of(on_progress, 0.4 + 0.3 * attempt, 0.7 + 0.3 * attempt)
        result = remesh_isotropic(mesh, sizing, iterations, part)
    return decimate(result, target_faces)


def edge_length_for_faces(area: float, n_faces: int) -> float:
    """Return the edge length at which `n_faces` equilateral triangles cover `area`, world units."""
    return math.sqrt(area / (_AREA_OF_UNIT_EDGE * max(n_faces, 1)))


def adaptive_sizing(
    mesh: TriangleMesh, target_faces: int, adaptivity: float = 0.5, ratio: float = 3.0
) -> NDArray[np.float64]:
    """Return (V,) target edge lengths that are shorter where the surface bends, for a budget of faces.

    Args:
        mesh: Any mesh.
        target_faces: The budget; lengths are scaled so that the expected count meets it.
        adaptivity: 0 for even lengths; at 0.5 lengths follow the inverse root of the curvature, which evens out the
            distance between chords and surface.
        ratio: Largest ratio between a length and the median length, either way.
    """
    areas = np.repeat(face_areas(mesh) / 3.0, 3)
    vertex_area = np.bincount(mesh.faces.reshape(-1), weights=areas, minlength=len(mesh.vertices))
    relative = np.ones(len(mesh.vertices))
    if adaptivity > 0.0:
        bend = vertex_curvature(mesh)
        bend = np.maximum(bend, 1e-3 * max(float(bend.max(initial=0.0)), 1e-30))
        relative = np.clip((bend / np.median(bend)) ** -adaptivity, 1.0 / ratio, ratio)
    expected = float((vertex_area / (_AREA_OF_UNIT_EDGE * relative**2)).sum())
    return np.asarray(relative * math.sqrt(expected / max(target_faces, 1)), dtype=np.float64)


def vertex_curvature(mesh: TriangleMesh, smoothing: int = 4) -> NDArray[np.float64]:
    """Estimate (V,) absolute curvature, 1 / world unit: the change of the normal along edges, averaged over rings.

    Args:
        mesh: Any mesh.
        smoothing: Rounds of averaging over neighbours, of the normals before and of the result after.
    """
    edges = edge_table(mesh.faces).edges
    normals = vertex_normals(mesh)
    for _ in range(smoothing):
        normals = _neighbour_mean(normals, edges)
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals / np.maximum(lengths, 1e-30)
    points = mesh.vertices.astype(np.float64)
    span = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    turn = np.linalg.norm(normals[edges[:, 0]] - normals[edges[:, 1]], axis=1)
    n_vertices = len(points)
    total_turn = sum(np.bincount(edges[:, side], weights=turn, minlength=n_vertices) for side in (0, 1))
    total_span = sum(np.bincount(edges[:, side], weights=span, minlength=n_vertices) for side in (0, 1))
    bend = np.asarray(total_turn) / np.maximum(np.asarray(total_span), 1e-30)
    for _ in range(smoothing):
        bend = _neighbour_mean(bend[:, None], edges)[:, 0]
    return np.asarray(bend, dtype=np.float64)


def _neighbour_mean(values: NDArray[np.float64], edges: NDArray[np.int32]) -> NDArray[np.float64]:
    """Average (V, C) values over each vertex and its neighbours."""
    n_vertices = len(values)
    total, count = values.copy(), np.ones(n_vertices)
    for here, there in ((0, 1), (1, 0)):
        count += np.bincount(edges[:, here], minlength=n_vertices)
        for channel in range(values.shape[1]):
            weights = values[edges[:, there], channel]
            total[:, channel] += np.bincount(edges[:, here], weights=weights, minlength=n_vertices)
    return total / count[:, None]


def _split(
    points: NDArray[np.float64], sizing: NDArray[np.float64], faces: NDArray[np.int32], twins: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
    """Split long edges until few are left; three rounds reach an eighth of the length."""
    for _ in range(3):
        n_long = count_long(points, sizing, faces.reshape(-1), twins)
        if n_long == 0:
            break
        n_vertices, n_faces = len(points), len(faces)
        points = np.concatenate([points, np.zeros((n_long, 3))])
        sizing = np.concatenate([sizing, np.zeros(n_long)])
        origin = np.concatenate([faces.reshape(-1), np.full(6 * n_long, -1, dtype=np.int32)])
        twins = np.concatenate([twins, np.full(6 * n_long, -1, dtype=np.int32)])
        n_vertices, n_faces = split_long(points, sizing, origin, twins, n_vertices, n_faces)
        points, sizing = points[:n_vertices].copy(), sizing[:n_vertices].copy()
        faces, twins = origin[: 3 * n_faces].reshape(-1, 3).copy(), twins[: 3 * n_faces].copy()
    return points, sizing, faces, twins


def _collapse(
    points: NDArray[np.float64], sizing: NDArray[np.float64], faces: NDArray[np.int32], twins: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
    origin = faces.reshape(-1).copy()
    twins = twins.copy()
    collapse_short(points, sizing, origin, twins)
    faces, kept = compact(origin, len(faces), len(points))
    return points[kept].copy(), sizing[kept].copy(), faces, twin_half_edges(faces)


def _require_manifold(mesh: TriangleMesh) -> NDArray[np.int32]:
    """Return the (3F,) twins of a mesh that is fit for local edits."""
    table = edge_table(mesh.faces)
    twins = twin_half_edges(mesh.faces)
    crowded = int(np.count_nonzero(table.face_counts > 2))
    clashing = int(np.count_nonzero(twins.reshape(-1, 3)[table.face_counts[table.face_edges] == 2] < 0)) // 2
    pinched = int(np.count_nonzero(fan_counts(mesh.faces, twins, len(mesh.vertices)) > 1))
    if crowded or clashing or pinched or len(mesh.faces) == 0:
        raise ValidationFailedError(
            "The surface cannot be remeshed: it is empty, or not an oriented manifold.",
            suggestion="Run fix_non_manifold on it first.",
            non_manifold_edges=crowded,
            clashing_edges=clashing,
            non_manifold_vertices=pinched,
            faces=len(mesh.faces),
        )
    return twins

"""What of a surface can be seen from outside, and cutting away the inner walls that cannot. Fills no holes.

A generated surface may enclose cavities whose walls no view ever shows. They are told from the outside by a minimum
cut of the surface along short edges, between faces that many views show and faces that none does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from reconflow.cameras.camera import PinholeCamera
from reconflow.geometry.components import submesh
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.surface import face_areas
from reconflow.geometry.topology import connected_labels, edge_connected_faces, face_neighbours
from reconflow.parallel import row_bands, run_jobs, thread_count
from reconflow.progress import OnProgress, ignore_progress
from reconflow.rendering.raster import pixel_homogeneous, raster_rows, screen_from_homogeneous

Float64 = NDArray[np.float64]

_OUTER_SHARE: Final = (0.25, 0.5)
"""A face is outside when more views show it than three quarters of its piece's faces do, within these bounds."""
_SEEN_AFTER_ALL: Final = 0.25
"""A part whose median face is shown by more of the views stays."""
_WIDEST_CUT: Final = 0.04
"""A cut that would open a hole of a larger area is not made, squared units of a unit cube around the object."""
_SKIN: Final = 1.5
"""A part of less than so many times the area that cutting it off would open is no cavity's wall: it is outer skin, too
small for the views' pixels."""
_CAPACITY: Final = 10_000.0
"""Flow runs in whole numbers of 31 bits: so many to a unit of length, which leaves room for 200 000 hidden faces."""


@dataclass(frozen=True)
class InnerWalls:
    """What was cut away: the number of `faces` and of connected `parts`."""

    faces: int
    parts: int


def face_visibility(
    mesh: TriangleMesh, cameras: Sequence[PinholeCamera], on_progress: OnProgress = ignore_progress
) -> Float64:
    """Return the (F,) share of views in which a face is the nearest at some pixel's centre.

    Args:
        mesh: The surface.
        cameras: From all around it.
        on_progress: Called before every few views.
    """
    counts = np.zeros(len(mesh.faces), dtype=np.int64)
    chunk = 8 * thread_count()
    for first in range(0, len(cameras), chunk):
        on_progress(first, len(cameras), "looking at the surface from all sides")
        views = cameras[first : first + chunk]
        seen = np.zeros((len(views), len(mesh.faces)), dtype=bool)

        def job(start: int, stop: int, views: Sequence[PinholeCamera] = views, seen: NDArray[np.bool_] = seen) -> None:
            for index in range(start, stop):
                seen[index, _faces_seen(mesh, views[index])] = True

        run_jobs([partial(job, start, stop) for start, stop in row_bands(len(views), thread_count())])
        counts += seen.sum(axis=0)
    return counts / max(len(cameras), 1)


def _faces_seen(mesh: TriangleMesh, camera: PinholeCamera) -> NDArray[np.int32]:
    homog = pixel_homogeneous(mesh.vertices, camera)
    face, key = np.empty(camera.image_hw, np.int32), np.empty(camera.image_hw, np.float32)
    raster_rows(homog, screen_from_homogeneous(homog), np.ascontiguousarray(mesh.faces, np.int32), 0, key, face)
    found: NDArray[np.int32] = np.unique(face)
    return found[found >= 0]


def remove_inner_walls(mesh: TriangleMesh, visibility: Float64, size: float = 1.0) -> tuple[TriangleMesh, InnerWalls]:
    """Cut away the parts of a surface that cannot be seen from outside.

    Args:
        mesh: The surface.
        visibility: (F,) from `face_visibility`.
        size: Side of a cube around the object, world units.

    Returns:
        The mesh without them, open where they were cut off, and what went.
    """
    inner = visibility <= 0.0
    if not inner.any():
        return mesh, InnerWalls(0, 0)
    neighbours = face_neighbours(mesh.faces)
    behind = _inner_side(mesh, neighbours, inner, _outer_faces(mesh, visibility), size)
    within = np.where(behind[neighbours] & (neighbours >= 0) & behind[:, None], neighbours, -1).astype(np.int32)
    labels, n_labels = connected_labels(within)
    areas = face_areas(mesh)
    drop, parts = np.zeros(len(mesh.faces), dtype=bool), 0
    candidates = np.flatnonzero(behind)
    order = candidates[np.argsort(labels[candidates], kind="stable")]
    bounds = np.flatnonzero(np.diff(labels[order], prepend=-1, append=n_labels))
    for start, stop in itertools.pairwise(bounds):
        part = order[start:stop]
        if np.median(visibility[part]) > _SEEN_AFTER_ALL:
            continue
        openings = _opening_areas(mesh, neighbours, part)
        if max(openings, default=0.0) > _WIDEST_CUT * size * size or areas[part].sum() < _SKIN * sum(openings):
            continue
        drop[part] = True
        parts += 1
    if parts == 0 or drop.all():
        return mesh, InnerWalls(0, 0)
    return submesh(mesh, ~drop), InnerWalls(int(drop.sum()), parts)


def _outer_faces(mesh: TriangleMesh, visibility: Float64) -> NDArray[np.bool_]:
    """Mark the faces that are outside beyond doubt, piece by piece."""
    labels, n_labels = edge_connected_faces(mesh.faces)
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(n_labels + 1))
    outer = np.zeros(len(mesh.faces), dtype=bool)
    for start, stop in itertools.pairwise(bounds):
        piece = order[start:stop]
        outer[piece] = visibility[piece] > np.clip(np.quantile(visibility[piece], 0.75), *_OUTER_SHARE)
    return outer


def _inner_side(
    mesh: TriangleMesh,
    neighbours: NDArray[np.int32],
    inner: NDArray[np.bool_],
    outer: NDArray[np.bool_],
    size: float,
) -> NDArray[np.bool_]:
    """Return (F,) the faces on the inner side of the minimum cut; edges count by length, ties by the object's side."""
    count = len(mesh.faces)
    source, sink = count, count + 1
    face, side = np.nonzero(neighbours >= 0)
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    lengths = np.linalg.norm(corners[face, (side + 1) % 3] - corners[face, side], axis=1) / size
    inner_faces, outer_faces = np.flatnonzero(inner), np.flatnonzero(outer)
    tails = np.concatenate([face, np.full(len(inner_faces), source), outer_faces])
    heads = np.concatenate([neighbours[face, side], inner_faces, np.full(len(outer_faces), sink)])
    capacities = np.concatenate([np.rint(_CAPACITY * lengths), np.full(len(inner_faces) + len(outer_faces), _CAPACITY)])
    # two faces may share several edges: their lengths add up
    graph = sparse.csr_matrix((capacities, (tails, heads)), shape=(count + 2, count + 2))
    graph.sum_duplicates()
    graph = graph.astype(np.int32)
    left = graph - maximum_flow(graph, source, sink).flow
    left.data = np.maximum(left.data, 0)
    left.eliminate_zeros()
    reached = breadth_first_order(left, source, return_predecessors=False)
    behind = np.zeros(count + 2, dtype=bool)
    behind[reached] = True
    return behind[:count]


def _opening_areas(mesh: TriangleMesh, neighbours: NDArray[np.int32], part: NDArray[np.int64]) -> list[float]:
    """Return the areas of the holes that cutting a part off would open, world units squared."""
    inside = np.zeros(len(mesh.faces) + 1, dtype=bool)  # the last stands for no neighbour
    inside[part] = True
    face, side = np.nonzero((neighbours[part] >= 0) & ~inside[neighbours[part]])
    if len(face) == 0:
        return []
    corners = mesh.faces[part[face]]
    edges = np.stack([corners[np.arange(len(face)), side], corners[np.arange(len(face)), (side + 1) % 3]], axis=1)
    names, local = np.unique(edges, return_inverse=True)
    local = local.reshape(-1, 2)
    links = sparse.csr_matrix((np.ones(len(local)), (local[:, 0], local[:, 1])), shape=(len(names), len(names)))
    _, loops = sparse.csgraph.connected_components(links, directed=False)
    points = mesh.vertices.astype(np.float64)[names]
    areas = []
    for loop in range(int(loops.max()) + 1):
        own = local[loops[local[:, 0]] == loop]
        ends = points[own]
        around = ends - points[np.unique(own)].mean(axis=0)
        areas.append(0.5 * float(np.linalg.norm(np.cross(around[:, 0], around[:, 1]), axis=1).sum()))
    return areas

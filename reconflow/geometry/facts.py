"""What can be counted and measured of a mesh: pieces, holes, winding, genus, area, volume. Measures, never repairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconflow.geometry.components import face_components
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.surface import face_areas
from reconflow.geometry.topology import edge_table, fan_counts, twin_half_edges


@dataclass(frozen=True)
class MeshFacts:
    """Facts of one mesh by shared vertex indices; vertices at equal positions are different vertices.

    Attributes:
        vertices: Number of vertices, unreferenced ones included.
        faces: Number of faces.
        components: Pieces connected through shared edges.
        boundary_edges: Edges with one face.
        non_manifold_edges: Edges with more than two faces.
        non_manifold_vertices: Vertices where several fans of faces meet.
        degenerate_faces: Faces that name a vertex twice or have no area.
        watertight: Every edge has exactly two faces.
        consistent_winding: Neighbouring faces run along their common edge in opposite directions.
        euler: Referenced vertices - edges + faces.
        genus: Handles of all components together; None unless the surface is closed, manifold and oriented.
        area: Of all faces, squared world units.
        volume: Enclosed, cubed world units, positive with outward winding; meaningful only when watertight.
        bbox_min: (x, y, z) of the smallest corner of the axis-aligned bounding box, world units.
        bbox_max: Likewise, the largest.
    """

    vertices: int
    faces: int
    components: int
    boundary_edges: int
    non_manifold_edges: int
    non_manifold_vertices: int
    degenerate_faces: int
    watertight: bool
    consistent_winding: bool
    euler: int
    genus: int | None
    area: float
    volume: float
    bbox_min: tuple[float, float, float]
    bbox_max: tuple[float, float, float]

    @property
    def manifold(self) -> bool:
        """Whether the surface is closed, oriented and a disc around every vertex."""
        return self.watertight and self.consistent_winding and self.non_manifold_vertices == 0


def mesh_facts(mesh: TriangleMesh) -> MeshFacts:
    """Count and measure a mesh; an empty mesh is not watertight."""
    faces = mesh.faces
    table = edge_table(faces)
    twins = twin_half_edges(faces)
    referenced = len(np.unique(faces))
    _, components = face_components(mesh)
    watertight = len(faces) > 0 and bool(np.all(table.face_counts == 2))
    consistent = bool(np.all(twins.reshape(-1, 3)[table.face_counts[table.face_edges] == 2] >= 0))
    pinched = int(np.count_nonzero(fan_counts(faces, twins, len(mesh.vertices)) > 1))
    euler = referenced - len(table.edges) + len(faces)
    closed = watertight and consistent and pinched == 0
    areas = face_areas(mesh)
    corners = mesh.vertices.astype(np.float64)[faces]
    low, high = _bounds(mesh.vertices)
    return MeshFacts(
        vertices=len(mesh.vertices),
        faces=len(faces),
        components=components,
        boundary_edges=int(np.count_nonzero(table.face_counts == 1)),
        non_manifold_edges=int(np.count_nonzero(table.face_counts > 2)),
        non_manifold_vertices=pinched,
        degenerate_faces=int(np.count_nonzero(areas == 0)),
        watertight=watertight,
        consistent_winding=consistent,
        euler=euler,
        genus=components - euler // 2 if closed else None,
        area=float(areas.sum()),
        volume=float(np.einsum("fi,fi->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6.0),
        bbox_min=low,
        bbox_max=high,
    )


def _bounds(vertices: NDArray[np.float32]) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    if len(vertices) == 0:
        return (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    return (float(low[0]), float(low[1]), float(low[2])), (float(high[0]), float(high[1]), float(high[2]))

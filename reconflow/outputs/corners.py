"""From a mesh with its own UV indices to what files and graphics cards want: one index per corner. No file formats.

Formats with a single index buffer need one vertex per distinct pair of position and UV. Vertices are doubled along UV
seams and nowhere else, and both copies keep the normal of the undivided surface, so that seams shade smoothly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reconflow.errors import ModelConvergenceError
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh


@dataclass(frozen=True, eq=False)
class SplitMesh:
    """A textured mesh with one index per corner.

    Attributes:
        positions: (N, 3) float32, world units.
        normals: (N, 3) float32, unit length, outward.
        uvs: (N, 2) float32 in [0, 1], v up.
        faces: (F, 3) int32 indices into all three; counter-clockwise from outside.
        removed_faces: How many collapsed triangles (two corners in one place) were left out.
        zero_area_faces: How many triangles with three corners on a line were kept, since without them the surface
            would have a slit.
    """

    positions: NDArray[np.float32]
    normals: NDArray[np.float32]
    uvs: NDArray[np.float32]
    faces: NDArray[np.int32]
    removed_faces: int
    zero_area_faces: int


def split_at_seams(textured: TexturedMesh) -> SplitMesh:
    """Give every corner one index; deterministic, ordered by vertex, then by UV.

    Triangles with two corners in one place are removed and the two corners joined, which keeps a closed surface
    closed; vertices that no triangle uses are dropped.

    Raises:
        ModelConvergenceError: The mesh is empty, or a value is not finite.
    """
    clean = without_collapsed(textured)
    mesh, uv_faces = clean.mesh, clean.uv_faces
    normals = vertex_normals(mesh)
    uvs, uv_ids = _distinct_rows(textured.uvs)
    key = mesh.faces.astype(np.int64) * len(uvs) + uv_ids[uv_faces]
    pairs, corner = np.unique(key, return_inverse=True)
    of_vertex, of_uv = pairs // len(uvs), pairs % len(uvs)
    return SplitMesh(
        positions=mesh.vertices[of_vertex],
        normals=normals[of_vertex],
        uvs=uvs[of_uv],
        faces=corner.reshape(-1, 3).astype(np.int32),
        removed_faces=len(textured.mesh.faces) - len(mesh.faces),
        zero_area_faces=int((_double_area(mesh) == 0).sum()),
    )


def without_collapsed(textured: TexturedMesh) -> TexturedMesh:
    """Join corners that share an edge and a place, and drop the triangles that vanish by it.

    A closed surface stays closed. UVs are untouched, and vertices keep their numbers.

    Raises:
        ModelConvergenceError: The mesh is empty, or a value is not finite.
    """
    _check_finite(textured)
    vertices, faces = textured.mesh.vertices + np.float32(0), textured.mesh.faces
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    same = (vertices[start] == vertices[end]).all(axis=1) & (start != end)
    if same.any():
        faces = _joined(len(vertices), start[same], end[same])[faces]
    kept = (faces != np.roll(faces, -1, axis=1)).all(axis=1)
    return replace(textured, mesh=TriangleMesh(vertices, faces[kept]), uv_faces=textured.uv_faces[kept])


def vertex_normals(mesh: TriangleMesh) -> NDArray[np.float32]:
    """Return (V, 3) float32 unit normals: the sum of the adjacent triangles' normals weighted by their area.

    Where that sum vanishes the largest adjacent triangle decides, and a vertex without any area points to +z: a
    normal of length zero is not allowed in glTF.
    """
    cross = _cross(mesh)
    total = np.stack(
        [
            np.bincount(mesh.faces.ravel(), np.repeat(cross[:, axis], 3), minlength=len(mesh.vertices))
            for axis in range(3)
        ],
        axis=1,
    )
    length = np.linalg.norm(total, axis=1)
    area = np.linalg.norm(cross, axis=1)
    largest = np.zeros(len(mesh.vertices))
    np.maximum.at(largest, mesh.faces.ravel(), np.repeat(area, 3))
    vanishing = length <= 1e-6 * largest
    for vertex in np.flatnonzero(vanishing & (largest > 0)):
        adjacent = np.flatnonzero((mesh.faces == vertex).any(axis=1))
        total[vertex] = cross[adjacent[np.argmax(area[adjacent])]]
    total[largest == 0] = (0.0, 0.0, 1.0)
    unit: NDArray[np.float32] = (total / np.linalg.norm(total, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _cross(mesh: TriangleMesh) -> NDArray[np.float64]:
    a, b, c = (mesh.vertices[mesh.faces[:, k]].astype(np.float64) for k in range(3))
    return np.cross(b - a, c - a)


def _double_area(mesh: TriangleMesh) -> NDArray[np.float64]:
    area: NDArray[np.float64] = np.linalg.norm(_cross(mesh), axis=1)
    return area


def _check_finite(textured: TexturedMesh) -> None:
    if len(textured.mesh.faces) == 0:
        raise ModelConvergenceError(
            "The reconstruction has no surface.",
            suggestion="Check the masks and the cameras in the report; the views may not describe one object.",
        )
    for what, values in (("vertices", textured.mesh.vertices), ("texture coordinates", textured.uvs)):
        wrong = int((~np.isfinite(values)).any(axis=1).sum())
        if wrong:
            raise ModelConvergenceError(
                f"{wrong} of the mesh's {what} are not finite numbers.",
                suggestion="Run again with another seed; report the dataset if it happens twice.",
                what=what,
                count=wrong,
            )


def _distinct_rows(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the distinct (T, 2) rows and the index of each original row; equal bits, with -0 taken for 0."""
    bits = np.ascontiguousarray(rows + np.float32(0)).view(np.uint64).ravel()
    distinct, index = np.unique(bits, return_inverse=True)
    return distinct.view(np.float32).reshape(-1, 2), index.astype(np.int64)


def _joined(count: int, start: NDArray[np.int32], end: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return for each of `count` vertices the lowest one it is connected to by the given edges."""
    lowest = np.arange(count, dtype=np.int32)
    while True:
        before = lowest.copy()
        np.minimum.at(lowest, start, before[end])
        np.minimum.at(lowest, end, before[start])
        lowest = lowest[lowest]
        if np.array_equal(lowest, before):
            return lowest

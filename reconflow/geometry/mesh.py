"""The triangle mesh and the textured mesh that the rest of the project passes around. Data only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class TriangleMesh:
    """An indexed triangle mesh; front faces are counter-clockwise seen from outside.

    Attributes:
        vertices: (V, 3) float32, world units.
        faces: (F, 3) int32 vertex indices.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TexturedMesh:
    """A mesh with its own UV index buffer, so that seams do not split vertices.

    Attributes:
        mesh: The surface.
        uvs: (T, 2) float32 in [0, 1]; u runs right, v runs *up* (OpenGL): (0, 0) is the bottom-left texel's corner.
        uv_faces: (F, 3) int32 indices into `uvs`, corner by corner as in `mesh.faces`.
        base_colour_srgb: (H, W, 3) uint8 sRGB-encoded texture, row 0 on top (v = 1).
    """

    mesh: TriangleMesh
    uvs: NDArray[np.float32]
    uv_faces: NDArray[np.int32]
    base_colour_srgb: NDArray[np.uint8]

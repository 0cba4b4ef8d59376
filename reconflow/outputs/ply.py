"""Writing the mesh as binary PLY with a colour per vertex. PLY has no texture, so the texture's colours are baked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reconflow import __version__
from reconflow.colour import linear_from_srgb_u8, srgb_from_linear
from reconflow.geometry.mesh import TexturedMesh
from reconflow.outputs.corners import vertex_normals, without_collapsed
from reconflow.outputs.files import replacing

_VERTEX = np.dtype([("position", "<f4", 3), ("normal", "<f4", 3), ("rgb", "u1", 3)])
_FACE = np.dtype([("count", "u1"), ("corners", "<i4", 3)])


def write_ply(textured: TexturedMesh, path: Path, *, unit: str) -> None:
    """Write positions, unit normals and sRGB colours, little-endian; vertices are shared across UV seams.

    Args:
        textured: Surface, UVs and base colour.
        path: The file.
        unit: What one unit is, for the comment, e.g. `1 unit = 1 metre`.

    Raises:
        ModelConvergenceError: The mesh is empty, or a value is not finite.
    """
    clean = without_collapsed(textured)
    used, corner = np.unique(clean.mesh.faces, return_inverse=True)
    vertices = np.zeros(len(used), _VERTEX)
    vertices["position"] = clean.mesh.vertices[used]
    vertices["normal"] = vertex_normals(clean.mesh)[used]
    vertices["rgb"] = bake_vertex_colours(clean)[used]
    faces = np.zeros(len(clean.mesh.faces), _FACE)
    faces["count"], faces["corners"] = 3, corner.reshape(-1, 3)
    with replacing(path) as stream:
        stream.write(_header(len(vertices), len(faces), unit))
        stream.write(vertices.tobytes())
        stream.write(faces.tobytes())


def bake_vertex_colours(textured: TexturedMesh) -> NDArray[np.uint8]:
    """Return (V, 3) uint8 sRGB colours: the texture at each vertex, averaged over its charts in linear light."""
    count = len(textured.mesh.vertices)
    pairs = np.unique(np.stack([textured.mesh.faces.ravel(), textured.uv_faces.ravel()], axis=1), axis=0)
    colours = sample_texture(textured.base_colour_srgb, textured.uvs[pairs[:, 1]])
    weight = np.maximum(np.bincount(pairs[:, 0], minlength=count), 1)
    sums = [np.bincount(pairs[:, 0], colours[:, channel], minlength=count) for channel in range(3)]
    return np.round(srgb_from_linear(np.stack(sums, axis=1) / weight[:, None]) * 255).astype(np.uint8)


def sample_texture(texture_srgb: NDArray[np.uint8], uvs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Look a texture up bilinearly, in linear light, clamped at its border.

    Args:
        texture_srgb: (H, W, 3) uint8, row 0 on top.
        uvs: (N, 2), v up.

    Returns:
        rgb_linear: (N, 3) in [0, 1].
    """
    height, width = texture_srgb.shape[:2]
    x = np.clip(uvs[:, 0].astype(np.float64) * width - 0.5, 0, width - 1)
    y = np.clip((1.0 - uvs[:, 1].astype(np.float64)) * height - 0.5, 0, height - 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    fx, fy = (x - left)[:, None], (y - top)[:, None]

    def texels(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
        return linear_from_srgb_u8(texture_srgb[rows, columns])

    upper = (1 - fx) * texels(top, left) + fx * texels(top, right)
    lower = (1 - fx) * texels(bottom, left) + fx * texels(bottom, right)
    mixed: NDArray[np.float64] = (1 - fy) * upper + fy * lower
    return mixed


def _header(vertices: int, faces: int, unit: str) -> bytes:
    lines = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment reconflow {__version__}",
        f"comment unit: {' '.join(unit.split())}",
        "comment axes: right-handed, +y up, front towards +z; colours sRGB",
        f"element vertex {vertices}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {faces}",
        "property list uchar int vertex_indices",
        "end_header",
        "",
    ]
    return "\n".join(lines).encode("ascii", errors="replace")

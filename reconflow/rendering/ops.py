"""The differentiable rendering operators under nvdiffrast's names, for CPU tensors; and the one flip of rows.

Only the public surface; each operator lives in its own module. Conventions: clip space and textures follow OpenGL,
row 0 of every raster is the *bottom* row; tensors are contiguous float32, triangles int32; nothing is culled. Results
and gradients are bit-identical whatever the number of threads. Differences from nvdiffrast: `antialias` walks the
mesh's silhouette edges, visibility is decided in float64 instead of on a 1/16-pixel grid, cube maps are refused.
"""

from __future__ import annotations

from torch import Tensor

from reconflow.rendering.antialias_op import antialias, antialias_construct_topology_hash
from reconflow.rendering.interpolate_op import interpolate
from reconflow.rendering.rasterize_op import RasterizeContext, rasterize
from reconflow.rendering.texture_op import texture

__all__ = [
    "RasterizeContext",
    "antialias",
    "antialias_construct_topology_hash",
    "flip_rows",
    "interpolate",
    "rasterize",
    "texture",
]


def flip_rows(raster: Tensor) -> Tensor:
    """Turn an OpenGL raster or texture (row 0 at the bottom) into an image (row 0 on top), or back.

    Args:
        raster: [..., H, W, C].
    """
    return raster.flip(-3)

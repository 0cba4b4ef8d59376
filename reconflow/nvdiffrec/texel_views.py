"""How the texels of an atlas see the photos: which view, where in it, how well. Colours are linear light."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

from reconflow.cameras.camera import PinholeCamera
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.surface import vertex_normals
from reconflow.parallel import row_bands, run_jobs, thread_count
from reconflow.rendering.raster import rasterize_view

Float32 = NDArray[np.float32]

_EDGE_GUARD_PX = (1.5, 8.0)
"""A pixel nearer than the first to a depth edge is hardly trusted, one beyond the second fully."""
GRAZING_POWER = 5.0
"""Exponent of the cosine between surface normal and viewing ray in a view's weight, when views are chosen by detail.
1 weights every view by the pixels it spends on a texel, which is the least-squares weight."""
_WIDE_POWER = 1.5
"""The same for the low frequencies, which are blended over wider bands."""


_BLOCK_TEXELS = 1 << 19
"""Texels worked on at once by one thread."""


@dataclass(frozen=True, eq=False)
class Texels:
    """The texels that the surface covers.

    Attributes:
        index: (N,) int64 flat index into the (S, S) texture, row 0 on top.
        position: (N, 3) float32 world position.
        normal: (N, 3) float32 unit normal.
        size: S.
    """

    index: NDArray[np.int64]
    position: Float32
    normal: Float32
    size: int


@dataclass(frozen=True, eq=False)
class ViewGeometry:
    """What one camera sees of the mesh.

    Attributes:
        camera: The view at the resolution of the two images.
        depth: (H, W) float32 depth of the mesh, 0 where it is not or not shown.
        trust: (H, W) float32, 1 far from depth edges, near 0 at them.
    """

    camera: PinholeCamera
    depth: Float32
    trust: Float32


def locate_texels(mesh: TriangleMesh, face_id: NDArray[np.int32], bary: Float32) -> Texels:
    """Place every covered texel on the surface.

    Args:
        mesh: The surface.
        face_id: (S, S) int32 face of each texel, -1 for none, row 0 on top.
        bary: (S, S, 2) float32 weights of the face's first two corners.
    """
    index = np.flatnonzero(face_id.ravel() >= 0)
    faces = mesh.faces[face_id.ravel()[index]]
    first_two = bary.reshape(-1, 2)[index]
    weights = np.stack([first_two[:, 0], first_two[:, 1], 1 - first_two.sum(axis=1)], axis=1)
    normals = vertex_normals(mesh).astype(np.float32)
    position, normal = np.zeros((2, len(index), 3), np.float32)
    for corner in range(3):
        position += weights[:, corner : corner + 1] * mesh.vertices[faces[:, corner]]
        normal += weights[:, corner : corner + 1] * normals[faces[:, corner]]
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)
    return Texels(index, position, normal, face_id.shape[0])


def see_mesh(mesh: TriangleMesh, camera: PinholeCamera, shown: NDArray[np.bool_] | None = None) -> ViewGeometry:
    """Rasterise the mesh's depth and mark where its edges make photos unreliable.

    Args:
        mesh: The surface.
        camera: The view, at the resolution wanted.
        shown: (H, W) where the photo shows the object; elsewhere, and near its rim, it says nothing about the mesh.
            None trusts the mesh's own outline.
    """
    depth = rasterize_view(mesh.vertices, mesh.faces, camera).depth
    if shown is not None:
        depth = np.where(shown, depth, np.float32(0))
    distance_px = ndimage.distance_transform_edt(~depth_edges(depth, camera.focal_px[0])).astype(np.float32)
    ramp = np.clip((distance_px - _EDGE_GUARD_PX[0]) / (_EDGE_GUARD_PX[1] - _EDGE_GUARD_PX[0]), 0, 1)
    return ViewGeometry(camera, depth, (1e-3 + (1 - 1e-3) * ramp * ramp * (3 - 2 * ramp)).astype(np.float32))


def depth_edges(depth: Float32, focal_px: float) -> NDArray[np.bool_]:
    """Mark the pixels at which an (H, W) depth jumps by more than a steep slope explains, silhouettes included.

    Args:
        depth: Along the optical axis, world units; 0 where there is nothing.
        focal_px: Focal length, pixels.
    """
    edges = np.zeros(depth.shape, bool)
    for axis in range(2):
        near = np.take(depth, range(depth.shape[axis] - 1), axis=axis)
        far = np.take(depth, range(1, depth.shape[axis]), axis=axis)
        limit = 8.0 * np.maximum(near, far) / focal_px
        jump = (np.abs(near - far) > limit) & ((near > 0) | (far > 0))
        index: list[slice] = [slice(None), slice(None)]
        index[axis] = slice(0, -1)
        edges[tuple(index)] |= jump
        index[axis] = slice(1, None)
        edges[tuple(index)] |= jump
    return edges


def gather(
    texels: Texels,
    geometry: Sequence[ViewGeometry],
    images: Sequence[Float32],
    low_images: Sequence[Float32] | None = None,
    grazing_power: float = GRAZING_POWER,
) -> tuple[Float32, Float32]:
    """Blend what the views show at every texel.

    Low frequencies (`low_images`) are blended over wide bands and the rest over narrow ones, so that neither exposure
    differences nor detail double at a seam (Burt and Adelson 1983, with two bands in image space).

    Args:
        texels: Where to look from the surface.
        geometry: One per view.
        images: (H, W, 3) float32 linear values per view; any resolution with the view's aspect.
        low_images: The same, blurred, at any resolution; None blends `images` alone.
        grazing_power: Exponent of the cosine in the weights.

    Returns:
        colour: (N, 3) float32 blended values, 0 where no view sees the texel.
        quality: (N,) float32 how well the best view sees the texel, 0 unseen to 1 head-on and far from depth edges.
    """
    count = len(texels.index)
    colour, quality = np.zeros((count, 3), np.float32), np.zeros(count, np.float32)
    blocks = row_bands(count, max(thread_count(), -(-count // _BLOCK_TEXELS)))
    lows = images if low_images is None else low_images

    def block(start: int, stop: int) -> None:
        part = slice(start, stop)
        sums, wide_sums = np.zeros((2, stop - start, 4), np.float32)
        for view, image, low in zip(geometry, images, lows, strict=True):
            _gather_view(
                texels.position[part], texels.normal[part], np.ascontiguousarray(view.camera.cam_from_world),
                np.array([*view.camera.focal_px, *view.camera.centre_px]), view.camera.position_world.copy(),
                view.depth, view.trust, image, low, low_images is not None, grazing_power, sums, wide_sums,
                quality[part],
            )  # fmt: skip
        blended = sums[:, :3] / np.maximum(sums[:, 3:], 1e-20)
        if low_images is not None:
            blended += wide_sums[:, :3] / np.maximum(wide_sums[:, 3:], 1e-20)
        colour[part] = np.where(quality[part][:, None] > 0, blended, np.float32(0))

    run_jobs([partial(block, start, stop) for start, stop in blocks])
    return colour, quality


@njit(cache=True, nogil=True)
def _bilinear(image: Float32, x: float, y: float, channel: int) -> float:
    """Sample at a pixel position whose centres are at +0.5, clamped at the border."""
    height, width = image.shape[0], image.shape[1]
    px, py = min(max(x - 0.5, 0.0), width - 1.0), min(max(y - 0.5, 0.0), height - 1.0)
    x0, y0 = min(int(px), width - 2), min(int(py), height - 2)
    ax, ay = px - x0, py - y0
    return float(
        (image[y0, x0, channel] * (1 - ax) + image[y0, x0 + 1, channel] * ax) * (1 - ay)
        + (image[y0 + 1, x0, channel] * (1 - ax) + image[y0 + 1, x0 + 1, channel] * ax) * ay
    )


@njit(cache=True, nogil=True)
def _gather_view(
    position: Float32,
    normal: Float32,
    cam_from_world: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    eye: NDArray[np.float64],
    depth: Float32,
    trust: Float32,
    image: Float32,
    low: Float32,
    two_bands: bool,  # noqa: FBT001
    grazing_power: float,
    sums: Float32,
    wide_sums: Float32,
    quality: Float32,
) -> None:
    """Add one view's weighted colours to the sums of the texels it sees."""
    fx, fy, cx, cy = intrinsics
    height, width = depth.shape
    m = cam_from_world
    for n in range(position.shape[0]):
        x, y, z = position[n, 0], position[n, 1], position[n, 2]
        d = -(m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3])
        if d <= 1e-6:
            continue
        px = cx + fx * (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / d
        py = cy - fy * (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / d
        column, row = int(np.floor(px)), int(np.floor(py))
        if column < 0 or row < 0 or column >= width or row >= height:
            continue
        vx, vy, vz = eye[0] - x, eye[1] - y, eye[2] - z
        length = np.sqrt(vx * vx + vy * vy + vz * vz)
        cosine = (normal[n, 0] * vx + normal[n, 1] * vy + normal[n, 2] * vz) / length
        if cosine <= 0.02:
            continue
        pixel = d / fx
        tolerance = pixel * (1.5 + 1.5 * np.sqrt(max(1 - cosine * cosine, 0.0)) / cosine)
        seen = depth[row, column]
        if seen <= 0 or d > seen + min(tolerance, 12 * pixel):
            continue
        base = trust[row, column] * (fx / d) ** 2 / 1e6
        weight = base * cosine**grazing_power
        sx, sy = image.shape[1] / width, image.shape[0] / height
        lx, ly = low.shape[1] / width, low.shape[0] / height
        wide = base * cosine**_WIDE_POWER
        quality[n] = max(quality[n], np.float32(trust[row, column] * cosine))
        for c in range(3):
            value = _bilinear(image, px * sx, py * sy, c)
            if two_bands:
                blurred = _bilinear(low, px * lx, py * ly, c)
                wide_sums[n, c] += wide * blurred
                value -= blurred
            sums[n, c] += weight * value
        sums[n, 3] += weight
        wide_sums[n, 3] += wide

"""The z-buffer rasteriser on numpy arrays: which triangle each pixel's centre sees, and where on it.

No shading, no gradients, no torch.

Everything works in *pixel-homogeneous* coordinates (xh, yh, z, w): a vertex lands at pixel (xh / w, yh / w), z / w is
the depth key (smaller is nearer, -1 the near plane, 1 the far plane). Cameras and OpenGL clip space both map into it
linearly, so that one set of kernels serves both. Edge functions are evaluated in float64 and are exactly antisymmetric
in their end points: two triangles that share an edge leave no gap. A pixel claimed twice at equal depth goes to the
lower face index, so the result does not depend on any order of execution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.errors import ValidationFailedError
from reconflow.parallel import row_bands, run_jobs, thread_count

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

NEAR_FRACTION = 1e-3
"""The near plane of a camera stands at this fraction of the farthest vertex's depth."""

FAR_LIMIT = np.float32(np.nextafter(np.float32(1), np.float32(2)))
"""Depth key of an empty pixel: anything on or in front of the far plane is nearer."""


@dataclass(frozen=True, eq=False)
class RasterBuffers:
    """What every pixel's centre sees; row 0 on top.

    Attributes:
        face_id: (H, W) int32 index into the faces, -1 where empty.
        bary: (H, W, 2) float32 perspective-correct weights of the face's vertices 0 and 1 (vertex 2 has the rest).
        depth: (H, W) float32 along the optical axis, world units; 0 where empty.
    """

    face_id: I32
    bary: F32
    depth: F32


def rasterize_view(vertices: NDArray[Any], faces: NDArray[Any], camera: PinholeCamera) -> RasterBuffers:
    """Rasterise a mesh into one view, without culling; triangles are cut at the near plane.

    Args:
        vertices: (V, 3) world units.
        faces: (F, 3) vertex indices.
        camera: The view.

    Raises:
        ValidationFailedError: A face refers to a vertex that does not exist.
    """
    height, width = camera.image_hw
    homog = pixel_homogeneous(vertices, camera)
    faces = checked_faces(faces, len(vertices))
    screen = screen_from_homogeneous(homog)
    buffers = RasterBuffers(
        face_id=np.empty((height, width), np.int32),
        bary=np.empty((height, width, 2), np.float32),
        depth=np.empty((height, width), np.float32),
    )
    key = np.empty((height, width), np.float32)

    def band(start: int, stop: int) -> None:
        rows = slice(start, stop)
        raster_rows(homog, screen, faces, start, key[rows], buffers.face_id[rows])
        resolve_rows(homog, faces, start, buffers.face_id[rows], buffers.bary[rows], buffers.depth[rows])

    run_jobs([partial(band, start, stop) for start, stop in row_bands(height, thread_count())])
    return buffers


def checked_faces(faces: NDArray[Any], count: int, name: str = "faces") -> I32:
    """Return (F, 3) indices as contiguous int32 after checking that they lie in [0, count).

    The compiled kernels read whatever an index points at, so nothing unchecked may reach them.

    Raises:
        ValidationFailedError: Wrong shape, or an index outside.
    """
    faces = np.asarray(faces)
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValidationFailedError(
            f"`{name}` must have shape (F, 3), but has {faces.shape}.",
            suggestion="Pass triangles, one row of three indices each.",
            shape=list(faces.shape),
        )
    if faces.size and (faces.min() < 0 or faces.max() >= count):
        raise ValidationFailedError(
            f"`{name}` refers to {faces.min()} to {faces.max()}, but there are {count}.",
            suggestion="Check that the index buffer belongs to these vertices.",
            count=count,
        )
    return np.ascontiguousarray(faces, dtype=np.int32)


def pixel_homogeneous(vertices: NDArray[Any], camera: PinholeCamera) -> F64:
    """Project world points to pixel-homogeneous coordinates; row 0 of the pixel frame is the image's top.

    Args:
        vertices: (V, 3) world units.
        camera: The view.

    Returns:
        (V, 4) float64 (xh, yh, z, w); w is the depth along the optical axis and z / w = -near / depth.
    """
    projection = pixel_projection(camera)
    xyw = vertices.astype(np.float64) @ projection[:, :3].T + projection[:, 3]
    homog = np.empty((len(vertices), 4))
    homog[:, :2], homog[:, 3] = xyw[:, :2], xyw[:, 2]
    homog[:, 2] = -NEAR_FRACTION * max(float(xyw[:, 2].max(initial=0.0)), 1e-30)
    return homog


def pixel_projection(camera: PinholeCamera) -> F64:
    """Return the (3, 4) matrix from world points (x, y, z, 1) to (xh, yh, depth): pixel = (xh, yh) / depth."""
    (fx, fy), (cx, cy) = camera.focal_px, camera.centre_px
    intrinsics = np.array([[fx, 0.0, -cx], [0.0, -fy, -cy], [0.0, 0.0, -1.0]])
    projection: F64 = intrinsics @ camera.cam_from_world[:3]
    return projection


@njit(cache=True, nogil=True)
def screen_from_homogeneous(homog: F64) -> F64:
    """Return (V, 4) float64 (x, y pixels; depth key; 1 when in front of the near plane, else 0)."""
    screen = np.zeros((homog.shape[0], 4))
    for i in range(homog.shape[0]):
        z, w = homog[i, 2], homog[i, 3]
        if w > 0.0 and z + w >= 0.0:
            screen[i, 0] = homog[i, 0] / w
            screen[i, 1] = homog[i, 1] / w
            screen[i, 2] = z / w
            screen[i, 3] = 1.0
    return screen


@njit(cache=True, nogil=True)
def raster_rows(homog: F64, screen: F64, faces: I32, first_row: int, key: F32, face_id: I32) -> None:
    """Find the nearest face at every pixel centre of a band of rows.

    Args:
        homog: (V, 4) pixel-homogeneous vertices.
        screen: (V, 4) from `screen_from_homogeneous`.
        faces: (F, 3) vertex indices.
        first_row: Image row of the band's first row.
        key: (rows, W), written: depth key of what is seen, `FAR_LIMIT` where empty.
        face_id: (rows, W), written: index of the face seen, -1 where empty.
    """
    key[:] = FAR_LIMIT
    face_id[:] = -1
    rows, width = face_id.shape
    flat_key, flat_id = key.reshape(-1), face_id.reshape(-1)
    for f in range(faces.shape[0]):
        i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
        inside = screen[i0, 3] + screen[i1, 3] + screen[i2, 3]
        if inside == 0.0:
            continue
        if inside < 3.0:
            _raster_clipped(homog, screen, i0, i1, i2, f, first_row, key, face_id)
            continue
        x0, y0 = screen[i0, 0], screen[i0, 1]
        x1, y1 = screen[i1, 0], screen[i1, 1]
        x2, y2 = screen[i2, 0], screen[i2, 1]
        top, bottom = min(y0, y1, y2) - 0.5 - first_row, max(y0, y1, y2) - 0.5 - first_row
        left, right = min(x0, x1, x2) - 0.5, max(x0, x1, x2) - 0.5
        if not (bottom >= 0.0 and top <= rows - 1.0 and right >= 0.0 and left <= width - 1.0):
            continue
        row_start, row_stop = math.ceil(max(top, 0.0)), math.floor(min(bottom, rows - 1.0)) + 1
        col_start, col_stop = math.ceil(max(left, 0.0)), math.floor(min(right, width - 1.0)) + 1
        if row_start >= row_stop or col_start >= col_stop:
            continue
        a0, b0, c0 = y1 - y2, x2 - x1, x1 * y2 - x2 * y1
        a1, b1, c1 = y2 - y0, x0 - x2, x2 * y0 - x0 * y2
        a2, b2, c2 = y0 - y1, x1 - x0, x0 * y1 - x1 * y0
        area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
        if area == 0.0:
            continue
        if area < 0.0:
            area = -area
            a0, b0, c0, a1, b1, c1, a2, b2, c2 = -a0, -b0, -c0, -a1, -b1, -c1, -a2, -b2, -c2
        inverse = 1.0 / area
        k0, k1, k2 = screen[i0, 2] * inverse, screen[i1, 2] * inverse, screen[i2, 2] * inverse
        for row in range(row_start, row_stop):
            y = first_row + row + 0.5
            r0, r1, r2 = b0 * y + c0, b1 * y + c1, b2 * y + c2
            base = row * width
            for col in range(col_start, col_stop):
                x = col + 0.5
                e0, e1, e2 = a0 * x + r0, a1 * x + r1, a2 * x + r2
                if min(e0, e1, e2) >= 0.0:
                    depth_key = np.float32(e0 * k0 + e1 * k1 + e2 * k2)
                    at = np.uint64(base + col)
                    if depth_key < flat_key[at]:
                        flat_key[at] = depth_key
                        flat_id[at] = f


@njit(cache=True, nogil=True)
def edge_coefficients(homog: F64, j: int, k: int) -> tuple[float, float, float]:
    """Return (a, b, c) of the plane through the eye and two vertices: a x + b y + c = 0 on the edge's line."""
    xj, yj, wj = homog[j, 0], homog[j, 1], homog[j, 3]
    xk, yk, wk = homog[k, 0], homog[k, 1], homog[k, 3]
    return yj * wk - yk * wj, xk * wj - xj * wk, xj * yk - xk * yj


@njit(cache=True, nogil=True)
def _raster_clipped(
    homog: F64, screen: F64, i0: int, i1: int, i2: int, f: int, first_row: int, key: F32, face_id: I32
) -> None:
    """Rasterise one face that crosses the near plane, with homogeneous edge functions (no new vertices).

    A point of the face projects to the pixel when its three homogeneous edge functions have the sign of their
    determinant; what lies behind the near plane is then refused pixel by pixel (Olano and Greer, 1997).
    """
    rows, width = face_id.shape
    corner = (i0, i1, i2)
    left, right, top, bottom = np.inf, -np.inf, np.inf, -np.inf
    for c in range(3):
        i, j = corner[c], corner[(c + 1) % 3]
        if screen[i, 3] == 1.0:
            left, right = min(left, screen[i, 0]), max(right, screen[i, 0])
            top, bottom = min(top, screen[i, 1]), max(bottom, screen[i, 1])
        if screen[i, 3] != screen[j, 3]:
            di, dj = homog[i, 2] + homog[i, 3], homog[j, 2] + homog[j, 3]
            if di == dj:
                continue
            t = di / (di - dj)
            w = homog[i, 3] + t * (homog[j, 3] - homog[i, 3])
            if w <= 0.0:
                left, right, top, bottom = -np.inf, np.inf, -np.inf, np.inf
                continue
            x = (homog[i, 0] + t * (homog[j, 0] - homog[i, 0])) / w
            y = (homog[i, 1] + t * (homog[j, 1] - homog[i, 1])) / w
            left, right, top, bottom = min(left, x), max(right, x), min(top, y), max(bottom, y)
    a0, b0, c0 = edge_coefficients(homog, i1, i2)
    a1, b1, c1 = edge_coefficients(homog, i2, i0)
    a2, b2, c2 = edge_coefficients(homog, i0, i1)
    determinant = a0 * homog[i0, 0] + b0 * homog[i0, 1] + c0 * homog[i0, 3]
    if determinant == 0.0:
        return
    sign = 1.0 if determinant > 0.0 else -1.0
    row_start = math.ceil(max(top - 1.5 - first_row, 0.0))
    row_stop = math.floor(min(bottom + 0.5 - first_row, rows - 1.0)) + 1
    col_start = math.ceil(max(left - 1.5, 0.0))
    col_stop = math.floor(min(right + 0.5, width - 1.0)) + 1
    for row in range(row_start, row_stop):
        y = first_row + row + 0.5
        for col in range(col_start, col_stop):
            x = col + 0.5
            e0 = sign * (a0 * x + (b0 * y + c0))
            e1 = sign * (a1 * x + (b1 * y + c1))
            e2 = sign * (a2 * x + (b2 * y + c2))
            if e0 >= 0.0 and e1 >= 0.0 and e2 >= 0.0:
                z = e0 * homog[i0, 2] + e1 * homog[i1, 2] + e2 * homog[i2, 2]
                w = e0 * homog[i0, 3] + e1 * homog[i1, 3] + e2 * homog[i2, 3]
                if w > 0.0 and z + w >= 0.0 and np.float32(z / w) < key[row, col]:
                    key[row, col] = np.float32(z / w)
                    face_id[row, col] = f


@njit(cache=True, nogil=True)
def resolve_rows(homog: F64, faces: I32, first_row: int, face_id: I32, bary: F32, depth: F32) -> None:
    """Compute perspective-correct weights and the depth w of what a band of rows sees.

    The weight of vertex i is its homogeneous edge function divided by the sum of the three.

    Args:
        homog: (V, 4) pixel-homogeneous vertices.
        faces: (F, 3) vertex indices.
        first_row: Image row of the band's first row.
        face_id: (rows, W) from `raster_rows`.
        bary: (rows, W, 2), written: weights of vertices 0 and 1, in [0, 1]; 0 where empty.
        depth: (rows, W), written: w at the point seen; 0 where empty.
    """
    rows, width = face_id.shape
    last = -1
    a0 = b0 = c0 = a1 = b1 = c1 = a2 = b2 = c2 = w0 = w1 = w2 = 0.0
    for row in range(rows):
        y = first_row + row + 0.5
        for col in range(width):
            f = face_id[row, col]
            if f < 0:
                bary[row, col, 0] = 0.0
                bary[row, col, 1] = 0.0
                depth[row, col] = 0.0
                continue
            if f != last:
                last = f
                i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
                a0, b0, c0 = edge_coefficients(homog, i1, i2)
                a1, b1, c1 = edge_coefficients(homog, i2, i0)
                a2, b2, c2 = edge_coefficients(homog, i0, i1)
                w0, w1, w2 = homog[i0, 3], homog[i1, 3], homog[i2, 3]
            x = col + 0.5
            e0, e1, e2 = a0 * x + (b0 * y + c0), a1 * x + (b1 * y + c1), a2 * x + (b2 * y + c2)
            inverse = 1.0 / (e0 + e1 + e2)
            u = min(max(e0 * inverse, 0.0), 1.0)
            v = min(max(e1 * inverse, 0.0), 1.0 - u)
            bary[row, col, 0] = u
            bary[row, col, 1] = v
            depth[row, col] = u * w0 + v * w1 + (1.0 - u - v) * w2

"""From pictures back onto a texture: the adjoint of the textured render. What is done with the sums lives elsewhere."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.geometry.mesh import TriangleMesh
from reconflow.parallel import row_bands, run_jobs, thread_count
from reconflow.rendering.raster import (
    F32,
    I32,
    checked_faces,
    pixel_homogeneous,
    raster_rows,
    resolve_rows,
    screen_from_homogeneous,
)
from reconflow.rendering.shade import SAMPLES_PER_BAND, bilinear_texel


def backproject_image(
    mesh: TriangleMesh,
    uvs: NDArray[Any],
    uv_faces: NDArray[Any],
    camera: PinholeCamera,
    image: F32,
    sums: F32,
    supersample: int = 2,
) -> None:
    """Add every pixel to the texels that `render_textured` blends it from, with the weights of that blend.

    For a fixed mesh and camera a render is linear in the texture: pixel = A texel + background. This adds A^T image to
    the first three channels of `sums` and A^T 1 to the fourth, in the same order whatever the number of threads.

    Args:
        mesh: The surface.
        uvs: (T, 2) texture coordinates, v up.
        uv_faces: (F, 3) indices into `uvs`, one row per face of the mesh.
        camera: The view; the image has its size.
        image: (H, W, 3) float32.
        sums: (S, S, 4) float32 texture-sized sums; changed in place.
        supersample: Samples per pixel along each axis, as in the render.
    """
    height, width = camera.image_hw
    large = camera.resized((height * supersample, width * supersample))
    homog = pixel_homogeneous(mesh.vertices, large)
    screen = screen_from_homogeneous(homog)
    faces = checked_faces(mesh.faces, len(mesh.vertices))
    coordinates = np.ascontiguousarray(uvs, dtype=np.float32)
    corners = checked_faces(uv_faces, len(coordinates), "uv_faces")
    threads = thread_count()
    strips = math.ceil(height * width * supersample**2 / (SAMPLES_PER_BAND * threads))
    for first, last in row_bands(height, strips):
        shape = ((last - first) * supersample, width * supersample)
        face_id, bary, key = np.empty(shape, np.int32), np.empty((*shape, 2), np.float32), np.empty(shape, np.float32)

        def trace(
            start: int, stop: int, first: int = first, face_id: I32 = face_id, bary: F32 = bary, key: F32 = key
        ) -> None:
            rows, sample_row = slice(start * supersample, stop * supersample), (first + start) * supersample
            raster_rows(homog, screen, faces, sample_row, key[rows], face_id[rows])
            resolve_rows(homog, faces, sample_row, face_id[rows], bary[rows], key[rows])

        run_jobs([partial(trace, start, stop) for start, stop in row_bands(last - first, threads)])
        run_jobs(
            [
                partial(_scatter, face_id, bary, coordinates, corners, supersample, image[first:last], sums, top, end)
                for top, end in row_bands(sums.shape[0], threads)
            ]
        )


@njit(cache=True, nogil=True)
def _scatter(
    face_id: I32, bary: F32, uvs: F32, uv_faces: I32, factor: int, image: F32, sums: F32, top: int, end: int
) -> None:
    """Add a strip of the picture to the texture rows in [top, end), sample after sample."""
    rows, columns = face_id.shape
    share = 1.0 / (factor * factor)
    for i in range(rows):
        for j in range(columns):
            f = face_id[i, j]
            if f < 0:
                continue
            b0, b1 = float(bary[i, j, 0]), float(bary[i, j, 1])
            b2 = 1.0 - b0 - b1
            t0, t1, t2 = uv_faces[f, 0], uv_faces[f, 1], uv_faces[f, 2]
            u = b0 * uvs[t0, 0] + b1 * uvs[t1, 0] + b2 * uvs[t2, 0]
            v = b0 * uvs[t0, 1] + b1 * uvs[t1, 1] + b2 * uvs[t2, 1]
            x0, x1, y0, y1, p, q = bilinear_texel(sums, u, v)
            row, column = i // factor, j // factor
            for y, along_y in ((y0, share * (1.0 - q)), (y1, share * q)):
                if y < top or y >= end:
                    continue
                for x, weight in ((x0, along_y * (1.0 - p)), (x1, along_y * p)):
                    for c in range(3):
                        sums[y, x, c] += weight * image[row, column, c]
                    sums[y, x, 3] += weight

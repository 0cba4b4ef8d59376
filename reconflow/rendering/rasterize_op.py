"""The `rasterize` operator: triangle, barycentrics and their screen derivatives per pixel, differentiable in vertices.

Clip space follows OpenGL; row 0 of the raster is the bottom row. The kernels of `raster` do the visibility; here live
the output format and its derivative. With M the matrix of the three vertices in pixel-homogeneous coordinates
(x, y, w) as columns, the pixel P = (X, Y, 1) has b' = M^-1 P and weights b = b' / sum(b'). For a loss gradient g on
the weights this gives dL/dM[:, k] = -b_k * sum_i (g_i - sum_j g_j b_j) * (row i of M^-1): one short sum per pixel.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from reconflow.errors import ValidationFailedError
from reconflow.parallel import row_bands, run_jobs, thread_count
from reconflow.rendering.checks import expect_tensor, expect_triangles
from reconflow.rendering.raster import F32, F64, I32, edge_coefficients, raster_rows, screen_from_homogeneous


class RasterizeContext:
    """Holds what a rasteriser keeps between calls; on the CPU that is only whether derivatives are wanted.

    Args:
        output_db: Compute the second output, the screen derivatives of the barycentrics.
    """

    def __init__(self, *, output_db: bool = True) -> None:
        self.output_db = output_db


def rasterize(
    ctx: RasterizeContext,
    pos: Tensor,
    tri: Tensor,
    resolution: tuple[int, int],
    ranges: Tensor | None = None,
    grad_db: bool = True,  # noqa: FBT001, FBT002 - nvdiffrast's signature
) -> tuple[Tensor, Tensor]:
    """Rasterise triangles; differentiable in x, y and w of `pos`.

    Args:
        ctx: A `RasterizeContext`.
        pos: float32 clip-space vertices, OpenGL conventions: [N, V, 4] (instanced: every image shows all triangles)
            or [V, 4] together with `ranges`.
        tri: [F, 3] int32.
        resolution: (height, width), pixels.
        ranges: [N, 2] int32 (first triangle, count) of each image, for `pos` of shape [V, 4].
        grad_db: Let gradients flow from the second output.

    Returns:
        rast: [N, H, W, 4] (u, v, z / w, triangle + 1); u weighs vertex 0, v vertex 1, perspective-correct; zeros where
            empty. z / w and the triangle carry no gradient. Row 0 is the bottom row.
        rast_db: [N, H, W, 4] (du/dX, du/dY, dv/dX, dv/dY) per pixel; [N, H, W, 0] when the context wants none.

    Raises:
        ValidationFailedError: Wrong types, shapes, devices or indices.
    """
    ranged = pos.ndim == 2
    pos = expect_tensor(pos, "pos", (None, 4) if ranged else (None, None, 4))
    tri = expect_triangles(tri, pos.shape[-2])
    height, width = resolution
    if height < 1 or width < 1:
        raise ValidationFailedError(
            f"A raster of {height} x {width} pixels has no pixels.", suggestion="Ask for at least 1 x 1.", height=height
        )
    spans = _spans(ranges, ranged=ranged, images=len(pos), triangles=len(tri))
    rast, rast_db = _Rasterize.apply(  # type: ignore[no-untyped-call]
        pos, tri, (height, width), spans, ctx.output_db
    )
    return rast, rast_db if grad_db else rast_db.detach()


def _spans(ranges: Tensor | None, *, ranged: bool, images: int, triangles: int) -> tuple[tuple[int, int], ...]:
    """Return (first, stop) triangle of each image."""
    if not ranged:
        if ranges is not None:
            raise ValidationFailedError(
                "`ranges` goes with vertices of shape [V, 4], not with one set of vertices per image.",
                suggestion="Drop `ranges` or pass `pos` as [V, 4].",
            )
        return ((0, triangles),) * images
    if ranges is None:
        raise ValidationFailedError(
            "`pos` of shape [V, 4] needs `ranges`.", suggestion="Pass `ranges` or `pos` as [N, V, 4]."
        )
    ranges = expect_tensor(ranges, "ranges", (None, 2), torch.int32)
    spans = tuple((int(first), int(first + count)) for first, count in ranges.tolist())
    if any(first < 0 or stop < first or stop > triangles for first, stop in spans):
        raise ValidationFailedError(
            f"`ranges` leaves the {triangles} triangles.",
            suggestion="Give (first, count) inside `tri`.",
            triangles=triangles,
        )
    return spans


def homogeneous_from_clip(clip: F32, image_hw: tuple[int, int]) -> F64:
    """Map (V, 4) OpenGL clip coordinates to pixel-homogeneous (xh, yh, z, w) whose row 0 is the bottom row."""
    height, width = image_hw
    homog = clip.astype(np.float64)
    homog[:, 0] = (homog[:, 0] + homog[:, 3]) * (0.5 * width)
    homog[:, 1] = (homog[:, 1] + homog[:, 3]) * (0.5 * height)
    return homog


def clip_gradient(grad_homog: F64, image_hw: tuple[int, int]) -> F32:
    """Turn (..., V, 3) gradients of (xh, yh, w) into (..., V, 4) gradients of clip coordinates; z gets none."""
    height, width = image_hw
    grad = np.zeros((*grad_homog.shape[:-1], 4), np.float32)
    x, y = grad_homog[..., 0] * (0.5 * width), grad_homog[..., 1] * (0.5 * height)
    grad[..., 0], grad[..., 1], grad[..., 3] = x, y, grad_homog[..., 2] + x + y
    return grad


def vertices_of_image(pos: Any, image: int) -> Any:
    """Return the (V, 4) vertices that one image shows, in instanced and in range mode."""
    return pos if pos.ndim == 2 else pos[image]


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pos: Tensor,
        tri: Tensor,
        image_hw: tuple[int, int],
        spans: tuple[tuple[int, int], ...],
        output_db: bool,  # noqa: FBT001
    ) -> tuple[Tensor, Tensor]:
        height, width = image_hw
        rast = torch.empty((len(spans), height, width, 4))
        rast_db = torch.empty((len(spans), height, width, 4 if output_db else 0))
        positions, faces, out, out_db = pos.detach().numpy(), tri.numpy(), rast.numpy(), rast_db.numpy()
        homogs = [homogeneous_from_clip(vertices_of_image(positions, n), image_hw) for n in range(len(spans))]
        screens = [screen_from_homogeneous(homog) for homog in homogs]

        def band(n: int, start: int, stop: int) -> None:
            first, last = spans[n]
            key, face_id = np.empty((stop - start, width), np.float32), np.empty((stop - start, width), np.int32)
            raster_rows(homogs[n], screens[n], faces[first:last], start, key, face_id)
            rows = slice(start, stop)
            _write_rast(homogs[n], faces, first, start, key, face_id, out[n, rows], out_db[n, rows])

        per_image = -(-thread_count() // max(1, len(spans)))
        run_jobs([partial(band, n, a, b) for n in range(len(spans)) for a, b in row_bands(height, per_image)])
        ctx.save_for_backward(pos, tri, rast)
        ctx.image_hw = image_hw
        ctx.set_materialize_grads(False)
        return rast, rast_db

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        pos, tri, rast = ctx.saved_tensors
        grad_rast, grad_db = grads
        if grad_rast is None and (grad_db is None or grad_db.shape[-1] == 0):
            return None, None, None, None, None
        images, height, width, _ = rast.shape
        positions, faces, raster = pos.detach().numpy(), tri.numpy(), rast.numpy()
        none = np.zeros((images, 0, 0, 4), np.float32)
        of_rast = none if grad_rast is None else grad_rast.contiguous().numpy()
        of_db = none if grad_db is None or grad_db.shape[-1] == 0 else grad_db.contiguous().numpy()
        grad_homog = np.zeros((images, pos.shape[-2], 3))

        def image(n: int) -> None:
            homog = homogeneous_from_clip(vertices_of_image(positions, n), ctx.image_hw)
            _rasterize_backward(homog, faces, raster[n], of_rast[n], of_db[n], grad_homog[n])

        run_jobs([partial(image, n) for n in range(images)])
        total = grad_homog.sum(axis=0) if pos.ndim == 2 else grad_homog
        return torch.from_numpy(clip_gradient(total, (height, width))), None, None, None, None


@njit(cache=True, nogil=True)
def _write_rast(
    homog: F64, faces: I32, first_face: int, first_row: int, key: F32, face_id: I32, rast: F32, rast_db: F32
) -> None:
    """Fill a band of both outputs from what the z-buffer holds."""
    rows, width = face_id.shape
    with_db = rast_db.shape[2] == 4
    last = -1
    a0 = b0 = c0 = a1 = b1 = c1 = a2 = b2 = c2 = 0.0
    for row in range(rows):
        y = first_row + row + 0.5
        for col in range(width):
            f = face_id[row, col]
            if f < 0:
                rast[row, col, :] = 0.0
                rast_db[row, col, :] = 0.0
                continue
            f += first_face
            if f != last:
                last = f
                a0, b0, c0 = edge_coefficients(homog, faces[f, 1], faces[f, 2])
                a1, b1, c1 = edge_coefficients(homog, faces[f, 2], faces[f, 0])
                a2, b2, c2 = edge_coefficients(homog, faces[f, 0], faces[f, 1])
            x = col + 0.5
            e0, e1, e2 = a0 * x + (b0 * y + c0), a1 * x + (b1 * y + c1), a2 * x + (b2 * y + c2)
            inverse = 1.0 / (e0 + e1 + e2)
            u, v = e0 * inverse, e1 * inverse
            if with_db:
                slope_x, slope_y = a0 + a1 + a2, b0 + b1 + b2
                rast_db[row, col, 0] = (a0 - u * slope_x) * inverse
                rast_db[row, col, 1] = (b0 - u * slope_y) * inverse
                rast_db[row, col, 2] = (a1 - v * slope_x) * inverse
                rast_db[row, col, 3] = (b1 - v * slope_y) * inverse
            u = min(max(u, 0.0), 1.0)
            rast[row, col, 0] = u
            rast[row, col, 1] = min(max(v, 0.0), 1.0 - u)
            rast[row, col, 2] = min(max(key[row, col], np.float32(-1.0)), np.float32(1.0))
            rast[row, col, 3] = f + 1


@njit(cache=True, nogil=True)
def _rasterize_backward(homog: F64, faces: I32, rast: F32, grad_rast: F32, grad_db: F32, grad_homog: F64) -> None:
    """Add the gradient of one image's outputs to `grad_homog`, (V, 3) of (xh, yh, w); empty inputs mean no gradient."""
    height, width = rast.shape[:2]
    with_rast, with_db = grad_rast.shape[0] > 0, grad_db.shape[0] > 0
    inverse = np.zeros((3, 3))
    grad_inverse = np.zeros((3, 3))
    for row in range(height):
        for col in range(width):
            f = int(rast[row, col, 3]) - 1
            if f < 0:
                continue
            gu = gv = 0.0
            if with_rast:
                gu, gv = float(grad_rast[row, col, 0]), float(grad_rast[row, col, 1])
            has_db = with_db and (
                grad_db[row, col, 0] != 0.0
                or grad_db[row, col, 1] != 0.0
                or grad_db[row, col, 2] != 0.0
                or grad_db[row, col, 3] != 0.0
            )
            if gu == 0.0 and gv == 0.0 and not has_db:
                continue
            if not _inverse_of_face(homog, faces, f, inverse):
                continue
            x, y = col + 0.5, row + 0.5
            _gradient_of_inverse(inverse, x, y, gu, gv, grad_inverse)
            if has_db:
                _add_gradient_of_slopes(inverse, x, y, grad_db[row, col], grad_inverse)
            _scatter_matrix_gradient(inverse, grad_inverse, faces, f, grad_homog)


@njit(cache=True, nogil=True)
def _inverse_of_face(homog: F64, faces: I32, f: int, inverse: F64) -> bool:
    """Write M^-1 of a face, rows in vertex order; false when the face has no extent."""
    i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
    a0, b0, c0 = edge_coefficients(homog, i1, i2)
    determinant = a0 * homog[i0, 0] + b0 * homog[i0, 1] + c0 * homog[i0, 3]
    if determinant == 0.0:
        return False
    scale = 1.0 / determinant
    inverse[0, 0], inverse[0, 1], inverse[0, 2] = a0 * scale, b0 * scale, c0 * scale
    a1, b1, c1 = edge_coefficients(homog, i2, i0)
    inverse[1, 0], inverse[1, 1], inverse[1, 2] = a1 * scale, b1 * scale, c1 * scale
    a2, b2, c2 = edge_coefficients(homog, i0, i1)
    inverse[2, 0], inverse[2, 1], inverse[2, 2] = a2 * scale, b2 * scale, c2 * scale
    return True


@njit(cache=True, nogil=True)
def _gradient_of_inverse(inverse: F64, x: float, y: float, gu: float, gv: float, grad: F64) -> None:
    """Write dL/d(M^-1) for a gradient (gu, gv) on the first two weights at pixel position (x, y)."""
    b0 = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    b1 = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
    b2 = inverse[2, 0] * x + inverse[2, 1] * y + inverse[2, 2]
    scale = 1.0 / (b0 + b1 + b2)
    mean = (gu * b0 + gv * b1) * scale
    for i in range(3):
        g = ((gu if i == 0 else gv if i == 1 else 0.0) - mean) * scale
        grad[i, 0], grad[i, 1], grad[i, 2] = g * x, g * y, g


@njit(cache=True, nogil=True)
def _add_gradient_of_slopes(inverse: F64, x: float, y: float, g: F32, grad: F64) -> None:
    """Add dL/d(M^-1) for a gradient g on (du/dX, du/dY, dv/dX, dv/dY), where db/dX = (N_x - b * sum N_x) / sum b'."""
    position = (x, y, 1.0)
    total = 0.0
    for k in range(3):
        total += inverse[k, 0] * x + inverse[k, 1] * y + inverse[k, 2]
    scale = 1.0 / total
    grad_total = 0.0
    for i in range(2):
        b = (inverse[i, 0] * x + inverse[i, 1] * y + inverse[i, 2]) * scale
        grad_b = 0.0
        for axis in range(2):
            slope_sum = inverse[0, axis] + inverse[1, axis] + inverse[2, axis]
            gi = g[2 * i + axis] * scale
            grad[i, axis] += gi
            for k in range(3):
                grad[k, axis] -= gi * b
            grad_b -= gi * slope_sum
            grad_total -= gi * (inverse[i, axis] - b * slope_sum) * scale
        for axis in range(3):
            grad[i, axis] += grad_b * scale * position[axis]
        grad_total -= grad_b * b * scale
    for k in range(3):
        for axis in range(3):
            grad[k, axis] += grad_total * position[axis]


@njit(cache=True, nogil=True)
def _scatter_matrix_gradient(inverse: F64, grad: F64, faces: I32, f: int, grad_homog: F64) -> None:
    """Add dL/dM = -N^T dL/dN N^T to the face's vertices (M's columns), N = M^-1."""
    for k in range(3):
        vertex = faces[f, k]
        for axis in range(3):
            value = 0.0
            for i in range(3):
                dot = grad[i, 0] * inverse[k, 0] + grad[i, 1] * inverse[k, 1] + grad[i, 2] * inverse[k, 2]
                value += inverse[i, axis] * dot
            grad_homog[vertex, axis] -= value

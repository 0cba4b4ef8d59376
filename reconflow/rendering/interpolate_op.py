"""The `interpolate` operator: vertex attributes, and their screen derivatives, at every pixel of a raster."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor

from reconflow.errors import ValidationFailedError
from reconflow.parallel import run_jobs
from reconflow.rendering.checks import expect_tensor, expect_triangles
from reconflow.rendering.raster import F32, F64, I32


def interpolate(
    attr: Tensor,
    rast: Tensor,
    tri: Tensor,
    rast_db: Tensor | None = None,
    diff_attrs: Literal["all"] | Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Interpolate vertex attributes over a raster; differentiable in `attr`, in u and v of `rast`, and in `rast_db`.

    Args:
        attr: float32 [N, V, A], [1, V, A] shared by all images, or [V, A] (range mode).
        rast: [N, H, W, 4] from `rasterize`.
        tri: [F, 3] int32; may be another index buffer than the rasterised one (UV seams), face by face.
        rast_db: [N, H, W, 4] from `rasterize`, when derivatives are wanted.
        diff_attrs: Which attributes get derivatives: "all" or indices, negative ones counted from the end.

    Returns:
        out: [N, H, W, A]; zeros where empty.
        out_da: [N, H, W, 2 D]: (dA/dX, dA/dY) of each attribute asked for; D = 0 when none is.

    Raises:
        ValidationFailedError: Wrong types, shapes, devices or indices.
    """
    rast = expect_tensor(rast, "rast", (None, None, None, 4))
    attr = expect_tensor(attr, "attr", (None,) * attr.ndim if attr.ndim in (2, 3) else (None, None, None))
    tri = expect_triangles(tri, attr.shape[-2])
    if attr.ndim == 3 and len(attr) not in (1, len(rast)):
        raise ValidationFailedError(
            f"`attr` has {len(attr)} images, `rast` {len(rast)}.", suggestion="Give one set of attributes or one each."
        )
    if rast.numel() and int(rast[..., 3].max()) > len(tri):
        raise ValidationFailedError(
            f"`rast` shows triangle {int(rast[..., 3].max())}, `tri` has {len(tri)}.",
            suggestion="Pass the index buffer that belongs to the rasterised triangles, face by face.",
        )
    channels = attr.shape[-1]
    chosen: tuple[int, ...] = ()
    if diff_attrs is not None:
        chosen = tuple(range(channels)) if diff_attrs == "all" else tuple(int(k) for k in diff_attrs)
        if rast_db is None:
            raise ValidationFailedError("`diff_attrs` needs `rast_db`.", suggestion="Pass rasterize's second output.")
        rast_db = expect_tensor(rast_db, "rast_db", tuple(rast.shape))
        if any(not -channels <= k < channels for k in chosen):
            raise ValidationFailedError(
                f"`diff_attrs` leaves the {channels} attributes.", suggestion="Give indices that exist."
            )
        chosen = tuple(k % channels for k in chosen)
    shared = attr if attr.ndim == 3 else attr[None]
    out, out_da = _Interpolate.apply(  # type: ignore[no-untyped-call]
        shared, rast, tri, rast_db if chosen else None, chosen
    )
    return out, out_da


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, attr: Tensor, rast: Tensor, tri: Tensor, rast_db: Tensor | None, chosen: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        images, height, width, _ = rast.shape
        out = torch.empty((images, height, width, attr.shape[-1]))
        out_da = torch.empty((images, height, width, 2 * len(chosen)))
        attributes, raster, faces = attr.detach().numpy(), rast.detach().numpy(), tri.numpy()
        slopes = _slopes(rast_db, images)
        picked = np.array(chosen, np.int32)
        result, result_da = out.numpy(), out_da.numpy()

        def image(n: int) -> None:
            values = attributes[n % len(attributes)]
            _interpolate_forward(values, raster[n], faces, slopes[n], picked, result[n], result_da[n])

        run_jobs([partial(image, n) for n in range(images)])
        ctx.save_for_backward(attr, rast, tri, rast_db)
        ctx.chosen = picked
        return out, out_da

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        attr, rast, tri, rast_db = ctx.saved_tensors
        images = len(rast)
        attributes, raster, faces = attr.detach().numpy(), rast.detach().numpy(), tri.numpy()
        slopes = _slopes(rast_db, images)
        of_out, of_da = grads[0].contiguous().numpy(), grads[1].contiguous().numpy()
        grad_attr = np.zeros((images, *attr.shape[1:]))
        grad_rast = np.zeros(rast.shape, np.float32)
        grad_db = np.zeros(slopes.shape, np.float32)

        def image(n: int) -> None:
            values = attributes[n % len(attributes)]
            _interpolate_backward(
                values,
                raster[n],
                faces,
                slopes[n],
                ctx.chosen,
                of_out[n],
                of_da[n],
                grad_attr[n],
                grad_rast[n],
                grad_db[n],
            )

        run_jobs([partial(image, n) for n in range(images)])
        total = grad_attr.sum(axis=0, keepdims=True) if len(attr) == 1 else grad_attr
        return (
            torch.from_numpy(total.astype(np.float32)),
            torch.from_numpy(grad_rast),
            None,
            torch.from_numpy(grad_db) if rast_db is not None else None,
            None,
        )


def _slopes(rast_db: Tensor | None, images: int) -> F32:
    """Return the derivatives as an array; an empty one stands for none."""
    if rast_db is None:
        return np.zeros((images, 0, 0, 4), np.float32)
    slopes: F32 = rast_db.detach().numpy()
    return slopes


@njit(cache=True, nogil=True)
def _interpolate_forward(attr: F32, rast: F32, faces: I32, rast_db: F32, chosen: I32, out: F32, out_da: F32) -> None:
    """Interpolate one image."""
    height, width = rast.shape[:2]
    for row in range(height):
        for col in range(width):
            f = int(rast[row, col, 3]) - 1
            if f < 0:
                out[row, col, :] = 0.0
                out_da[row, col, :] = 0.0
                continue
            i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
            u, v = float(rast[row, col, 0]), float(rast[row, col, 1])
            w = 1.0 - u - v
            for k in range(attr.shape[1]):
                out[row, col, k] = u * attr[i0, k] + v * attr[i1, k] + w * attr[i2, k]
            for d in range(chosen.shape[0]):
                k = chosen[d]
                along_u, along_v = float(attr[i0, k] - attr[i2, k]), float(attr[i1, k] - attr[i2, k])
                for axis in range(2):
                    slope = rast_db[row, col, axis] * along_u + rast_db[row, col, 2 + axis] * along_v
                    out_da[row, col, 2 * d + axis] = slope


@njit(cache=True, nogil=True)
def _interpolate_backward(
    attr: F32,
    rast: F32,
    faces: I32,
    rast_db: F32,
    chosen: I32,
    grad_out: F32,
    grad_da: F32,
    grad_attr: F64,
    grad_rast: F32,
    grad_db: F32,
) -> None:
    """Write the gradients of one image; `grad_attr` is added to, pixel by pixel in raster order."""
    height, width = rast.shape[:2]
    for row in range(height):
        for col in range(width):
            f = int(rast[row, col, 3]) - 1
            if f < 0:
                continue
            i0, i1, i2 = faces[f, 0], faces[f, 1], faces[f, 2]
            u, v = float(rast[row, col, 0]), float(rast[row, col, 1])
            gu = gv = 0.0
            for k in range(attr.shape[1]):
                g = float(grad_out[row, col, k])
                gu += g * (attr[i0, k] - attr[i2, k])
                gv += g * (attr[i1, k] - attr[i2, k])
                grad_attr[i0, k] += g * u
                grad_attr[i1, k] += g * v
                grad_attr[i2, k] += g * (1.0 - u - v)
            grad_rast[row, col, 0] = gu
            grad_rast[row, col, 1] = gv
            for d in range(chosen.shape[0]):
                k = chosen[d]
                for axis in range(2):
                    g = float(grad_da[row, col, 2 * d + axis])
                    du, dv = float(rast_db[row, col, axis]), float(rast_db[row, col, 2 + axis])
                    grad_db[row, col, axis] += g * (attr[i0, k] - attr[i2, k])
                    grad_db[row, col, 2 + axis] += g * (attr[i1, k] - attr[i2, k])
                    grad_attr[i0, k] += g * du
                    grad_attr[i1, k] += g * dv
                    grad_attr[i2, k] -= g * (du + dv)

"""The `antialias` operator: smooths silhouettes analytically, so that coverage has a gradient by vertex positions.

It blends across the mesh's silhouette edges instead of the edges of the triangles that pixels happen to show, which
keeps the gradient right on meshes whose faces are smaller than a pixel (docs/decisions, silhouette edge walk).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from reconflow.errors import ValidationFailedError
from reconflow.parallel import run_jobs
from reconflow.rendering.checks import expect_tensor, expect_triangles
from reconflow.rendering.raster import F32, F64, I32, screen_from_homogeneous
from reconflow.rendering.rasterize_op import clip_gradient, homogeneous_from_clip, vertices_of_image
from reconflow.rendering.silhouette import (
    EdgeTopology,
    SilhouettePairs,
    build_edge_topology,
    find_silhouette_pairs,
    scatter_crossing_gradient,
)


def antialias_construct_topology_hash(tri: Tensor) -> EdgeTopology:
    """Find the edges of a triangle list once, for many calls of `antialias`.

    Args:
        tri: [F, 3] int32; vertices are shared by index.

    Raises:
        ValidationFailedError: Wrong type, shape or device.
    """
    return build_edge_topology(expect_tensor(tri, "tri", (None, 3), torch.int32).numpy())


def antialias(
    color: Tensor,
    rast: Tensor,
    pos: Tensor,
    tri: Tensor,
    topology_hash: EdgeTopology | None = None,
    pos_gradient_boost: float = 1.0,
) -> Tensor:
    """Blend the two pixels on either side of every visible silhouette edge by how the edge divides them.

    Where the edge lies t pixels from the inner pixel's centre, the inner pixel takes 0.5 - t of the outer one's
    colour if t < 0.5, else the outer one takes t - 0.5 of the inner one's, times the crossing's share. Differentiable
    in `color` and in x, y and w of `pos`; edges of faces that cross the near plane are left as they are.

    Args:
        color: float32 [N, H, W, C].
        rast: [N, H, W, 4] from `rasterize`.
        pos: [N, V, 4] or [V, 4] clip-space vertices, as given to `rasterize`.
        tri: [F, 3] int32, as given to `rasterize`.
        topology_hash: From `antialias_construct_topology_hash`; None builds it.
        pos_gradient_boost: Factor on the gradient of `pos`.

    Returns:
        [N, H, W, C] float32.

    Raises:
        ValidationFailedError: Wrong types, shapes, devices or indices.
    """
    rast = expect_tensor(rast, "rast", (None, None, None, 4))
    color = expect_tensor(color, "color", (*rast.shape[:3], None))
    pos = expect_tensor(pos, "pos", (None, 4) if pos.ndim == 2 else (len(rast), None, 4))
    tri = expect_triangles(tri, pos.shape[-2])
    topology = antialias_construct_topology_hash(tri) if topology_hash is None else topology_hash
    if len(topology.edge_faces) and int(topology.edge_faces.max()) + 1 != len(tri):
        raise ValidationFailedError(
            "`topology_hash` belongs to other triangles.", suggestion="Build it from the `tri` passed here."
        )
    return _apply(color, rast.detach(), pos, tri, topology, float(pos_gradient_boost))


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, color: Tensor, rast: Tensor, pos: Tensor, tri: Tensor, topology: EdgeTopology, boost: float
    ) -> Tensor:
        images, height, width, _ = color.shape
        result = color.detach().clone()
        source, blended = color.detach().numpy(), result.numpy()
        raster, positions, faces = rast.numpy(), pos.detach().numpy(), tri.numpy()
        found: dict[int, SilhouettePairs] = {}

        def image(n: int) -> None:
            homog = homogeneous_from_clip(vertices_of_image(positions, n), (height, width))
            seen = raster[n, :, :, 3]
            key = np.where(seen > 0, raster[n, :, :, 2], np.float32(2))
            shown = _faces_shown(seen, topology) if positions.ndim == 2 else None
            found[n] = find_silhouette_pairs(screen_from_homogeneous(homog), faces, topology, key, shown)
            flat = blended[n].reshape(height * width, -1)
            blend_pairs(found[n].pixels, found[n].crossing, source[n].reshape(height * width, -1), flat)

        run_jobs([partial(image, n) for n in range(images)])
        ctx.save_for_backward(color, pos)
        ctx.edges, ctx.pairs, ctx.boost = topology.edges, [found[n] for n in range(images)], boost
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        color, pos = ctx.saved_tensors
        images, height, width, channels = color.shape
        source, positions = color.detach().numpy(), pos.detach().numpy()
        grad_out = grads[0].contiguous()
        grad_color = grad_out.clone()
        of_out, of_color = grad_out.numpy(), grad_color.numpy()
        grad_homog = np.zeros((images, pos.shape[-2], 3))

        def image(n: int) -> None:
            homog = homogeneous_from_clip(vertices_of_image(positions, n), (height, width))
            flat = (height * width, channels)
            colours, gradient = source[n].reshape(flat), of_out[n].reshape(flat)
            pixels, crossing = ctx.pairs[n].pixels, ctx.pairs[n].crossing
            unblend_pairs(pixels, crossing, gradient, of_color[n].reshape(flat))
            screen = screen_from_homogeneous(homog)
            gradient_of_pairs(screen, homog, ctx.edges, pixels, crossing, colours, gradient, grad_homog[n])

        run_jobs([partial(image, n) for n in range(images)])
        total = (grad_homog.sum(axis=0) if pos.ndim == 2 else grad_homog) * ctx.boost
        return grad_color, None, torch.from_numpy(clip_gradient(total, (height, width))), None, None, None


def _apply(*inputs: Any) -> Tensor:
    result: Tensor = _Antialias.apply(*inputs)  # type: ignore[no-untyped-call]
    return result


def _faces_shown(seen: F32, topology: EdgeTopology) -> NDArray[np.bool_]:
    """Tell which faces one image of a range-mode raster shows: the connected parts of which something is seen."""
    ids = seen[seen > 0].astype(np.int64) - 1
    shown: NDArray[np.bool_] = np.isin(topology.face_component, topology.face_component[ids])
    return shown


@njit(cache=True, nogil=True)
def blend_pairs(pixels: I32, crossing: F64, color: F32, out: F32) -> None:
    """Add every pair's blend of the (H W, C) colours to `out`, in the order of the pairs."""
    for p in range(pixels.shape[0]):
        inner, outer, t = pixels[p, 0], pixels[p, 1], crossing[p, 0]
        target, other = (inner, outer) if t < 0.5 else (outer, inner)
        weight = abs(t - 0.5) * crossing[p, 2]
        for k in range(color.shape[1]):
            out[target, k] += weight * (color[other, k] - color[target, k])


@njit(cache=True, nogil=True)
def unblend_pairs(pixels: I32, crossing: F64, grad_out: F32, grad_color: F32) -> None:
    """Add to `grad_color` what the blends pass from `grad_out`, beyond the identity."""
    for p in range(pixels.shape[0]):
        inner, outer, t = pixels[p, 0], pixels[p, 1], crossing[p, 0]
        target, other = (inner, outer) if t < 0.5 else (outer, inner)
        weight = abs(t - 0.5) * crossing[p, 2]
        for k in range(grad_out.shape[1]):
            g = weight * grad_out[target, k]
            grad_color[other, k] += g
            grad_color[target, k] -= g


@njit(cache=True, nogil=True)
def gradient_of_pairs(
    screen: F64,
    homog: F64,
    edges: I32,
    pixels: I32,
    crossing: F64,
    color: F32,
    grad_out: F32,
    grad_homog: F64,
) -> None:
    """Add the gradient of the edges' vertices: moving the edge outwards turns outer colour into inner colour."""
    for p in range(pixels.shape[0]):
        inner, outer, t = pixels[p, 0], pixels[p, 1], crossing[p, 0]
        target = inner if t < 0.5 else outer
        gradient = 0.0
        for k in range(color.shape[1]):
            gradient += float(grad_out[target, k]) * (color[inner, k] - color[outer, k])
        if gradient != 0.0:
            sign = 1.0 if inner < outer else -1.0
            a, b = edges[pixels[p, 2], 0], edges[pixels[p, 2], 1]
            on_column = 1 if pixels[p, 3] & 2 == 0 else 0
            gradient *= crossing[p, 2]
            scatter_crossing_gradient(screen, homog, a, b, on_column, crossing[p, 1], sign, gradient, grad_homog)

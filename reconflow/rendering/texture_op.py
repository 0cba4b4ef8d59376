"""The `texture` operator: filtered lookups in a texture and its mip levels. Its kernels live in `texture_kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reconflow.errors import ValidationFailedError
from reconflow.parallel import row_bands, run_jobs, thread_count
from reconflow.rendering.checks import expect_tensor, refuse_option
from reconflow.rendering.texture_kernels import texture_forward, texture_gradient_of_texels, texture_gradient_of_uv

FILTERS: Final = ("nearest", "linear", "linear-mipmap-nearest", "linear-mipmap-linear")
BOUNDARIES: Final = ("wrap", "clamp", "zero")


def texture(
    tex: Tensor,
    uv: Tensor,
    uv_da: Tensor | None = None,
    mip_level_bias: Tensor | None = None,
    mip: Sequence[Tensor] | None = None,
    filter_mode: str = "auto",
    boundary_mode: str = "wrap",
    max_mip_level: int | None = None,
) -> Tensor:
    """Look up a texture; differentiable in texels (and custom mip levels), uv, uv_da and mip_level_bias.

    Texel centres lie at +0.5; (0, 0) is the corner of the texel in row 0, column 0, which OpenGL calls bottom left.
    Empty pixels are sampled at uv (0, 0); masking them is the caller's.

    Args:
        tex: float32 [N, Ht, Wt, C], or [1, Ht, Wt, C] shared by all images.
        uv: float32 [N, H, W, 2].
        uv_da: [N, H, W, 4] (du/dX, du/dY, dv/dX, dv/dY), as `interpolate` returns them.
        mip_level_bias: [N, H, W], added to the level.
        mip: Levels 1, 2, ... of a custom mip stack; None builds them as 2 x 2 averages.
        filter_mode: One of `FILTERS`, or "auto": linear-mipmap-linear when uv_da or a bias is given, else linear.
        boundary_mode: One of `BOUNDARIES`.
        max_mip_level: Last level to use, when fewer are wanted than the sizes allow.

    Returns:
        [N, H, W, C] float32.

    Raises:
        ValidationFailedError: Wrong types or shapes, a size that does not halve, or an option not offered (cube).
    """
    mipmapped = uv_da is not None or mip_level_bias is not None
    if filter_mode == "auto":
        filter_mode = "linear-mipmap-linear" if mipmapped else "linear"
    if filter_mode not in FILTERS:
        raise refuse_option("filter_mode", filter_mode, ("auto", *FILTERS))
    if boundary_mode not in BOUNDARIES:
        raise refuse_option("boundary_mode", boundary_mode, BOUNDARIES)
    uv = expect_tensor(uv, "uv", (None, None, None, 2))
    tex = expect_tensor(tex, "tex", (None, None, None, None))
    if len(tex) not in (1, len(uv)):
        raise ValidationFailedError(
            f"`tex` has {len(tex)} images, `uv` {len(uv)}.", suggestion="Give one texture or one for each image."
        )
    levels = [tex]
    if "mipmap" in filter_mode:
        if not mipmapped:
            raise ValidationFailedError(
                f"`filter_mode` {filter_mode!r} needs `uv_da` or `mip_level_bias`.",
                suggestion="Pass the uv derivatives that `interpolate` returns, or use 'linear'.",
            )
        levels += _custom_levels(tex, mip) if mip is not None else build_mip_levels(tex, max_mip_level)
        levels = levels if max_mip_level is None else levels[: max_mip_level + 1]
        uv_da = None if uv_da is None else expect_tensor(uv_da, "uv_da", (*uv.shape[:3], 4))
        bias = mip_level_bias
        bias = None if bias is None else expect_tensor(bias, "mip_level_bias", tuple(uv.shape[:3]))
    else:
        uv_da, bias = None, None
    texels = torch.cat([level.reshape(len(tex), -1, tex.shape[-1]) for level in levels], dim=1)
    sizes = tuple((level.shape[1], level.shape[2]) for level in levels)
    modes = (FILTERS.index(filter_mode), BOUNDARIES.index(boundary_mode))
    result: Tensor = _Texture.apply(texels, uv, uv_da, bias, sizes, modes)  # type: ignore[no-untyped-call]
    return result


def build_mip_levels(tex: Tensor, max_mip_level: int | None = None) -> list[Tensor]:
    """Return levels 1, 2, ... of a texture as 2 x 2 box averages, differentiable in `tex`.

    Args:
        tex: [N, Ht, Wt, C]; each side must halve exactly down to 1, or down to the last level.
        max_mip_level: Last level to build; None goes down to 1 x 1.

    Raises:
        ValidationFailedError: A side does not halve.
    """
    levels: list[Tensor] = []
    while (max_mip_level is None or len(levels) < max_mip_level) and tex.shape[1:3] != (1, 1):
        images, height, width, channels = tex.shape
        tall, wide = 1 if height == 1 else 2, 1 if width == 1 else 2
        if height % tall or width % wide:
            raise ValidationFailedError(
                f"Mip level {len(levels)} of {height} x {width} texels does not halve.",
                suggestion="Use sides that are powers of two, or stop earlier with max_mip_level.",
                height=height,
                width=width,
            )
        tex = tex.reshape(images, height // tall, tall, width // wide, wide, channels).mean(dim=(2, 4))
        levels.append(tex)
    return levels


def _custom_levels(tex: Tensor, mip: Sequence[Tensor]) -> list[Tensor]:
    """Check a caller's mip stack: every level halves the one before."""
    levels: list[Tensor] = []
    height, width = tex.shape[1:3]
    for k, level in enumerate(mip):
        height, width = max(1, height // 2), max(1, width // 2)
        levels.append(expect_tensor(level, f"mip[{k}]", (len(tex), height, width, tex.shape[-1])))
    return levels


def _level_table(sizes: tuple[tuple[int, int], ...]) -> NDArray[np.int64]:
    """Return (L, 3) int64 (first texel, height, width) of the levels in the concatenated texels."""
    counts = [height * width for height, width in sizes]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.array([(start, *size) for start, size in zip(starts, sizes, strict=True)], dtype=np.int64)


class _Texture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        texels: Tensor,
        uv: Tensor,
        uv_da: Tensor | None,
        bias: Tensor | None,
        sizes: tuple[tuple[int, int], ...],
        modes: tuple[int, int],
    ) -> Tensor:
        out = torch.empty((*uv.shape[:3], texels.shape[-1]))
        table = _level_table(sizes)
        source, where = texels.detach().numpy(), uv.detach().numpy()
        footprint, offset = _optional(uv_da, len(uv), 4), _optional(bias, len(uv), 0)
        result = out.numpy()

        def image(n: int) -> None:
            texture_forward(source[n % len(source)], table, where[n], footprint[n], offset[n], *modes, result[n])

        run_jobs([partial(image, n) for n in range(len(uv))])
        ctx.save_for_backward(texels, uv, uv_da, bias)
        ctx.table, ctx.modes = table, modes
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        texels, uv, uv_da, bias = ctx.saved_tensors
        source, where, grad_out = texels.detach().numpy(), uv.detach().numpy(), grads[0].contiguous().numpy()
        footprint, offset = _optional(uv_da, len(uv), 4), _optional(bias, len(uv), 0)
        grad_texels = grad_uv = grad_da = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_texels = torch.zeros(texels.shape)
            _scatter_texels(ctx, where, footprint, offset, grad_out, grad_texels.numpy())
        if any(ctx.needs_input_grad[1:4]):
            grad_uv = torch.zeros(uv.shape)
            grad_da = None if uv_da is None else torch.zeros(uv_da.shape)
            grad_bias = None if bias is None else torch.zeros(bias.shape)
            by_uv, by_da, by_bias = grad_uv.numpy(), _optional(grad_da, len(uv), 4), _optional(grad_bias, len(uv), 0)

            def image(n: int) -> None:
                texture_gradient_of_uv(
                    source[n % len(source)],
                    ctx.table,
                    where[n],
                    footprint[n],
                    offset[n],
                    ctx.modes[0],
                    ctx.modes[1],
                    grad_out[n],
                    by_uv[n],
                    by_da[n],
                    by_bias[n],
                )

            run_jobs([partial(image, n) for n in range(len(uv))])
        return grad_texels, grad_uv, grad_da, grad_bias, None, None


def _scatter_texels(
    ctx: Any,
    where: NDArray[np.float32],
    footprint: NDArray[np.float32],
    offset: NDArray[np.float32],
    grad_out: NDArray[np.float32],
    grad_texels: NDArray[np.float32],
) -> None:
    """Add every pixel's gradient to its texels, each range of texels owned by one job and filled in image order.

    A texel receives its contributions in the same order whatever the number of ranges, so the threads do not show.
    """
    shared = len(grad_texels) == 1

    def texel_range(n: int, start: int, stop: int) -> None:
        for image in range(len(where)) if shared else (n,):
            texture_gradient_of_texels(
                ctx.table,
                where[image],
                footprint[image],
                offset[image],
                ctx.modes[0],
                ctx.modes[1],
                grad_out[image],
                start,
                stop,
                grad_texels[n],
            )

    ranges = row_bands(grad_texels.shape[1], -(-thread_count() // len(grad_texels)))
    run_jobs([partial(texel_range, n, *span) for n in range(len(grad_texels)) for span in ranges])


def _optional(tensor: Tensor | None, images: int, channels: int) -> NDArray[np.float32]:
    """Return an optional per-pixel input as an array; an empty one stands for none."""
    if tensor is None:
        return np.zeros((images, 0, 0, channels) if channels else (images, 0, 0), np.float32)
    values: NDArray[np.float32] = tensor.detach().numpy()
    return values

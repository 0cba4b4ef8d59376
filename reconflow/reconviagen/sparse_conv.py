"""Convolution and group norm on sparse tensors: gather, multiply, add, for one offset of the kernel at a time.

Where no value exists nothing is added, outputs exist at the input's voxels only. Gathered rows are chunked so that the
buffers stay small whatever the number of voxels, and every product is added to distinct rows: the order of sums is
fixed. Half precision multiplies in half and adds up in float32.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from reconflow.errors import ModelError
from reconflow.reconviagen import elementwise
from reconflow.reconviagen.linear import linear
from reconflow.reconviagen.sparse_tensor import NeighbourPairs, SparseTensor

_CHUNK_VALUES = 2**24
"""Numbers that a buffer of gathered rows or of products holds at most."""
_CHUNK_VALUES_CPU = 2**20
"""The same on the CPU: buffers that stay in its caches, and for which the system is not asked for fresh pages."""


class ConvolutionWeights(nn.Module):
    """Weights [out, k, k, k, in] and bias of a sparse convolution, under the names of the official files."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_channels * kernel_size**3)
        self.weight = nn.Parameter(torch.empty(out_channels, *[kernel_size] * 3, in_channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))


class SubmanifoldConv3d(nn.Module):
    """A convolution of kernel size 3 at the voxels of its input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvolutionWeights(in_channels, out_channels, 3)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Convolve [T, in] to [T, out]; neighbours of other batch items do not exist."""
        weight = self.conv.weight
        total = linear(x.feats, weight[:, 1, 1, 1], self.conv.bias)
        total = total.to(accumulation_dtype(total.dtype))
        for pairs in x.voxels.neighbours:
            for rows, others, offset in both_directions(pairs):
                a, b, c = (1 + step for step in offset)
                add_products(total, rows, x.feats, others, weight[:, a, b, c])
        return x.with_feats(total.to(x.feats.dtype))

    def on_subdivided(self, x: SparseTensor) -> SparseTensor:
        """Convolve what `x.subdivide()` gives, from `x` itself.

        The eight children of a voxel are alike, so along each axis two of the three taps of a child read the same
        parent: their weights are added first, which leaves 8 instead of 27 products for each child.
        """
        weight, rows_in = self.conv.weight, len(x.voxels)
        bias = self.conv.bias.to(accumulation_dtype(x.feats.dtype))
        total = bias.expand(8, rows_in, -1).clone()
        every = torch.arange(rows_in, dtype=torch.int32, device=x.feats.device)
        for rows, others, offset in itertools.chain(
            [(every, every, (0, 0, 0))], *(both_directions(pairs) for pairs in x.voxels.neighbours)
        ):
            for child in children_next_to(offset):
                add_products(total[child], rows, x.feats, others, merged_taps(weight, child, offset))
        fine = total.transpose(0, 1).reshape(8 * rows_in, -1)
        return SparseTensor(x.voxels.subdivided, fine.to(x.feats.dtype))


class PointwiseConv3d(nn.Module):
    """A convolution of kernel size 1 as the weights were trained with it.

    The memory of the weights [out, 1, 1, 1, in] is read as a matrix [in, out], which is no transposition: so did the
    library in which the published weights were trained, and they are right only if read like that.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvolutionWeights(in_channels, out_channels, 1)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Transform every voxel of [T, in] to [T, out] for itself."""
        weight = self.conv.weight
        return x.with_feats(linear(x.feats, weight.reshape(weight.shape[-1], len(weight)).T, self.conv.bias))


class SparseGroupNorm32(nn.GroupNorm):
    """Group norm whose statistics are those of a batch item: over its voxels and a group's channels, in float32.

    Sums run in float64, so that they depend neither on the number of voxels nor on threads.
    """

    def __init__(self, channels: int, num_groups: int = 32) -> None:
        if channels % num_groups:
            raise ModelError(
                f"{channels} channels cannot be normalised in {num_groups} groups.",
                suggestion="Check model_channels in the model's configuration file: an eighth of it must be a multiple "
                "of 32.",
            )
        super().__init__(num_groups, channels, eps=1e-5)

    def forward(self, input: SparseTensor) -> SparseTensor:  # type: ignore[override] # noqa: A002 - the base's name
        """Normalise [T, C]; the dtype stays."""
        normed = [self._item(feats) if len(feats) else feats for feats in input.item_feats()]
        return input.with_feats(torch.cat(normed) if len(normed) > 1 else normed[0])

    def _item(self, feats: Tensor) -> Tensor:
        chunks = torch.split(feats, chunk_length(feats.shape[1], feats.device))
        values = len(feats) * feats.shape[1] // self.num_groups
        total = sum_of_rows([self._grouped(chunk).sum((0, 2)) for chunk in chunks])
        mean = total / values
        squares = sum_of_rows([(self._grouped(chunk) - mean[:, None]).square().sum((0, 2)) for chunk in chunks])
        scale = (squares / values + self.eps).rsqrt()
        per_channel = feats.shape[1] // self.num_groups
        mean, scale = (group.float().repeat_interleave(per_channel) for group in (mean, scale))
        normed: Tensor = (feats.float() - mean).mul_(scale * self.weight).add_(self.bias)
        return normed.to(feats.dtype)

    def _grouped(self, feats: Tensor) -> Tensor:
        return feats.double().view(len(feats), self.num_groups, -1)


def sum_of_rows(rows: list[Tensor]) -> Tensor:
    """Add tensors in their order."""
    return rows[0] if len(rows) == 1 else torch.stack(rows).sum(0)


def silu(x: SparseTensor) -> SparseTensor:
    """The SiLU of every feature."""
    return x.with_feats(elementwise.silu(x.feats))


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which products of a dtype are added up."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def both_directions(pairs: NeighbourPairs) -> Iterator[tuple[Tensor, Tensor, tuple[int, int, int]]]:
    """Pairs as (rows, the rows' neighbours, where the neighbours lie): ahead of the one, behind the other."""
    x, y, z = pairs.offset
    yield pairs.behind, pairs.ahead, (x, y, z)
    yield pairs.ahead, pairs.behind, (-x, -y, -z)


def add_products(total: Tensor, rows: Tensor, feats: Tensor, others: Tensor, weight: Tensor) -> None:
    """Add feats[others] @ weightᵀ to the given rows of `total`, which are distinct, in place and chunk by chunk."""
    length = chunk_length(max(weight.shape), feats.device)
    for start in range(0, len(rows), length):
        chunk = slice(start, start + length)
        products = linear(feats.index_select(0, others[chunk]), weight)
        total.index_add_(0, rows[chunk], products.to(total.dtype))


def chunk_length(width: int, device: torch.device) -> int:
    """How many rows of a width are worked off together."""
    return max(1, (_CHUNK_VALUES_CPU if device.type == "cpu" else _CHUNK_VALUES) // width)


def children_next_to(offset: tuple[int, int, int]) -> list[int]:
    """The children (numbered 4x + 2y + z) of a voxel that have a tap in its neighbour at an offset."""
    sides = [{-1: (0,), 0: (0, 1), 1: (1,)}[step] for step in offset]
    return [4 * a + 2 * b + c for a, b, c in itertools.product(*sides)]


def merged_taps(weight: Tensor, child: int, offset: tuple[int, int, int]) -> Tensor:
    """Add up those taps of [out, 3, 3, 3, in] with which a child reads from its parent's neighbour; [out, in]."""
    taps = []
    for side, step in zip((child >> 2 & 1, child >> 1 & 1, child & 1), offset, strict=True):
        first = {-1: 0, 0: 1 - side, 1: 2}[step]
        taps.append(slice(first, first + (2 if step == 0 else 1)))
    merged = weight[:, taps[0], taps[1], taps[2]].to(accumulation_dtype(weight.dtype)).sum((1, 2, 3))
    return merged.to(weight.dtype)

"""Sparse tensors: features on a set of voxels, and what can be derived from the voxels' coordinates alone.

Everything derived (neighbours, windows, the set at half or double resolution) is computed once per set and kept with
it. Rows of one batch item are contiguous and items ascend; no operation but pooling changes the order of rows. Sums run
in a fixed order without collisions, so that they do not depend on threads or on the device's scheduling. There are no
learned weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reconflow.errors import ValidationFailedError

_KEY_LIMIT = 2**62
HALF_OFFSETS: tuple[tuple[int, int, int], ...] = tuple(
    (x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if (x, y, z) > (0, 0, 0)
)
"""The 13 of the 26 neighbours' offsets that are lexicographically positive; the others are their negatives."""


@dataclass(frozen=True, eq=False)
class NeighbourPairs:
    """All pairs of voxels that are one offset apart: `behind[i]` is `ahead[i]` minus the offset.

    Attributes:
        offset: One of `HALF_OFFSETS`.
        behind: [P] int32 rows, each at most once.
        ahead: [P] int32 rows, each at most once.
    """

    offset: tuple[int, int, int]
    behind: Tensor
    ahead: Tensor


@dataclass(frozen=True, eq=False)
class Pooling:
    """How the voxels of a set lie in those of half the resolution.

    Attributes:
        coarse: The set at half resolution, sorted by batch item, x, y, z.
        parents: [T] int64, the row in `coarse` of each voxel.
        children: For each of the eight places in a parent the rows of the voxels there, [n] int64; no two of them
            have one parent.
    """

    coarse: VoxelSet
    parents: Tensor
    children: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Grouping:
    """Voxels in groups, and the groups that are equally large together.

    Attributes:
        order: [T] int64, the rows: group by group, ascending in each, groups by size.
        inverse: [T] int64, where each row is in `order`.
        shapes: (number of groups, their size), for each size that occurs, ascending.
    """

    order: Tensor
    inverse: Tensor
    shapes: tuple[tuple[int, int], ...]


class VoxelSet:
    """Distinct voxels of a batch, and what follows from their coordinates.

    Args:
        coords: [T, 4] integers: batch item, x, y, z; items ascending.
        batch_size: Number of items; the last ones may be empty. None: the highest item + 1.

    Raises:
        ValidationFailedError: No voxels, a wrong shape, items not ascending, or (when neighbours, windows or a coarse
            set are asked for) voxels that occur twice.
    """

    def __init__(self, coords: Tensor, batch_size: int | None = None) -> None:
        if coords.ndim != 2 or coords.shape[1] != 4 or coords.is_floating_point() or not len(coords):
            raise ValidationFailedError(
                f"Voxel coordinates of the shape {tuple(coords.shape)} and type {coords.dtype} are no voxel set.",
                suggestion="Give at least one row of four integers: batch item, x, y, z.",
            )
        self.coords = coords.to(torch.int32).contiguous()
        items = self.coords[:, 0]
        if int(items[0]) < 0 or bool((items[1:] < items[:-1]).any()):
            raise ValidationFailedError(
                "Voxels are not sorted by their batch item.", suggestion="Sort the rows by their first column."
            )
        counts = torch.bincount(items, minlength=batch_size or 0).tolist()
        if batch_size is not None and len(counts) > batch_size:
            raise ValidationFailedError(
                f"Voxels of {len(counts)} batch items are more than the {batch_size} expected.",
                suggestion="Check the first column of the coordinates.",
            )
        self.item_lengths: tuple[int, ...] = tuple(int(count) for count in counts)
        self._partitions: dict[tuple[int, int] | None, Grouping] = {}

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def batch_size(self) -> int:
        """Number of batch items."""
        return len(self.item_lengths)

    def item_slices(self) -> list[slice]:
        """The rows of each batch item."""
        ends = torch.tensor(self.item_lengths).cumsum(0).tolist()
        return [slice(end - length, end) for end, length in zip(ends, self.item_lengths, strict=True)]

    def spread(self, vectors: Tensor) -> Tensor:
        """Give every voxel the vector of its batch item: [B, C] to [T, C]."""
        if self.batch_size == 1:
            return vectors.expand(len(self), -1)
        return vectors.index_select(0, self.coords[:, 0])

    @cached_property
    def neighbours(self) -> tuple[NeighbourPairs, ...]:
        """The pairs of neighbouring voxels, one entry for each of `HALF_OFFSETS`; of the same batch item only."""
        keys, order, strides = self._sorted_keys
        found = []
        for offset in HALF_OFFSETS:
            wanted = keys + sum(o * s for o, s in zip(offset, strides, strict=True))
            at = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
            behind = torch.nonzero(keys[at] == wanted).squeeze(1)
            found.append(NeighbourPairs(offset, order[behind].int(), order[at[behind]].int()))
        return tuple(found)

    @cached_property
    def pooling(self) -> Pooling:
        """The set at half resolution, and how this one lies in it."""
        self._sorted_keys  # noqa: B018 - refuses voxels that occur twice
        halved = self.coords.clone()
        halved[:, 1:] = torch.div(self.coords[:, 1:], 2, rounding_mode="floor")
        keys, parents = torch.unique(linear_keys(halved)[0], return_inverse=True)
        coords = torch.empty(len(keys), 4, dtype=torch.int32, device=halved.device)
        coords[parents] = halved  # siblings write the same
        x, y, z = torch.remainder(self.coords[:, 1:], 2).unbind(1)
        place = 4 * x + 2 * y + z
        children = tuple(torch.nonzero(place == index).squeeze(1) for index in range(8))
        return Pooling(VoxelSet(coords, self.batch_size), parents, children)

    @cached_property
    def subdivided(self) -> VoxelSet:
        """The set at double resolution: the eight children of each voxel in turn, the last axis fastest."""
        steps = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32, device=self.coords.device)] * 3)
        children = self.coords[:, None].repeat(1, 8, 1)
        children[:, :, 1:] = 2 * children[:, :, 1:] + steps
        return VoxelSet(children.reshape(-1, 4), self.batch_size)

    def items(self) -> Grouping:
        """The batch items as groups."""
        if None not in self._partitions:
            self._partitions[None] = group_rows(self.coords[:, 0])
        return self._partitions[None]

    def windows(self, size: int, shift: int = 0) -> Grouping:
        """Group the voxels by windows of size³ cells, shifted against the grid's origin along all axes."""
        if (size, shift) not in self._partitions:
            self._partitions[size, shift] = group_rows(self.window_ids(size, shift))
        return self._partitions[size, shift]

    def window_ids(self, size: int, shift: int = 0) -> Tensor:
        """Number the windows of the voxels, [T] int64; only equality of numbers means something."""
        window = self.coords.clone()
        window[:, 1:] = torch.div(self.coords[:, 1:] + shift, size, rounding_mode="floor")
        return linear_keys(window)[0]

    @cached_property
    def _sorted_keys(self) -> tuple[Tensor, Tensor, tuple[int, int, int]]:
        """Sorted keys of the voxels, the row of each, and what a step along each axis adds to a key."""
        keys, strides = linear_keys(self.coords)
        keys, order = torch.sort(keys)
        if bool((keys[1:] == keys[:-1]).any()):
            raise ValidationFailedError(
                "A voxel occurs more than once in its batch item.", suggestion="Give every voxel once."
            )
        return keys, order, strides


def linear_keys(coords: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Number coordinates in the order of batch item, x, y, z, with room for one step beyond the box along each axis.

    Args:
        coords: [T, 4] integers.

    Returns:
        keys: [T] int64.
        strides: What a step along x, y and z adds to a key.
    """
    low = coords[:, 1:].amin(0).tolist()
    extent = [high - first + 3 for high, first in zip(coords[:, 1:].amax(0).tolist(), low, strict=True)]
    strides = (extent[1] * extent[2], extent[2], 1)
    if (int(coords[-1, 0]) + 1) * extent[0] * strides[0] >= _KEY_LIMIT:
        raise ValidationFailedError(
            "The voxels lie too far apart to be numbered.", suggestion="Check the coordinates.", extent=extent
        )
    wide = coords.long()
    keys = wide[:, 0] * (extent[0] * strides[0])
    for axis, stride in enumerate(strides):
        keys += (wide[:, 1 + axis] - (low[axis] - 1)) * stride
    return keys, strides


def group_rows(labels: Tensor) -> Grouping:
    """Collect the rows of each label, [T] integers."""
    ordered, order = torch.sort(labels, stable=True)
    _, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = counts.cumsum(0) - counts
    shapes, rows = [], []
    for length in torch.unique(counts).tolist():
        first = starts[counts == length]
        rows.append((first[:, None] + torch.arange(length, device=labels.device)).reshape(-1))
        shapes.append((len(first), int(length)))
    order = order[torch.cat(rows)]
    return Grouping(order, torch.argsort(order), tuple(shapes))


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features on voxels.

    Attributes:
        voxels: The voxels.
        feats: [T, ...], one row for each voxel.
    """

    voxels: VoxelSet
    feats: Tensor

    def __post_init__(self) -> None:
        """Refuse features that are not one row for each voxel."""
        if len(self.feats) != len(self.voxels):
            raise ValidationFailedError(
                f"{len(self.feats)} rows of features do not fit {len(self.voxels)} voxels.",
                suggestion="Give one row for each voxel.",
            )

    def with_feats(self, feats: Tensor) -> SparseTensor:
        """Other features on the same voxels."""
        return SparseTensor(self.voxels, feats)

    def item_feats(self) -> Iterator[Tensor]:
        """The features of each batch item."""
        return iter(torch.split(self.feats, list(self.voxels.item_lengths)))

    def downsample(self) -> SparseTensor:
        """Pool to half resolution: the sum of the children by their number *plus one*, as the weights were trained."""
        pooling = self.voxels.pooling
        total = self.feats.new_zeros(len(pooling.coarse), *self.feats.shape[1:])
        count = torch.ones(len(pooling.coarse), dtype=torch.float32, device=self.feats.device)
        for rows in pooling.children:
            parents = pooling.parents[rows]
            total = total.index_add_(0, parents, self.feats.index_select(0, rows))
            count[parents] += 1
        shape = (-1, *[1] * (self.feats.ndim - 1))
        return SparseTensor(pooling.coarse, (total / count.view(shape)).to(self.feats.dtype))

    def upsample(self, fine: VoxelSet) -> SparseTensor:
        """Give each voxel of the set from which this one's was pooled its parent's features.

        Raises:
            ValidationFailedError: `fine` has another coarse set.
        """
        if fine.pooling.coarse is not self.voxels:
            raise ValidationFailedError(
                "Features can only be spread over the voxels from which theirs were pooled.",
                suggestion="Use the voxel set on which `downsample` was called.",
            )
        return SparseTensor(fine, self.feats.index_select(0, fine.pooling.parents))

    def subdivide(self) -> SparseTensor:
        """Replace every voxel by its eight children with the same features."""
        return SparseTensor(self.voxels.subdivided, self.feats.repeat_interleave(8, dim=0))


def concatenate(tensors: Sequence[SparseTensor]) -> SparseTensor:
    """Join the channels of sparse tensors on the same voxels.

    Raises:
        ValidationFailedError: They have different voxel sets.
    """
    if any(tensor.voxels is not tensors[0].voxels for tensor in tensors):
        raise ValidationFailedError(
            "Features of different voxel sets cannot be joined.", suggestion="Resample them to one set first."
        )
    return tensors[0].with_feats(torch.cat([tensor.feats for tensor in tensors], dim=-1))

"""Attention among voxels: all of a batch item, or those of a window. Nothing attends across; no learned weights.

Groups of equal size form one batch, so that nothing is padded or masked and the softmax is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reconflow.reconviagen.attention import attend
from reconflow.reconviagen.sparse_tensor import Grouping, VoxelSet


def attend_in_groups(query: Tensor, key: Tensor, value: Tensor, grouping: Grouping) -> Tensor:
    """Softmax attention of the rows of each group to each other, with scale 1/sqrt(d).

    Args:
        query: [T, heads, d].
        key: [T, heads, d].
        value: [T, heads, d].
        grouping: Which rows attend to each other.

    Returns:
        [T, heads·d].
    """
    sizes = [groups * length for groups, length in grouping.shapes]
    ordered = (torch.split(x.index_select(0, grouping.order), sizes) for x in (query, key, value))
    attended = [
        attend(*(x.view(*shape, *x.shape[1:]) for x in parts)).flatten(0, 1)
        for shape, *parts in zip(grouping.shapes, *ordered, strict=True)
    ]
    return torch.cat(attended).index_select(0, grouping.inverse)


def full_attention(voxels: VoxelSet, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend within each batch item; arguments and result as for `attend_in_groups`."""
    return attend_in_groups(query, key, value, voxels.items())


def window_attention(voxels: VoxelSet, query: Tensor, key: Tensor, value: Tensor, size: int, shift: int = 0) -> Tensor:
    """Attend within windows of size³ cells, shifted along all axes; otherwise as `attend_in_groups`."""
    return attend_in_groups(query, key, value, voxels.windows(size, shift))

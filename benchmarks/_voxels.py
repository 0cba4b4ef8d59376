"""Occupied voxels that the benchmarks of the generating networks share. No features, no weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sphere_shell(count: int, resolution: int = 64) -> Tensor:
    """List the voxels nearest to a sphere in the middle of a grid, so many that they form a shell one voxel thick.

    A surface of area A touches about 1.5 A voxels, so that the sphere's radius follows from their number.

    Args:
        count: How many voxels.
        resolution: Cells of the grid along an axis.

    Returns:
        [count, 4] int32: 0, x, y, z; row-major.
    """
    radius = min(math.sqrt(count / (6 * math.pi)), resolution / 2 - 1)
    centres = torch.arange(resolution) + 0.5 - resolution / 2
    squares = centres.square()
    distance = (squares[:, None, None] + squares[:, None] + squares).sqrt().sub_(radius).abs_().flatten()
    cells = distance.topk(count, largest=False).indices.sort().values
    xyz = [cells // resolution**2, cells // resolution % resolution, cells % resolution]
    return torch.stack([torch.zeros_like(cells), *xyz], dim=1).to(torch.int32)

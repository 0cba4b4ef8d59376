"""Sparse convolution on the CPU: ours against spconv's, at the sizes of the networks that decode the latent.

    python -m benchmarks.sparse_conv [--voxels 2000] [--rounds 3] [--threads 1]

Prints CPU seconds of a call whose neighbour maps are there already, of a first call, which makes them, and the largest
difference.
Both compute with one thread unless told otherwise: spconv's CPU kernels add up wrongly with more. Without spconv it
says so and does nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks._voxels import sphere_shell
from reconflow.reconviagen.sparse_conv import SubmanifoldConv3d
from reconflow.reconviagen.sparse_tensor import SparseTensor, VoxelSet


@dataclass(frozen=True)
class Case:
    """A convolution of the networks.

    Attributes:
        where: In which network.
        level: Subdivisions of the occupied voxels before it.
        channels: Those that go in and those that come out.
        subdivides: Whether it is the first one after a subdivision, which ours computes from the parents.
    """

    where: str
    level: int
    channels: tuple[int, int]
    subdivides: bool = False


CASES = (
    Case("latent flow", 0, (128, 128)),
    Case("mesh decoder", 1, (768, 192), subdivides=True),
    Case("mesh decoder", 1, (192, 192)),
    Case("mesh decoder", 2, (192, 96), subdivides=True),
    Case("mesh decoder", 2, (96, 96)),
)


def main(argv: list[str] | None = None) -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voxels", type=int, default=2000, help="occupied voxels of the 64³ grid")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if importlib.util.find_spec("spconv") is None:
        print("spconv is not installed, nothing to compare with: pip install -e '.[bench]' -c constraints.txt")
        return
    torch.set_num_threads(args.threads)
    occupied = VoxelSet(sphere_shell(args.voxels), 1)
    levels = [occupied, occupied.subdivided, occupied.subdivided.subdivided]
    print(f"sparse convolution 3x3x3, CPU seconds, median of {args.rounds}, {args.threads} thread(s)")
    print("  where         rows    channels    ours   spconv  ratio  first: ours  spconv  largest difference")
    with torch.no_grad():
        for case in CASES:
            _compare(case, levels, args.rounds)


def _compare(case: Case, levels: list[VoxelSet], rounds: int) -> None:
    voxels = levels[case.level]
    ours = SubmanifoldConv3d(*case.channels)
    parents = levels[case.level - 1] if case.subdivides else voxels
    x = SparseTensor(parents, torch.randn(len(parents), case.channels[0], generator=torch.manual_seed(0)))
    convolve = ours.on_subdivided if case.subdivides else ours
    making, _ = _cpu_seconds(lambda: VoxelSet(parents.coords, 1).neighbours)
    parents.neighbours  # noqa: B018 - they stay with the voxels
    feats = x.subdivide().feats if case.subdivides else x.feats
    theirs, their_first = _spconv(ours, voxels, feats)
    pairs = [(_cpu_seconds(lambda: convolve(x).feats), _cpu_seconds(theirs)) for _ in range(rounds)]
    ours_s, theirs_s = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
    difference = float((pairs[-1][0][1] - pairs[-1][1][1]).abs().max())
    channels = f"{case.channels[0]} > {case.channels[1]}"
    print(
        f"  {case.where:12} {len(voxels):7} {channels:>10} {ours_s:8.3f} {theirs_s:8.3f} {ours_s / theirs_s:6.2f}"
        f"    {making + ours_s:9.3f} {their_first:8.3f}  {difference:.1e}"
    )


def _spconv(ours: SubmanifoldConv3d, voxels: VoxelSet, feats: Tensor) -> tuple[Callable[[], Tensor], float]:
    """Return spconv's convolution with the same weights and its maps made, and the seconds of its first call."""
    from spconv import pytorch as spconv

    channels_out, channels_in = len(ours.conv.weight), ours.conv.weight.shape[-1]
    network: Any = spconv.SubMConv3d(channels_in, channels_out, 3, indice_key="maps", algo=spconv.ConvAlgo.Native)
    network.weight.data.copy_(ours.conv.weight)
    network.bias.data.copy_(ours.conv.bias)
    side = 1 + int(voxels.coords[:, 1:].max())
    x = spconv.SparseConvTensor(feats, voxels.coords.contiguous(), [side] * 3, 1)
    network(spconv.SparseConvTensor(feats[:1], voxels.coords[:1], [side] * 3, 1))  # loads its library
    first_s, first = _cpu_seconds(lambda: network(x))
    x.indice_dict = first.indice_dict
    return lambda: network(x).features, first_s


def _cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


if __name__ == "__main__":
    main()

"""What each stage of a generation with the published networks needs of memory, estimated from above. Allocates nothing.

The numbers are fitted to peaks that `python -m benchmarks.generate` measured on the CPU; docs/performance.md has them.
On a GPU activations take no more: torsos compute in half precision, and at most twice as much at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

MIB: Final = 1 << 20
GPU_CONTEXT_BYTES: Final = 512 * MIB
"""What CUDA itself takes before anything is computed; where it runs already, the driver does not count it as free."""
GPU_LIBRARY_BYTES: Final = 256 * MIB
"""What kernels and the buffers of CUDA's libraries take as they are used."""


@dataclass(frozen=True)
class StageNeeds:
    """What one stage takes beside what the process uses already.

    Attributes:
        parameters: Of its network; four bytes each on the CPU.
        gpu_weight_bytes: The network in the precision of its file.
        fixed_bytes: Activations that depend on neither views nor voxels.
        view_bytes: Activations for each view.
        voxel_bytes: Activations for each occupied voxel.
    """

    parameters: int
    gpu_weight_bytes: int
    fixed_bytes: int
    view_bytes: int = 0
    voxel_bytes: int = 0

    def bytes_on(self, device: str, views: int, voxels: int) -> int:
        """Peak memory of the device, bytes; on a GPU without CUDA's context."""
        activations = self.fixed_bytes + views * self.view_bytes + voxels * self.voxel_bytes
        if device == "cpu":
            return 4 * self.parameters + activations
        return self.gpu_weight_bytes + activations + GPU_LIBRARY_BYTES


STAGES: Final[Mapping[str, StageNeeds]] = MappingProxyType(
    {
        "views": StageNeeds(909_112_320, 3_636_449_280, 192 * MIB, view_bytes=200 * MIB),
        "features": StageNeeds(304_372_736, 1_217_490_944, 192 * MIB, view_bytes=64 * MIB),
        "structure_condition": StageNeeds(88_150_016, 176_340_384, 256 * MIB, view_bytes=112 * MIB),
        "latent_condition": StageNeeds(12_587_008, 25_174_768, 48 * MIB, view_bytes=96 * MIB),
        "structure": StageNeeds(555_543_560, 1_130_770_840, 1408 * MIB),
        "structure_decoder": StageNeeds(73_671_201, 147_591_972, 320 * MIB),
        "latent": StageNeeds(600_432_520, 1_203_755_136, 96 * MIB, view_bytes=272 * MIB, voxel_bytes=64 * 1024),
        "gaussians": StageNeeds(85_369_024, 171_450_952, 64 * MIB, voxel_bytes=64 * 1024),
        "mesh": StageNeeds(90_926_693, 181_903_412, 96 * MIB, voxel_bytes=144 * 1024),
    }
)
"""The stages of `inference`, by their names there."""
_MORE_ROOM: Final = {
    "cpu": ("close other programs", "use a machine with more memory"),
    "cuda": ("stop other programs on the GPU", "use a GPU with more memory", "choose the device cpu"),
}


def stage_bytes(stage: str, device: str, views: int = 0, voxels: int = 0) -> int:
    """Return what a stage needs of a device's memory, beside what CUDA takes in a process that has begun to use it.

    Args:
        stage: One of `STAGES`.
        device: `cpu` or `cuda`.
        views: How many pictures the networks read.
        voxels: Occupied voxels.
    """
    return STAGES[stage].bytes_on(device, views, voxels)


def peak_bytes(device: str, views: int, voxels: int) -> int:
    """Return the most that a process takes that has not begun to use the device; arguments as for `stage_bytes`."""
    most = max(needs.bytes_on(device, views, voxels) for needs in STAGES.values())
    return most if device == "cpu" else most + GPU_CONTEXT_BYTES


def what_helps(stage: str, device: str) -> str:
    """Return what people can do when a device's memory is too small for a stage.

    Args:
        stage: One of `STAGES`.
        device: `cpu` or `cuda`.
    """
    needs = STAGES[stage]
    ways = [
        *(["lower max_views"] if needs.view_bytes else []),
        *(["try another seed, which may give fewer voxels"] if needs.voxel_bytes else []),
        *_MORE_ROOM[device],
    ]
    advice = ", ".join(ways[:-1]) + f", or {ways[-1]}."
    refusing = " A lower max_voxels refuses such objects before they are decoded." if needs.voxel_bytes else ""
    return advice[0].upper() + advice[1:] + refusing

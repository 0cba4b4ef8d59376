"""What a run needs of the machine, estimated before it starts, and what the machine has. Measures, never allocates."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reconflow.errors import DiskFullError, MemoryExhaustedError
from reconflow.nvdiffrec.options import FitSettings
from reconflow.reconviagen.memory_needs import peak_bytes
from reconflow.reconviagen.options import ReconviagenSettings

if TYPE_CHECKING:
    from reconflow.gpus import Gpu

if sys.platform != "win32":
    import resource

MIB = 1 << 20
GIB = 1 << 30

# Fitted from above to measured peaks over the start, six 512² views: 266 MiB (draft), 746 MiB (standard); 335 instead
# of 90 MiB for the smallest run when it is the first one and compiles the kernels.
BASE_BYTES: Final = 256 * MIB
BYTES_PER_PHOTO_PIXEL: Final = 16
BYTES_PER_CELL: Final = 16
BYTES_PER_FIT_PIXEL: Final = 200
BYTES_PER_TEXEL: Final = 60
BYTES_PER_FACE: Final = 1500


@dataclass(frozen=True)
class Needs:
    """An estimate, rounded up.

    Attributes:
        memory_bytes: Peak main memory of the process over what it uses already.
        disk_bytes: Space for intermediate files and results.
        gpu_bytes: Peak memory of one GPU, with what CUDA itself takes.
    """

    memory_bytes: int
    disk_bytes: int
    gpu_bytes: int = 0


EXPECTED_VOXELS: Final = 20_000
"""Occupied voxels for which a generation is estimated: twice what objects have; what more of them need is checked when
they are known."""
GAUSSIANS_PER_VOXEL: Final = 32
RAW_FACES_PER_VOXEL: Final = 64
# Fitted from above to measured peaks of cleaning 200 000 and 800 000 faces and of picturing 640 000 Gaussians.
BYTES_PER_RAW_FACE: Final = 320
BYTES_PER_PICTURED_GAUSSIAN: Final = 500
BYTES_PER_GAUSSIAN: Final = 3 * 68
"""On the disk: in gaussians.ply, in the archive, and in what is kept for a later attempt."""


def estimate_needs(pixels: int, views: int, settings: FitSettings | ReconviagenSettings, device: str = "cpu") -> Needs:
    """Estimate what a run needs, from above.

    Args:
        pixels: Of all photos together.
        views: How many photos there are.
        settings: The numbers that the model runs with.
        device: What it computes on.
    """
    if isinstance(settings, ReconviagenSettings):
        return _needs_of_generation(pixels, views, settings, device)
    memory = (
        BASE_BYTES
        + pixels * BYTES_PER_PHOTO_PIXEL
        + settings.grid_resolution**3 * BYTES_PER_CELL
        + views * settings.resolution**2 * BYTES_PER_FIT_PIXEL
        + settings.texture_size**2 * BYTES_PER_TEXEL
        + settings.target_faces * BYTES_PER_FACE
    )
    disk = 64 * MIB + settings.texture_size**2 * 16 + settings.target_faces * 600
    return Needs(memory, disk)


def _needs_of_generation(pixels: int, views: int, settings: ReconviagenSettings, device: str) -> Needs:
    finishing = (
        BASE_BYTES
        + pixels * BYTES_PER_PHOTO_PIXEL
        + settings.texture_size**2 * BYTES_PER_TEXEL
        + settings.gaussian_views * settings.gaussian_size**2 * 4 * 4
    )
    if settings.refinement is not None:
        finishing = max(finishing, estimate_needs(pixels, views, settings.refinement).memory_bytes)
    disk = 64 * MIB + settings.texture_size**2 * 16 + (settings.target_faces or 100_000) * 600
    if settings.random_weights is not None:
        return Needs(finishing, disk)
    disk += GAUSSIANS_PER_VOXEL * settings.max_voxels * BYTES_PER_GAUSSIAN
    voxels = min(settings.max_voxels, EXPECTED_VOXELS)
    finishing += voxels * RAW_FACES_PER_VOXEL * BYTES_PER_RAW_FACE
    finishing += voxels * GAUSSIANS_PER_VOXEL * BYTES_PER_PICTURED_GAUSSIAN
    networks = peak_bytes(device, min(views, settings.max_views), voxels)
    if device == "cpu":
        return Needs(max(BASE_BYTES + networks, finishing), disk)
    return Needs(finishing, disk, gpu_bytes=networks)


def available_memory_bytes() -> int | None:
    """Return the memory that can be had without swapping, within the container's limit; None where nobody says."""
    amounts = [amount for amount in (_linux_available(), _cgroup_available()) if amount is not None]
    if amounts:
        return min(amounts)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def peak_rss_bytes() -> int:
    """Return the largest resident size that this process has had; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0
    if (own := _linux_peak()) is not None:
        return own
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_gpu_bytes() -> int:
    """Return the most memory that this process has had of all GPUs for PyTorch's arrays; 0 when it used none."""
    torch = sys.modules.get("torch")  # which is not loaded, nor CUDA started, in order to ask
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))


def _linux_peak() -> int | None:
    """Return the kernel's high-water mark of this program; that of `getrusage` contains what started it, too."""
    try:
        status = Path("/proc/self/status").read_text("ascii", "replace")
    except OSError:
        return None
    marks = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return next((int(mark) * 1024 for mark in marks), None)


def rss_bytes() -> int:
    """Return the resident size of this process now; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def describe_machine() -> dict[str, object]:
    """Return the machine's facts for `run.json`."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cpu_count": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_available_bytes": available_memory_bytes(),
    }


def check_memory(needs: Needs, available_bytes: int | None) -> None:
    """Refuse to start what would not fit.

    Args:
        needs: The estimate.
        available_bytes: What the machine has; None when unknown, which passes.

    Raises:
        MemoryExhaustedError: The estimate exceeds what is available.
    """
    if available_bytes is not None and needs.memory_bytes > available_bytes:
        raise MemoryExhaustedError(
            f"The run needs about {needs.memory_bytes / GIB:.1f} GiB of memory and {available_bytes / GIB:.1f} GiB "
            "are free.",
            suggestion="Close other programs, or choose the draft preset, a smaller resolution or texture size.",
            needed_bytes=needs.memory_bytes,
            available_bytes=available_bytes,
        )


def check_gpu_memory(needs: Needs, gpu: Gpu | None) -> None:
    """Refuse to start what the GPU has no room for.

    Args:
        needs: The estimate.
        gpu: That the model computes on; without one nothing is checked.

    Raises:
        MemoryExhaustedError: The estimate exceeds what is free on it.
    """
    if gpu is not None and needs.gpu_bytes > gpu.memory_free_bytes:
        raise MemoryExhaustedError(
            f"The run needs about {needs.gpu_bytes / GIB:.1f} GiB of GPU memory and "
            f"{gpu.memory_free_bytes / GIB:.1f} GiB are free.",
            suggestion="Wait for the other programs on the GPU or stop them, lower max_views, or choose the CPU.",
            needed_bytes=needs.gpu_bytes,
            available_bytes=gpu.memory_free_bytes,
        )


def check_disk(needs: Needs, folder: Path) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        needs: The estimate.
        folder: An existing folder on the disk in question.

    Raises:
        DiskFullError: The estimate exceeds the free space.
    """
    free_bytes = shutil.disk_usage(folder).free
    if needs.disk_bytes > free_bytes:
        raise DiskFullError(
            f"The run needs about {needs.disk_bytes / MIB:.0f} MiB of disk space and {free_bytes / MIB:.0f} MiB "
            "are free.",
            suggestion="Free some space, or choose another --out folder.",
            needed_bytes=needs.disk_bytes,
            available_bytes=free_bytes,
        )


def _linux_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    values = {line.split(":")[0]: line.split()[1] for line in lines if ":" in line}
    return int(values["MemAvailable"]) * 1024 if "MemAvailable" in values else None


def _cgroup_available() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text("ascii").strip()
        used = int((folder / "memory.current").read_text("ascii"))
        reclaimable = _cgroup_stat(folder / "memory.stat", "inactive_file")
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used + reclaimable, 0)


def _cgroup_stat(path: Path, name: str) -> int:
    for line in path.read_text("ascii").splitlines():
        key, value = line.split()
        if key == name:
            return int(value)
    return 0

"""The stages of a generation as users meet them: progress, seconds, room for each, float32 in full. No computation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from reconflow.errors import ModelGpuOutOfMemoryError, ModelOutOfMemoryError
from reconflow.gpu_failures import is_full_gpu
from reconflow.progress import OnProgress, ignore_progress, part_of
from reconflow.reconviagen.memory_needs import stage_bytes, what_helps
from reconflow.reconviagen.networks import Networks
from reconflow.reconviagen.precision import full_float32
from reconflow.resources import GIB, available_memory_bytes


class Stages:
    """Tells progress and takes times of the stages, checks that there is room for each, and names what ran out of it.

    Args:
        device: `cpu` or `cuda`.
        on_progress: Receiver of progress.
        views: How many pictures the networks read.
        published_sizes: Whether to check, before a stage begins, that what the published networks need is free.
    """

    def __init__(
        self, device: str, on_progress: OnProgress = ignore_progress, *, views: int = 0, published_sizes: bool = False
    ) -> None:
        self.seconds: dict[str, float] = {}
        self.voxels = 0
        """Occupied voxels, as soon as they are known."""
        self._device, self._on_progress = device, on_progress
        self._views, self._checks = views, published_sizes

    @classmethod
    def of(cls, networks: Networks, on_progress: OnProgress = ignore_progress, *, views: int = 0) -> Stages:
        """The stages that some networks run."""
        return cls(networks.device, on_progress, views=views, published_sizes=networks.facts.published_sizes)

    @contextmanager
    def stage(self, name: str, start: float, stop: float, message: str) -> Iterator[OnProgress]:
        """Run a block as a stage.

        Args:
            name: Of the stage; see `memory_needs`.
            start: Fraction of the whole that is done before it.
            stop: Fraction of the whole that is done after it.
            message: What is done.

        Yields:
            A receiver of the stage's own progress.

        Raises:
            ModelGpuOutOfMemoryError, ModelOutOfMemoryError: There is too little memory for it, or it ran out.
        """
        progress, started = part_of(self._on_progress, start, stop), time.perf_counter()
        try:
            if self._checks:
                check_room(self._device, stage_bytes(name, self._device, self._views, self.voxels), message, name)
            progress(0, 1, message)
            with full_float32():
                yield progress
            if self._device != "cpu":
                torch.cuda.synchronize()
        except (MemoryError, RuntimeError) as error:
            if is_full_gpu(error):
                raise _gpu_is_full(f"The GPU's memory ran out while {message}.", name) from error
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                raise _memory_is_full(f"Memory ran out while {message}.", name) from error
            raise
        self.seconds[name] = round(time.perf_counter() - started, 3)


def check_room(device: str, needed_bytes: int, message: str, stage: str) -> None:
    """Refuse to begin a stage for which there is too little free memory.

    Args:
        device: `cpu` or `cuda`.
        needed_bytes: The estimate.
        message: What is done in the stage.
        stage: Its name.

    Raises:
        ModelGpuOutOfMemoryError, ModelOutOfMemoryError: The estimate exceeds what is free.
    """
    free = available_memory_bytes() if device == "cpu" else _free_gpu_bytes()
    if free is None or needed_bytes <= free:
        return
    facts = {"needed_bytes": needed_bytes, "available_bytes": free}
    amounts = f"{message} needs about {needed_bytes / GIB:.1f} GiB, and {free / GIB:.1f} GiB"
    if device == "cpu":
        raise _memory_is_full(f"There is too little memory: {amounts} are free.", stage, **facts)
    raise _gpu_is_full(f"There is too little GPU memory: {amounts} are free.", stage, **facts)


def _free_gpu_bytes() -> int:
    """What PyTorch could still take of the GPU's memory: what is free, and what it holds without using it."""
    unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(torch.cuda.mem_get_info()[0]) + unused


def _gpu_is_full(message: str, stage: str, **facts: object) -> ModelGpuOutOfMemoryError:
    return ModelGpuOutOfMemoryError(message, suggestion=what_helps(stage, "cuda"), stage=stage, **facts)


def _memory_is_full(message: str, stage: str, **facts: object) -> ModelOutOfMemoryError:
    return ModelOutOfMemoryError(message, suggestion=what_helps(stage, "cpu"), stage=stage, **facts)

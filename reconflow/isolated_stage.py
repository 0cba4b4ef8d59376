"""The heavy stage in a process of its own, and the record that the memory it took is back before anything follows."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from reconflow.child_process import run_in_child
from reconflow.gpus import VISIBLE_VARIABLE, visible_gpus
from reconflow.progress import OnProgress
from reconflow.resources import GIB, rss_bytes
from reconflow.run_context import RunSite
from reconflow.run_lock import remove_parts
from reconflow.stage_cache import CheckpointKeeper
from reconflow.stage_results import CamerasResult, DatasetResult, InferResult, MemoryRecord, ModelResult

RETURN_PATIENCE_S: Final = 10.0
"""How long the driver may take to give back what a process held that is gone."""
_READ_INTERVAL_S: Final = 0.1


def infer_in_child(
    site: RunSite,
    dataset: DatasetResult,
    cameras: CamerasResult,
    model: ModelResult,
    on_progress: OnProgress,
    keeper: CheckpointKeeper,
) -> InferResult:
    """Run the stage in a process group of its own; return when that is gone and the GPU has its memory back.

    When something still holds GPU memory after ten seconds, which another program may do, the result's notes say so.
    """
    arguments = {
        "site": site.model_copy(update={"fetched_dataset": site.dataset_folder}).model_dump(mode="json"),
        "dataset": dataset.model_dump(mode="json"),
        "cameras": cameras.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "checkpoint": str(keeper.path),
    }
    rss_before, gpu_before = rss_bytes(), _free_gpu_bytes(model)
    try:
        result = run_in_child(
            "reconflow.stages:infer_apart", arguments, on_progress, keeper.on_event, child_environment(model)
        )
    finally:
        _remove_leftovers(site, model.name, keeper.path)
    memory = MemoryRecord(
        rss_before_bytes=rss_before,
        rss_after_bytes=rss_bytes(),
        gpu_free_before_bytes=gpu_before,
        gpu_free_after_bytes=await_free(gpu_before, lambda: _free_gpu_bytes(model)),
    )
    return InferResult.model_validate(result).noting(*_missing_text(memory), isolation="process", memory=memory)


def child_environment(model: ModelResult) -> dict[str, str]:
    """Return what a model's process has in its environment beside this one's: the one GPU that it may see."""
    return {} if model.gpu is None else {VISIBLE_VARIABLE: model.gpu}


def await_free(
    before: tuple[int, ...], read: Callable[[], tuple[int, ...]], patience_s: float = RETURN_PATIENCE_S
) -> tuple[int, ...]:
    """Return how much GPU memory is free as soon as none is missing, and after the patience in any case.

    Args:
        before: What was free per GPU before the stage, bytes.
        read: Returns what is free now.
        patience_s: How long to wait.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        memory = MemoryRecord(
            rss_before_bytes=0, rss_after_bytes=0, gpu_free_before_bytes=before, gpu_free_after_bytes=read()
        )
        if memory.gpu_missing_bytes == 0 or time.monotonic() >= deadline_s:
            return memory.gpu_free_after_bytes
        time.sleep(_READ_INTERVAL_S)


def _remove_leftovers(site: RunSite, model: str, checkpoint: Path) -> None:
    """Remove the temporary files of a model's process that is gone; another model's may be at work beside it."""
    work = site.workspace.work
    remove_parts(site.layout(model).model_dir)
    for name in (f"{model}.npz", checkpoint.name):
        remove_parts(work, f"{name}.*")


def _missing_text(memory: MemoryRecord) -> list[str]:
    missing = memory.gpu_missing_bytes
    if missing == 0:
        return []
    return [
        f"{missing / GIB:.1f} GiB of GPU memory were not free again {RETURN_PATIENCE_S:.0f} s after the stage ended."
    ]


def _free_gpu_bytes(model: ModelResult) -> tuple[int, ...]:
    if model.gpu is None:
        return ()
    return tuple(gpu.memory_free_bytes for gpu in visible_gpus() if gpu.uuid == model.gpu)

"""In which order a run's models compute: in turn, or side by side where no two of them need the same device.

Side by side every model has a process of its own and, if it computes on a GPU, that GPU for itself. One of them may
compute on the CPU; two would take each other's cores. Nothing here knows what the stages do.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import ContextVar
from typing import Final

from reconflow import models
from reconflow.errors import Cancelled, GpuUnavailableError
from reconflow.execution import choose_device, choose_isolation
from reconflow.gpus import Gpu, visible_gpus
from reconflow.progress import OnProgress
from reconflow.request import Device
from reconflow.resources import Needs, available_memory_bytes
from reconflow.run_context import RunRef

_stopped: Final[ContextVar[threading.Event | None]] = ContextVar("stopped", default=None)


def place_side_by_side(
    run: RunRef,
    needs_of: Callable[[str, Device], Needs],
    gpus: tuple[Gpu, ...] | None = None,
    available_bytes: int | None = None,
) -> RunRef:
    """Return the run with a device for each of its models, all different; unchanged when they have to take turns.

    Args:
        run: The run; with one model it stays as it is.
        needs_of: Returns what a model needs on a device.
        gpus: That this process sees; asked of the driver when None.
        available_bytes: Main memory that can be had; asked of the system when None.
    """
    names = run.request.models()
    if len(names) < 2 or choose_isolation(Device.CUDA, "process") == "none":  # which the environment alone can demand
        return run
    try:
        gpus = visible_gpus() if gpus is None else gpus
    except GpuUnavailableError:
        return run  # which the model that needs one is told when it is loaded; the other may do without
    devices = {name: choose_device(models.make_model(name), run.request.device, gpus) for name in names}
    computing = [name for name, device in devices.items() if device == Device.CUDA]
    if len(names) - len(computing) > 1 or len(computing) > len(gpus):
        return run
    available_bytes = available_memory_bytes() if available_bytes is None else available_bytes
    needs = {name: needs_of(name, device) for name, device in devices.items()}
    if available_bytes is not None and sum(need.memory_bytes for need in needs.values()) > available_bytes:
        return run
    freest_first = sorted(gpus, key=lambda gpu: -gpu.memory_free_bytes)
    hungriest_first = sorted(computing, key=lambda name: -needs[name].gpu_bytes)
    own_gpus = dict(zip(hungriest_first, freest_first, strict=False))
    if any(needs[name].gpu_bytes > gpu.memory_free_bytes for name, gpu in own_gpus.items()):
        return run  # in turn each gets the freest one
    uuids = {name: gpu.uuid for name, gpu in own_gpus.items()}
    return run.model_copy(update={"side_by_side": True, "isolation": "process", "gpus": uuids})


def run_side_by_side(names: Sequence[str], run_one: Callable[[str], None]) -> None:
    """Run all models at once and return when every one has ended.

    What ends one ends them all: the others hear of it at their next step of progress (`heeding`).

    Args:
        names: The models.
        run_one: Runs one of them, in a thread, with the caller's context variables; deals with a model's own failures.

    Raises:
        Exception: The first that `run_one` raised, or what interrupted the waiting.
    """
    stopped = threading.Event()
    with ThreadPoolExecutor(len(names), thread_name_prefix="model") as pool:
        try:
            contexts = [contextvars.copy_context() for _ in names]
            for context in contexts:
                context.run(_stopped.set, stopped)
            futures = [pool.submit(context.run, run_one, name) for context, name in zip(contexts, names, strict=True)]
            ended = wait(futures, return_when=FIRST_EXCEPTION).done
            _raise_first(future.exception() for future in ended)
        finally:
            stopped.set()


def heeding(on_progress: OnProgress) -> OnProgress:
    """Return a receiver of progress that also ends a model when those beside it were ended.

    Args:
        on_progress: Hears the progress.
    """
    stopped = _stopped.get()
    if stopped is None:
        return on_progress

    def report(step: int, total: int, message: str) -> None:
        if stopped.is_set():
            raise Cancelled("The run has ended.", suggestion="Run it again; finished stages are not repeated.")
        on_progress(step, total, message)

    return report


def _raise_first(errors: Iterable[BaseException | None]) -> None:
    for error in errors:
        if error is not None:
            raise error

"""Which GPUs this machine has, how much of their memory is free, and which of them a process may use. Computes nothing.

Asked of the driver through NVML, so that looking takes no GPU memory and loads no CUDA.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import pynvml

from reconflow.errors import GpuUnavailableError

VISIBLE_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"
_ABSENT: Final = (
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_UNINITIALIZED,
)


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver describes it.

    Attributes:
        index: Its place in the driver's list, ordered by bus: what `CUDA_VISIBLE_DEVICES` means when
            `CUDA_DEVICE_ORDER` is `PCI_BUS_ID`.
        uuid: Its lasting identifier, which `CUDA_VISIBLE_DEVICES` takes as well.
        name: The product's name.
        driver: The driver's version.
        memory_total_bytes: All of its memory.
        memory_free_bytes: What nobody uses now.
    """

    index: int
    uuid: str
    name: str
    driver: str
    memory_total_bytes: int
    memory_free_bytes: int


def list_gpus() -> tuple[Gpu, ...]:
    """Return the machine's GPUs by index; none where there is no NVIDIA driver.

    Raises:
        GpuUnavailableError: There is a driver and it does not answer properly.
    """
    with _driver() as present:
        return tuple(_describe(index) for index in range(pynvml.nvmlDeviceGetCount())) if present else ()


def visible_gpus(gpus: Sequence[Gpu] | None = None, environment: Mapping[str, str] | None = None) -> tuple[Gpu, ...]:
    """Return the GPUs that CUDA shows to this process, in its order.

    As CUDA does, the list in `CUDA_VISIBLE_DEVICES` ends at the first entry that names no GPU.

    Args:
        gpus: The machine's; asked of the driver when None.
        environment: With `CUDA_VISIBLE_DEVICES` or without; this process's when None.

    Raises:
        GpuUnavailableError: There is a driver and it does not answer properly.
    """
    gpus = list_gpus() if gpus is None else gpus
    chosen = (os.environ if environment is None else environment).get(VISIBLE_VARIABLE)
    if chosen is None:
        return tuple(gpus)
    visible: list[Gpu] = []
    for entry in chosen.split(","):
        gpu = _named(entry.strip(), gpus)
        if gpu is None or gpu in visible:
            break
        visible.append(gpu)
    return tuple(visible)


def _named(entry: str, gpus: Sequence[Gpu]) -> Gpu | None:
    if entry.isdigit():
        return next((gpu for gpu in gpus if gpu.index == int(entry)), None)
    matches = [gpu for gpu in gpus if entry.startswith("GPU-") and gpu.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _describe(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        driver=_text(pynvml.nvmlSystemGetDriverVersion()),
        memory_total_bytes=int(memory.total),
        memory_free_bytes=int(memory.free),
    )


@contextmanager
def _driver() -> Iterator[bool]:
    """Open the driver's interface; False where there is no driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value not in _ABSENT:
            raise _unusable(error) from error
        yield False
        return
    try:
        yield True
    except pynvml.NVMLError as error:
        raise _unusable(error) from error
    finally:
        pynvml.nvmlShutdown()


def _unusable(error: pynvml.NVMLError) -> GpuUnavailableError:
    return GpuUnavailableError(
        f"The NVIDIA driver does not answer properly ({error}).",
        suggestion="Look at nvidia-smi on this machine; a restart helps after an update of the driver.",
        nvml=int(error.value),
    )


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

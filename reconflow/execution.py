"""Where a stage runs: on which device, and in which process. Rules only; nothing is started here.

A device that was asked for is never replaced by another one. What `auto` stands for, and whether a model gets a process
of its own, follow from stated rules and are recorded with its result.
"""

from __future__ import annotations

import os
from typing import Final, cast

from reconflow.errors import GpuUnavailableError, ModelUnavailableError, ValidationFailedError
from reconflow.gpus import Gpu, visible_gpus
from reconflow.models import ReconstructionModel
from reconflow.request import Device
from reconflow.run_context import Isolation

DEVICE_VARIABLE: Final = "RECONFLOW_DEVICE"
"""The device that a worker's machine was set up for; its runs can ask for no other one but the CPU."""
ISOLATION_VARIABLE: Final = "RECONFLOW_ISOLATION"


def choose_device(model: ReconstructionModel, asked: str, gpus: tuple[Gpu, ...] | None = None) -> Device:
    """Return what a model computes on: what was asked for, or what `auto` stands for here.

    A model without a GPU version computes on the CPU then; any other one on what the worker was set up for
    (`RECONFLOW_DEVICE`), and where that is not said, on a GPU if there is one that PyTorch can use.

    Args:
        model: What shall compute.
        asked: A `Device`.
        gpus: That this process sees; asked of the driver when None.

    Raises:
        ValidationFailedError: `RECONFLOW_DEVICE` holds something else than `cpu` or `cuda`.
    """
    if asked != Device.AUTO:
        return Device(asked)
    if Device.CUDA not in model.devices:
        return Device.CPU
    meant_for = os.environ.get(DEVICE_VARIABLE)
    if meant_for is None:
        return Device.CUDA if (visible_gpus() if gpus is None else gpus) and _torch_uses_gpus() else Device.CPU
    if meant_for not in (Device.CPU, Device.CUDA):
        raise ValidationFailedError(
            f"{DEVICE_VARIABLE} is {meant_for[:40]!r}.", suggestion="Set it to cpu or cuda, or unset it."
        )
    return Device(meant_for)


def choose_isolation(device: str, asked: Isolation | None = None) -> Isolation:
    """Return whether a model gets a process of its own, whose end gives all of its memory back.

    `RECONFLOW_ISOLATION` decides when it is set, then what the caller asks for (runs of a deployment ask for a
    process); else a model on a GPU gets one and a model on the CPU does not.

    Args:
        device: What the model computes on.
        asked: By whoever starts the run.

    Raises:
        ValidationFailedError: The variable holds something else than `none` or `process`.
    """
    told = os.environ.get(ISOLATION_VARIABLE)
    if told is not None and told not in ("none", "process"):
        raise ValidationFailedError(
            f"{ISOLATION_VARIABLE} is {told[:40]!r}.", suggestion="Set it to none or process, or unset it."
        )
    if told is not None:
        return cast("Isolation", told)
    return asked or ("process" if device == Device.CUDA else "none")


def check_device(model: ReconstructionModel, device: str, gpus: tuple[Gpu, ...] | None = None) -> tuple[Gpu, ...]:
    """Return the GPUs that a model may use, after checking that it can compute on the device.

    Args:
        model: What shall compute.
        device: What it shall compute on.
        gpus: That this process sees; asked of the driver when None.

    Returns:
        None of them when the device is the CPU.

    Raises:
        GpuUnavailableError: A GPU was asked for and this worker has none.
        ModelUnavailableError: The model cannot compute on the device.
    """
    found: tuple[Gpu, ...] = ()
    if device == Device.CUDA:
        meant_for = os.environ.get(DEVICE_VARIABLE, Device.CUDA)
        found = visible_gpus() if gpus is None else gpus
        if meant_for != Device.CUDA or not found:
            why = f"this worker was set up for the device {meant_for}" if meant_for != Device.CUDA else "none is here"
            raise GpuUnavailableError(
                f"A GPU was asked for, and {why}.",
                suggestion="Choose the device cpu, or start the run where there is a GPU.",
                device=device,
            )
    if device not in model.devices:
        raise ModelUnavailableError(
            f"{model.name} computes on {' or '.join(model.devices)} in this version, not on {device}.",
            suggestion=f"Choose the device auto or {model.devices[0]}.",
            model=model.name,
            device=device,
        )
    return found


def choose_gpu(gpus: tuple[Gpu, ...], isolation: Isolation, chosen: str | None = None) -> Gpu | None:
    """Return the GPU that a model computes on; None without any.

    A process of its own is shown the one with the most free memory; in this process it is CUDA's first.

    Args:
        gpus: That may be used, in CUDA's order.
        isolation: Whether the model gets a process of its own.
        chosen: The UUID of the one that was chosen before, if any.
    """
    if chosen is not None:
        gpus = tuple(gpu for gpu in gpus if gpu.uuid == chosen) or gpus
    if isolation == "process":
        return max(gpus, key=lambda gpu: gpu.memory_free_bytes, default=None)
    return next(iter(gpus), None)


def _torch_uses_gpus() -> bool:
    import torch

    return bool(torch.cuda.is_available())

"""Where a stage runs: on which device, and in which process. Rules only; nothing is started here.

A device is never replaced by another one. Whether a model gets a process of its own follows from a stated rule and is
recorded with its result.
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
            suggestion=f"Choose the device {model.devices[0]}.",
            model=model.name,
            device=device,
        )
    return found

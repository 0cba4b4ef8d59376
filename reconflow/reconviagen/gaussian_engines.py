"""Which engine pictures Gaussians: what `auto` stands for, and whether gsplat can be used here. Renders nothing."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from contextlib import redirect_stdout

from reconflow.errors import GpuUnavailableError, ModelUnavailableError
from reconflow.reconviagen.options import GaussianEngine


def choose_engine(asked: GaussianEngine, device: str) -> GaussianEngine:
    """Return the engine: what was asked for, or what `auto` stands for here.

    That is gsplat where the networks compute on a GPU and gsplat can be used, and numba elsewhere.

    Args:
        asked: By the user.
        device: `cpu` or `cuda`, what the networks compute on.

    Raises:
        GpuUnavailableError: gsplat was asked for beside the device cpu.
        ModelUnavailableError: gsplat was asked for and cannot be used here.
    """
    if asked is GaussianEngine.AUTO:
        usable = device != "cpu" and gsplat_fault() is None
        return GaussianEngine.GSPLAT if usable else GaussianEngine.NUMBA
    if asked is GaussianEngine.GSPLAT:
        if device == "cpu":
            raise GpuUnavailableError(
                "The engine gsplat computes on a GPU, and the device is the CPU.",
                suggestion="Choose the engine numba or auto for Gaussians, or the device cuda.",
                engine=asked.value,
            )
        require_gsplat()
    return asked


def require_gsplat() -> None:
    """Refuse to go on where gsplat cannot be used.

    Raises:
        ModelUnavailableError: It is not installed, or its CUDA code is not there.
    """
    if fault := gsplat_fault():
        raise ModelUnavailableError(
            f"The engine gsplat cannot be used: {fault}.",
            suggestion="Install gsplat where there is a CUDA toolkit (nvcc), with which it compiles its CUDA code, or "
            "choose the engine numba.",
            engine=GaussianEngine.GSPLAT.value,
        )


def gsplat_fault() -> str | None:
    """Return why gsplat cannot be used here; None when it can. It may compile its CUDA code first, for minutes."""
    if importlib.util.find_spec("gsplat") is None:
        return "it is not installed"
    try:
        with redirect_stdout(sys.stderr):  # it tells of itself, where others expect results
            backend = importlib.import_module("gsplat.cuda._backend")
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return f"its CUDA code cannot be loaded ({type(error).__name__})"
    return None if getattr(backend, "_C", None) is not None else "its CUDA code is not compiled"

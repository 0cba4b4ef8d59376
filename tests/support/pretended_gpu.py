"""A GPU that is not there: tensors that say they are on CUDA, are computed on the CPU, and may not meet the CPU's.

What would fail on a GPU because a tensor was made or left on the wrong device fails here as well, and results are
those of the CPU's kernels. Nothing is learned about CUDA's own kernels, their rounding, speed or memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

DEVICE = "privateuseone"
_TAKE_CPU_INDICES = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}
"""These take indices on the CPU as well, their second argument, when all else is on the GPU."""


class PretendedTensor(torch.Tensor):
    """A tensor on the pretended GPU; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Self:
        """Wrap values."""
        wrapped: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=torch.device(DEVICE, 0), requires_grad=held.requires_grad,
        )  # fmt: skip
        wrapped.held = held
        return wrapped

    def __repr__(self, *, tensor_contents: object = None) -> str:
        """Return a text for people."""
        return f"PretendedTensor({self.held})"

    def tolist(self) -> Any:
        """Return the values, which PyTorch does for no subclass."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute outside of the mode, as when an object is deleted."""
        return _compute(func, args, kwargs or {})


class _Module(_DummyBackendModule):
    """What PyTorch asks of a device's module."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return what it can be asked to round to."""
        return [torch.bfloat16, torch.float16]


class _PretendedGpu(TorchDispatchMode):
    """Takes every call of PyTorch's kernels."""

    def __enter__(self) -> Self:
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(..., device=...) asks the device for room
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
    device = kwargs.get("device")
    to_gpu = torch.device(device).type == DEVICE if device is not None else bool(on_gpu)
    strays = _on_cpu(func, args, kwargs)
    if on_gpu and strays:
        shapes = [tuple(tensor.shape) for tensor in strays]
        raise RuntimeError(f"{func}: expected all tensors on the same device, found some on the CPU: {shapes}")
    if func is torch.ops.aten._fused_sdp_choice.default:
        return 0  # the plain formula: flash kernels have an operator of their own on each device
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": None}
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    result = func(*_held(args), **_held(kwargs))
    if func._schema.is_mutable and not func._schema.name.startswith("aten::_"):
        return kwargs.get("out", args[0] if args else result)
    return _wrap(result, to_gpu)


def _on_cpu(func: Any, args: Any, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that would have to be moved for CUDA: not single numbers, nor what is copied."""
    if func is torch.ops.aten.copy_.default:
        return []
    if func in _TAKE_CPU_INDICES:
        args = (args[0], *args[2:])
    values = tree_flatten((args, kwargs))[0]
    tensors = [value for value in values if isinstance(value, torch.Tensor) and value.dim() > 0]
    return [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor)]


def _held(values: Any) -> Any:
    return tree_map(lambda value: value.held if isinstance(value, PretendedTensor) else value, values)


def _wrap(values: Any, to_gpu: bool) -> Any:
    if not to_gpu:
        return values
    return tree_map(lambda value: PretendedTensor(value) if isinstance(value, torch.Tensor) else value, values)


@contextmanager
def pretended_gpu() -> Iterator[str]:
    """Let a device be there for the rest of the process, and work for the length of the block; yields its name.

    CUDA's module, which callers use for every device but the CPU, has nothing to wait for.
    """
    _setup_privateuseone_for_python_backend(backend_module=_Module())
    with _PretendedGpu(), patch.object(torch.cuda, "synchronize"):
        yield DEVICE

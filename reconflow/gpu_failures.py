"""How CUDA says that a GPU's memory is full. Does not import PyTorch, which takes seconds."""

from __future__ import annotations

from typing import Final

_FULL: Final = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
)
"""What CUDA and its libraries say; PyTorch passes that on as a plain RuntimeError."""


def is_full_gpu(error: Exception) -> bool:
    """Return whether an error says that a GPU's memory is full."""
    is_torch_s_own = "OutOfMemoryError" in {kind.__name__ for kind in type(error).__mro__}
    return is_torch_s_own or any(text in str(error) for text in _FULL)

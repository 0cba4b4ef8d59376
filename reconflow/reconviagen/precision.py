"""With how many digits CUDA computes in float32. The precision of the networks' weights is not decided here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from torch import backends

_CUDNN: Final[Any] = backends.cudnn  # which hides what it holds from type checkers


@contextmanager
def full_float32() -> Iterator[None]:
    """Let convolutions and matrix products of float32 tensors on CUDA use all 24 bits within the block.

    PyTorch's default lets cuDNN round their inputs to the 11 bits of TF32. Nothing changes on the CPU.
    """
    convolutions, products = _CUDNN.conv.fp32_precision, backends.cuda.matmul.fp32_precision
    _CUDNN.conv.fp32_precision = backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        _CUDNN.conv.fp32_precision, backends.cuda.matmul.fp32_precision = convolutions, products

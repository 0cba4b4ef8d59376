"""Functions of every number by itself: on the CPU their result does not depend on the number of threads.

A tensor is divided among threads anywhere, and the last numbers of a part that fill no vector register are computed by
other instructions, whose last bit differs for GELU, SiLU, softplus and sigmoid. So threads get whole vectors here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

_VECTOR = 64
"""Numbers that any instruction set takes in one go at most; twice those of a register."""
_GRAIN = 32768
"""PyTorch gives a thread no fewer numbers."""
_GELU_GRAIN = 1
"""Of GELU it gives every thread a part, however small."""


def elementwise(function: Callable[[Tensor], Tensor], x: Tensor, grain: int = _GRAIN) -> Tensor:
    """Apply a function of single numbers to all of a tensor.

    Args:
        function: The function.
        x: Any shape.
        grain: PyTorch gives a thread no fewer numbers.
    """
    if x.device.type != "cpu":
        return function(x)
    flat, threads, numbers = x.reshape(-1), torch.get_num_threads(), x.numel()
    grains = numbers // grain
    whole = numbers - numbers % (threads * _VECTOR) if grains >= threads else grains * grain
    if threads == 1 or whole in (0, numbers):
        return function(flat).view(x.shape)
    return torch.cat([function(flat[:whole]), function(flat[whole:])]).view(x.shape)


def silu(x: Tensor) -> Tensor:
    """SiLU."""
    return elementwise(F.silu, x)


def sigmoid(x: Tensor) -> Tensor:
    """The logistic function."""
    return elementwise(torch.sigmoid, x)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return elementwise(F.softplus, x)


class SiLU(nn.Module):
    """SiLU as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform every number."""
        return silu(x)


class TanhGELU(nn.Module):
    """GELU in its approximation by tanh."""

    def forward(self, x: Tensor) -> Tensor:
        """Transform every number."""
        return elementwise(_tanh_gelu, x, _GELU_GRAIN)


def _tanh_gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")

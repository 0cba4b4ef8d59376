"""The linear layer of all networks: on the CPU its result does not depend on the number of threads.

Matrix products in float32 are divided among threads, and ragged parts are summed in another order than whole ones.
Measured with 1 to 16 threads, only products of few rows, or of a width that 16 does not divide, differ (in the last
bit). Those, and products too small to gain from a second thread, are computed by one thread. In the published networks
they are narrow output layers and the modulation by the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

_WHOLE_COLUMNS = 16
_FEW_ROWS = 64
_SMALL_PRODUCT = 2**22
"""Multiplications; about a tenth of a millisecond of one core."""


class Linear(nn.Linear):
    """A linear layer with reproducible results; see the module."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base class
        """Transform [..., in] to [..., out]."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x · weightᵀ + bias with reproducible results; see the module.

    Args:
        x: [..., in].
        weight: [out, in].
        bias: [out].

    Returns:
        [..., out].
    """
    product: Tensor
    if x.device.type == "cpu" and _needs_one_thread(x, len(weight)):
        with one_thread():
            product = F.linear(x, weight, bias)
    else:
        product = F.linear(x, weight, bias)
    return product


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one CPU thread inside the block; the number before holds again after it."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _needs_one_thread(x: Tensor, out_channels: int) -> bool:
    rows = x.shape[:-1].numel()
    return bool(out_channels % _WHOLE_COLUMNS) or rows < _FEW_ROWS or x.numel() * out_channels < _SMALL_PRODUCT

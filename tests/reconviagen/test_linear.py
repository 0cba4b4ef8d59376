"""Results that do not depend on the number of CPU threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from reconflow.reconviagen.attention import CrossBlock
from reconflow.reconviagen.linear import Linear, linear, one_thread
from reconflow.reconviagen.structure_decoder import SparseStructureDecoder
from reconflow.reconviagen.vit import ViTBlock


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results_by_threads(compute: Callable[[], Tensor]) -> list[Tensor]:
    results = []
    for threads in (1, 2, 3, 4, 7):
        torch.set_num_threads(threads)
        with torch.no_grad():
            results.append(compute())
    return results


@pytest.mark.parametrize("rows", [1, 7, 28, 62, 512])
@pytest.mark.parametrize("channels", [(48, 24), (24, 72), (384, 101), (96, 192), (1024, 9)])
def test_a_linear_layer_gives_the_same_bits_with_any_number_of_threads(rows: int, channels: tuple[int, int]) -> None:
    layer, x = Linear(*channels), torch.randn(rows, channels[0])
    first, *others = results_by_threads(lambda: layer(x))
    assert all(torch.equal(first, other) for other in others)
    torch.testing.assert_close(first, x @ layer.weight.T + layer.bias)


@pytest.mark.parametrize("channels", [36, 64])
def test_blocks_give_the_same_bits_with_any_number_of_threads(channels: int) -> None:
    x, context = torch.randn(2, 42, channels), torch.randn(2, 31, 40)
    cross, vit = CrossBlock(channels, 40, 4, qk_rms_norm=True), ViTBlock(channels, 4, eps=1e-5, qk_norm=True)
    first, *others = results_by_threads(lambda: vit(cross(x, context)))
    assert all(torch.equal(first, other) for other in others)


def test_the_decoder_gives_the_same_bits_with_any_number_of_threads() -> None:
    decoder, latent = SparseStructureDecoder(1, 4, 1, (32, 16, 8), 1), torch.randn(1, 4, 6, 6, 6)
    first, *others = results_by_threads(lambda: decoder(latent))
    assert all(torch.equal(first, other) for other in others)


def test_one_thread_holds_inside_its_block_only_even_after_an_error() -> None:
    torch.set_num_threads(3)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(RuntimeError):
        linear(torch.ones(2, 3), torch.ones(2, 4))
    assert torch.get_num_threads() == 3

"""Attention, its contexts and its blocks, against answers computed another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reconflow.errors import ModelError
from reconflow.reconviagen.attention import (
    CrossAttention,
    CrossBlock,
    GuidedContext,
    KeysValues,
    LayerNorm32,
    ModulatedCrossBlock,
    RMSNorm,
    SelfAttention,
    ZeroContext,
    convert_torso,
    plain_layer_norm,
    prepare_contexts,
    torso_dtype,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def test_self_attention_is_the_softmax_of_scaled_products() -> None:
    attention, x = SelfAttention(12, 3, qk_rms_norm=True), torch.randn(2, 5, 12)
    q, k, v = (part.view(2, 5, 3, 4) for part in attention.to_qkv(x).split(12, dim=-1))
    q, k = (part / part.norm(dim=-1, keepdim=True) * 2 for part in (q, k))
    weights = torch.softmax(torch.einsum("blhd,bthd->bhlt", q, k) / 2, dim=-1)
    expected = attention.to_out(torch.einsum("bhlt,bthd->blhd", weights, v).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x), expected)


def test_a_context_of_zeros_is_answered_without_attention() -> None:
    attention, x = CrossAttention(8, 6, 2), torch.randn(2, 5, 8)
    for tokens in (1, 7):
        torch.testing.assert_close(attention(x, ZeroContext()), attention(x, torch.zeros(2, tokens, 6)))


def test_several_views_are_averaged() -> None:
    attention, x = CrossAttention(8, 6, 2), torch.randn(2, 5, 8)
    views = [torch.randn(2, tokens, 6) for tokens in (3, 4, 3)]
    expected = sum(attention(x, view) for view in views) / 3
    torch.testing.assert_close(attention(x, views), expected)
    with pytest.raises(ModelError, match="without views"):
        attention(x, [])


def contexts() -> list[Tensor | list[Tensor]]:
    return [torch.randn(2, 3, 6), [torch.randn(2, 3, 6), torch.randn(2, 4, 6)]]


@pytest.mark.parametrize("which", [0, 1])
def test_a_guided_context_gives_both_passes_at_once(which: int) -> None:
    block, x, time = ModulatedCrossBlock(8, 6, 2, qk_rms_norm=True), torch.randn(2, 5, 8), torch.randn(2, 8)
    positive = contexts()[which]
    both = block(torch.cat([x, x]), GuidedContext(positive), torch.cat([time, time]))
    torch.testing.assert_close(both[:2], block(x, positive, time))
    torch.testing.assert_close(both[2:], block(x, ZeroContext(), time))


@pytest.mark.parametrize("which", [0, 1])
def test_prepared_contexts_change_nothing(which: int) -> None:
    blocks, x, context = [CrossBlock(8, 6, 2), CrossBlock(8, 6, 2)], torch.randn(2, 5, 8), contexts()[which]
    for guided in (False, True):
        given = GuidedContext(context) if guided else context
        tokens = torch.cat([x, x]) if guided else x
        for block, prepared in zip(blocks, prepare_contexts(blocks, given), strict=True):
            assert torch.equal(block(tokens, prepared), block(tokens, given))
    assert isinstance(prepare_contexts(blocks, ZeroContext())[0], ZeroContext)
    assert isinstance(prepare_contexts(blocks, torch.zeros(1, 2, 6))[0], KeysValues)


def test_items_of_a_batch_do_not_see_each_other() -> None:
    block, x, time = ModulatedCrossBlock(8, 6, 2), torch.randn(3, 5, 8), torch.randn(3, 8)
    context = torch.randn(3, 4, 6)
    together = block(x, context, time)
    for item in range(3):
        one = slice(item, item + 1)
        torch.testing.assert_close(together[one], block(x[one], context[one], time[one]))


def test_norms_compute_in_float32_and_keep_the_dtype() -> None:
    x = (1000 * torch.randn(2, 3, 4)).half()
    for norm in (LayerNorm32(4, eps=1e-6), RMSNorm(4, 3)):
        assert norm(x).dtype == torch.float16
        torch.testing.assert_close(norm(x), norm(x.float()).half())
    torch.testing.assert_close(plain_layer_norm(x, 1e-6), plain_layer_norm(x.float(), 1e-6).half())


def test_a_torso_of_half_precision_keeps_its_norms() -> None:
    block = ModulatedCrossBlock(8, 6, 2, qk_rms_norm=True)
    convert_torso([block], torch.float16)
    kept = {name for name, parameter in block.named_parameters() if parameter.dtype == torch.float32}
    assert kept == {"norm2.weight", "norm2.bias", "self_attn.q_rms_norm.gamma", "self_attn.k_rms_norm.gamma"}
    assert torso_dtype(block) == torch.float16
    convert_torso([block], torch.bfloat16)
    x, context, time = (torch.randn(s).bfloat16() for s in ((1, 5, 8), (1, 4, 6), (1, 8)))
    assert block(x, context, time).dtype == torch.bfloat16


def test_gradients_flow_through_a_block() -> None:
    block = ModulatedCrossBlock(4, 3, 2, mlp_ratio=1, qk_rms_norm=True)
    x, context, time = (torch.randn(s, requires_grad=True) for s in ((1, 3, 4), (1, 2, 3), (1, 4)))
    block(x, context, time).square().sum().backward()
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in (x, context, time))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ModelError, match="3 attention heads do not divide 8 channels"):
        SelfAttention(8, 3)

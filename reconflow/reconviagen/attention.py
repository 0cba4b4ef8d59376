"""Attention of the flow networks and conditioners, what it may attend to, and the blocks built of it.

Exact softmax attention through PyTorch's SDPA, which picks a flash kernel where the device has one. Norms compute in
float32 and return the dtype they were given, so that a torso of half precision keeps its norm parameters in float32.
Everything here works on dense token tensors [batch, tokens, channels]; vision transformers live in `vit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from reconflow.errors import ModelError
from reconflow.reconviagen.elementwise import TanhGELU
from reconflow.reconviagen.linear import Linear


class LayerNorm32(nn.LayerNorm):
    """Layer norm over channels, computed in float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base class
        """Normalise [..., C]."""
        normed: Tensor = F.layer_norm(input.float(), self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.to(input.dtype)


def plain_layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm over the channels of [..., C] without parameters, computed in float32."""
    normed: Tensor = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    return normed.to(x.dtype)


class RMSNorm(nn.Module):
    """Queries or keys scaled to unit length per head, times a learned gain and sqrt(head width); in float32."""

    def __init__(self, head_channels: int, num_heads: int) -> None:
        super().__init__()
        self.scale = head_channels**0.5
        self.gamma = nn.Parameter(torch.ones(num_heads, head_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [..., heads, head channels]."""
        normed: Tensor = F.normalize(x.float(), dim=-1, eps=1e-12) * self.gamma * self.scale
        return normed.to(x.dtype)


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Split a fused projection [..., parts·C] into `parts` tensors [..., heads, C / heads]."""
    return x.reshape(*x.shape[:-1], parts, num_heads, -1).unbind(-3)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention with scale 1/sqrt(d) and no mask.

    On the CPU the rows of a head are laid side by side first: their copy costs less than reading them far apart.

    Args:
        query: [B, L, heads, d].
        key: [B, T, heads, d].
        value: [B, T, heads, d].

    Returns:
        [B, L, heads·d].
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if query.device.type == "cpu":
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class KeysValues:
    """A context already projected for one cross-attention: keys and values [B, T, heads, d]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True)
class ZeroContext:
    """A context of zeros, of any number of tokens and views: the negative condition of guidance.

    All its values are alike, so every query gets the same answer and nothing needs to be attended to.
    """


@dataclass(frozen=True)
class GuidedContext:
    """The first half of the batch attends to `positive`, the second half to zeros: both passes of guidance at once."""

    positive: Tensor | KeysValues | Sequence[Tensor | KeysValues]


Context = Tensor | KeysValues | ZeroContext | GuidedContext | Sequence[Tensor | KeysValues]
"""What a cross-attention may attend to: tokens [B, T, channels], one tensor for each of several views (the answers are
averaged), the same already projected, or the contexts of guidance."""


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other, optionally with RMS norm on queries and keys."""

    def __init__(self, channels: int, num_heads: int, *, qk_rms_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = check_heads(channels, num_heads)
        self.to_qkv = Linear(channels, 3 * channels)
        self.q_rms_norm, self.k_rms_norm = query_key_norms(channels, num_heads, wanted=qk_rms_norm)
        self.to_out = Linear(channels, channels)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens [..., C], each [..., heads, C / heads], normed where the network does."""
        query, key, value = split_heads(self.to_qkv(x), 3, self.num_heads)
        return self.q_rms_norm(query), self.k_rms_norm(key), value

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each item of [B, L, C]."""
        attended: Tensor = self.to_out(attend(*self.project(x)))
        return attended


class CrossAttention(nn.Module):
    """Multi-head attention of tokens to a context of another width."""

    def __init__(self, channels: int, context_channels: int, num_heads: int, *, qk_rms_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = check_heads(channels, num_heads)
        self.to_q = Linear(channels, channels)
        self.to_kv = Linear(context_channels, 2 * channels)
        self.q_rms_norm, self.k_rms_norm = query_key_norms(channels, num_heads, wanted=qk_rms_norm)
        self.to_out = Linear(channels, channels)

    def project(self, context: Tensor) -> KeysValues:
        """Keys and values of context tokens [B, T, context channels]; they serve every step of a sampler."""
        key, value = split_heads(self.to_kv(context), 2, self.num_heads)
        return KeysValues(self.k_rms_norm(key), value)

    def prepare(self, context: Context) -> Context:
        """Project whatever of a context is still tokens."""
        if isinstance(context, Tensor):
            return self.project(context)
        if isinstance(context, GuidedContext):
            prepared = self.prepare(context.positive)
            assert not isinstance(prepared, (ZeroContext, GuidedContext))
            return GuidedContext(prepared)
        if isinstance(context, (KeysValues, ZeroContext)):
            return context
        return [self.project(view) if isinstance(view, Tensor) else view for view in context]

    def answer_to_zeros(self) -> Tensor:
        """What every query gets from a context of zeros, [C]: the bias of the values, projected."""
        bias: Tensor = self.to_kv.bias
        answer: Tensor = self.to_out(bias.chunk(2)[1])
        return answer

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Attend from [B, L, C] to a context; see `Context`."""
        if isinstance(context, ZeroContext):
            return self.answer_to_zeros().expand(x.shape)
        if isinstance(context, GuidedContext):
            positive, negative = x.chunk(2)
            return torch.cat([self(positive, context.positive), self(negative, ZeroContext())])
        query = self.q_rms_norm(split_heads(self.to_q(x), 1, self.num_heads)[0])
        views = [context] if isinstance(context, (Tensor, KeysValues)) else context
        total: Tensor | None = None
        for view in views:
            projected = self.project(view) if isinstance(view, Tensor) else view
            attended = attend(query, projected.keys, projected.values)
            total = attended if total is None else total + attended
        if total is None:
            raise ModelError("A condition without views was given.", suggestion="Supply at least one view.")
        mean: Tensor = self.to_out(total / len(views) if len(views) > 1 else total)
        return mean


class FeedForward(nn.Module):
    """Linear, GELU (tanh), linear."""

    def __init__(self, channels: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.mlp = nn.Sequential(Linear(channels, hidden), TanhGELU(), Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token of [..., C]."""
        transformed: Tensor = self.mlp(x)
        return transformed


class CrossBlock(nn.Module):
    """Self-attention, cross-attention and MLP, each added to the tokens; nothing depends on a time."""

    def __init__(
        self,
        channels: int,
        context_channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
    ) -> None:
        super().__init__()
        self.norm2 = LayerNorm32(channels, eps=1e-6)
        self.self_attn = SelfAttention(channels, num_heads, qk_rms_norm=qk_rms_norm)
        self.cross_attn = CrossAttention(channels, context_channels, num_heads, qk_rms_norm=qk_rms_norm_cross)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Transform tokens [B, L, C] by a context."""
        x = x + self.self_attn(plain_layer_norm(x, 1e-6))
        x = x + self.cross_attn(self.norm2(x), context)
        changed: Tensor = x + self.mlp(plain_layer_norm(x, 1e-6))
        return changed


class ModulatedCrossBlock(CrossBlock):
    """A `CrossBlock` whose self-attention and MLP are shifted, scaled and gated by the time's embedding.

    With `share_mod` the network computes the six modulation vectors once for all its blocks and hands them in.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        qk_rms_norm: bool = False,
        qk_rms_norm_cross: bool = False,
        share_mod: bool = False,
    ) -> None:
        super().__init__(
            channels,
            context_channels,
            num_heads,
            mlp_ratio,
            qk_rms_norm=qk_rms_norm,
            qk_rms_norm_cross=qk_rms_norm_cross,
        )
        self.adaLN_modulation = None if share_mod else modulation_network(channels)

    def forward(self, x: Tensor, context: Context, embedded_time: Tensor | None = None) -> Tensor:
        """Transform tokens by a context at a time.

        Args:
            x: [B, L, C].
            context: See `Context`; of the batch B.
            embedded_time: [B, C]; with `share_mod` the shared modulation [B, 6·C].
        """
        assert embedded_time is not None
        modulation = embedded_time if self.adaLN_modulation is None else self.adaLN_modulation(embedded_time)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation[:, None].chunk(6, dim=-1)
        x = x + gate_a * self.self_attn(plain_layer_norm(x, 1e-6) * (1 + scale_a) + shift_a)
        x = x + self.cross_attn(self.norm2(x), context)
        changed: Tensor = x + gate_m * self.mlp(plain_layer_norm(x, 1e-6) * (1 + scale_m) + shift_m)
        return changed


def modulation_network(channels: int) -> nn.Sequential:
    """The network from a time's embedding to shift, scale and gate of attention and MLP."""
    return nn.Sequential(nn.SiLU(), Linear(channels, 6 * channels))


def prepare_contexts(blocks: Iterable[nn.Module], context: Context) -> list[Context]:
    """Project a context for each block's cross-attention, once for all steps of a sampler.

    Args:
        blocks: `CrossBlock`s.
        context: In the dtype of the blocks.

    Returns:
        One context for each block, with keys and values instead of tokens.
    """
    return [block.cross_attn.prepare(context) for block in blocks if isinstance(block, CrossBlock)]


def cast_context(context: Context, dtype: torch.dtype) -> Context:
    """Bring the tokens of a context to a dtype; what is projected has the right one."""
    if isinstance(context, Tensor):
        return context.to(dtype)
    if isinstance(context, GuidedContext):
        positive = cast_context(context.positive, dtype)
        assert not isinstance(positive, (ZeroContext, GuidedContext))
        return GuidedContext(positive)
    if isinstance(context, (KeysValues, ZeroContext)):
        return context
    return [view.to(dtype) if isinstance(view, Tensor) else view for view in context]


def convert_torso(modules: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Convert the parameters of linear and convolution layers in place; those of norms stay float32."""
    for module in modules:
        for part in module.modules():
            if not isinstance(part, (nn.LayerNorm, nn.GroupNorm, RMSNorm)):
                for parameter in part.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)


def torso_dtype(module: nn.Module) -> torch.dtype:
    """The dtype in which a torso computes: that of its first linear or convolution layer."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv3d)):
            return part.weight.dtype
    return torch.float32


def heads_from(channels: int, num_heads: int | None, num_head_channels: int | None = 64) -> int:
    """The number of heads that a configuration asks for, by number or by the width of a head."""
    return num_heads if num_heads is not None else channels // (num_head_channels or 64)


def check_heads(channels: int, num_heads: int) -> int:
    """Return the number of heads; refuse one that does not divide the width."""
    if num_heads < 1 or channels % num_heads:
        raise ModelError(
            f"{num_heads} attention heads do not divide {channels} channels.",
            suggestion="Check num_heads in the model's configuration file.",
            channels=channels,
            num_heads=num_heads,
        )
    return num_heads


def query_key_norms(channels: int, num_heads: int, *, wanted: bool) -> tuple[nn.Module, nn.Module]:
    """RMS norms for queries and keys, or modules that do nothing and have no parameters."""
    if not wanted:
        return nn.Identity(), nn.Identity()
    return RMSNorm(channels // num_heads, num_heads), RMSNorm(channels // num_heads, num_heads)

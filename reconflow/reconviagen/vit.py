"""Vision transformer blocks as DINOv2 and VGGT use them, and rotary positions in the plane. No whole network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reconflow.reconviagen.attention import attend, check_heads, split_heads
from reconflow.reconviagen.linear import Linear

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise_images(images: Tensor) -> Tensor:
    """Shift and scale RGB images [..., 3, H, W] in [0, 1] by the mean and deviation of ImageNet."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean) / std


class RotaryTable:
    """Cosines and sines that rotate queries and keys by the row and the column of their token.

    Args:
        positions: [L, 2] rows and columns, integers.
        head_channels: Width of a head, divisible by 4: the first half turns with the row, the second with the column.
        base: The slowest frequency is 1/base.
    """

    def __init__(self, positions: Tensor, head_channels: int, base: float = 100.0) -> None:
        quarter = head_channels // 4
        exponents = torch.arange(quarter, dtype=torch.float32, device=positions.device) / quarter
        angles = positions.to(torch.float32)[..., None] / base**exponents
        self.cos, self.sin = angles.cos()[:, None], angles.sin()[:, None]

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate [B, L, heads, head channels]; computed in float32, returned in the dtype given."""
        first, second = x.float().reshape(*x.shape[:-1], 2, 2, -1).unbind(-2)
        turned = torch.stack([first * self.cos - second * self.sin, second * self.cos + first * self.sin], dim=-2)
        return turned.flatten(-3).to(x.dtype)


class ViTAttention(nn.Module):
    """Self-attention with a fused projection, optionally with layer norms on queries and keys."""

    def __init__(self, channels: int, num_heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = check_heads(channels, num_heads)
        head_channels = channels // num_heads
        self.qkv = Linear(channels, 3 * channels)
        self.q_norm = nn.LayerNorm(head_channels, eps=1e-5) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(head_channels, eps=1e-5) if qk_norm else nn.Identity()
        self.proj = Linear(channels, channels)

    def forward(self, x: Tensor, rotary: RotaryTable | None = None) -> Tensor:
        """Attend within each item of [B, L, C]."""
        query, key, value = split_heads(self.qkv(x), 3, self.num_heads)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotary.rotate(query), rotary.rotate(key)
        attended: Tensor = self.proj(attend(query.to(value.dtype), key.to(value.dtype), value))
        return attended


class ViTMlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, channels: int, hidden: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, channels if out_channels is None else out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Transform every token of [..., C]."""
        transformed: Tensor = self.fc2(self.act(self.fc1(x)))
        return transformed


class LayerScale(nn.Module):
    """A learned gain per channel."""

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        """Scale [..., C]."""
        return x * self.gamma


class ViTBlock(nn.Module):
    """Attention and MLP, each of the normed tokens, scaled per channel and added."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        *,
        eps: float,
        qk_norm: bool = False,
        init_values: float = 0.01,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attn = ViTAttention(channels, num_heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(channels, init_values)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = ViTMlp(channels, int(channels * mlp_ratio))
        self.ls2 = LayerScale(channels, init_values)

    def forward(self, x: Tensor, rotary: RotaryTable | None = None) -> Tensor:
        """Transform tokens [B, L, C]."""
        x = x + self.ls1(self.attn(self.norm1(x), rotary))
        changed: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return changed

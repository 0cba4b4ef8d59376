"""The two networks that fuse VGGT's and DINOv2's tokens of all views into the conditions of the flow networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from reconflow.errors import ValidationFailedError
from reconflow.reconviagen.attention import CrossBlock, convert_torso, heads_from, torso_dtype
from reconflow.reconviagen.configuration import refuse_other_than
from reconflow.reconviagen.linear import Linear

LAYERS = (4, 11, 17, 23)
"""Blocks of VGGT's aggregator whose tokens are read, one for each block of the conditioners."""
PREFIX_TOKENS = 5
"""Tokens before the patches: camera and registers of VGGT, class token and registers of DINOv2."""


class ModulatedMultiViewCond(nn.Module):
    """Learned queries that read the patch tokens of all views: the condition of the sparse structure."""

    def __init__(
        self,
        channels: int = 1024,
        ctx_channels: int = 3072,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4.0,
        attn_mode: str = "full",
        qk_rms_norm: bool = True,  # noqa: FBT001, FBT002 - the official configuration's arguments
        qk_rms_norm_cross: bool = False,  # noqa: FBT001, FBT002
        share_mod: bool = False,  # noqa: ARG002, FBT001, FBT002 - there is no modulation to share
        num_init_tokens: int = 4096,
        use_fp16: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        super().__init__()
        refuse_other_than("attn_mode", attn_mode, "full")
        self.ctx_channels = ctx_channels
        self.multiview_cond_tokens = nn.Parameter(torch.randn(1, num_init_tokens, channels) / channels**0.5)
        heads = heads_from(channels, num_heads, num_head_channels)
        self.cond_blocks = nn.ModuleList(
            CrossBlock(
                channels,
                ctx_channels,
                heads,
                mlp_ratio,
                qk_rms_norm=qk_rms_norm,
                qk_rms_norm_cross=qk_rms_norm_cross,
            )
            for _ in LAYERS
        )
        if use_fp16:
            self.convert_to(torch.float16)

    def convert_to(self, dtype: torch.dtype) -> None:
        """Convert the torso and the learned queries in place; norms stay float32."""
        convert_torso([self.cond_blocks], dtype)
        self.multiview_cond_tokens.data = self.multiview_cond_tokens.data.to(dtype)

    def forward(self, vggt_tokens: Mapping[int, Tensor], image_features: Tensor) -> Tensor:
        """Fuse the views.

        Args:
            vggt_tokens: For each of `LAYERS` the aggregator's output [B, N, 5 + patches, 2·E].
            image_features: [B, N, 5 + patches, C'] from DINOv2.

        Returns:
            [B, queries, channels] in the dtype of the torso.

        Raises:
            ValidationFailedError: The tokens do not fit each other or the network.
        """
        check_tokens(vggt_tokens, image_features, self.ctx_channels)
        dtype = torso_dtype(self.cond_blocks)
        x = self.multiview_cond_tokens.expand(len(image_features), -1, -1)
        patches = image_features[:, :, PREFIX_TOKENS:]
        for block, layer in zip(self.cond_blocks, LAYERS, strict=True):
            context = torch.cat([vggt_tokens[layer][:, :, PREFIX_TOKENS:], patches.to(vggt_tokens[layer])], dim=-1)
            x = block(x, context.flatten(1, 2).to(dtype))
        return x


class ModulatedSLATMultiViewCond(nn.Module):
    """Linear layers over the tokens of every view for itself: the condition of the structured latents."""

    def __init__(
        self,
        channels: int = 1024,
        ctx_channels: int = 3072,
        use_fp16: bool = False,  # noqa: FBT001, FBT002 - the official configuration's argument
    ) -> None:
        super().__init__()
        self.ctx_channels = ctx_channels
        self.linear_blocks = nn.ModuleList(nn.Sequential(Linear(ctx_channels, channels), nn.ReLU()) for _ in LAYERS)
        if use_fp16:
            self.convert_to(torch.float16)

    def convert_to(self, dtype: torch.dtype) -> None:
        """Convert all parameters in place."""
        convert_torso([self.linear_blocks], dtype)

    def forward(self, vggt_tokens: Mapping[int, Tensor], image_features: Tensor) -> list[Tensor]:
        """Fuse the features of each view.

        Args:
            vggt_tokens: For each of `LAYERS` the aggregator's output [B, N, L, 2·E].
            image_features: [B, N, L, channels] from DINOv2.

        Returns:
            N conditions [B, L, channels], one for each view, in the dtype of the torso.

        Raises:
            ValidationFailedError: The tokens do not fit each other or the network.
        """
        check_tokens(vggt_tokens, image_features, self.ctx_channels)
        dtype = torso_dtype(self.linear_blocks)
        features = image_features.to(dtype)
        fused = features
        for block, layer in zip(self.linear_blocks, LAYERS, strict=True):
            fused = block(torch.cat([vggt_tokens[layer].to(dtype), fused], dim=-1)) + features
        return list(fused.unbind(1))


def check_tokens(vggt_tokens: Mapping[int, Tensor], image_features: Tensor, ctx_channels: int) -> None:
    """Refuse tokens that are missing, of different views, or of other widths than the network reads."""
    missing = [layer for layer in LAYERS if layer not in vggt_tokens]
    shapes = [tuple(vggt_tokens[layer].shape) for layer in LAYERS if layer in vggt_tokens]
    width = ctx_channels - image_features.shape[-1]
    wanted = (*image_features.shape[:-1], width)
    if missing or image_features.ndim != 4 or any(shape != wanted for shape in shapes):
        raise ValidationFailedError(
            f"VGGT tokens of the shapes {shapes} do not fit image features {tuple(image_features.shape)} "
            f"in a network that reads {ctx_channels} channels.",
            suggestion=f"Give [B, N, tokens, channels] of the same views for each of the blocks {list(LAYERS)}.",
            missing=missing,
        )

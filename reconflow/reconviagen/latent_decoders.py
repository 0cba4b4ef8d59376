"""The decoders of the structured latent: a trunk of windowed attention, and what makes Gaussians or cubes of it.

What the Gaussians' numbers mean is in `gaussian_parameters`, how cubes become a mesh in `mesh_extraction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reconflow.errors import ModelError, ValidationFailedError
from reconflow.reconviagen.attention import (
    FeedForward,
    SelfAttention,
    convert_torso,
    heads_from,
    plain_layer_norm,
    torso_dtype,
)
from reconflow.reconviagen.configuration import refuse_other_than
from reconflow.reconviagen.embeddings import absolute_position_embedding
from reconflow.reconviagen.gaussian_parameters import (
    GaussianConfiguration,
    GaussianParameters,
    offset_perturbation,
)
from reconflow.reconviagen.linear import Linear
from reconflow.reconviagen.mesh_extraction import feature_channels
from reconflow.reconviagen.sparse_attention import full_attention, window_attention
from reconflow.reconviagen.sparse_conv import PointwiseConv3d, SparseGroupNorm32, SubmanifoldConv3d, silu
from reconflow.reconviagen.sparse_tensor import SparseTensor


class WindowBlock(nn.Module):
    """Attention within windows and an MLP, each added to the features; no norm has parameters.

    Args:
        window: Window size and shift in voxels; None attends to the whole batch item.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mlp_ratio: float,
        window: tuple[int, int] | None,
        *,
        qk_rms_norm: bool = False,
    ) -> None:
        super().__init__()
        self.window = window
        self.attn = SelfAttention(channels, num_heads, qk_rms_norm=qk_rms_norm)
        self.mlp = FeedForward(channels, mlp_ratio)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Transform [T, C]."""
        projected = self.attn.project(plain_layer_norm(x.feats, 1e-6))
        if self.window is None:
            attended = full_attention(x.voxels, *projected)
        else:
            attended = window_attention(x.voxels, *projected, *self.window)
        feats = x.feats + self.attn.to_out(attended)
        return x.with_feats(feats + self.mlp(plain_layer_norm(feats, 1e-6)))


class LatentTrunk(nn.Module):
    """What the decoders share: an input layer with position embedding, and blocks with windows shifted by turns."""

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int | None,
        num_head_channels: int | None,
        mlp_ratio: float,
        attn_mode: str,
        window_size: int,
        pe_mode: str,
        *,
        qk_rms_norm: bool,
    ) -> None:
        super().__init__()
        refuse_other_than("attn_mode", attn_mode, "swin", "full")
        refuse_other_than("pe_mode", pe_mode, "ape")
        self.resolution, self.latent_channels, self.model_channels = resolution, latent_channels, model_channels
        heads = heads_from(model_channels, num_heads, num_head_channels)
        self.input_layer = Linear(latent_channels, model_channels)
        shifts = [window_size // 2 * (index % 2) for index in range(num_blocks)]
        self.blocks = nn.ModuleList(
            WindowBlock(
                model_channels,
                heads,
                mlp_ratio,
                (window_size, shift) if attn_mode == "swin" else None,
                qk_rms_norm=qk_rms_norm,
            )
            for shift in shifts
        )

    def convert_to(self, dtype: torch.dtype) -> None:
        """Convert the blocks in place; input and output layer stay float32."""
        convert_torso([self.blocks], dtype)

    def run_trunk(self, latent: SparseTensor) -> SparseTensor:
        """Transform latents [T, latent_channels] to [T, model_channels] in the dtype of the blocks.

        Raises:
            ValidationFailedError: The latents have another width, or voxels lie outside the grid.
        """
        xyz = latent.voxels.coords[:, 1:]
        if latent.feats.shape[1:] != (self.latent_channels,) or int(xyz.min()) < 0 or int(xyz.max()) >= self.resolution:
            raise ValidationFailedError(
                f"Latents of the shape {tuple(latent.feats.shape)} on voxels {int(xyz.min())} to {int(xyz.max())} do "
                "not fit the decoder.",
                suggestion=f"Give {self.latent_channels} channels on voxels 0 to {self.resolution - 1}.",
            )
        embedded = absolute_position_embedding(xyz, self.model_channels)
        x = latent.with_feats((self.input_layer(latent.feats) + embedded).to(torso_dtype(self.blocks)))
        for block in self.blocks:
            x = block(x)
        return x


class SLatGaussianDecoder(LatentTrunk):
    """Latents to Gaussians; the arguments are those of the official configuration.

    Raises:
        ModelError: An argument has a value that no published weights use.
    """

    offset_perturbation: Tensor

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4.0,
        attn_mode: str = "swin",
        window_size: int = 8,
        pe_mode: str = "ape",
        use_fp16: bool = False,  # noqa: FBT001, FBT002 - the official configuration's arguments
        qk_rms_norm: bool = False,  # noqa: FBT001, FBT002
        representation_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            resolution,
            model_channels,
            latent_channels,
            num_blocks,
            num_heads,
            num_head_channels,
            mlp_ratio,
            attn_mode,
            window_size,
            pe_mode,
            qk_rms_norm=qk_rms_norm,
        )
        self.configuration = GaussianConfiguration.from_official(resolution, representation_config or {})
        self.register_buffer("offset_perturbation", offset_perturbation(self.configuration))
        self.out_layer = Linear(model_channels, self.configuration.channels)
        if use_fp16:
            self.convert_to(torch.float16)

    def forward(self, latent: SparseTensor) -> SparseTensor:
        """Decode [T, latent_channels] to the raw numbers [T, channels] of every voxel's Gaussians, in float32."""
        h = self.run_trunk(latent)
        return h.with_feats(self.out_layer(plain_layer_norm(h.feats.to(latent.feats.dtype), 1e-5)))

    def decode(self, latent: SparseTensor) -> list[GaussianParameters]:
        """Decode the Gaussians of each batch item."""
        raw = self(latent)
        return [
            GaussianParameters.from_raw(
                raw.feats[rows], raw.voxels.coords[rows, 1:], self.offset_perturbation, self.configuration
            )
            for rows in raw.voxels.item_slices()
        ]


class SubdivideBlock(nn.Module):
    """A residual block of sparse convolutions that replaces every voxel by its eight children."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.act_layers = nn.Sequential(SparseGroupNorm32(channels))
        self.out_layers = nn.ModuleList(
            [
                SubmanifoldConv3d(channels, out_channels),
                SparseGroupNorm32(out_channels),
                nn.Identity(),  # keeps the numbering of the official files
                SubmanifoldConv3d(out_channels, out_channels),
            ]
        )
        self.skip_connection = nn.Identity() if channels == out_channels else PointwiseConv3d(channels, out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Transform [T, channels] to [8·T, out_channels] on the subdivided voxels."""
        first, norm, _, second = self.out_layers
        assert isinstance(first, SubmanifoldConv3d)
        h = norm(first.on_subdivided(silu(self.act_layers(x))))
        h = silu(h)  # of these, the largest tensors of all, no more than two shall exist at a time
        h = second(h)
        skip: SparseTensor = self.skip_connection(x)
        changed: Tensor = h.feats.view(len(x.voxels), 8, -1) + skip.feats[:, None]
        return SparseTensor(h.voxels, changed.flatten(0, 1))


class SLatMeshDecoder(LatentTrunk):
    """Latents to features of cubes at four times the resolution; the arguments are those of the official configuration.

    Raises:
        ModelError: An argument has a value that no published weights use, or the width cannot be normalised in groups.
    """

    def __init__(
        self,
        resolution: int,
        model_channels: int,
        latent_channels: int,
        num_blocks: int,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        mlp_ratio: float = 4.0,
        attn_mode: str = "swin",
        window_size: int = 8,
        pe_mode: str = "ape",
        use_fp16: bool = False,  # noqa: FBT001, FBT002 - the official configuration's arguments
        qk_rms_norm: bool = False,  # noqa: FBT001, FBT002
        representation_config: Mapping[str, Any] | None = None,
        mesh_extractor: str = "fc",
    ) -> None:
        refuse_other_than("mesh_extractor", mesh_extractor, "fc")
        super().__init__(
            resolution,
            model_channels,
            latent_channels,
            num_blocks,
            num_heads,
            num_head_channels,
            mlp_ratio,
            attn_mode,
            window_size,
            pe_mode,
            qk_rms_norm=qk_rms_norm,
        )
        facts = dict(representation_config or {})
        self.use_color = bool(facts.pop("use_color", False))
        if facts:
            raise ModelError(
                f"The configuration of the mesh holds unknown entries: {', '.join(sorted(facts))}.",
                suggestion="Use weights whose representation_config holds use_color alone, as the published ones.",
            )
        widths = [model_channels, model_channels // 4, model_channels // 8]
        self.upsample = nn.ModuleList([SubdivideBlock(widths[0], widths[1]), SubdivideBlock(widths[1], widths[2])])
        self.out_layer = Linear(widths[2], feature_channels(use_color=self.use_color))
        if use_fp16:
            self.convert_to(torch.float16)

    def convert_to(self, dtype: torch.dtype) -> None:
        """Convert blocks and upsampling in place; norms, input and output layer stay float32."""
        convert_torso([self.blocks, self.upsample], dtype)

    def forward(self, latent: SparseTensor) -> SparseTensor:
        """Decode [T, latent_channels] to the features [64·T, channels] of cubes; see `mesh_extraction`."""
        h = self.run_trunk(latent)
        for block in self.upsample:
            h = block(h)
        return h.with_feats(self.out_layer(h.feats.to(latent.feats.dtype)))

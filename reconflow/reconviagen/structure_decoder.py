"""The decoder from the sparse structure's latent to occupied voxels: dense 3D convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reconflow.errors import ModelConvergenceError, ValidationFailedError
from reconflow.reconviagen.attention import LayerNorm32, convert_torso, torso_dtype
from reconflow.reconviagen.configuration import refuse_other_than
from reconflow.reconviagen.elementwise import SiLU, silu


class ChannelLayerNorm32(LayerNorm32):
    """Layer norm over the channels at each voxel of [B, C, X, Y, Z], computed in float32."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base class
        """Normalise a grid."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1).contiguous()


class ResidualBlock3d(nn.Module):
    """Twice norm, SiLU and convolution, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelLayerNorm32(channels, eps=1e-5)
        self.norm2 = ChannelLayerNorm32(channels, eps=1e-5)
        self.conv1 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, C, X, Y, Z]."""
        h = self.conv1(silu(self.norm1(x)))
        changed: Tensor = self.conv2(silu(self.norm2(h))) + x
        return changed


class UpsampleBlock3d(nn.Module):
    """A convolution whose channels become the eight children of every voxel."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, 8 * out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, C, X, Y, Z] into [B, C', 2·X, 2·Y, 2·Z]."""
        return pixel_shuffle_3d(self.conv(x))


class SparseStructureDecoder(nn.Module):
    """Residual and upsampling blocks; the arguments are those of the official configuration."""

    def __init__(
        self,
        out_channels: int = 1,
        latent_channels: int = 8,
        num_res_blocks: int = 2,
        channels: Sequence[int] = (512, 128, 32),
        num_res_blocks_middle: int = 2,
        norm_type: str = "layer",
        use_fp16: bool = False,  # noqa: FBT001, FBT002 - the official configuration's argument
    ) -> None:
        super().__init__()
        refuse_other_than("norm_type", norm_type, "layer")
        self.latent_channels = latent_channels
        self.input_layer = nn.Conv3d(latent_channels, channels[0], 3, padding=1)
        self.middle_block = nn.Sequential(*(ResidualBlock3d(channels[0]) for _ in range(num_res_blocks_middle)))
        self.blocks = nn.ModuleList()
        for level, width in enumerate(channels):
            self.blocks.extend(ResidualBlock3d(width) for _ in range(num_res_blocks))
            if level + 1 < len(channels):
                self.blocks.append(UpsampleBlock3d(width, channels[level + 1]))
        self.out_layer = nn.Sequential(
            ChannelLayerNorm32(channels[-1], eps=1e-5),
            SiLU(),
            nn.Conv3d(channels[-1], out_channels, 3, padding=1),
        )
        if use_fp16:
            self.convert_to(torch.float16)

    def convert_to(self, dtype: torch.dtype) -> None:
        """Convert the torso in place; norms, input and output layer stay float32."""
        convert_torso([self.middle_block, self.blocks], dtype)

    def forward(self, latent: Tensor) -> Tensor:
        """Decode occupancy.

        Args:
            latent: [B, latent_channels, R, R, R].

        Returns:
            [B, out_channels, R', R', R'] logits, R doubled at every level but the first; in the dtype of `latent`.

        Raises:
            ValidationFailedError: The latent has another shape.
        """
        if latent.ndim != 5 or latent.shape[1] != self.latent_channels:
            raise ValidationFailedError(
                f"A latent of the shape {tuple(latent.shape)} does not fit the structure decoder.",
                suggestion=f"Give [B, {self.latent_channels}, R, R, R].",
            )
        h = self.input_layer(latent).to(torso_dtype(self.blocks))
        h = self.middle_block(h)
        for block in self.blocks:
            h = block(h)
        logits: Tensor = self.out_layer(h.to(latent.dtype))
        return logits


def pixel_shuffle_3d(x: Tensor) -> Tensor:
    """Spread channels [B, 8·C, X, Y, Z] over the children of each voxel, [B, C, 2·X, 2·Y, 2·Z]; the last axis first."""
    batch, channels, *size = x.shape
    spread = x.reshape(batch, channels // 8, 2, 2, 2, *size).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return spread.reshape(batch, channels // 8, *(2 * side for side in size))


def occupied_voxels(logits: Tensor) -> Tensor:
    """List the occupied voxels of logits [B, 1, R, R, R]: those above 0.

    Returns:
        [V, 4] int32: batch item, x, y, z; row-major.

    Raises:
        ModelConvergenceError: An item has no occupied voxel, or the logits are not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ModelConvergenceError(
            "The generated structure holds values that are not numbers.",
            suggestion="Run the model in float32, or try another seed.",
        )
    occupied = logits[:, 0] > 0
    empty = [item for item, any_voxel in enumerate(occupied.flatten(1).any(1).tolist()) if not any_voxel]
    if empty:
        raise ModelConvergenceError(
            "The generated structure is empty: no voxel is occupied.",
            suggestion="Check that the object fills the pictures and that their masks are right, or try another seed.",
            items=empty,
        )
    return torch.nonzero(occupied).to(torch.int32).contiguous()

"""VGGT: all views of a scene as one sequence of tokens, by attention in turn within frames and across them.

The aggregator and the network with its heads. What the heads compute lives in `vggt_heads` and `vggt_point_head`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from reconflow.errors import ValidationFailedError
from reconflow.reconviagen.dinov2 import DinoVisionTransformer, patch_grid
from reconflow.reconviagen.vggt_heads import CameraHead
from reconflow.reconviagen.vggt_point_head import PointHead
from reconflow.reconviagen.vit import RotaryTable, ViTBlock, normalise_images

FUSED_LAYERS = (4, 11, 17, 23)
"""Alternating blocks whose outputs the conditioners and the heads of the published network use."""
IGNORED_PREFIXES = ("depth_head.", "track_head.")
"""Parts of the published checkpoint that this network does not have on purpose."""


class Aggregator(nn.Module):
    """Alternating attention over the patch tokens of all frames, with a camera token and registers for each frame."""

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_register_tokens: int = 4,
        rope_freq: float = 100.0,
        init_values: float = 0.01,
        vit_depth: int = 24,
        vit_num_heads: int = 16,
        vit_mlp_ratio: float = 4.0,
        vit_init_values: float = 1.0,
    ) -> None:
        super().__init__()
        self.patch_size, self.rope_freq = patch_size, rope_freq
        self.head_channels = embed_dim // num_heads
        self.patch_start = 1 + num_register_tokens
        self.patch_embed = DinoVisionTransformer(
            img_size, patch_size, embed_dim, vit_depth, vit_num_heads, vit_mlp_ratio, init_values=vit_init_values
        )
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList(
                ViTBlock(embed_dim, num_heads, mlp_ratio, eps=1e-5, qk_norm=True, init_values=init_values)
                for _ in range(depth)
            )
            for _ in range(2)
        )
        self.camera_token = nn.Parameter(1e-6 * torch.randn(1, 2, 1, embed_dim))
        self.register_token = nn.Parameter(1e-6 * torch.randn(1, 2, num_register_tokens, embed_dim))

    def forward(self, images: Tensor, keep: Collection[int] | None = None) -> dict[int, Tensor]:
        """Aggregate the frames of one or more scenes.

        Args:
            images: [B, S, 3, H, W] RGB in [0, 1]; H and W multiples of the patch size. The first frame is special.
            keep: Blocks whose outputs are wanted; None for all. Later blocks than the last of them are not computed.

        Returns:
            For each kept block [B, S, 1 + registers + patches, 2·embed_dim], what the frame attention and the global
            attention made of the tokens, side by side: camera token, registers, row-major patches.

        Raises:
            ValidationFailedError: There are no frames, or the size is no multiple of the patch size.
        """
        wanted = set(range(len(self.frame_blocks))) if keep is None else set(keep)
        if images.ndim != 5 or not images.shape[1] or not wanted or not wanted <= set(range(len(self.frame_blocks))):
            raise ValidationFailedError(
                f"Images of the shape {tuple(images.shape)} or the wanted blocks {sorted(wanted)} cannot be used.",
                suggestion=f"Give images [B, S, 3, H, W] and blocks below {len(self.frame_blocks)}.",
            )
        batch, frames = images.shape[:2]
        rows, columns = patch_grid(images, self.patch_size)
        with self._mixed_precision(images.device):
            patches = self.patch_embed(normalise_images(images.flatten(0, 1))).normed_patches
            x = torch.cat([self._special_tokens(batch, frames), patches], dim=1)
            return self._alternate(x, (batch, frames), self._positions(rows, columns, images.device), wanted)

    def _alternate(
        self, x: Tensor, batch_frames: tuple[int, int], positions: Tensor, wanted: set[int]
    ) -> dict[int, Tensor]:
        batch, frames = batch_frames
        of_frame = RotaryTable(positions, self.head_channels, self.rope_freq)
        of_scene = RotaryTable(positions.repeat(frames, 1), self.head_channels, self.rope_freq)
        kept = {}
        for index, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            in_frames = frame_block(x.reshape(batch * frames, -1, x.shape[-1]), of_frame)
            x = global_block(in_frames.reshape(batch, -1, x.shape[-1]), of_scene)
            if index in wanted:
                shape = (batch, frames, len(positions), x.shape[-1])
                kept[index] = torch.cat([in_frames.reshape(shape), x.reshape(shape)], dim=-1)
                if len(kept) == len(wanted):
                    break
        return kept

    def _special_tokens(self, batch: int, frames: int) -> Tensor:
        """Camera token and registers [B·S, 1 + registers, C]: their first kind for first frames, their second else."""
        tokens = torch.cat([self.camera_token, self.register_token], dim=2)
        per_frame = torch.cat([tokens[:, :1], tokens[:, 1:].expand(-1, frames - 1, -1, -1)], dim=1)
        return per_frame.expand(batch, -1, -1, -1).flatten(0, 1)

    def _positions(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Row and column of every token of a frame, [L, 2]: 0 for special tokens, from 1 for patches."""
        grid = torch.cartesian_prod(
            torch.arange(1, rows + 1, device=device), torch.arange(1, columns + 1, device=device)
        )
        return torch.cat([grid.new_zeros(self.patch_start, 2), grid])

    def _mixed_precision(self, device: torch.device) -> AbstractContextManager[object]:
        """On CUDA bfloat16 where the device computes it, else float16; elsewhere the parameters' own precision."""
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        dtype = torch.bfloat16 if capable or device.type != "cuda" else torch.float16
        return torch.autocast(device.type, dtype=dtype, enabled=device.type == "cuda" and self._is_float32())

    def _is_float32(self) -> bool:
        return self.camera_token.dtype == torch.float32


class VGGT(nn.Module):
    """The aggregator, and the heads that are asked for.

    Args:
        heads: Any of "camera" and "point"; generation needs none. The published checkpoint's other heads do not exist
            here (`IGNORED_PREFIXES`).
    """

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        *,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_register_tokens: int = 4,
        rope_freq: float = 100.0,
        vit_depth: int = 24,
        vit_num_heads: int = 16,
        vit_mlp_ratio: float = 4.0,
        vit_init_values: float = 1.0,
        camera_trunk_depth: int = 4,
        camera_num_heads: int = 16,
        camera_iterations: int = 4,
        heads: Collection[str] = ("camera", "point"),
    ) -> None:
        super().__init__()
        self.aggregator = Aggregator(
            img_size,
            patch_size,
            embed_dim,
            depth,
            num_heads,
            mlp_ratio,
            num_register_tokens,
            rope_freq,
            vit_depth=vit_depth,
            vit_num_heads=vit_num_heads,
            vit_mlp_ratio=vit_mlp_ratio,
            vit_init_values=vit_init_values,
        )
        self.camera_head = (
            CameraHead(2 * embed_dim, camera_trunk_depth, camera_num_heads, iterations=camera_iterations)
            if "camera" in heads
            else None
        )
        self.point_head = PointHead(2 * embed_dim, patch_size) if "point" in heads else None

    def forward(self, images: Tensor, keep: Sequence[int] = FUSED_LAYERS) -> dict[int, Tensor]:
        """Tokens of the wanted blocks for images [B, S, 3, H, W] in [0, 1]; see `Aggregator`."""
        tokens: dict[int, Tensor] = self.aggregator(images, keep)
        return tokens

"""DINOv2 with registers: patch features of single images. Also the per-frame encoder inside VGGT."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from reconflow.errors import ModelError, ValidationFailedError
from reconflow.reconviagen.attention import plain_layer_norm
from reconflow.reconviagen.vit import ViTBlock, normalise_images


@dataclass(frozen=True)
class VisionTokens:
    """What the transformer makes of images.

    Attributes:
        prenorm: [B, 1 + registers + patches, C] before the final norm: class token, registers, row-major patches.
        normed: The same after the final norm.
        patch_start: Index of the first patch.
    """

    prenorm: Tensor
    normed: Tensor
    patch_start: int

    @property
    def normed_patches(self) -> Tensor:
        """[B, patches, C] after the final norm."""
        return self.normed[:, self.patch_start :]

    @property
    def image_features(self) -> Tensor:
        """[B, 1 + registers + patches, C]: layer norm without parameters of the tokens before the final norm."""
        return plain_layer_norm(self.prenorm, 1e-5)


class PatchEmbed(nn.Module):
    """Cut images into patches and project each to a token."""

    def __init__(self, patch_size: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Embed [B, 3, H, W] as row-major tokens [B, patches, C]."""
        tokens: Tensor = self.proj(images)
        return tokens.flatten(2).transpose(1, 2)


class DinoVisionTransformer(nn.Module):
    """A vision transformer with registers, layer scale and interpolated positions.

    The arguments are those of the official configuration; `interpolate_offset` other than 0, block chunks and other
    feed-forward layers are refused, since no published checkpoint of this pipeline has them.
    """

    def __init__(
        self,
        img_size: int = 518,
        patch_size: int = 14,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_register_tokens: int = 4,
        init_values: float = 1.0,
        ffn_layer: str = "mlp",
        block_chunks: int = 0,
        interpolate_antialias: bool = True,  # noqa: FBT001, FBT002 - the official configuration's arguments
        interpolate_offset: float = 0.0,
    ) -> None:
        super().__init__()
        if ffn_layer != "mlp" or block_chunks or interpolate_offset:
            raise ModelError(
                "This DINOv2 configuration is not supported.",
                suggestion="Use ffn_layer mlp, block_chunks 0 and interpolate_offset 0, as the published weights do.",
                ffn_layer=ffn_layer,
                block_chunks=block_chunks,
                interpolate_offset=interpolate_offset,
            )
        self.patch_size = patch_size
        self.table_side = img_size // patch_size
        self.interpolate_antialias = interpolate_antialias
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.table_side**2, embed_dim))
        self.register_tokens = nn.Parameter(0.02 * torch.randn(1, num_register_tokens, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim))
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.blocks = nn.ModuleList(
            ViTBlock(embed_dim, num_heads, mlp_ratio, eps=1e-6, init_values=init_values) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)

    def forward(self, images: Tensor) -> VisionTokens:
        """Encode images that are already normalised.

        Args:
            images: [B, 3, H, W], H and W multiples of the patch size.

        Raises:
            ValidationFailedError: The size is no multiple of the patch size.
        """
        rows, columns = patch_grid(images, self.patch_size)
        positions = self._positions(rows, columns)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], dim=1) + positions
        x = torch.cat([x[:, :1], self.register_tokens.expand(len(images), -1, -1), x[:, 1:]], dim=1)
        for block in self.blocks:
            x = block(x)
        return VisionTokens(x, self.norm(x), 1 + self.register_tokens.shape[1])

    def image_features(self, images: Tensor) -> Tensor:
        """Features of RGB images [B, 3, H, W] in [0, 1] as the conditioners take them; see `VisionTokens`."""
        tokens: VisionTokens = self(normalise_images(images))
        return tokens.image_features

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings [1, 1 + rows·columns, C], resized from the table unless it has that very shape."""
        table: Tensor = self.pos_embed
        if rows == columns == self.table_side:
            return table
        grid = table[:, 1:].float().reshape(1, self.table_side, self.table_side, -1).permute(0, 3, 1, 2)
        resized: Tensor = F.interpolate(
            grid, size=(rows, columns), mode="bicubic", align_corners=False, antialias=self.interpolate_antialias
        )
        return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)


def patch_grid(images: Tensor, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches of images [..., 3, H, W]; refuse sizes that patches do not fill."""
    height, width = images.shape[-2:]
    if images.shape[-3] != 3 or height % patch_size or width % patch_size or not height or not width:
        raise ValidationFailedError(
            f"Images of the shape {tuple(images.shape)} cannot be cut into patches of {patch_size} pixels.",
            suggestion=f"Give RGB images whose height and width are multiples of {patch_size}.",
            shape=list(images.shape),
            patch_size=patch_size,
        )
    return height // patch_size, width // patch_size

"""VGGT's point head: a point in the first camera's frame, and a confidence, for every pixel of every frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from reconflow.errors import ModelError, ValidationFailedError
from reconflow.reconviagen.linear import linear

_POSITION_GAIN = 0.1
_POSITION_BASE = 100.0


class PointwiseConv2d(nn.Conv2d):
    """A 1×1 convolution, computed as a linear layer over the channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name of the base class
        """Transform [B, C, H, W]."""
        return linear(input.movedim(1, -1), self.weight[:, :, 0, 0], self.bias).movedim(-1, 1)


class ResidualUnit(nn.Module):
    """Two convolutions added to the rectified input (rectified: the published weights were trained that way)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Transform [B, C, H, W]."""
        rectified = x.relu()
        changed: Tensor = self.conv2(self.conv1(rectified).relu()) + rectified
        return changed


class FusionBlock(nn.Module):
    """Adds a finer level to a coarser one, transforms the sum and resizes it."""

    def __init__(self, channels: int, *, takes_finer: bool) -> None:
        super().__init__()
        self.out_conv = PointwiseConv2d(channels, channels)
        if takes_finer:
            self.resConfUnit1 = ResidualUnit(channels)
        self.resConfUnit2 = ResidualUnit(channels)

    def forward(self, x: Tensor, finer: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Fuse [B, C, h, w] with a level of the same shape, if there is one, into [B, C, *size]."""
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        fused: Tensor = self.out_conv(_resize(self.resConfUnit2(x), size))
        return fused


class FusionPyramid(nn.Module):
    """The convolutions that bring four levels to one width and fuse them from coarse to fine."""

    def __init__(self, level_channels: Sequence[int], channels: int, output_dim: int) -> None:
        super().__init__()
        first, second, third, fourth = (
            nn.Conv2d(width, channels, 3, padding=1, bias=False) for width in level_channels
        )
        self.layer1_rn, self.layer2_rn, self.layer3_rn, self.layer4_rn = first, second, third, fourth
        self.refinenet1, self.refinenet2, self.refinenet3 = (FusionBlock(channels, takes_finer=True) for _ in range(3))
        self.refinenet4 = FusionBlock(channels, takes_finer=False)
        self.output_conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(channels // 2, 32, 3, padding=1), nn.ReLU(), PointwiseConv2d(32, output_dim)
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Fuse four levels [B, C_l, h_l, w_l], finest first, into [B, channels / 2, 2·h_0, 2·w_0]."""
        first = self.layer1_rn(levels[0])
        second = self.layer2_rn(levels[1])
        third = self.layer3_rn(levels[2])
        fused = self.refinenet4(self.layer4_rn(levels[3]), None, _size(third))
        fused = self.refinenet3(fused, third, _size(second))
        fused = self.refinenet2(fused, second, _size(first))
        height, width = _size(first)
        fused = self.refinenet1(fused, first, (2 * height, 2 * width))
        reduced: Tensor = self.output_conv1(fused)
        return reduced


class PointHead(nn.Module):
    """A dense prediction transformer head; the arguments are those of the official configuration."""

    def __init__(
        self,
        dim_in: int = 2048,
        patch_size: int = 14,
        output_dim: int = 4,
        activation: str = "inv_log",
        conf_activation: str = "expp1",
        features: int = 256,
        out_channels: Sequence[int] = (256, 512, 1024, 1024),
        intermediate_layer_idx: Sequence[int] = (4, 11, 17, 23),
    ) -> None:
        super().__init__()
        if activation != "inv_log" or conf_activation != "expp1":
            raise ModelError(
                f"A point head with the activations {activation} and {conf_activation} is not supported.",
                suggestion="Use inv_log for points and expp1 for their confidence, as the published weights do.",
            )
        self.patch_size = patch_size
        self.layers = tuple(intermediate_layer_idx)
        self.norm = nn.LayerNorm(dim_in, eps=1e-5)
        self.projects = nn.ModuleList(PointwiseConv2d(dim_in, width) for width in out_channels)
        finest, finer, _, coarsest = out_channels
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(finest, finest, 4, stride=4),
                nn.ConvTranspose2d(finer, finer, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(coarsest, coarsest, 3, stride=2, padding=1),
            ]
        )
        self.scratch = FusionPyramid(out_channels, features, output_dim)

    def forward(
        self, tokens: Mapping[int, Tensor], image_hw: tuple[int, int], patch_start: int = 5, frames_at_once: int = 8
    ) -> tuple[Tensor, Tensor]:
        """Estimate points.

        Args:
            tokens: The aggregator's outputs [B, S, patch_start + patches, dim_in] by block; those of `layers` are read.
            image_hw: Height and width of the images in pixels, multiples of the patch size.
            patch_start: Index of the first patch token.
            frames_at_once: Bounds the memory; the result does not depend on it.

        Returns:
            points: [B, S, H, W, 3] in the first camera's frame.
            confidence: [B, S, H, W], at least 1.

        Raises:
            ValidationFailedError: The tokens are not those of images of that size.
        """
        grid = (image_hw[0] // self.patch_size, image_hw[1] // self.patch_size)
        batch, frames, count = tokens[self.layers[0]].shape[:3]
        if count != patch_start + grid[0] * grid[1]:
            raise ValidationFailedError(
                f"{count} tokens per frame do not belong to images of {image_hw[0]} × {image_hw[1]} pixels.",
                suggestion="Give the size of the images that the tokens were made of.",
            )
        levels = [tokens[layer][:, :, patch_start:].flatten(0, 1) for layer in self.layers]
        parts = [
            self._decode([level[start : start + frames_at_once] for level in levels], grid, image_hw)
            for start in range(0, batch * frames, frames_at_once)
        ]
        y = torch.cat(parts).permute(0, 2, 3, 1).reshape(batch, frames, *image_hw, -1)
        points = y[..., :-1]
        return points.sign() * points.abs().expm1(), 1 + y[..., -1].exp()

    def _decode(self, levels: Sequence[Tensor], grid: tuple[int, int], image_hw: tuple[int, int]) -> Tensor:
        """Tokens of the four levels [F, patches, dim_in] to raw outputs [F, output_dim, H, W]."""
        aspect = image_hw[1] / image_hw[0]
        maps = []
        for level, project, resize in zip(levels, self.projects, self.resize_layers, strict=True):
            tokens = self.norm(level.to(self.norm.weight.dtype)).transpose(1, 2)
            projected = project(tokens.reshape(*tokens.shape[:2], *grid))
            maps.append(resize(_with_position(projected, aspect)))
        fused = _with_position(_resize(self.scratch(maps), image_hw), aspect)
        decoded: Tensor = self.scratch.output_conv2(fused)
        return decoded


def plane_position_embedding(size: tuple[int, int], channels: int, aspect: float) -> Tensor:
    """Embed the positions of a map in the image plane.

    Args:
        size: Height and width of the map.
        channels: Width of the embedding, divisible by 4: the first half embeds x, the second y; each sines first.
        aspect: Width / height of the image.

    Returns:
        [channels, height, width] float32. The corners of the plane lie at distance 1 from its middle.
    """
    diagonal = (aspect**2 + 1) ** 0.5
    frequencies = _POSITION_BASE ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    embedded = []
    for count, span in ((size[1], aspect / diagonal), (size[0], 1 / diagonal)):
        end = span * (count - 1) / count
        angles = frequencies[:, None] * torch.linspace(-end, end, count, dtype=torch.float64)
        embedded.append(torch.cat([angles.sin(), angles.cos()]).float())
    of_x, of_y = embedded
    return torch.cat([of_x[:, None, :].expand(-1, size[0], -1), of_y[:, :, None].expand(-1, -1, size[1])])


def _with_position(x: Tensor, aspect: float) -> Tensor:
    embedding = plane_position_embedding(_size(x), x.shape[1], aspect)
    return x + _POSITION_GAIN * embedding.to(x)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    resized: Tensor = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
    return resized


def _size(x: Tensor) -> tuple[int, int]:
    height, width = x.shape[-2:]
    return height, width

"""VGGT's camera head: poses and fields of view of all frames from their camera tokens, and what the numbers mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reconflow.reconviagen.attention import plain_layer_norm
from reconflow.reconviagen.linear import Linear
from reconflow.reconviagen.vit import ViTBlock, ViTMlp

POSE_CHANNELS = 9
"""Translation (3), quaternion x y z w (4), vertical and horizontal field of view in radians (2)."""


class CameraHead(nn.Module):
    """Refines a pose encoding per frame in a few iterations of attention over the frames.

    Args:
        channels: Width of the aggregator's outputs.
    """

    def __init__(
        self,
        channels: int = 2048,
        trunk_depth: int = 4,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        init_values: float = 0.01,
        iterations: int = 4,
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE_CHANNELS))
        self.trunk = nn.Sequential(
            *(ViTBlock(channels, num_heads, mlp_ratio, eps=1e-5, init_values=init_values) for _ in range(trunk_depth))
        )
        self.token_norm = nn.LayerNorm(channels, eps=1e-5)
        self.trunk_norm = nn.LayerNorm(channels, eps=1e-5)
        self.embed_pose = Linear(POSE_CHANNELS, channels)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), Linear(channels, 3 * channels))
        self.pose_branch = ViTMlp(channels, channels // 2, POSE_CHANNELS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Estimate the cameras of all frames.

        Args:
            tokens: [B, S, L, channels], the aggregator's last output.

        Returns:
            [iterations, B, S, 9] pose encodings, fields of view not negative; the last iteration counts.
        """
        pose = self.token_norm(tokens[:, :, 0].to(self.token_norm.weight.dtype))
        encoding = pose.new_zeros(*pose.shape[:2], POSE_CHANNELS)
        given = self.empty_pose_tokens.expand_as(encoding)
        activated = []
        for _ in range(self.iterations):
            shift, scale, gate = self.poseLN_modulation(self.embed_pose(given)).chunk(3, dim=-1)
            modulated = gate * (plain_layer_norm(pose, 1e-6) * (1 + scale) + shift) + pose
            encoding = encoding + self.pose_branch(self.trunk_norm(self.trunk(modulated)))
            activated.append(torch.cat([encoding[..., :7], encoding[..., 7:].relu()], dim=-1))
            given = encoding
        return torch.stack(activated)


def cameras_from_encoding(encoding: Tensor, image_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Turn pose encodings into matrices.

    Args:
        encoding: [..., 9]; see `POSE_CHANNELS`.
        image_hw: Height and width of the images in pixels.

    Returns:
        extrinsic: [..., 3, 4] world to camera, OpenCV axes (x right, y down, z forward); the first camera is the world.
        intrinsic: [..., 3, 3] in pixels, the principal point in the middle.
    """
    rotation = rotation_from_quaternion(encoding[..., 3:7])
    extrinsic = torch.cat([rotation, encoding[..., :3, None]], dim=-1)
    centre = encoding.new_tensor([image_hw[1] / 2, image_hw[0] / 2])
    focal = centre / torch.tan(encoding[..., 7:9].flip(-1) / 2)
    intrinsic = torch.diag_embed(torch.cat([focal, torch.ones_like(focal[..., :1])], dim=-1))
    intrinsic[..., :2, 2] = centre
    return extrinsic, intrinsic


def rotation_from_quaternion(quaternion: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] in the order x, y, z, w, of any length but zero."""
    x, y, z, w = quaternion.unbind(-1)
    s = 2 / quaternion.square().sum(-1)
    entries = [
        1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w),
        s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w),
        s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, dim=-1).reshape(*quaternion.shape[:-1], 3, 3)

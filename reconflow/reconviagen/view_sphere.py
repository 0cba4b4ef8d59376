"""Views spread evenly over a sphere around the object, in the generator's conventions: z up, OpenCV cameras.

Intrinsics are in units of the image size. Everything else in this package uses `reconflow.cameras`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from reconflow.errors import ValidationFailedError

_POLE = 1e-9
"""A view along ±up has no upright roll; below this length of up's projection the axes of the world are taken."""


@dataclass(frozen=True, eq=False)
class ViewSphere:
    """Views that look at the origin from a sphere.

    Attributes:
        yaw: [N] float32 radians around z, from +y towards +x.
        pitch: [N] float32 radians above the xy plane.
        extrinsics: [N, 4, 4] float32, camera from world; camera x right, y down, z forward.
        intrinsics: [N, 3, 3] float32, in units of the image's width and height.
    """

    yaw: Tensor
    pitch: Tensor
    extrinsics: Tensor
    intrinsics: Tensor


def hammersley_views(count: int, radius: float = 2.0, fov_deg: float = 40.0) -> ViewSphere:
    """Spread views over a sphere by Hammersley's sequence, the first straight from below.

    Args:
        count: Number of views.
        radius: Distance of the cameras from the origin.
        fov_deg: Field of view of both axes.

    Raises:
        ValidationFailedError: No views, no distance, or no field of view.
    """
    if count < 1 or radius <= 0 or not 0 < fov_deg < 180:
        raise ValidationFailedError(
            f"{count} views at distance {radius} with {fov_deg}° cannot be placed.",
            suggestion="Ask for at least one view, a positive radius and a field of view between 0° and 180°.",
        )
    angles = [hammersley_angles(index, count) for index in range(count)]
    yaw, pitch = torch.tensor(angles, dtype=torch.float64).unbind(1)
    focal = 0.5 / math.tan(math.radians(fov_deg) / 2)
    intrinsics = torch.tensor([[focal, 0, 0.5], [0, focal, 0.5], [0, 0, 1]], dtype=torch.float64)
    return ViewSphere(
        yaw.float(), pitch.float(), look_at_origin(yaw, pitch, radius).float(), intrinsics.float().repeat(count, 1, 1)
    )


def hammersley_angles(index: int, count: int) -> tuple[float, float]:
    """Yaw and pitch of one of `count` views, radians."""
    return 2 * math.pi * radical_inverse(2, index), math.acos(1 - 2 * index / count) - math.pi / 2


def look_at_origin(yaw: Tensor, pitch: Tensor, radius: float) -> Tensor:
    """Extrinsics [N, 4, 4] of views that look at the origin, upright with +z; along ±z the roll is arbitrary.

    Args:
        yaw: [N] radians.
        pitch: [N] radians.
        radius: Distance from the origin.
    """
    outwards = torch.stack([yaw.sin() * pitch.cos(), yaw.cos() * pitch.cos(), pitch.sin()], dim=1)
    forward = -outwards
    down = forward.new_tensor([0.0, 0, -1]).expand_as(forward)
    right = torch.linalg.cross(down, forward)
    is_pole = right.norm(dim=1, keepdim=True) < _POLE
    right = torch.where(is_pole, right.new_tensor([1.0, 0, 0]), right)
    right = right / right.norm(dim=1, keepdim=True)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)
    extrinsics = torch.eye(4, dtype=yaw.dtype, device=yaw.device).repeat(len(yaw), 1, 1)
    extrinsics[:, :3, :3] = rotation
    extrinsics[:, :3, 3] = -(rotation @ (radius * outwards)[..., None])[..., 0]
    return extrinsics


def radical_inverse(base: int, index: int) -> float:
    """Mirror the digits of an index at the point: 6 = 110 in base 2 becomes 0.011 = 0.375."""
    value, place = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value += digit * place
        place /= base
    return value

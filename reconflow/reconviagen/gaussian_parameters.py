"""The parameters of Gaussians as a decoder gives them: what its numbers mean, stored and activated. No rendering.

Space is the decoder's: the cube [-0.5, 0.5]³, z up. A Gaussian's colour does not depend on the direction of view.
Activated parameters leave this module as `geometry.gaussians.Gaussians`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from reconflow.errors import ModelError, ValidationFailedError
from reconflow.geometry.gaussians import Gaussians
from reconflow.reconviagen.configuration import refuse_other_than
from reconflow.reconviagen.elementwise import sigmoid, softplus
from reconflow.reconviagen.view_sphere import radical_inverse

SH_DEGREE_0 = 0.28209479177387814
"""The spherical harmonic of degree 0: what a colour's first coefficient is multiplied with."""
_PARTS = {"_xyz": 3, "_features_dc": 3, "_scaling": 3, "_rotation": 4, "_opacity": 1}
"""Numbers per Gaussian of each stored parameter, in the order of the network's output."""


@dataclass(frozen=True)
class GaussianConfiguration:
    """How a decoder's numbers become Gaussians.

    Attributes:
        resolution: Voxels along an axis of the unit cube.
        num_gaussians: Gaussians of a voxel.
        voxel_size: How far from its voxel's centre a Gaussian may lie, in voxels from end to end.
        perturb_offset: Whether the Gaussians of a voxel start spread over it.
        lr: What each part of the network's output is multiplied with.
        scaling_bias: Scale that the raw value 0 means.
        opacity_bias: Opacity that the raw value 0 means.
        filter_3d: Least scale of a Gaussian.
        filter_2d_px2: What rendering adds to a projected covariance, square pixels.
    """

    resolution: int
    num_gaussians: int
    voxel_size: float
    perturb_offset: bool
    lr: Mapping[str, float]
    scaling_bias: float
    opacity_bias: float
    filter_3d: float
    filter_2d_px2: float

    @classmethod
    def from_official(cls, resolution: int, facts: Mapping[str, Any]) -> GaussianConfiguration:
        """Read a `representation_config`.

        Raises:
            ModelError: An entry is missing, unknown, or has a value that no published weights use.
        """
        names = {
            "num_gaussians": "num_gaussians",
            "voxel_size": "voxel_size",
            "perturb_offset": "perturb_offset",
            "lr": "lr",
            "scaling_bias": "scaling_bias",
            "opacity_bias": "opacity_bias",
            "3d_filter_kernel_size": "filter_3d",
            "2d_filter_kernel_size": "filter_2d_px2",
        }
        wrong = sorted(({*names, "scaling_activation"} ^ set(facts)) | (set(_PARTS) ^ set(facts.get("lr", _PARTS))))
        if wrong:
            raise ModelError(
                f"The configuration of the Gaussians lacks entries or has unknown ones: {', '.join(wrong)}.",
                suggestion="Use the configuration file that came with the weights.",
                entries=wrong,
            )
        refuse_other_than("scaling_activation", facts["scaling_activation"], "softplus")
        return cls(resolution=resolution, **{ours: facts[name] for name, ours in names.items()})

    @property
    def channels(self) -> int:
        """Numbers that the network gives for a voxel."""
        return self.num_gaussians * sum(_PARTS.values())


def offset_perturbation(configuration: GaussianConfiguration) -> Tensor:
    """Raw offsets [G, 3] that spread the Gaussians evenly over their voxel; the first lies in its corner."""
    count = configuration.num_gaussians
    places = [[g / count, radical_inverse(2, g), radical_inverse(3, g)] for g in range(count)]
    return torch.atanh((2 * torch.tensor(places, dtype=torch.float32) - 1) / configuration.voxel_size)


@dataclass(frozen=True, eq=False)
class GaussianParameters:
    """The Gaussians of one object by their stored parameters; properties give the activated ones.

    Attributes:
        stored_xyz: [N, 3] positions in the cube [0, 1]³.
        stored_colour: [N, 1, 3] first coefficients of spherical harmonics.
        stored_scaling: [N, 3] before bias and activation.
        stored_rotation: [N, 4] quaternions w, x, y, z before bias and normalisation.
        stored_opacity: [N, 1] before bias and activation.
        configuration: Biases and filters.
    """

    stored_xyz: Tensor
    stored_colour: Tensor
    stored_scaling: Tensor
    stored_rotation: Tensor
    stored_opacity: Tensor
    configuration: GaussianConfiguration

    @classmethod
    def from_raw(
        cls, raw: Tensor, voxels: Tensor, perturbation: Tensor, configuration: GaussianConfiguration
    ) -> GaussianParameters:
        """Read the network's output.

        Args:
            raw: [T, channels].
            voxels: [T, 3] integer coordinates.
            perturbation: [G, 3], see `offset_perturbation`.
            configuration: What the numbers mean.

        Returns:
            T·G Gaussians, those of a voxel one after the other.

        Raises:
            ValidationFailedError: The number of channels does not fit.
        """
        if raw.shape != (len(voxels), configuration.channels):
            raise ValidationFailedError(
                f"Numbers of the shape {tuple(raw.shape)} are no Gaussians of {len(voxels)} voxels.",
                suggestion=f"Give {configuration.channels} numbers for each voxel.",
            )
        count = configuration.num_gaussians
        chunks = torch.split(raw, [count * width for width in _PARTS.values()], dim=1)
        parts = {
            name: chunk.reshape(len(raw), count, -1) * configuration.lr[name]
            for name, chunk in zip(_PARTS, chunks, strict=True)
        }
        offset = parts["_xyz"] + perturbation if configuration.perturb_offset else parts["_xyz"]
        reach = 0.5 * configuration.voxel_size / configuration.resolution
        centres = (voxels.to(raw.dtype) + 0.5) / configuration.resolution
        return cls(
            stored_xyz=(centres[:, None] + torch.tanh(offset) * reach).flatten(0, 1),
            stored_colour=parts["_features_dc"].reshape(-1, 1, 3),
            stored_scaling=parts["_scaling"].flatten(0, 1),
            stored_rotation=parts["_rotation"].flatten(0, 1),
            stored_opacity=parts["_opacity"].flatten(0, 1),
            configuration=configuration,
        )

    def __len__(self) -> int:
        return len(self.stored_xyz)

    @property
    def positions(self) -> Tensor:
        """[N, 3] means in [-0.5, 0.5]³, about."""
        return self.stored_xyz - 0.5

    @property
    def scales(self) -> Tensor:
        """[N, 3] standard deviations along the own axes, never below the filter's."""
        bias = self.configuration.scaling_bias
        raw_bias = bias + math.log(-math.expm1(-bias))
        return torch.sqrt(softplus(self.stored_scaling + raw_bias).square() + self.configuration.filter_3d**2)

    @property
    def rotations(self) -> Tensor:
        """[N, 4] unit quaternions w, x, y, z."""
        return F.normalize(self.biased_rotations, dim=-1)

    @property
    def biased_rotations(self) -> Tensor:
        """[N, 4] quaternions w, x, y, z before they are normalised."""
        return self.stored_rotation + self.stored_rotation.new_tensor([1.0, 0, 0, 0])

    @property
    def opacities(self) -> Tensor:
        """[N, 1] opacities at the mean."""
        bias = self.configuration.opacity_bias
        return sigmoid(self.stored_opacity + math.log(bias / (1 - bias)))

    @property
    def colours(self) -> Tensor:
        """[N, 3] display values, not clipped."""
        return SH_DEGREE_0 * self.stored_colour[:, 0] + 0.5

    @property
    def covariances(self) -> Tensor:
        """[N, 3, 3] covariances."""
        axes = rotation_matrices(self.rotations) * self.scales[:, None]
        return axes @ axes.mT

    def activated(self) -> Gaussians:
        """The activated parameters on the CPU, for rendering."""
        values = (self.positions, self.scales, self.rotations, self.opacities[:, 0], self.colours)
        return Gaussians(*(value.detach().float().cpu().numpy() for value in values))


def rotation_matrices(quaternions: Tensor) -> Tensor:
    """Rotations [..., 3, 3] of unit quaternions [..., 4] (w, x, y, z)."""
    w, x, y, z = quaternions.unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

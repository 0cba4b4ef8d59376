"""The set of 3D Gaussians that stands for an object's appearance. Data only: no network, no rendering."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reconflow.geometry.similarity import Similarity, quaternion_product, quaternion_wxyz

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Anisotropic Gaussians with one colour each (spherical harmonics of degree 0), activated.

    Attributes:
        positions: (N, 3) float32 means.
        scales: (N, 3) float32 standard deviations along the Gaussians' own axes, positive.
        rotations: (N, 4) float32 unit quaternions (w, x, y, z) from the Gaussians' own axes to the frame.
        opacities: (N,) float32 in (0, 1), at the mean.
        colours: (N, 3) float32 display (sRGB) values, not clipped: 0.2821 dc + 0.5.
    """

    positions: Float32
    scales: Float32
    rotations: Float32
    opacities: Float32
    colours: Float32

    def __len__(self) -> int:
        return len(self.positions)

    def transformed(self, transform: Similarity) -> Gaussians:
        """Return the same Gaussians in another frame."""
        turn = quaternion_wxyz(transform.rotation)
        return Gaussians(
            positions=transform.apply(self.positions).astype(np.float32),
            scales=(transform.scale * self.scales).astype(np.float32),
            rotations=quaternion_product(turn, self.rotations).astype(np.float32),
            opacities=self.opacities,
            colours=self.colours,
        )

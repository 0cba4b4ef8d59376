"""Similarity transforms: a rotation, one scale and a translation. Nothing that estimates one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reconflow.geometry.mesh import TriangleMesh

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Similarity:
    """The map x -> scale * rotation @ x + translation.

    Attributes:
        scale: Positive.
        rotation: (3, 3) float64, a proper rotation.
        translation: (3,) float64, units of the target frame.
    """

    scale: float
    rotation: Float64
    translation: Float64

    @classmethod
    def identity(cls) -> Similarity:
        """Return the transform that changes nothing."""
        return cls(1.0, np.eye(3), np.zeros(3))

    @property
    def matrix(self) -> Float64:
        """(4, 4) float64, the transform of homogeneous columns."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * self.rotation
        matrix[:3, 3] = self.translation
        return matrix

    def apply(self, points: NDArray[Any]) -> Float64:
        """Map (..., 3) points."""
        mapped: Float64 = self.scale * (np.asarray(points, np.float64) @ self.rotation.T) + self.translation
        return mapped

    def apply_to_mesh(self, mesh: TriangleMesh) -> TriangleMesh:
        """Map a mesh; its faces keep their winding, since the transform never mirrors."""
        return TriangleMesh(self.apply(mesh.vertices).astype(np.float32), mesh.faces)

    def after(self, first: Similarity) -> Similarity:
        """Return the transform that applies `first` and then this one."""
        return Similarity(self.scale * first.scale, self.rotation @ first.rotation, self.apply(first.translation))

    def inverse(self) -> Similarity:
        """Return the transform that undoes this one."""
        scale = 1.0 / self.scale
        return Similarity(scale, self.rotation.T.copy(), -scale * (self.rotation.T @ self.translation))


def rotation_from_vector(vector: Float64) -> Float64:
    """Return the (3, 3) rotation about a (3,) axis by the axis's length in radians (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3) + cross_matrix(vector)
    axis = cross_matrix(vector / angle)
    rotation: Float64 = np.eye(3) + np.sin(angle) * axis + (1.0 - np.cos(angle)) * (axis @ axis)
    return rotation


def cross_matrix(vector: Float64) -> Float64:
    """Return the (3, 3) matrix that takes the cross product with a (3,) vector from the left."""
    x, y, z = vector
    return np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])


def rotation_angle_deg(first: Float64, second: Float64) -> float:
    """Return the angle of the rotation that takes one (3, 3) rotation to another, degrees in [0, 180]."""
    distance = np.linalg.norm(first - second) / np.sqrt(8.0)
    return float(np.degrees(2.0 * np.arcsin(np.clip(distance, 0.0, 1.0))))


def quaternion_wxyz(rotation: Float64) -> Float64:
    """Return the unit quaternion (w, x, y, z) of a (3, 3) rotation; w is not negative."""
    m = rotation
    products = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [0.0, m[0, 0] - m[1, 1] - m[2, 2], m[1, 0] + m[0, 1], m[0, 2] + m[2, 0]],
            [0.0, 0.0, m[1, 1] - m[0, 0] - m[2, 2], m[2, 1] + m[1, 2]],
            [0.0, 0.0, 0.0, m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    _, vectors = np.linalg.eigh(products, UPLO="U")
    quaternion: Float64 = vectors[:, -1]
    return -quaternion if quaternion[0] < 0 else quaternion


def quaternion_product(first: NDArray[Any], second: NDArray[Any]) -> Float64:
    """Return the product (..., 4) of quaternions (w, x, y, z): the rotation `second`, then `first`."""
    aw, ax, ay, az = np.moveaxis(np.asarray(first, np.float64), -1, 0)
    bw, bx, by, bz = np.moveaxis(np.asarray(second, np.float64), -1, 0)
    return np.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        axis=-1,
    )

"""The one camera type of the project, and projection through it. No file formats, no calibration.

World frame: right-handed, +y up, the object's front towards +z. Camera frame (OpenGL): x right, y up, looking along
-z, world units. Pixel frame: origin at the outer corner of the top-left pixel, whose centre is therefore (0.5, 0.5);
x runs right, y runs down; images have row 0 on top. Depth is measured along the optical axis, positive in front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]


def rigid_inverse(transform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Invert a (4, 4) rigid transform exactly: transpose the rotation, rotate the negated translation."""
    inverse = np.eye(4)
    inverse[:3, :3] = transform[:3, :3].T
    inverse[:3, 3] = -transform[:3, :3].T @ transform[:3, 3]
    return inverse


@dataclass(frozen=True, eq=False)
class PinholeCamera:
    """One calibrated view without lens distortion; see the module for the frames.

    Attributes:
        name: The view this camera belongs to, e.g. `front`.
        focal_px: (fx, fy), pixels.
        centre_px: (cx, cy), the principal point, pixels.
        cam_from_world: (4, 4) float64 rigid transform.
        image_hw: (height, width), pixels.
    """

    name: str
    focal_px: tuple[float, float]
    centre_px: tuple[float, float]
    cam_from_world: NDArray[np.float64]
    image_hw: tuple[int, int]

    @classmethod
    def from_fov(
        cls, name: str, fov_x_rad: float, world_from_cam: NDArray[np.float64], image_hw: tuple[int, int]
    ) -> PinholeCamera:
        """Build a camera with square pixels and the principal point in the image centre.

        Args:
            name: View name.
            fov_x_rad: Horizontal field of view, radians.
            world_from_cam: (4, 4) rigid transform, the camera-to-world matrix of the NeRF convention.
            image_hw: (height, width), pixels.
        """
        height, width = image_hw
        focal = 0.5 * width / math.tan(0.5 * fov_x_rad)
        return cls(name, (focal, focal), (0.5 * width, 0.5 * height), rigid_inverse(world_from_cam), image_hw)

    @cached_property
    def world_from_cam(self) -> NDArray[np.float64]:
        """(4, 4) rigid transform from the camera's to the world's frame."""
        return rigid_inverse(self.cam_from_world)

    @property
    def position_world(self) -> NDArray[np.float64]:
        """(3,) optical centre, world units."""
        return self.world_from_cam[:3, 3]

    @property
    def fov_x_rad(self) -> float:
        """Horizontal field of view, radians; exact when the principal point is centred."""
        return 2.0 * math.atan(0.5 * self.image_hw[1] / self.focal_px[0])

    def resized(self, image_hw: tuple[int, int]) -> PinholeCamera:
        """Return the same view seen at another resolution.

        Args:
            image_hw: (height, width), pixels.
        """
        sy, sx = image_hw[0] / self.image_hw[0], image_hw[1] / self.image_hw[1]
        return replace(
            self,
            focal_px=(self.focal_px[0] * sx, self.focal_px[1] * sy),
            centre_px=(self.centre_px[0] * sx, self.centre_px[1] * sy),
            image_hw=image_hw,
        )

    def clip_from_world(self, near: float, far: float) -> NDArray[np.float64]:
        """Return the (4, 4) OpenGL projection of world points, z/w running from -1 (near) to 1 (far).

        The clip frame's +y is the image's up, so that row 0 of an OpenGL-style raster is the *bottom* row;
        `reconflow.rendering` owns the one flip between the two.

        Args:
            near: Distance of the near plane along the optical axis, world units.
            far: Distance of the far plane, world units.
        """
        height, width = self.image_hw
        (fx, fy), (cx, cy) = self.focal_px, self.centre_px
        projection = np.zeros((4, 4))
        projection[0, 0], projection[0, 2] = 2 * fx / width, 1 - 2 * cx / width
        projection[1, 1], projection[1, 2] = 2 * fy / height, 2 * cy / height - 1
        projection[2, 2], projection[2, 3] = -(far + near) / (far - near), -2 * far * near / (far - near)
        projection[3, 2] = -1.0
        return projection @ self.cam_from_world


def project_points(points_world: FloatArray, camera: PinholeCamera) -> tuple[FloatArray, FloatArray]:
    """Project world points into an image.

    Args:
        points_world: (..., 3), world units.
        camera: View to project into.

    Returns:
        points_px: (..., 2), x then y, pixels.
        depth: (...), along the optical axis; negative behind the camera, never clipped here.
    """
    rotation, translation = camera.cam_from_world[:3, :3], camera.cam_from_world[:3, 3]
    points_cam = points_world @ rotation.T + translation
    depth = -points_cam[..., 2]
    x = camera.centre_px[0] + camera.focal_px[0] * points_cam[..., 0] / depth
    y = camera.centre_px[1] - camera.focal_px[1] * points_cam[..., 1] / depth
    return np.stack([x, y], axis=-1), depth


def unproject_pixels(points_px: FloatArray, depth: FloatArray, camera: PinholeCamera) -> FloatArray:
    """Lift pixels with a known depth into the world; the inverse of `project_points`.

    Args:
        points_px: (..., 2), x then y, pixels.
        depth: (...), along the optical axis, world units.
        camera: View the pixels belong to.

    Returns:
        points_world: (..., 3), world units.
    """
    x = (points_px[..., 0] - camera.centre_px[0]) / camera.focal_px[0] * depth
    y = -(points_px[..., 1] - camera.centre_px[1]) / camera.focal_px[1] * depth
    points_cam = np.stack([x, y, -depth], axis=-1)
    world_from_cam = camera.world_from_cam
    return points_cam @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]


def pixel_centres(image_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Return the (H, W, 2) pixel coordinates, x then y, of every pixel's centre."""
    ys, xs = np.meshgrid(np.arange(image_hw[0]) + 0.5, np.arange(image_hw[1]) + 0.5, indexing="ij")
    return np.stack([xs, ys], axis=-1)

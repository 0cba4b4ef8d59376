"""The generator's view sphere as this project's cameras, wherever the object lies. Renders nothing."""

from __future__ import annotations

import numpy as np

from reconflow.cameras.camera import PinholeCamera
from reconflow.geometry.similarity import Similarity
from reconflow.reconviagen.view_sphere import hammersley_views


def sphere_cameras(
    count: int, size: int, place: Similarity | None = None, radius: float = 2.0, fov_deg: float = 40.0
) -> tuple[PinholeCamera, ...]:
    """Return cameras that look at the object from all sides.

    Args:
        count: How many.
        size: Side of their pictures, pixels.
        place: Where the generator's frame (the unit cube around the origin) lies in the world; None leaves it there.
        radius: Distance from the object's centre, units of the generator's frame.
        fov_deg: Field of view of both axes.
    """
    place = Similarity.identity() if place is None else place
    views = hammersley_views(count, radius, fov_deg)
    opengl_from_opencv = np.diag([1.0, -1.0, -1.0])
    cameras = []
    for index, extrinsic in enumerate(views.extrinsics.double().numpy()):
        left, _, right = np.linalg.svd(opengl_from_opencv @ extrinsic[:3, :3])
        rotation = (left @ right) @ place.rotation.T
        centre = place.apply(-extrinsic[:3, :3].T @ extrinsic[:3, 3])
        cam_from_world = np.eye(4)
        cam_from_world[:3, :3], cam_from_world[:3, 3] = rotation, -rotation @ centre
        focal, middle = float(views.intrinsics[index, 0, 0]) * size, 0.5 * size
        cameras.append(
            PinholeCamera(f"sphere_{index:03d}", (focal, focal), (middle, middle), cam_from_world, (size, size))
        )
    return tuple(cameras)

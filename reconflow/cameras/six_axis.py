"""The six-axis rig: six cameras on the world's axes, all looking at the origin. Where it stands, not how it is found.

view    camera at  image up  image right
front   +z         +y        +x
back    -z         +y        -x
left    +x         +y        -z   (the object's own left)
right   -x         +y        +z
top     +y         +z        -x
bottom  -y         +z        +x
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera

VIEW_NAMES: Final = ("front", "back", "left", "right", "top", "bottom")

_POSITION_AND_UP: Final[dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]]] = {
    "front": ((0, 0, 1), (0, 1, 0)),
    "back": ((0, 0, -1), (0, 1, 0)),
    "left": ((1, 0, 0), (0, 1, 0)),
    "right": ((-1, 0, 0), (0, 1, 0)),
    "top": ((0, 1, 0), (0, 0, 1)),
    "bottom": ((0, -1, 0), (0, 0, 1)),
}


def six_axis_pose(view: str, distance: float) -> NDArray[np.float64]:
    """Return the (4, 4) camera-to-world transform of one view of the rig.

    Args:
        view: One of `VIEW_NAMES`.
        distance: From the origin to the camera, world units.
    """
    position, up = (np.array(axis, dtype=np.float64) for axis in _POSITION_AND_UP[view])
    world_from_cam = np.eye(4)
    world_from_cam[:3, 0] = np.cross(up, position)
    world_from_cam[:3, 1] = up
    world_from_cam[:3, 2] = position
    world_from_cam[:3, 3] = distance * position
    return world_from_cam


def six_axis_rig(fov_x_rad: float, distance: float, image_hw: tuple[int, int]) -> tuple[PinholeCamera, ...]:
    """Return the rig's six cameras in the order of `VIEW_NAMES`.

    Args:
        fov_x_rad: Horizontal field of view of all six, radians.
        distance: From the origin to every camera, world units.
        image_hw: (height, width), pixels.
    """
    return tuple(
        PinholeCamera.from_fov(view, fov_x_rad, six_axis_pose(view, distance), image_hw) for view in VIEW_NAMES
    )

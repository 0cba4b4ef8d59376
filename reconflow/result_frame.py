"""The frame and units in which a result is stored. One similarity, applied to a mesh and its cameras together.

The result's frame is right-handed and +y up, as glTF wants it. Without supplied cameras it is scaled so that the
farthest vertex is at distance 1 from the origin; with supplied cameras its units are theirs; an object size in metres
outranks both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import Similarity
from reconflow.outputs.package import ScaleSource
from reconflow.reconstruction import Reconstruction

_Y_UP_FROM_Z_UP: Final = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])


@dataclass(frozen=True, eq=False)
class ResultFrame:
    """The similarity from the cameras' world to the result: x_result = scale * rotation @ x_world.

    Attributes:
        source: What one unit of the result means.
        scale: Result units per world unit.
        rotation: (3, 3) proper rotation.
    """

    source: ScaleSource
    scale: float
    rotation: NDArray[np.float64]

    @property
    def similarity(self) -> Similarity:
        """The transform itself."""
        return Similarity(self.scale, self.rotation, np.zeros(3))

    def to_dict(self) -> dict[str, Any]:
        """Return the frame as a JSON-able object."""
        return {"source": self.source.value, "scale": self.scale, "rotation": self.rotation.tolist()}


def choose_result_frame(
    mesh: TriangleMesh, *, cameras_given: bool, world_up: str = "+y", object_size_m: float | None = None
) -> ResultFrame:
    """Decide the result's frame.

    Args:
        mesh: The surface in the cameras' world.
        cameras_given: Whether the dataset supplied its cameras, and with them its units.
        world_up: The cameras' up axis, "+y" or "+z".
        object_size_m: Longest side of the object's bounding box, metres, when the user knows it.
    """
    rotation = _Y_UP_FROM_Z_UP if world_up == "+z" else np.eye(3)
    vertices = mesh.vertices.astype(np.float64)
    if object_size_m is not None:
        extent = (vertices @ rotation.T).max(axis=0) - (vertices @ rotation.T).min(axis=0)
        return ResultFrame(ScaleSource.METRES, object_size_m / float(extent.max()), rotation)
    if cameras_given:
        return ResultFrame(ScaleSource.DATASET, 1.0, rotation)
    return ResultFrame(ScaleSource.UNIT_RADIUS, 1.0 / float(np.sqrt(np.square(vertices).sum(axis=1).max())), rotation)


def move_camera(camera: PinholeCamera, frame: ResultFrame) -> PinholeCamera:
    """Return the same view of the moved and scaled world; its image does not change."""
    cam_from_world = camera.cam_from_world.copy()
    cam_from_world[:3, :3] = camera.cam_from_world[:3, :3] @ frame.rotation.T
    cam_from_world[:3, 3] = frame.scale * camera.cam_from_world[:3, 3]
    return replace(camera, cam_from_world=cam_from_world)


def move_reconstruction(reconstruction: Reconstruction, frame: ResultFrame) -> Reconstruction:
    """Return mesh, cameras and Gaussians in the result's frame."""
    textured = reconstruction.textured
    vertices = frame.scale * (textured.mesh.vertices.astype(np.float64) @ frame.rotation.T)
    mesh = replace(textured.mesh, vertices=np.ascontiguousarray(vertices, np.float32))
    gaussians = reconstruction.gaussians
    return replace(
        reconstruction,
        textured=replace(textured, mesh=mesh),
        cameras=tuple(move_camera(camera, frame) for camera in reconstruction.cameras),
        gaussians=None if gaussians is None else gaussians.transformed(frame.similarity),
    )

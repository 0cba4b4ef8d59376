"""Pictures of a result: from every input camera, textured and as wireframe, and a turntable. No metrics, no pages."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reconflow.cameras.camera import PinholeCamera
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.outputs.files import write_bytes
from reconflow.outputs.images import encode_image
from reconflow.outputs.runs import RunLayout
from reconflow.progress import OnProgress, ignore_progress
from reconflow.rendering.shade import Render, render_textured, render_wireframe

PREVIEW_WIDTH_PX: Final = 512
TURNTABLE_FRAMES: Final = 36
TURNTABLE_SIZE_PX: Final = 384
_WIRE_SAMPLES: Final = 6
"""Samples per pixel and axis of wireframes: lines may be a quarter of a pixel wide."""
_TURNTABLE_FOV_RAD: Final = math.radians(35.0)
_TURNTABLE_ELEVATION_RAD: Final = math.radians(18.0)
_TURNTABLE_FRAME_MS: Final = 90


def write_previews(
    textured: TexturedMesh,
    cameras: Sequence[PinholeCamera],
    layout: RunLayout,
    *,
    width: int = PREVIEW_WIDTH_PX,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Write `textured_{view}.png` and `wireframe_{view}.png` for every camera.

    Args:
        textured: The mesh to show.
        cameras: The views, in the mesh's frame.
        layout: Where the pictures go.
        width: Of a picture, pixels; the height follows from the camera.
        on_progress: Told after every camera.
    """
    for number, camera in enumerate(cameras):
        on_progress(number, len(cameras), f"drawing {camera.name}")
        shown = at_width(camera, width)
        write_bytes(layout.textured_preview(camera.name), encode_image(to_bytes(render_textured(textured, shown))))
        wireframe = render_wireframe(textured.mesh, shown, supersample=_WIRE_SAMPLES)
        write_bytes(layout.wireframe_preview(camera.name), encode_image(to_bytes(wireframe)))
    on_progress(len(cameras), len(cameras), "previews drawn")


def write_turntable(
    textured: TexturedMesh,
    path: Path,
    *,
    frames: int = TURNTABLE_FRAMES,
    size: int = TURNTABLE_SIZE_PX,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Write one turn around the object as an animated WebP that repeats for ever.

    The first frame looks at the front, slightly from above; the object then turns to show its own right side, as a
    thing on a turntable that runs counter-clockwise seen from above shows it.

    Args:
        textured: The mesh to show.
        path: The file.
        frames: Pictures per turn.
        size: Width and height, pixels.
        on_progress: Told after every frame.
    """
    cameras = turntable_cameras(textured.mesh, frames, size)
    pictures = []
    for number, camera in enumerate(cameras):
        on_progress(number, frames, "turning the object")
        pictures.append(Image.fromarray(to_bytes(render_textured(textured, camera, supersample=2))))
    stream = io.BytesIO()
    pictures[0].save(
        stream,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=_TURNTABLE_FRAME_MS,
        loop=0,
        quality=80,
        method=4,
        kmin=0,
        kmax=1,
    )
    write_bytes(path, stream.getvalue())
    on_progress(frames, frames, "turntable drawn")


def turntable_cameras(mesh: TriangleMesh, frames: int, size: int) -> tuple[PinholeCamera, ...]:
    """Return cameras on a circle around the mesh, slightly above it, that keep its bounding sphere in the picture.

    Args:
        mesh: What to look at.
        frames: How many; the first one looks at the front.
        size: Width and height of the pictures, pixels.
    """
    vertices = mesh.vertices.astype(np.float64)
    centre = 0.5 * (vertices.min(axis=0) + vertices.max(axis=0))
    radius = max(float(np.linalg.norm(vertices - centre, axis=1).max()), 1e-12)
    distance = 1.03 * radius / math.sin(0.5 * _TURNTABLE_FOV_RAD)
    return tuple(
        PinholeCamera.from_fov(
            f"turntable_{number:02d}",
            _TURNTABLE_FOV_RAD,
            orbit_pose(centre, distance, -2 * math.pi * number / frames, _TURNTABLE_ELEVATION_RAD),
            (size, size),
        )
        for number in range(frames)
    )


def orbit_pose(
    centre: NDArray[np.float64], distance: float, azimuth_rad: float, elevation_rad: float
) -> NDArray[np.float64]:
    """Return the (4, 4) camera-to-world transform of a camera that looks at a point, +y up in the picture.

    Args:
        centre: (3,) the point, world units.
        distance: From it, world units.
        azimuth_rad: 0 looks from +z, a quarter turn from +x.
        elevation_rad: Above the horizontal plane.
    """
    backward = np.array(
        [
            math.cos(elevation_rad) * math.sin(azimuth_rad),
            math.sin(elevation_rad),
            math.cos(elevation_rad) * math.cos(azimuth_rad),
        ]
    )
    right = np.array([math.cos(azimuth_rad), 0.0, -math.sin(azimuth_rad)])
    world_from_cam = np.eye(4)
    world_from_cam[:3, 0], world_from_cam[:3, 1], world_from_cam[:3, 2] = right, np.cross(backward, right), backward
    world_from_cam[:3, 3] = centre + distance * backward
    return world_from_cam


def at_width(camera: PinholeCamera, width: int) -> PinholeCamera:
    """Return the view at a picture width, pixels; the proportions stay."""
    height, full_width = camera.image_hw
    return camera.resized((max(1, round(height * width / full_width)), width))


def to_bytes(render: Render) -> NDArray[np.uint8]:
    """Return a render's picture as (H, W, 3) uint8 sRGB."""
    return np.round(render.rgb_srgb * 255).astype(np.uint8)

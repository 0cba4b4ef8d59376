"""Objects of known shape and colour, and datasets rendered from them with known cameras."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.calibration import Calibration
from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.colour import linear_from_srgb_u8, srgb_from_linear
from reconflow.datasets.dataset import Dataset, DatasetLayout, DepthEncoding, DepthImage, MaskSource, View
from reconflow.geometry.atlas import unwrap
from reconflow.geometry.atlas_raster import dilate, rasterize_atlas
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.nvdiffrec.texel_views import locate_texels
from reconflow.rendering.shade import Render, render_textured

Paint = Callable[[NDArray[np.float64]], NDArray[np.float64]]

FOV_RAD = 0.8
DISTANCE = 3.0


def rig(size: int, distance: float = DISTANCE) -> tuple[PinholeCamera, ...]:
    return six_axis_rig(FOV_RAD, distance, (size, size))


def looking_at_origin(name: str, eye: tuple[float, float, float], size: int) -> PinholeCamera:
    """A camera anywhere but straight above or below, its image upright."""
    pose = np.eye(4)
    back = np.array(eye) / np.linalg.norm(eye)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(back, right), back, eye
    return PinholeCamera.from_fov(name, FOV_RAD, pose, (size, size))


def scaled(mesh: TriangleMesh, factor: float) -> TriangleMesh:
    return TriangleMesh((factor * mesh.vertices).astype(np.float32), mesh.faces)


def painted(mesh: TriangleMesh, paint: Paint, size: int = 512) -> TexturedMesh:
    """Unwrap a mesh and give every texel the linear colour of its position."""
    atlas = unwrap(mesh, size)
    face, bary = rasterize_atlas(atlas.uvs, atlas.uv_faces, (size, size))
    texels = locate_texels(mesh, face, bary)
    texture = np.zeros((size * size, 3), np.float32)
    texture[texels.index] = paint(texels.position.astype(np.float64))
    texture = dilate(texture.reshape(size, size, 3), face >= 0)
    encoded = np.rint(255 * srgb_from_linear(np.clip(texture, 0, 1))).astype(np.uint8)
    return TexturedMesh(mesh, atlas.uvs, atlas.uv_faces, encoded)


def gradient(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smooth, and different on every side."""
    return 0.35 + 0.25 * np.sin(1.7 * p + np.array([0.3, 1.1, 2.0]))


def checker(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubes of a third of a unit in two colours."""
    odd = np.floor(3 * p + 0.5).sum(axis=1).astype(int) % 2 == 1
    return np.where(odd[:, None], [0.6, 0.25, 0.1], [0.05, 0.2, 0.45])


def grey(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full((len(p), 3), 0.3)


def stored(depth: NDArray[np.float32], bits: int) -> tuple[DepthImage, float]:
    """A relative depth render, and the depth of its largest code."""
    top, farthest = 2**bits - 1, float(depth.max())
    return DepthImage(np.round(top * depth / farthest).astype(np.uint16), top), farthest


def stored_metric(depth: NDArray[np.float32], unit: float = 1e-3) -> DepthImage:
    return DepthImage(np.round(depth / unit).astype(np.uint16), 65535, DepthEncoding.METRIC_Z, unit)


def view_of(name: str, render: Render, depth: DepthImage | None, exposure: float = 1.0) -> View:
    rgb = np.rint(255 * render.rgb_srgb).astype(np.uint8)
    if exposure != 1:
        linear = (
            exposure * (linear_from_srgb_u8(rgb) - (1 - render.coverage[..., None])) + 1 - render.coverage[..., None]
        )
        rgb = np.rint(255 * srgb_from_linear(np.clip(linear, 0, 1))).astype(np.uint8)
    return View(name, rgb, render.coverage, MaskSource.ALPHA, depth)


def photographed(
    textured: TexturedMesh,
    cameras: Sequence[PinholeCamera],
    *,
    bits: int | None = 8,
    metric: bool = False,
    world_up: str = "+y",
) -> tuple[Dataset, Calibration]:
    """Render a dataset, and say what its calibration should find.

    Args:
        textured: The object.
        cameras: Who looks at it.
        bits: Of the relative depth renders; None leaves depth out.
        metric: Store depth in thousandths of a unit instead.
        world_up: Noted in the dataset.
    """
    views, scales = [], []
    for camera in cameras:
        render = render_textured(textured, camera)
        depth, scale = (None, None) if bits is None else stored(render.depth, bits)
        if metric:
            depth, scale = stored_metric(render.depth), 65.535
        views.append(view_of(camera.name, render, depth))
        scales.append(scale)
    dataset = Dataset("painted", DatasetLayout.POSED, tuple(views), tuple(cameras), "0" * 64, world_up)
    found = Calibration(
        tuple(cameras), tuple(scales), cameras[0].fov_x_rad, 0.0, 1.0, "given", {}, (None,) * len(views)
    )
    return dataset, found

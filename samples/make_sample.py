"""Command that renders one of the objects into a six-view dataset with known truth, and the files it writes.

    python -m samples.make_sample OBJECT --out DIR [--fov 41.3 --distance 3.2 --size 512 ...]

The same arguments give the same bytes on the same machine, whatever the number of threads.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.errors import ReconflowError, ValidationFailedError
from samples.drawing import Visible, find_visible
from samples.paint import apply_prints
from samples.shading import LIGHTINGS, Illumination, illuminate, shade
from samples.shapes import SHAPES, Shape
from samples.solids import parts_at
from samples.surface import Surface, build_surface, simplify_surface

_BAND_ROWS = 64
_GOLDEN_RATIO = (1.0 + math.sqrt(5.0)) / 2.0


@dataclass(frozen=True)
class SampleOptions:
    """How an object is rendered.

    Attributes:
        fov_deg: Horizontal field of view of every camera, degrees.
        distance: From the object's centre to every camera, in units of its bounding sphere's radius.
        size: Pictures' width and height, pixels.
        depth_size: Depth renders' width and height, pixels.
        depth_bits: 8 or 16.
        lighting: One of `LIGHTINGS`, or None for the object's own.
        novel: Number of held-out views.
        novel_size: Their width and height, pixels; None for `size`.
        seed: Turns the held-out views and the sky's rays.
        cell: Spacing of the grid that the surface is extracted on, model units.
        face_limit: Faces of the ground-truth mesh, at most about.
        supersampling: Samples a pixel along each axis.
    """

    fov_deg: float = 41.3
    distance: float = 3.2
    size: int = 512
    depth_size: int = 512
    depth_bits: int = 8
    lighting: str | None = None
    novel: int = 12
    novel_size: int | None = None
    seed: int = 0
    cell: float = 0.0085
    face_limit: int = 100_000
    supersampling: int = 4


@dataclass(frozen=True, eq=False)
class Scene:
    """A lit, painted surface, ready to be seen from anywhere."""

    shape: Shape
    surface: Surface
    illumination: Illumination


def make_sample(name: str, out: Path, options: SampleOptions) -> None:
    """Render the object `name` into the folder `out` in the six-view layout, with `ground_truth/` and `novel/`.

    Raises:
        ValidationFailedError: The cameras would not see the whole object, or the true mesh cannot have so few faces.
    """
    fov = math.radians(options.fov_deg)
    if options.distance * math.sin(0.5 * fov) <= 1.0:
        raise ValidationFailedError(
            f"At {options.fov_deg}° and {options.distance} radii the object's bounding sphere is cut by the frame.",
            suggestion="Raise --fov or --distance.",
            fov_deg=options.fov_deg,
            distance=options.distance,
        )
    shape = SHAPES[name]()
    surface = build_surface(shape.solids, shape.half_extent, options.cell)
    scene = Scene(shape, surface, illuminate(surface, options.lighting or shape.lighting, options.seed))

    rig = six_axis_rig(fov, options.distance, (options.size, options.size))
    for camera in rig:
        colour, alpha = render(scene, camera, options.supersampling)
        _save_png(out / "multi_views" / f"{camera.name}.png", _to_srgb8(colour + (1.0 - alpha[..., None])))
        depth = render_depth(scene, camera.resized((options.depth_size, options.depth_size)))
        _save_png(out / "depth_renders" / f"{camera.name}.png", encode_depth(depth, options.depth_bits))
    _save_transforms(out / "ground_truth" / "transforms.json", rig, "./multi_views")

    _save_ply(out / "ground_truth" / "mesh.ply", *simplify_surface(surface, options.face_limit))
    if options.novel > 0:
        _make_novel(scene, out / "novel", options)


def _make_novel(scene: Scene, folder: Path, options: SampleOptions) -> None:
    novel_size = options.novel_size or options.size
    fov = math.radians(options.fov_deg)
    novel = novel_cameras(options.novel, options.seed, fov, options.distance, novel_size)
    for camera in novel:
        colour, alpha = render(scene, camera, options.supersampling)
        straight = np.where(alpha[..., None] > 0, colour / np.maximum(alpha[..., None], 1e-9), 1.0)
        rgba = np.concatenate([_to_srgb8(straight), np.round(255 * alpha[..., None]).astype(np.uint8)], axis=2)
        _save_png(folder / f"{camera.name}.png", rgba)
    _save_transforms(folder / "transforms_novel.json", novel, "./novel")


def render(scene: Scene, camera: PinholeCamera, supersampling: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a picture without background, averaged over supersampling² samples a pixel.

    Returns:
        colour: (H, W, 3) linear radiance multiplied by alpha, clipped to what a display shows.
        alpha: (H, W) share of each pixel that the object covers.
    """
    height, width = camera.image_hw
    fine = camera.resized((height * supersampling, width * supersampling))
    vertices = scene.surface.vertices_world
    colour, alpha = np.zeros((height * width, 3)), np.zeros(height * width)
    for top in range(0, height, _BAND_ROWS):
        rows = slice(top * supersampling, (top + _BAND_ROWS) * supersampling)
        visible = find_visible(vertices, scene.surface.faces, fine, rows)
        radiance = np.clip(_radiance(scene, visible, camera), 0.0, 1.0)
        row, column = np.divmod(visible.sample, width * supersampling)
        pixel = row // supersampling * width + column // supersampling
        alpha += np.bincount(pixel, minlength=height * width)
        for channel in range(3):
            colour[:, channel] += np.bincount(pixel, radiance[:, channel], minlength=height * width)
    colour, alpha = colour / supersampling**2, alpha / supersampling**2
    return colour.reshape(height, width, 3), alpha.reshape(height, width)


def _radiance(scene: Scene, visible: Visible, camera: PinholeCamera) -> NDArray[np.float64]:
    """Return the linear radiance (S, 3) that the visible samples send to the camera."""
    surface, light = scene.surface, scene.illumination
    points = visible.interpolate(surface.vertices_model)
    normals = visible.interpolate(surface.normals)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    eye = camera.position_world * surface.radius + surface.centre
    towards_eye = eye - points
    towards_eye /= np.linalg.norm(towards_eye, axis=1, keepdims=True)
    painted = scene.shape.paint(points, parts_at(surface.solids, points))
    albedo = to_linear(np.clip(apply_prints(points, normals, painted, scene.shape.prints), 0.0, 1.0))
    sky, lamps = visible.interpolate(light.sky), visible.interpolate(light.lamps.T)
    return shade(light.lighting, albedo, normals, towards_eye, sky, lamps)


def render_depth(scene: Scene, camera: PinholeCamera) -> NDArray[np.float64]:
    """Return the depth (H, W) at each pixel's centre along the optical axis, world units; 0 is background."""
    depth = np.zeros(camera.image_hw[0] * camera.image_hw[1])
    visible = find_visible(scene.surface.vertices_world, scene.surface.faces, camera)
    depth[visible.sample] = visible.depth
    return depth.reshape(camera.image_hw)


def encode_depth(depth: NDArray[np.float64], bits: int) -> NDArray[np.unsignedinteger[Any]]:
    """Return round(max_code * z / z_max) with the view's own z_max, uint8 or uint16."""
    codes: NDArray[np.float64] = np.round((2**bits - 1) * depth / depth.max())
    return codes.astype(np.uint8) if bits == 8 else codes.astype(np.uint16)


def novel_cameras(count: int, seed: int, fov_rad: float, distance: float, size: int) -> tuple[PinholeCamera, ...]:
    """Return held-out cameras all around the object, from above to below, none within 20° of an axis."""
    cameras = []
    for index in range(count):
        rise = math.sin(math.radians(52.0)) * (1.0 - 2.0 * (index + 0.5) / count)
        within_quarter = math.modf(_GOLDEN_RATIO * (index + 1 + seed))[0]
        turn = math.radians(90.0 * (3 * index % 4) + 22.0 + 46.0 * within_quarter)
        flat = math.sqrt(1.0 - rise**2)
        backward = np.array([flat * math.sin(turn), rise, flat * math.cos(turn)])
        right = np.cross([0.0, 1.0, 0.0], backward)
        right /= np.linalg.norm(right)
        world_from_cam = np.eye(4)
        world_from_cam[:3, :3] = np.stack([right, np.cross(backward, right), backward], axis=1)
        world_from_cam[:3, 3] = distance * backward
        cameras.append(PinholeCamera.from_fov(f"{index:03d}", fov_rad, world_from_cam, (size, size)))
    return tuple(cameras)


def to_linear(srgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Decode sRGB display values in [0, 1]."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _to_srgb8(linear: NDArray[np.float64]) -> NDArray[np.uint8]:
    bounded = np.clip(linear, 0.0, 1.0)
    encoded = np.where(bounded <= 0.0031308, 12.92 * bounded, 1.055 * bounded ** (1 / 2.4) - 0.055)
    return np.round(255.0 * encoded).astype(np.uint8)


def _save_png(path: Path, pixels: NDArray[np.unsignedinteger[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, optimize=True)


def _save_transforms(path: Path, cameras: tuple[PinholeCamera, ...], folder: str) -> None:
    """Write cameras in the NeRF convention: camera-to-world, OpenGL axes, `camera_angle_x` in radians."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [{"file_path": f"{folder}/{c.name}", "transform_matrix": c.world_from_cam.tolist()} for c in cameras]
    path.write_text(json.dumps({"camera_angle_x": cameras[0].fov_x_rad, "frames": frames}, indent=1) + "\n")


def _save_ply(path: Path, vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(vertices)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(faces)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    records = np.empty(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    records["count"], records["corners"] = 3, faces
    path.write_bytes(header.encode() + vertices.astype("<f4").tobytes() + records.tobytes())


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and make one dataset."""
    options = SampleOptions()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("object", choices=sorted(SHAPES))
    parser.add_argument("--out", type=Path, required=True, help="folder to write the dataset into")
    parser.add_argument("--fov", type=float, default=options.fov_deg, help="horizontal field of view, degrees")
    parser.add_argument("--distance", type=float, default=options.distance, help="in radii of the object")
    parser.add_argument("--size", type=int, default=options.size, help="pictures' width, pixels")
    parser.add_argument("--depth-size", type=int, default=options.depth_size, help="depth renders' width, pixels")
    parser.add_argument("--depth-bits", type=int, choices=(8, 16), default=options.depth_bits)
    parser.add_argument("--lighting", choices=LIGHTINGS, help="default: the object's own")
    parser.add_argument("--novel", type=int, default=options.novel, help="number of held-out views")
    parser.add_argument("--novel-size", type=int, help="their width, pixels; default: --size")
    parser.add_argument("--seed", type=int, default=options.seed)
    parser.add_argument("--cell", type=float, default=options.cell, help="detail of the surface, model units")
    parser.add_argument("--faces", type=int, default=options.face_limit, help="faces of the ground truth, about")
    given = parser.parse_args(arguments)
    options = SampleOptions(
        fov_deg=given.fov,
        distance=given.distance,
        size=given.size,
        depth_size=given.depth_size,
        depth_bits=given.depth_bits,
        lighting=given.lighting,
        novel=given.novel,
        novel_size=given.novel_size,
        seed=given.seed,
        cell=given.cell,
        face_limit=given.faces,
    )
    try:
        make_sample(given.object, given.out, options)
    except ReconflowError as error:
        parser.error(f"{error.message} {error.suggestion}")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()

"""One optimisation step of rendering: RGB and silhouette loss, gradients to vertices and texture; against DEODR.

Both engines render six views of the same mesh with the same cameras, losses and texture size, in alternation in one
process and on one thread. CPU seconds are compared, not wall time. DEODR maps textures affinely in its backward pass
and colours both the picture and its silhouette in one pass of four channels.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from benchmarks._extras import lacks
from benchmarks._shapes import BenchmarkMesh, bumpy_sphere, load_mesh, waves_texture
from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.rendering.fused import FusedRenderer, ViewTarget
from reconflow.rendering.raster import rasterize_view

Step = Callable[[NDArray[np.float32]], tuple[float, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Print CPU seconds per step of both engines and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mesh", type=Path, help="mesh file to use instead of the generated one")
    parser.add_argument("--size", type=int, default=512, help="pixels along each side of a view")
    parser.add_argument("--texture", type=int, default=1024, help="texels along each side of the texture")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args(argv)
    numba.set_num_threads(1)
    mesh = load_mesh(args.mesh) if args.mesh else bumpy_sphere()
    cameras = six_axis_rig(np.deg2rad(45), 3.0, (args.size, args.size))
    texture = waves_texture(args.texture)
    targets = [make_target(mesh, camera) for camera in cameras]
    covered = np.mean([target.coverage.mean() for target in targets])
    print(f"{len(mesh.faces)} faces, six views of {args.size} px, {covered:.0%} covered, texture {args.texture}")
    engines: dict[str, Step] = {"reconflow": fused_step(mesh, cameras, texture, targets)}
    if not lacks("deodr"):
        engines["deodr"] = deodr_step(mesh, cameras, texture, targets)
    report(engines, mesh, args.repeats)
    return 0


def report(engines: dict[str, Step], mesh: BenchmarkMesh, repeats: int) -> None:
    """Run the engines in turn and print losses, CPU seconds and ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for name, step in engines.items():
        rgb, silhouette = step(mesh.vertices)
        print(f"{name:10s} losses: rgb {rgb:.6f}, silhouette {silhouette:.6f}")
    for _ in range(repeats):
        for name, step in engines.items():
            start = time.process_time()
            step(mesh.vertices)
            seconds[name].append(time.process_time() - start)
    for name, values in seconds.items():
        print(f"{name:10s} CPU s per step: median {statistics.median(values):.4f}, min {min(values):.4f}")
    if "deodr" in seconds:
        ours, theirs = seconds["reconflow"], seconds["deodr"]
        paired = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        print(f"ratio reconflow / deodr: median of pairs {paired:.3f}, of minima {min(ours) / min(theirs):.3f}")


def make_target(mesh: BenchmarkMesh, camera: PinholeCamera) -> ViewTarget:
    """Return the picture of a slightly smaller, plain grey object over white."""
    coverage = (rasterize_view(mesh.vertices * 0.97, mesh.faces, camera).face_id >= 0).astype(np.float32)
    rgb = 1.0 - 0.6 * np.repeat(coverage[..., None], 3, axis=2)
    return ViewTarget(coverage=coverage, rgb_linear=rgb)


def fused_step(
    mesh: BenchmarkMesh,
    cameras: Sequence[PinholeCamera],
    texture: NDArray[np.float32],
    targets: Sequence[ViewTarget],
) -> Step:
    """Return the step of this project's fused renderer."""
    renderer = FusedRenderer(mesh.faces, cameras, mesh.uvs, mesh.uv_faces)

    def step(vertices: NDArray[np.float32]) -> tuple[float, float]:
        result = renderer.step(vertices, texture, targets)
        return result.losses["rgb"], result.losses["silhouette"]

    return step


def deodr_step(
    mesh: BenchmarkMesh,
    cameras: Sequence[PinholeCamera],
    texture: NDArray[np.float32],
    targets: Sequence[ViewTarget],
) -> Step:
    """Return DEODR's step: render with four channels, losses in numpy, its own backward pass.

    The two halves of its `Scene3D.render_backward` are called one by one: the whole also looks for vertex colours,
    which a textured scene does not have (0.2.3).
    """
    from deodr import differentiable_renderer
    from deodr.triangulated_mesh import ColoredTriMesh

    rgba = np.concatenate([texture, np.ones((*texture.shape[:2], 1))], axis=2).astype(np.float64)
    height, width = texture.shape[:2]
    texel_uvs = np.stack([mesh.uvs[:, 0] * (width - 1), (1 - mesh.uvs[:, 1]) * (height - 1)], axis=1)
    colored = ColoredTriMesh(
        mesh.faces,
        mesh.vertices.astype(np.float64),
        clockwise=False,
        faces_uv=mesh.uv_faces,
        uv=texel_uvs.astype(np.float64),
        texture=rgba,
        nb_colors=4,
    )
    scene = differentiable_renderer.Scene3D(sigma=1, integer_pixel_centers=False)
    scene.set_mesh(colored)
    scene.set_light(None, 1.0)
    scene.set_background_color([1.0, 1.0, 1.0, 0.0])
    views = [deodr_camera(differentiable_renderer.Camera, camera) for camera in cameras]
    wanted = [np.dstack([target.rgb_linear, target.coverage]).astype(np.float64) for target in targets]
    channel_scale = np.array([1 / 3, 1 / 3, 1 / 3, 1.0]) / (len(views) * wanted[0].shape[0] * wanted[0].shape[1])

    def step(vertices: NDArray[np.float32]) -> tuple[float, float]:
        colored.set_vertices(vertices.astype(np.float64))
        losses = np.zeros(4)
        grad_vertices, grad_texture = np.zeros(vertices.shape), np.zeros(rgba.shape)
        for view, target in zip(views, wanted, strict=True):
            off = scene.render(view) - target
            losses += (off * off).sum(axis=(0, 1)) * channel_scale
            scene._render_2d_backward(2 * off * channel_scale)
            stored = scene.store_backward_current
            grad_vertices += view.project_points_backward(scene.scene_2d.ij_b, store_backward=stored)
            grad_texture += scene.scene_2d.texture_b
        return float(losses[:3].sum()), float(losses[3])

    return step


def deodr_camera(camera_type: type, camera: PinholeCamera) -> Any:
    """Convert to DEODR's camera, which follows OpenCV: y down, looking along +z."""
    (fx, fy), (cx, cy) = camera.focal_px, camera.centre_px
    extrinsic = np.diag([1.0, -1.0, -1.0]) @ camera.cam_from_world[:3]
    intrinsic = np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
    return camera_type(extrinsic=extrinsic, intrinsic=intrinsic, height=camera.image_hw[0], width=camera.image_hw[1])


if __name__ == "__main__":
    sys.exit(main())

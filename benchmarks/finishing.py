"""Finishing a generated object on the CPU: splatting its Gaussians, finding hidden faces, aligning it with the views.

    python -m benchmarks.finishing [--gaussians 300000] [--size 768] [--views 24]

Prints CPU seconds per step, second calls. No other splatting runs on a CPU without compiling; evaluating every Gaussian
at every pixel of its bounding box in NumPy, timed on some of them and scaled up, stands for plain array operations.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks._shapes import bumpy_sphere
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.datasets.dataset import DepthImage, MaskSource, View
from reconflow.geometry.depth import observe
from reconflow.geometry.gaussians import Gaussians
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import Similarity, rotation_angle_deg, rotation_from_vector
from reconflow.reconviagen.gaussian_rendering import Splats, project_gaussians, render_gaussians
from reconflow.reconviagen.inner_walls import face_visibility, remove_inner_walls
from reconflow.reconviagen.registration import register
from reconflow.reconviagen.sphere_cameras import sphere_cameras
from reconflow.rendering.shade import render_depth


def _cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def _on_surface(mesh: TriangleMesh, count: int) -> Gaussians:
    """Gaussians as a decoder makes them: small, near the surface, half-transparent."""
    rng = np.random.default_rng(0)
    at = mesh.vertices[rng.integers(0, len(mesh.vertices), count)]
    turns = rng.standard_normal((count, 4))
    return Gaussians(
        positions=(at + rng.normal(0, 0.01, (count, 3))).astype(np.float32),
        scales=np.exp(rng.normal(np.log(0.004), 0.4, (count, 3))).astype(np.float32),
        rotations=(turns / np.linalg.norm(turns, axis=1, keepdims=True)).astype(np.float32),
        opacities=rng.uniform(0.1, 0.9, count).astype(np.float32),
        colours=rng.random((count, 3)).astype(np.float32),
    )


def _splat_with_numpy(splats: Splats, size: int, count: int) -> None:
    rgb, through = np.zeros((size, size, 3)), np.ones((size, size))
    for n in np.linspace(0, len(splats.opacities) - 1, count).astype(int):
        a, b, c = splats.conics[n]
        reach = 3.3 * np.sqrt(np.array([c, a]) / (a * c - b * b))
        x, y = splats.centres_px[n]
        columns = np.arange(max(int(x - reach[0]), 0), min(int(x + reach[0]) + 1, size))
        rows = np.arange(max(int(y - reach[1]), 0), min(int(y + reach[1]) + 1, size))
        if not (len(rows) and len(columns)):
            continue
        dx, dy = columns[None] + 0.5 - x, rows[:, None] + 0.5 - y
        alpha = np.minimum(splats.opacities[n] * np.exp(-0.5 * (a * dx * dx + 2 * b * dx * dy + c * dy * dy)), 0.99)
        window = np.ix_(rows, columns)
        rgb[window] += (through[window] * alpha)[..., None] * splats.colours[n]
        through[window] *= 1 - alpha


def main(argv: list[str] | None = None) -> None:
    """Time every step and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gaussians", type=int, default=300_000)
    parser.add_argument("--size", type=int, default=768, help="of the pictures, pixels")
    parser.add_argument("--views", type=int, default=24, help="from which hidden faces are looked for")
    args = parser.parse_args(argv)
    shape = bumpy_sphere()
    mesh = TriangleMesh((0.45 * shape.vertices).astype(np.float32), shape.faces)

    gaussians, (camera,) = _on_surface(mesh, args.gaussians), sphere_cameras(2, args.size)[1:]
    render_gaussians(_on_surface(mesh, 100), camera)
    ours, _ = _cpu_seconds(lambda: render_gaussians(gaussians, camera))
    splats, some = project_gaussians(gaussians, camera, 0.01), min(args.gaussians, 3000)
    theirs, _ = _cpu_seconds(lambda: _splat_with_numpy(splats, args.size, some))
    theirs *= len(splats.opacities) / some

    cameras = sphere_cameras(args.views, 512)
    face_visibility(mesh, cameras[:1])
    looking, visibility = _cpu_seconds(lambda: face_visibility(mesh, cameras))
    cutting, _ = _cpu_seconds(lambda: remove_inner_walls(mesh, visibility))

    views = []
    for view in six_axis_rig(0.8, 3.0, (256, 256)):
        depth = render_depth(TriangleMesh(shape.vertices, shape.faces), view)
        stored = DepthImage(np.round(255 * depth / depth.max()).astype(np.uint16), 255)
        white = np.full((256, 256, 3), 255, np.uint8)
        seen = View(view.name, white, (depth > 0).astype(np.float32), MaskSource.ALPHA, stored)
        views.append(observe(seen, view, float(depth.max())))
    move = Similarity(0.45, rotation_from_vector(np.array([1.0, -0.4, 2.0])), np.array([0.1, 0.2, 0.0]))
    moved = TriangleMesh(move.apply(shape.vertices).astype(np.float32), shape.faces)
    register(moved, views, longest_side=64)
    aligning, found = _cpu_seconds(lambda: register(moved, views, longest_side=256))
    turn = rotation_angle_deg(found.world_from_mesh.after(move).rotation, np.eye(3))

    print("finishing a generated object, CPU seconds")
    print(f"  {args.gaussians} Gaussians into {args.size}x{args.size}, one view       {ours:8.2f}")
    print(f"    the same in NumPy, from {some} of them               {theirs:8.2f}   ratio {ours / theirs:.3f}")
    print(f"  visibility of {len(mesh.faces)} faces, 512x512, per view        {looking / args.views:8.3f}")
    print(f"  minimum cut                                         {cutting:8.2f}")
    print(f"  alignment with six 256x256 views, 24+480 starts     {aligning:8.2f}   error {turn:.3f} degrees")


if __name__ == "__main__":
    main()

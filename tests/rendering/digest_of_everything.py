"""Run every renderer once and print a digest of all bytes that came out; started in fresh processes by a test."""

from __future__ import annotations

import hashlib

import numba
import numpy as np
import torch
from render_shapes import bumpy_sphere, clip_positions, look_from, spherical_uvs

from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.rendering import ops
from reconflow.rendering.fused import FusedRenderer, ViewTarget
from reconflow.rendering.shade import render_textured, render_wireframe

SIZE = 72
DIRECTIONS = ((0.1, 0, 1), (1, 0.4, 0.2), (-0.3, 0.7, -1))


def main() -> None:
    """Print the number of threads and the digest."""
    vertices, faces = bumpy_sphere(4)
    cameras = [look_from(direction, 3.4, SIZE) for direction in DIRECTIONS]
    digest = hashlib.sha256()
    for array in [*by_ops(vertices, faces, cameras), *by_fused(vertices, faces, cameras), *pictures(vertices, faces)]:
        digest.update(np.ascontiguousarray(array).tobytes())
    print(numba.get_num_threads(), torch.get_num_threads(), digest.hexdigest())


def by_ops(vertices: np.ndarray, faces: np.ndarray, cameras: list) -> list[np.ndarray]:
    tri, ctx = torch.from_numpy(faces), ops.RasterizeContext()
    world = torch.from_numpy(vertices).requires_grad_()
    tex = torch.from_numpy(np.random.default_rng(0).random((1, 32, 32, 3)).astype(np.float32)).requires_grad_()
    pos = torch.cat([clip_positions(world, camera) for camera in cameras])
    rast, rast_db = ops.rasterize(ctx, pos, tri, (SIZE, SIZE))
    uv, uv_da = ops.interpolate(torch.from_numpy(spherical_uvs(vertices))[None], rast, tri, rast_db, diff_attrs="all")
    color = ops.antialias(ops.texture(tex, uv, uv_da), rast, pos, tri)
    (color**2).sum().backward()
    return [rast.detach().numpy(), color.detach().numpy(), world.grad.numpy(), tex.grad.numpy()]


def by_fused(vertices: np.ndarray, faces: np.ndarray, cameras: list) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    targets = [ViewTarget(rng.random((SIZE, SIZE)), rng.random((SIZE, SIZE, 3)), np.full((SIZE, SIZE), 2.5))] * 3
    texture = rng.random((64, 64, 3)).astype(np.float32)
    result = FusedRenderer(faces, cameras, spherical_uvs(vertices)).step(vertices, texture, targets)
    return [np.array(list(result.losses.values())), result.grad_vertices, result.grad_colours]


def pictures(vertices: np.ndarray, faces: np.ndarray) -> list[np.ndarray]:
    codes = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mesh = TriangleMesh(vertices, faces)
    camera = look_from(DIRECTIONS[0], 3.4, SIZE)
    textured = render_textured(TexturedMesh(mesh, spherical_uvs(vertices), faces, codes), camera)
    return [textured.rgb_srgb, textured.depth, render_wireframe(mesh, camera).rgb_srgb]


if __name__ == "__main__":
    main()

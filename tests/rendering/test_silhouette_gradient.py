"""The gradient of a silhouette against finite differences, on meshes from coarse to finer than a pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from render_shapes import bumpy_sphere, clip_positions, look_from

from reconflow.rendering import ops


def ratio_to_finite_difference(vertices: np.ndarray, faces: np.ndarray, size: int, samples: int = 4) -> float:
    """Gradient of a ramp-weighted silhouette by a sideways move, over its finite difference across a few pixels."""
    camera = look_from((1.0, 0.3, 0.2), 4.2, size)
    tri, ctx = torch.from_numpy(faces), ops.RasterizeContext(output_db=False)
    topology = ops.antialias_construct_topology_hash(tri)
    ramp = torch.linspace(0, 1, size)[None, None, :, None]
    sideways = torch.from_numpy(camera.world_from_cam[:3, 0])

    def silhouette(shift: torch.Tensor) -> torch.Tensor:
        pos = clip_positions(torch.from_numpy(vertices).double() + shift * sideways, camera)
        rast, _ = ops.rasterize(ctx, pos, tri, (size, size))
        covered = (rast[..., 3:] > 0).float()
        return (ops.antialias(covered, rast, pos, tri, topology) * ramp).double().sum()

    step = 3.0 / size
    gradients = []
    for shift in np.linspace(-step, step, samples):
        at = torch.tensor(float(shift), dtype=torch.float64, requires_grad=True)
        gradients.append(torch.autograd.grad(silhouette(at), at)[0].item())
    with torch.no_grad():
        rise = silhouette(torch.tensor(step)) - silhouette(torch.tensor(-step))
    return float(np.mean(gradients)) / (rise.item() / (2 * step))


@pytest.mark.parametrize("size", [128, 256, 512])
@pytest.mark.parametrize("subdivisions", [2, 4, 5])
@pytest.mark.parametrize("bumps", [0.0, 0.25])
def test_the_silhouette_gradient_is_right_from_320_to_20480_faces(subdivisions: int, bumps: float, size: int) -> None:
    vertices, faces = bumpy_sphere(subdivisions, bumps)
    assert 0.97 <= ratio_to_finite_difference(vertices, faces, size) <= 1.03


@pytest.mark.parametrize("size", [128, 512, 1024])
def test_the_silhouette_gradient_is_right_on_82k_faces(size: int) -> None:
    assert 0.97 <= ratio_to_finite_difference(*bumpy_sphere(6), size) <= 1.03


def test_noise_narrower_than_a_pixel_does_not_multiply_the_gradient() -> None:
    vertices, faces = bumpy_sphere(6, noise=0.003)
    assert 0.97 <= ratio_to_finite_difference(vertices, faces, 256) <= 1.03


def test_an_open_sheet_has_the_gradient_of_its_border() -> None:
    vertices = np.array([[0, -0.8, -0.7], [0, -0.8, 0.7], [0, 0.8, 0.7], [0, 0.8, -0.7]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    assert 0.97 <= ratio_to_finite_difference(vertices, faces, 128) <= 1.03


def test_an_edge_hidden_behind_a_nearer_surface_gets_no_gradient() -> None:
    wall = np.array([[1.0, -2, -2], [1.0, -2, 2], [1.0, 2, 2], [1.0, 2, -2]], np.float32)
    sheet = wall * np.float32(0.3) - np.array([0.8, 0, 0], np.float32)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]], dtype=torch.int32)
    camera = look_from((1.0, 0.0, 0.0), 4.0, 64)
    vertices = torch.from_numpy(np.concatenate([wall, sheet])).requires_grad_()
    pos = clip_positions(vertices, camera)
    rast, _ = ops.rasterize(ops.RasterizeContext(), pos, faces, (64, 64))
    color = torch.rand(1, 64, 64, 1, generator=torch.Generator().manual_seed(0))
    (ops.antialias(color, rast, pos, faces) ** 2).sum().backward()
    assert vertices.grad is not None
    assert not vertices.grad[4:].any()

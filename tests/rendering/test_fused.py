from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from render_shapes import bumpy_sphere, clip_positions, look_from, spherical_uvs
from scipy.ndimage import binary_erosion

from reconflow.errors import ValidationFailedError
from reconflow.rendering import ops
from reconflow.rendering.fused import FusedRenderer, ViewTarget
from reconflow.rendering.raster import rasterize_view

SIZE = 64
CAMERAS = [look_from(direction, 3.6, SIZE) for direction in ((0.1, 0, 1), (1, 0.4, 0.2), (-0.3, 0.7, -1))]
VERTICES, FACES = bumpy_sphere(3)
UVS = spherical_uvs(VERTICES)
RNG = np.random.default_rng(1)
TEXTURE = RNG.random((16, 32, 3)).astype(np.float32)


def make_targets() -> list[ViewTarget]:
    """The pictures of a smoother object in random colours, with depth."""
    rng = np.random.default_rng(2)
    other, _ = bumpy_sphere(3, 0.1)
    buffers = [rasterize_view(other, FACES, camera) for camera in CAMERAS]
    return [
        ViewTarget(
            coverage=(seen.face_id >= 0).astype(np.float32),
            rgb_linear=rng.random((SIZE, SIZE, 3)).astype(np.float32),
            depth=np.where(seen.face_id >= 0, seen.depth, np.nan),
            depth_tolerance=0.02,
            depth_knee=0.05,
            background=(0.2, 0.5, 0.9),
            rgb_weight=rng.random((SIZE, SIZE)).astype(np.float32),
            silhouette_weight=0.7,
        )
        for seen in buffers
    ]


def losses_by_ops(vertices: torch.Tensor, colours: torch.Tensor, targets: list[ViewTarget]) -> dict[str, torch.Tensor]:
    """The same losses with the operators, one view after the other."""
    tri, ctx = torch.from_numpy(FACES), ops.RasterizeContext()
    sums = {"rgb": torch.zeros(()), "silhouette": torch.zeros(()), "depth": torch.zeros(())}
    for camera, target in zip(CAMERAS, targets, strict=True):
        pos = clip_positions(vertices, camera)
        rast, _ = ops.rasterize(ctx, pos, tri, (SIZE, SIZE))
        seen = (rast[..., 3:] > 0).float()
        if colours.ndim == 3:
            uv, _ = ops.interpolate(torch.from_numpy(UVS)[None], rast, tri)
            rgb = ops.texture(ops.flip_rows(colours[None]), uv, filter_mode="linear")
        else:
            rgb, _ = ops.interpolate(colours[None], rast, tri)
        rgba = torch.cat([rgb * seen + (1 - seen) * torch.tensor(target.background), seen], dim=-1)
        rgba = ops.flip_rows(ops.antialias(rgba, rast, pos, tri))[0]
        depth = ops.flip_rows(ops.interpolate(pos[..., 3:].contiguous(), rast, tri)[0])[0, ..., 0]
        wanted = torch.nan_to_num(torch.tensor(target.depth))
        excess = ((depth - wanted).abs() - 0.02).clamp(min=0) * ((wanted > 0) & (depth > 0))
        rgb_off = (rgba[..., :3] - torch.tensor(target.rgb_linear)) ** 2
        sums["rgb"] = sums["rgb"] + (rgb_off * torch.tensor(target.rgb_weight)[..., None]).mean() / 3
        sums["silhouette"] = sums["silhouette"] + 0.7 * ((rgba[..., 3] - torch.tensor(target.coverage)) ** 2).mean() / 3
        sums["depth"] = sums["depth"] + torch.where(excess < 0.05, excess**2 / 0.1, excess - 0.025).mean() / 3
    return sums


@pytest.mark.parametrize("colours", [TEXTURE, RNG.random(VERTICES.shape).astype(np.float32)], ids=["texture", "vertex"])
def test_one_step_gives_the_operators_losses_and_gradients(colours: np.ndarray) -> None:
    targets = make_targets()
    result = FusedRenderer(FACES, CAMERAS, UVS).step(VERTICES, colours, targets)
    vertices, palette = torch.tensor(VERTICES, requires_grad=True), torch.tensor(colours, requires_grad=True)
    expected = losses_by_ops(vertices, palette, targets)
    assert result.losses == pytest.approx({name: loss.item() for name, loss in expected.items()}, rel=1e-5)
    torch.stack(list(expected.values())).sum().backward()
    assert vertices.grad is not None
    assert palette.grad is not None
    assert result.grad_colours is not None
    np.testing.assert_allclose(result.grad_vertices, vertices.grad, atol=1e-3 * float(vertices.grad.abs().max()))
    np.testing.assert_allclose(result.grad_colours, palette.grad, atol=1e-4 * float(palette.grad.abs().max()))


def test_the_second_call_gives_the_same_bytes_as_the_first() -> None:
    renderer, targets = FusedRenderer(FACES, CAMERAS, UVS), make_targets()
    first = renderer.step(VERTICES, TEXTURE, targets)
    kept = first.grad_colours.copy() if first.grad_colours is not None else None
    renderer.step(VERTICES * np.float32(0.8), TEXTURE, targets)
    second = renderer.step(VERTICES, TEXTURE, targets)
    assert first.losses == second.losses
    assert first.grad_vertices.tobytes() == second.grad_vertices.tobytes()
    assert kept is not None
    assert second.grad_colours is not None
    assert kept.tobytes() == second.grad_colours.tobytes()


def test_the_depth_gradient_reaches_the_vertices_in_full() -> None:
    vertices, _ = bumpy_sphere(3, 0.0)
    camera = CAMERAS[1]
    seen = rasterize_view(vertices, FACES, camera)
    inner = binary_erosion(seen.face_id >= 0, iterations=4).astype(np.float32)
    waves = 0.1 * np.sin(np.arange(SIZE) / 7).astype(np.float32)
    target = ViewTarget(seen.face_id >= 0, depth=seen.depth + waves, depth_weight=inner, silhouette_weight=0.0)
    renderer = FusedRenderer(FACES, [camera])
    direction = np.random.default_rng(5).normal(size=vertices.shape)
    analytic = float((renderer.step(vertices, None, [target]).grad_vertices * direction).sum())

    def loss(step: float) -> float:
        return renderer.step((vertices + step * direction).astype(np.float32), None, [target]).losses["depth"]

    assert analytic == pytest.approx((loss(3e-4) - loss(-3e-4)) / 6e-4, rel=0.01)


def test_depth_within_the_tolerance_costs_nothing() -> None:
    seen = rasterize_view(VERTICES, FACES, CAMERAS[0])
    target = ViewTarget(seen.face_id >= 0, depth=seen.depth + np.float32(0.009), depth_tolerance=0.01)
    renderer = FusedRenderer(FACES, CAMERAS[:1])
    assert renderer.step(VERTICES, None, [target]).losses["depth"] == 0.0
    assert renderer.step(VERTICES, None, [replace(target, depth_tolerance=0.005)]).losses["depth"] > 0.0


def test_gradient_descent_on_silhouettes_finds_a_sphere_of_the_right_size() -> None:
    unit, faces = bumpy_sphere(2, 0.0)
    renderer = FusedRenderer(faces, CAMERAS)
    targets = [ViewTarget((rasterize_view(unit, faces, camera).face_id >= 0).astype(np.float32)) for camera in CAMERAS]
    radius = 0.8
    for k in range(40):
        grad = renderer.step(unit * np.float32(radius), None, targets).grad_vertices
        radius -= 0.2 * 0.9**k * float((grad * unit).sum())
    assert radius == pytest.approx(1.0, abs=0.01)


def test_targets_that_do_not_fit_the_cameras_are_refused() -> None:
    with pytest.raises(ValidationFailedError) as caught:
        FusedRenderer(FACES, CAMERAS).step(VERTICES, None, [ViewTarget(np.zeros((8, 8)))])
    assert caught.value.suggestion


@pytest.mark.parametrize(
    "call",
    [
        lambda: FusedRenderer(FACES, CAMERAS, UVS, FACES[:-1]),
        lambda: FusedRenderer(FACES, CAMERAS, UVS[:10]),
        lambda: FusedRenderer(FACES, CAMERAS).step(VERTICES[:-1], None, make_targets()),
        lambda: FusedRenderer(FACES, CAMERAS).step(VERTICES, TEXTURE, make_targets()),
        lambda: ViewTarget(np.zeros((8, 8)), depth=np.zeros((4, 4))).prepared,
        lambda: rasterize_view(VERTICES[:-1], FACES, CAMERAS[0]),
    ],
    ids=["uv_faces too short", "uvs too short", "vertices too short", "texture without uvs", "depth size", "raster"],
)
def test_arrays_that_do_not_belong_together_are_refused_before_a_kernel_reads_them(call: Callable[[], object]) -> None:
    with pytest.raises(ValidationFailedError) as caught:
        call()
    assert caught.value.suggestion

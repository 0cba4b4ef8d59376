from __future__ import annotations

import numpy as np
import pytest
import torch
import torch_twin as twin
from render_shapes import bumpy_sphere, clip_positions, look_from
from torch import Tensor

from reconflow.errors import ValidationFailedError
from reconflow.rendering import ops

SIZE = 24


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, Tensor]:
    """Two images of a coarse bumpy sphere: (2, V, 4) clip positions and its triangles."""
    vertices, faces = bumpy_sphere(1)
    views = [look_from(direction, 3.4, SIZE) for direction in ((0.3, 0.2, 1.0), (-1.0, 0.5, 0.2))]
    pos = torch.cat([clip_positions(torch.from_numpy(vertices), camera) for camera in views])
    return pos, torch.from_numpy(faces)


def compare_gradients(loss: Tensor, slow_loss: Tensor, pairs: list[tuple[Tensor, Tensor]], tolerance: float) -> None:
    """Both losses agree, and so do their gradients by each pair of (fast, slow) inputs."""
    assert loss.item() == pytest.approx(slow_loss.item(), rel=1e-4)
    fast = torch.autograd.grad(loss, [pair[0] for pair in pairs])
    slow = torch.autograd.grad(slow_loss, [pair[1] for pair in pairs])
    for ours, theirs in zip(fast, slow, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


def leaf(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype).requires_grad_()


def random_like(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(sum(shape)).normal(size=shape))


def test_rasterize_and_its_gradient_agree_with_the_twin(scene: tuple[Tensor, Tensor]) -> None:
    pos, tri = scene
    fast, slow = leaf(pos, torch.float32), leaf(pos, torch.float64)
    rast, rast_db = ops.rasterize(ops.RasterizeContext(), fast, tri, (SIZE, SIZE))
    twins = [twin.rasterize(image, tri, (SIZE, SIZE)) for image in slow]
    slow_rast, slow_db = torch.stack([a for a, _ in twins]), torch.stack([b for _, b in twins])
    assert torch.equal(rast[..., 3].double(), slow_rast[..., 3])
    torch.testing.assert_close(rast.double(), slow_rast, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(rast_db.double(), slow_db, atol=2e-5, rtol=1e-4)
    weight, weight_db = random_like(2, SIZE, SIZE, 2), random_like(2, SIZE, SIZE, 4)
    loss = (rast[..., :2] * weight.float()).sum() + (rast_db * weight_db.float()).sum()
    slow_loss = (slow_rast[..., :2] * weight).sum() + (slow_db * weight_db).sum()
    compare_gradients(loss, slow_loss, [(fast, slow)], 2e-3)


def test_z_of_the_clip_position_gets_no_gradient(scene: tuple[Tensor, Tensor]) -> None:
    pos = leaf(scene[0], torch.float32)
    rast, _ = ops.rasterize(ops.RasterizeContext(), pos, scene[1], (SIZE, SIZE))
    rast.sum().backward()
    assert pos.grad is not None
    assert not pos.grad[..., 2].any()
    assert pos.grad[..., 3].any()


def test_interpolate_and_its_gradients_agree_with_the_twin(scene: tuple[Tensor, Tensor]) -> None:
    pos, tri = scene
    rast, rast_db = (out.detach() for out in ops.rasterize(ops.RasterizeContext(), pos, tri, (SIZE, SIZE)))
    attr = random_like(1, pos.shape[1], 3)
    fast, slow = leaf(attr, torch.float32), leaf(attr, torch.float64)
    fast_in = [leaf(rast, torch.float32), leaf(rast_db, torch.float32)]
    slow_in = [leaf(rast, torch.float64), leaf(rast_db, torch.float64)]
    out, out_da = ops.interpolate(fast, fast_in[0], tri, fast_in[1], diff_attrs="all")
    twins = [twin.interpolate(slow[0], slow_in[0][n], tri, slow_in[1][n]) for n in range(2)]
    slow_out, slow_da = torch.stack([a for a, _ in twins]), torch.stack([b for _, b in twins])
    torch.testing.assert_close(out.double(), slow_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out_da.double(), slow_da, atol=1e-5, rtol=1e-4)
    weight, weight_da = random_like(*out.shape), random_like(*out_da.shape)
    loss = (out * weight.float()).sum() + (out_da * weight_da.float()).sum()
    slow_loss = (slow_out * weight).sum() + (slow_da * weight_da).sum()
    pairs = [(fast, slow), (fast_in[0], slow_in[0]), (fast_in[1], slow_in[1])]
    compare_gradients(loss, slow_loss, pairs, 1e-3)


def test_derivatives_are_given_only_for_the_attributes_asked_for(scene: tuple[Tensor, Tensor]) -> None:
    pos, tri = scene
    rast, rast_db = ops.rasterize(ops.RasterizeContext(), pos, tri, (SIZE, SIZE))
    attr = random_like(1, pos.shape[1], 3).float()
    _, everything = ops.interpolate(attr, rast, tri, rast_db, diff_attrs="all")
    _, last = ops.interpolate(attr, rast, tri, rast_db, diff_attrs=[-1])
    assert torch.equal(last, everything[..., 4:6])


@pytest.mark.parametrize("boundary", ["wrap", "clamp", "zero"])
def test_linear_texture_and_its_gradients_agree_with_the_twin(boundary: str) -> None:
    tex, uv = random_like(1, 5, 7, 3), random_like(2, 6, 8, 2)
    fast, slow = [leaf(t, torch.float32) for t in (tex, uv)], [leaf(t, torch.float64) for t in (tex, uv)]
    out = ops.texture(fast[0], fast[1], filter_mode="linear", boundary_mode=boundary)
    slow_out = twin.bilinear(slow[0][0], slow[1], boundary)
    torch.testing.assert_close(out.double(), slow_out, atol=1e-4, rtol=1e-4)
    weight = random_like(*out.shape)
    loss, slow_loss = (out * weight.float()).sum(), (slow_out * weight).sum()
    compare_gradients(loss, slow_loss, list(zip(fast, slow, strict=True)), 1e-3)


def test_mipmapped_texture_and_its_gradients_agree_with_the_twin() -> None:
    tex, uv = random_like(2, 16, 8, 2), random_like(2, 6, 8, 2)
    uv_da, bias = 0.25 * random_like(2, 6, 8, 4), 0.3 * random_like(2, 6, 8)
    inputs = (tex, uv, uv_da, bias)
    fast, slow = [leaf(t, torch.float32) for t in inputs], [leaf(t, torch.float64) for t in inputs]
    out = ops.texture(fast[0], fast[1], uv_da=fast[2], mip_level_bias=fast[3])
    slow_out = []
    for n in range(2):
        levels = [slow[0][n]]
        while levels[-1].shape[:2] != (1, 1):
            height, width = levels[-1].shape[:2]
            tall, wide = min(height, 2), min(width, 2)
            levels.append(levels[-1].reshape(height // tall, tall, width // wide, wide, 2).mean(dim=(1, 3)))
        level = twin.mip_level(slow[2][n], 16, 8) + slow[3][n]
        slow_out.append(twin.trilinear(levels, slow[1][n], level, "wrap"))
    torch.testing.assert_close(out.double(), torch.stack(slow_out), atol=1e-4, rtol=1e-4)
    weight = random_like(*out.shape)
    loss, slow_loss = (out * weight.float()).sum(), (torch.stack(slow_out) * weight).sum()
    compare_gradients(loss, slow_loss, list(zip(fast, slow, strict=True)), 1e-3)


def test_nearest_texture_picks_the_texel_that_holds_the_point() -> None:
    tex = torch.arange(6.0).reshape(1, 2, 3, 1).requires_grad_()
    uv = torch.tensor([[[[0.1, 0.1], [0.5, 0.9], [1.1, 0.2], [-0.1, 0.6]]]])
    out = ops.texture(tex, uv, filter_mode="nearest")
    assert out.flatten().tolist() == [0.0, 4.0, 0.0, 5.0]
    out.sum().backward()
    assert tex.grad is not None
    assert tex.grad.flatten().tolist() == [2.0, 0.0, 0.0, 0.0, 1.0, 1.0]


def test_antialias_and_its_gradients_agree_with_the_twin(scene: tuple[Tensor, Tensor]) -> None:
    pos, tri = scene
    rast, _ = ops.rasterize(ops.RasterizeContext(), pos, tri, (SIZE, SIZE))
    color = random_like(2, SIZE, SIZE, 3)
    fast, slow = [leaf(t, torch.float32) for t in (color, pos)], [leaf(t, torch.float64) for t in (color, pos)]
    out = ops.antialias(fast[0], rast, fast[1], tri)
    slow_out = torch.stack([twin.antialias(slow[0][n], rast[n], slow[1][n], tri) for n in range(2)])
    assert (out - color).abs().max() > 0.1
    torch.testing.assert_close(out.double(), slow_out, atol=1e-4, rtol=1e-4)
    weight = random_like(*out.shape)
    loss, slow_loss = (out * weight.float()).sum(), (slow_out * weight).sum()
    compare_gradients(loss, slow_loss, list(zip(fast, slow, strict=True)), 2e-3)


def test_range_mode_gives_what_instanced_mode_gives(scene: tuple[Tensor, Tensor]) -> None:
    pos, tri = scene
    count, ctx = pos.shape[1], ops.RasterizeContext()
    flat, both = leaf(pos.reshape(-1, 4), torch.float32), torch.cat([tri, tri + count])
    ranges = torch.tensor([[0, len(tri)], [len(tri), len(tri)]], dtype=torch.int32)
    color = random_like(2, SIZE, SIZE, 1).float()
    weight = random_like(2, SIZE, SIZE, 2).float()
    rast, _ = ops.rasterize(ctx, flat, both, (SIZE, SIZE), ranges=ranges)
    loss = (rast[..., :2] * weight).sum() + (ops.antialias(color, rast, flat, both) * weight[..., :1]).sum()
    per_image = leaf(pos, torch.float32)
    instanced, _ = ops.rasterize(ctx, per_image, tri, (SIZE, SIZE))
    offset = torch.tensor([0.0, len(tri)])[:, None, None] * (instanced[..., 3] > 0)
    assert torch.equal(rast[..., 3], instanced[..., 3] + offset)
    blended = ops.antialias(color, instanced, per_image, tri)
    expected = (instanced[..., :2] * weight).sum() + (blended * weight[..., :1]).sum()
    assert loss.item() == expected.item()
    (grad,) = torch.autograd.grad(loss, flat)
    (wanted,) = torch.autograd.grad(expected, per_image)
    torch.testing.assert_close(grad, wanted.reshape(-1, 4), rtol=1e-5, atol=1e-6)


def test_row_zero_of_a_raster_is_the_bottom_row_and_flipping_makes_an_image() -> None:
    low_left = torch.tensor([[[-1.0, -1, 0, 1], [0, -1, 0, 1], [-1, 0, 0, 1]]])
    rast, _ = ops.rasterize(ops.RasterizeContext(), low_left, torch.tensor([[0, 1, 2]], dtype=torch.int32), (8, 8))
    assert rast[0, 0, 0, 3] == 1
    assert rast[0, 7].sum() == 0
    assert ops.flip_rows(rast)[0, 7, 0, 3] == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.rasterize(ops.RasterizeContext(), torch.zeros(1, 3, 3), torch.zeros(1, 3).int(), (4, 4)),
        lambda: ops.rasterize(ops.RasterizeContext(), torch.zeros(1, 3, 4), torch.full((1, 3), 3).int(), (4, 4)),
        lambda: ops.rasterize(ops.RasterizeContext(), torch.zeros(3, 4), torch.zeros(1, 3).int(), (4, 4)),
        lambda: ops.texture(torch.zeros(1, 4, 4, 1), torch.zeros(1, 2, 2, 2), boundary_mode="cube"),
        lambda: ops.texture(torch.zeros(1, 4, 4, 1), torch.zeros(1, 2, 2, 2), filter_mode="cubic"),
        lambda: ops.texture(torch.zeros(1, 6, 4, 1), torch.zeros(1, 2, 2, 2), uv_da=torch.zeros(1, 2, 2, 4)),
    ],
    ids=["pos not homogeneous", "index outside", "range mode without ranges", "cube", "filter", "size does not halve"],
)
def test_wrong_arguments_are_refused_with_a_way_out(call: object) -> None:
    with pytest.raises(ValidationFailedError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.suggestion

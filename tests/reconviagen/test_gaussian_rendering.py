import inspect
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from torch import Tensor

from reconflow.cameras.camera import PinholeCamera, project_points
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.errors import ValidationFailedError
from reconflow.geometry.gaussians import Gaussians
from reconflow.geometry.similarity import Similarity, rotation_from_vector
from reconflow.reconviagen import gaussian_rendering
from reconflow.reconviagen.gaussian_engines import gsplat_fault
from reconflow.reconviagen.gaussian_rendering import render_gaussians


def random_gaussians(count: int, seed: int = 0, size: float = 0.08) -> Gaussians:
    rng = np.random.default_rng(seed)
    quaternions = rng.standard_normal((count, 4))
    return Gaussians(
        positions=rng.uniform(-0.5, 0.5, (count, 3)).astype(np.float32),
        scales=rng.uniform(0.1 * size, size, (count, 3)).astype(np.float32),
        rotations=(quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).astype(np.float32),
        opacities=rng.uniform(0.05, 0.999, count).astype(np.float32),
        colours=rng.uniform(-0.2, 1.1, (count, 3)).astype(np.float32),
    )


def one(position: tuple[float, float, float], scale: float, opacity: float) -> Gaussians:
    return Gaussians(
        positions=np.array([position], np.float32),
        scales=np.full((1, 3), scale, np.float32),
        rotations=np.array([[1, 0, 0, 0]], np.float32),
        opacities=np.array([opacity], np.float32),
        colours=np.ones((1, 3), np.float32),
    )


def camera(size: int = 40, view: int = 0) -> PinholeCamera:
    return six_axis_rig(0.8, 2.0, (size, size + 6))[view]


def twin(gaussians: Gaussians, camera: PinholeCamera) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixel by pixel and Gaussian by Gaussian, the Jacobian by central differences of the projection."""
    height, width = camera.image_hw
    _, depth = project_points(gaussians.positions.astype(np.float64), camera)
    rgb, through = np.zeros((height, width, 3)), np.ones((height, width))
    ys, xs = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    for n in np.argsort(depth, kind="stable"):
        mean = gaussians.positions[n].astype(np.float64)
        w, v = gaussians.rotations[n][0].astype(float), gaussians.rotations[n][1:].astype(float)
        cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
        turn = np.eye(3) + 2 * w * cross + 2 * cross @ cross
        covariance = turn @ np.diag(gaussians.scales[n].astype(float) ** 2) @ turn.T
        step = 1e-5 * np.eye(3)
        jacobian = np.stack(
            [(project_points(mean + d, camera)[0] - project_points(mean - d, camera)[0]) / 2e-5 for d in step], axis=1
        )
        plain = jacobian @ covariance @ jacobian.T
        filtered = plain + 0.1 * np.eye(2)
        strength = gaussians.opacities[n] * np.sqrt(np.linalg.det(plain) / np.linalg.det(filtered))
        offset = np.stack([xs, ys], axis=-1) - project_points(mean, camera)[0]
        power = np.einsum("hwi,ij,hwj->hw", offset, np.linalg.inv(filtered), offset)
        alpha = np.minimum(strength * np.exp(-0.5 * power), 0.99)
        alpha[(alpha < 1 / 255) | (through < 1e-4)] = 0
        rgb += (through * alpha)[..., None] * np.maximum(gaussians.colours[n].astype(float), 0)
        through *= 1 - alpha
    return rgb, 1 - through


@pytest.mark.parametrize("view", [0, 2, 5])
def test_splats_agree_with_a_slow_twin(view: int) -> None:
    gaussians = random_gaussians(120, seed=view)
    ours = render_gaussians(gaussians, camera(view=view))
    rgb, alpha = twin(gaussians, camera(view=view))
    assert 0.2 < alpha.mean() < 0.98
    assert_allclose(ours.rgb, rgb, atol=2e-4)
    assert_allclose(ours.alpha, alpha, atol=2e-4)


def test_a_gaussian_smaller_than_a_pixel_keeps_its_light() -> None:
    """Over all places within its pixel it covers 2 pi opacity sigma^2 on average, less what the cut-off takes."""
    view, scale = camera(64), 0.004
    pixel = 2.0 / view.focal_px[0]
    shifts = (np.arange(5) + 0.5) / 5 * pixel
    covered = [render_gaussians(one((x, y, 0.0), scale, 0.9), view).alpha.sum() for x in shifts for y in shifts]
    assert min(covered) > 0.6 * np.mean(covered)
    assert np.mean(covered) == pytest.approx(2 * np.pi * 0.9 * (scale / pixel) ** 2, rel=0.04)


def test_the_nearer_gaussian_hides_the_farther_one() -> None:
    near, far = one((0, 0, 0.3), 0.3, 0.99), one((0, 0, -0.3), 0.3, 0.99)
    both = Gaussians(
        np.concatenate([far.positions, near.positions]),
        np.concatenate([far.scales, near.scales]),
        np.concatenate([far.rotations, near.rotations]),
        np.concatenate([far.opacities, near.opacities]),
        np.array([[0, 1, 0], [1, 0, 0]], np.float32),
    )
    front, back = (render_gaussians(both, camera(view=v)).rgb[20, 23] for v in (0, 1))
    assert front[0] > 0.95 > 0.05 > front[1]
    assert back[1] > 0.95 > 0.05 > back[0]


def test_the_background_shows_through() -> None:
    picture = render_gaussians(one((0, 0, 0), 0.05, 0.8), camera(), background=(0.25, 0.5, 1.0))
    assert_allclose(picture.rgb[0, 0], [0.25, 0.5, 1.0])
    assert_allclose(picture.rgb[..., 0], picture.alpha + 0.25 * (1 - picture.alpha), atol=1e-6)


def test_gaussians_behind_the_camera_are_not_seen() -> None:
    assert not render_gaussians(one((0, 0, 2.5), 0.3, 0.9), camera()).alpha.any()


def test_moving_gaussians_and_camera_together_changes_nothing() -> None:
    gaussians, view = random_gaussians(60), camera()
    turn = rotation_from_vector(np.array([0.4, -1.1, 0.7]))
    move = Similarity(1.7, turn, np.array([0.3, -0.2, 0.5]))
    pose = np.eye(4)
    pose[:3, :3] = turn @ view.world_from_cam[:3, :3]
    pose[:3, 3] = move.apply(view.position_world)
    moved = PinholeCamera.from_fov("moved", view.fov_x_rad, pose, view.image_hw)
    before = render_gaussians(gaussians, view)
    after = render_gaussians(gaussians.transformed(move), moved)
    assert_allclose(after.rgb, before.rgb, atol=1e-3)


def test_pictures_do_not_depend_on_the_number_of_threads() -> None:
    script = (
        "import hashlib; from tests.reconviagen.test_gaussian_rendering import *;"
        "print(hashlib.sha256(render_gaussians(random_gaussians(200), camera()).rgb.tobytes()).hexdigest())"
    )
    hashes = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"NUMBA_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(hashes) == 1


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ValidationFailedError, match="nowhere"):
        render_gaussians(random_gaussians(1), camera(), engine="nowhere")


def test_what_gsplat_is_asked_for_is_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """By gsplat's own PyTorch projection, and blending as its CUDA code does it, which needs a GPU to run."""
    import gsplat

    as_tensor, known = torch.as_tensor, inspect.signature(gsplat.rasterization)

    def rasterization(**asked: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
        known.bind(**asked)  # by the names that gsplat has for them
        return rasterization_on_cpu(**asked)

    monkeypatch.setattr(gsplat, "rasterization", rasterization)
    monkeypatch.setattr(torch, "as_tensor", lambda values, device=None: as_tensor(values))
    gaussians = random_gaussians(200)
    ours = render_gaussians(gaussians, camera())
    rgb, alpha = gaussian_rendering._rasterize(gaussians, camera(), near=0.01)
    assert ours.alpha.mean() > 0.2
    assert_allclose(alpha, ours.alpha, atol=1e-5)
    assert_allclose(rgb, ours.rgb, atol=1e-5)


def rasterization_on_cpu(
    *,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float,
    eps2d: float,
    rasterize_mode: str,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Do what `gsplat.rasterization` does of what is asked here; splats cover at most 0.99 of a pixel, as ours do."""
    from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci

    assert rasterize_mode == "antialiased"
    covariances, _ = _quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    radii, centres, depths, conics, compensations = _fully_fused_projection(
        means, covariances, viewmats, Ks, width, height, eps2d, near_plane, calc_compensations=True
    )
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    rgb, light = torch.zeros(height, width, 3), torch.ones(height, width)
    for splat in depths[0].argsort().tolist():
        if (radii[0, splat] > 0).all():
            dx, dy = centres[0, splat, 0] - x, centres[0, splat, 1] - y
            a, b, c = conics[0, splat]
            opacity = opacities[splat] * compensations[0, splat]
            alpha = (opacity * torch.exp(-0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy)).clamp(max=0.99)
            alpha = torch.where((alpha < 1 / 255) | (light * (1 - alpha) <= 1e-4), 0.0, alpha)
            rgb += (light * alpha)[..., None] * colors[splat]
            light = light * (1 - alpha)
    return rgb[None], (1 - light)[None, ..., None], {}


@pytest.mark.gpu
def test_gsplat_agrees_below_the_most_that_it_lets_a_splat_cover() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    if fault := gsplat_fault():
        pytest.skip(f"gsplat cannot be used: {fault}")
    gaussians = random_gaussians(200)
    gaussians = replace(gaussians, opacities=np.minimum(gaussians.opacities, 0.97))
    ours, theirs = render_gaussians(gaussians, camera()), render_gaussians(gaussians, camera(), engine="gsplat")
    assert_allclose(theirs.rgb, ours.rgb, atol=5e-3)
    assert_allclose(theirs.alpha, ours.alpha, atol=5e-3)

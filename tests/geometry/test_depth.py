import math

import numpy as np
import pytest
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.six_axis import six_axis_pose
from reconflow.datasets.dataset import DepthEncoding, DepthImage, MaskSource, View
from reconflow.geometry.depth import (
    SurfaceObservation,
    depth_interval,
    observe,
    resample_depth,
    signed_mask_distance,
    smooth_inside_intervals,
)

SIZE = 96
LEVELS = 255


def front_camera(size: int = SIZE) -> PinholeCamera:
    return PinholeCamera.from_fov("front", 0.8, six_axis_pose("front", 3.0), (size, size))


def bulge(size: int = SIZE) -> NDArray[np.float64]:
    """A smooth relief without edges, 1.6 to 2.1 deep: some twenty levels of an 8-bit render."""
    y, x = (np.mgrid[0:size, 0:size] + 0.5) / size
    return 1.85 + 0.12 * np.sin(4.2 * x + 0.4) + 0.1 * np.cos(3.4 * y + 1.0)


def quantised(depth: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    level = depth.max() / LEVELS
    centre = (np.round(depth / level) * level).astype(np.float32)
    return centre, np.full(depth.shape, level / 2, np.float32)


def view_with(depth: DepthImage | None, alpha: NDArray[np.float32]) -> View:
    return View("front", np.full((*alpha.shape, 3), 90, np.uint8), alpha, MaskSource.ALPHA, depth)


def test_smoothing_turns_terraces_into_slopes() -> None:
    truth = bulge()
    centre, half_width = quantised(truth)
    smooth = smooth_inside_intervals(centre, half_width)
    inner = (slice(8, -8), slice(8, -8))
    raw_error = np.sqrt(np.mean((centre - truth)[inner] ** 2))
    assert np.sqrt(np.mean((smooth - truth)[inner] ** 2)) < 0.6 * raw_error
    for axis in (0, 1):
        raw_bend = np.abs(np.diff(centre, 2, axis=axis))[inner].max()
        assert np.abs(np.diff(smooth, 2, axis=axis))[inner].max() < 0.4 * raw_bend
    raw_flats = np.mean(np.diff(centre, axis=1)[inner] == 0)
    assert raw_flats > 0.5
    assert np.mean(np.diff(smooth, axis=1)[inner] == 0) < 0.1 * raw_flats


def test_smooth_depth_stays_inside_every_interval() -> None:
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, (SIZE, SIZE))
    centre, half_width = quantised(bulge() + noise)
    smooth = smooth_inside_intervals(centre, half_width)
    assert (np.abs(smooth - centre) <= half_width * (1 + 1e-4)).all()


def test_smoothing_leaves_empty_pixels_empty_and_full_ones_full() -> None:
    truth = bulge()
    truth[np.hypot(*(np.mgrid[0:SIZE, 0:SIZE] - SIZE / 2)) > 40] = 0
    centre, half_width = quantised(truth)
    smooth = smooth_inside_intervals(centre, half_width)
    assert ((smooth > 0) == (centre > 0)).all()


def test_smoothing_does_not_reach_across_a_jump() -> None:
    """Two flat plates: whatever lies behind the jump, the near plate comes out the same."""
    near_only = np.full((SIZE, SIZE), 1.6)
    near_only[:, SIZE // 2 :] = 0
    stepped = np.full((SIZE, SIZE), 1.6)
    stepped[:, SIZE // 2 :] = 2.0
    level = 2.0 / LEVELS
    half_width = np.full((SIZE, SIZE), level / 2, np.float32)
    plates = [smooth_inside_intervals(depth.astype(np.float32), half_width) for depth in (near_only, stepped)]
    np.testing.assert_array_equal(plates[0][:, : SIZE // 2], plates[1][:, : SIZE // 2])
    np.testing.assert_allclose(plates[1][:, SIZE // 2 :], 2.0, rtol=1e-6)


def test_smoothing_a_plane_recovers_it() -> None:
    y, x = (np.mgrid[0:SIZE, 0:SIZE] + 0.5) / SIZE
    plane = 1.7 + 0.21 * x + 0.13 * y
    centre, half_width = quantised(plane)
    smooth = smooth_inside_intervals(centre, half_width)
    inner = (slice(16, -16), slice(16, -16))
    assert np.abs(smooth - plane)[inner].mean() < 0.3 * np.abs(centre - plane)[inner].mean()


def test_relative_and_metric_values_become_world_depth() -> None:
    values = np.array([[0, 100], [200, 255]], np.uint16)
    centre, half_width = depth_interval(DepthImage(values, 255), 5.1)
    np.testing.assert_allclose(centre, [[0, 2.0], [4.0, 5.1]], rtol=1e-6)
    np.testing.assert_allclose(half_width, 0.01, rtol=1e-6)
    metric = DepthImage(values, 65535, DepthEncoding.METRIC_Z, unit=1e-3)
    centre, half_width = depth_interval(metric, depth_scale=99.0)
    np.testing.assert_allclose(centre, values * 1e-3, rtol=1e-6)
    np.testing.assert_allclose(half_width, 5e-4, rtol=1e-6)


def test_metric_depth_needs_no_scale_and_relative_depth_without_one_is_not_used() -> None:
    alpha = np.zeros((SIZE, SIZE), np.float32)
    alpha[20:70, 30:60] = 1
    values = np.where(alpha > 0, 2000, 0).astype(np.uint16)
    metric = observe(view_with(DepthImage(values, 65535, DepthEncoding.METRIC_Z, 1e-3), alpha), front_camera(), None)
    assert metric.depth is not None
    np.testing.assert_allclose(metric.depth[alpha > 0], 2.0, atol=1e-6)
    relative = observe(view_with(DepthImage(values, 65535), alpha), front_camera(), None)
    assert relative.depth is None
    np.testing.assert_array_equal(relative.mask, alpha > 0)


def test_a_metric_zero_inside_the_mask_is_unknown_and_not_background() -> None:
    alpha = np.zeros((SIZE, SIZE), np.float32)
    alpha[20:70, 30:60] = 1
    values = np.where(alpha > 0, 2000, 0).astype(np.uint16)
    values[40:44, 40:44] = 0
    seen = observe(view_with(DepthImage(values, 65535, DepthEncoding.METRIC_Z, 1e-3), alpha), front_camera(), None)
    assert seen.depth is not None
    assert seen.mask[41, 41]
    assert seen.depth[41, 41] == 0


def test_an_observation_has_the_resolution_of_its_depth() -> None:
    alpha = np.ones((SIZE, SIZE), np.float32)
    values = np.full((48, 48), 255, np.uint16)
    seen = observe(view_with(DepthImage(values, 255), alpha), front_camera(), 3.0)
    assert seen.camera.image_hw == (48, 48)
    assert seen.mask.shape == (48, 48)
    assert seen.camera.focal_px[0] == pytest.approx(front_camera().focal_px[0] / 2)


@pytest.mark.parametrize(
    "edge", [(slice(0, 1), slice(30, 40)), (slice(95, 96), slice(3, 4)), (slice(9, 12), slice(0, 9))]
)
def test_a_mask_at_the_border_is_cut_by_the_frame(edge: tuple[slice, slice]) -> None:
    alpha = np.zeros((SIZE, SIZE), np.float32)
    alpha[20:70, 30:60] = 1
    assert not observe(view_with(None, alpha), front_camera(), None).frame_cuts_object
    alpha[edge] = 1
    assert observe(view_with(None, alpha), front_camera(), None).frame_cuts_object


def test_the_mask_distance_is_signed_and_zero_at_the_pixels_edges() -> None:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[:, :30] = True
    distance = signed_mask_distance(mask)
    np.testing.assert_allclose(distance[50, [28, 29, 30, 31]], [-1.5, -0.5, 0.5, 1.5])
    assert (signed_mask_distance(np.ones((4, 4), bool)) < -100).all()
    assert (signed_mask_distance(np.zeros((4, 4), bool)) > 100).all()


def observation_of(depth: NDArray[np.float64], level: float = 4e-3) -> SurfaceObservation:
    size = depth.shape[0]
    mask = depth > 0
    half_width = np.full(depth.shape, level, np.float32)
    distance = signed_mask_distance(mask)
    return SurfaceObservation(front_camera(size), mask, distance, depth.astype(np.float32), half_width, True)


@pytest.mark.parametrize("half_width", [4e-3, 1e-5])
def test_resampled_depth_follows_the_surface(half_width: float) -> None:
    """However finely the depth is stored, its slopes stay slopes."""
    fine, coarse = bulge(192), bulge(64)
    resampled = resample_depth(observation_of(coarse, half_width), (192, 192))
    assert np.abs(resampled - fine)[4:-4, 4:-4].max() < 2e-3


def test_resampling_never_makes_a_depth_between_two_surfaces() -> None:
    depth = np.full((64, 64), 1.5)
    depth[:, 31:] = 2.5
    depth[50:] = 0
    resampled = resample_depth(observation_of(depth), (150, 150))
    assert set(np.unique(resampled).tolist()) == {0.0, 1.5, 2.5}
    assert math.isclose(float((resampled == 0).mean()), 14 / 64, abs_tol=0.02)

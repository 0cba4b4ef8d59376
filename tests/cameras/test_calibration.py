"""Calibration against known cameras: rendered objects, the evaluation datasets, and cameras that are wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from reconflow.cameras.calibration import calibrate
from reconflow.cameras.calibration_rims import with_photo_rims
from reconflow.cameras.calibration_views import prepare_views
from reconflow.cameras.camera import rigid_inverse
from reconflow.cameras.photo_alignment import PhotoShift
from reconflow.cameras.silhouette_fit import fov_from_silhouettes
from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_rig
from reconflow.datasets.dataset import Dataset, DatasetLayout, DepthEncoding, DepthImage, MaskSource, View
from reconflow.datasets.loading import load_dataset
from reconflow.errors import CalibrationAmbiguousError, CalibrationContradictedError, Cancelled
from tests.cameras.rendered_objects import (
    bottle,
    box,
    bumpy_bottle,
    depth_maps,
    random_object,
    rendered,
    six_view_dataset,
    sphere,
    wheel,
    with_soft_photos,
)

DATASETS = Path(__file__).parents[2] / "../shared/datasets"
FOV, DISTANCE, SIZE = 0.8, 3.0, 128


def fov_error_deg(calibration, true_fov_rad):
    return math.degrees(calibration.fov_x_rad - true_fov_rad)


@pytest.fixture(scope="module")
def known():
    """An asymmetric object, its dataset and true scales (distance = 1)."""
    return rendered(random_object(3), FOV, DISTANCE, SIZE)


def given_cameras(dataset, cameras):
    return replace(dataset, cameras=tuple(cameras))


def swapped(dataset, a, b):
    views = {view.name: view for view in dataset.views}
    views[a], views[b] = replace(views[b], name=a), replace(views[a], name=b)
    return replace(dataset, views=tuple(views[name] for name in VIEW_NAMES))


def mirrored(dataset):
    def flip(view):
        depth = replace(view.depth, values=np.ascontiguousarray(view.depth.values[:, ::-1]))
        return replace(view, rgb_srgb=view.rgb_srgb[:, ::-1], alpha=view.alpha[:, ::-1], depth=depth)

    return replace(dataset, views=tuple(flip(view) for view in dataset.views))


def without_depth(dataset):
    return replace(dataset, views=tuple(replace(view, depth=None) for view in dataset.views))


def check_random_rig(seed, fov_deg, slack, size, bits):
    fov = math.radians(fov_deg)
    dataset, scales = rendered(random_object(seed), fov, slack / math.sin(fov / 2), size, bits)
    try:
        found = calibrate(dataset)
    except CalibrationAmbiguousError:
        return "ambiguous"
    error = abs(fov_error_deg(found, fov))
    assert error < 0.5
    assert error < 0.05 + 4 * found.fov_uncertainty_deg
    if found.method == "depth":
        np.testing.assert_allclose(found.depth_scales, scales, rtol=3e-3)
    return found.method


random_rigs = given(
    seed=st.integers(0, 10_000),
    fov_deg=st.floats(25, 75),
    slack=st.floats(1.05, 1.6),
    size=st.sampled_from([128, 192, 256]),
    bits=st.sampled_from([8, 16]),
)


@settings(
    max_examples=2, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@random_rigs
def test_random_rigs_are_recovered_or_refused(seed, fov_deg, slack, size, bits):
    check_random_rig(seed, fov_deg, slack, size, bits)


@pytest.mark.slow
@settings(
    max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@random_rigs
def test_many_random_rigs_are_recovered_or_refused(seed, fov_deg, slack, size, bits):
    check_random_rig(seed, fov_deg, slack, size, bits)


def test_a_known_rig_is_recovered_from_its_depth(known):
    dataset, scales = known
    found = calibrate(dataset)
    assert found.method == "depth"
    assert abs(fov_error_deg(found, FOV)) < 0.25
    np.testing.assert_allclose(found.depth_scales, scales, rtol=1.5e-3)
    assert found.confidence > 0.5
    assert found.residuals["front_violation"] < 0.05
    assert found.residuals["top.mask_violation"] < 0.02
    assert [camera.name for camera in found.cameras] == list(VIEW_NAMES)
    np.testing.assert_allclose([np.linalg.norm(c.position_world) for c in found.cameras], 1.0)


def test_scales_of_eight_bit_depth_err_to_neither_side():
    """Each smoothing of the terraces alone puts round surfaces on one side of the truth, by 0.1 to 0.4 levels."""
    levels = []
    for seed in (0, 5, 8):
        fov = math.radians(40.0 + 5.0 * seed)
        dataset, scales = rendered(random_object(seed), fov, 1.2 / math.sin(fov / 2), 128)
        found = calibrate(dataset, fov_x_rad=fov)
        levels.append(255 * np.mean(np.array(found.depth_scales) / scales - 1))
    assert np.abs(levels).max() < 0.12
    assert abs(np.mean(levels)) < 0.06


@pytest.mark.parametrize("seed", [31, 44])
def test_no_view_slides_behind_a_nearly_round_object(seed):
    fov = math.radians(30.0 + seed % 20)
    dataset, scales = rendered(bumpy_bottle(seed), fov, 1.2 / math.sin(fov / 2), 128)
    found = calibrate(dataset, fov_x_rad=fov)
    np.testing.assert_allclose(found.depth_scales, scales, rtol=0.01)
    assert found.warnings == ()


def test_depth_chooses_among_the_fields_of_view_that_a_wheel_s_silhouettes_allow():
    fov = math.radians(26.0)
    dataset = soft_dataset(wheel(), 26.0, 256)
    found = calibrate(dataset)
    assert found.method == "silhouettes"
    assert abs(fov_error_deg(found, fov)) < 0.5
    assert found.warnings == ()


def test_the_same_dataset_gives_the_same_cameras_twice(known):
    first, second = calibrate(known[0]), calibrate(known[0])
    assert first.fov_x_rad == second.fov_x_rad
    assert first.depth_scales == second.depth_scales


def test_silhouettes_alone_decide_an_asymmetric_object():
    dataset, _ = rendered(random_object(6), FOV, 2.7, 512)
    found = calibrate(without_depth(dataset))
    assert found.method == "silhouettes"
    assert found.depth_scales == (None,) * 6
    assert abs(fov_error_deg(found, FOV)) < 1.0


@pytest.mark.parametrize("mesh", [sphere(), box([1, 1, 1])], ids=["sphere", "cube"])
def test_silhouettes_of_a_round_or_cubic_object_are_ambiguous(mesh):
    with pytest.raises(CalibrationAmbiguousError) as caught:
        calibrate(without_depth(rendered(mesh, FOV, DISTANCE, SIZE)[0]))
    assert "transforms.json" in caught.value.suggestion


@pytest.mark.slow
@pytest.mark.parametrize("size", [128, 256])
@pytest.mark.parametrize("fov_deg", [35.0, 62.0])
@pytest.mark.parametrize(
    "mesh", [sphere(), bottle(), box([1, 1, 1]), box([1, 0.7, 0.4])], ids=["sphere", "bottle", "cube", "box"]
)
def test_a_symmetric_object_is_recovered_or_refused_but_never_guessed(mesh, fov_deg, size):
    fov = math.radians(fov_deg)
    dataset, _ = rendered(mesh, fov, 1.2 / math.sin(fov / 2), size)
    try:
        found = calibrate(dataset)
    except CalibrationAmbiguousError:
        return
    assert abs(fov_error_deg(found, fov)) < max(0.5, 3 * found.fov_uncertainty_deg)


def soft_dataset(mesh, fov_deg, size, slack=1.2, samples=4):
    fov = math.radians(fov_deg)
    distance = slack / math.sin(fov / 2)
    return with_soft_photos(rendered(mesh, fov, distance, size)[0], mesh, fov, distance, samples)


def test_soft_edges_of_photos_sharpen_a_box_that_whole_pixels_leave_open():
    dataset = without_depth(soft_dataset(box([1, 0.6, 0.3]), 41.3, 256))
    found = calibrate(dataset)
    assert found.method == "silhouettes"
    assert abs(math.degrees(found.fov_x_rad) - 41.3) < 0.5
    blunt = fov_from_silhouettes(
        prepare_views(dataset), lambda fov: six_axis_rig(fov, 1.0, (256, 256)), np.arange(37.3, 46, 4)
    )
    assert blunt.sigma > 1.5 * found.fov_uncertainty_deg


@pytest.mark.parametrize(("fov_deg", "size"), [(62.0, 128), (35.0, 96)])
def test_a_box_in_whole_pixels_is_not_taken_for_sharper_than_it_is(fov_deg, size):
    fov = math.radians(fov_deg)
    dataset, _ = rendered(box([1, 0.7, 0.4]), fov, 1.2 / math.sin(fov / 2), size)
    assert not with_photo_rims(prepare_views(dataset), dataset, (None,) * 6).sharp
    with pytest.raises(CalibrationAmbiguousError):
        calibrate(dataset)


def test_an_outline_read_from_a_photo_is_right_within_a_fiftieth_of_a_pixel():
    dataset = soft_dataset(box([1, 0.75, 0.45]), 41.3, 128, samples=16)
    views = with_photo_rims(prepare_views(dataset), dataset, (None,) * 6)
    assert views.sharp
    half_angle, distance = math.radians(41.3) / 2, 1.2 / math.sin(math.radians(41.3) / 2)
    half = np.array([1, 0.75, 0.45]) / np.linalg.norm([1, 0.75, 0.45])
    half_width_px = half[0] / (distance - half[2]) * 64 / math.tan(half_angle)
    row = views.outside_px[0, 64]
    last = int(np.flatnonzero(row < 0)[-1])
    edge = last + 0.5 + row[last] / (row[last] - row[last + 1])
    assert edge == pytest.approx(64 + half_width_px, abs=0.02)


def test_a_shifted_or_unreadable_photo_leaves_the_silhouettes_alone():
    dataset = soft_dataset(box([1, 0.75, 0.45]), 41.3, 128)
    views = prepare_views(dataset)
    assert with_photo_rims(views, dataset, (PhotoShift((3.0, 0.0), 1.0, 2.0),) * 6) is views
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    noisy = replace(dataset, views=tuple(replace(view, rgb_srgb=noise) for view in dataset.views))
    assert with_photo_rims(views, noisy, (None,) * 6) is views


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_box_with_soft_photos_is_recovered_or_refused_but_never_guessed(seed):
    random = np.random.default_rng(seed)
    fov_deg = float(random.choice([30.0, 41.3, 60.0]))
    dataset = soft_dataset(box(random.uniform(0.3, 1.0, 3)), fov_deg, 512, random.uniform(1.05, 1.5))
    try:
        found = calibrate(dataset)
    except CalibrationAmbiguousError:
        return
    assert abs(math.degrees(found.fov_x_rad) - fov_deg) < max(0.5, 2 * found.fov_uncertainty_deg)


def test_a_cube_is_solved_once_the_field_of_view_is_told():
    dataset, scales = rendered(box([1, 1, 1]), FOV, DISTANCE, 256)
    with pytest.raises(CalibrationAmbiguousError):
        calibrate(dataset)
    found = calibrate(dataset, fov_x_rad=FOV)
    assert (found.method, found.fov_x_rad) == ("given", pytest.approx(FOV))
    np.testing.assert_allclose(found.depth_scales, scales, rtol=6e-3)


def test_given_cameras_are_kept_and_the_scales_come_in_their_units(known):
    dataset, scales = known
    cameras = six_axis_rig(FOV, DISTANCE, (SIZE, SIZE))
    found = calibrate(given_cameras(dataset, cameras))
    assert found.method == "given"
    assert found.cameras == cameras
    np.testing.assert_allclose(found.depth_scales, DISTANCE * scales, rtol=1.5e-3)
    assert not found.warnings


@pytest.mark.parametrize("error_deg", [-5.0, 5.0])
def test_a_given_field_of_view_off_by_five_degrees_is_contradicted_with_numbers(known, error_deg):
    cameras = six_axis_rig(FOV + math.radians(error_deg), DISTANCE, (SIZE, SIZE))
    with pytest.raises(CalibrationContradictedError) as caught:
        calibrate(given_cameras(known[0], cameras))
    assert caught.value.details["found_fov_x_deg"] == pytest.approx(math.degrees(FOV), abs=0.3)


def test_a_given_field_of_view_off_by_a_degree_is_used_with_a_warning(known):
    cameras = six_axis_rig(FOV + math.radians(1.0), DISTANCE, (SIZE, SIZE))
    found = calibrate(given_cameras(known[0], cameras))
    assert found.cameras == cameras
    assert any("field of view" in warning for warning in found.warnings)


def opencv_axes(cameras):
    return [replace(c, cam_from_world=np.diag([1.0, -1, -1, 1]) @ c.cam_from_world) for c in cameras]


def inverted(cameras):
    return [replace(c, cam_from_world=rigid_inverse(c.cam_from_world)) for c in cameras]


def y_and_z_mixed_in_positions(cameras):
    swap = np.eye(4)[[0, 2, 1, 3]]
    return [replace(c, cam_from_world=swap @ c.cam_from_world @ swap) for c in cameras]


@pytest.mark.parametrize("mistake", [opencv_axes, inverted, y_and_z_mixed_in_positions])
def test_cameras_in_another_convention_are_contradicted(known, mistake):
    cameras = mistake(six_axis_rig(FOV, DISTANCE, (SIZE, SIZE)))
    with pytest.raises(CalibrationContradictedError):
        calibrate(given_cameras(known[0], cameras))


@pytest.mark.parametrize("damage", [lambda d: swapped(d, "left", "right"), mirrored], ids=["swapped", "mirrored"])
@pytest.mark.parametrize("with_cameras", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_swapped_or_mirrored_views_are_refused(known, damage, with_cameras):
    dataset = damage(known[0])
    if with_cameras:
        dataset = given_cameras(dataset, six_axis_rig(FOV, DISTANCE, (SIZE, SIZE)))
    with pytest.raises(
        (CalibrationContradictedError, CalibrationAmbiguousError) if not with_cameras else CalibrationContradictedError
    ):
        calibrate(dataset)


@pytest.mark.parametrize("distortion", ["inverted", pytest.param("squared", marks=pytest.mark.slow)])
def test_depth_that_is_not_linear_z_is_refused(distortion):
    depths = depth_maps(*random_object(3), six_axis_rig(FOV, DISTANCE, (SIZE, SIZE)))
    wrong = {"inverted": lambda z: np.where(z > 0, DISTANCE / np.maximum(z, 1), 0), "squared": lambda z: z**3}
    dataset, _ = six_view_dataset([wrong[distortion](z) for z in depths], 8)
    with pytest.raises((CalibrationContradictedError, CalibrationAmbiguousError)):
        calibrate(dataset)
    with pytest.raises(CalibrationContradictedError):
        calibrate(given_cameras(dataset, six_axis_rig(FOV, DISTANCE, (SIZE, SIZE))))


def test_metric_depth_keeps_its_scale_and_needs_no_fit():
    cameras = six_axis_rig(FOV, DISTANCE, (SIZE, SIZE))
    depths = depth_maps(*random_object(3), cameras)
    views = tuple(
        View(
            name,
            np.zeros((SIZE, SIZE, 3), np.uint8),
            (z > 0).astype(np.float32),
            MaskSource.FILE,
            DepthImage(np.round(z * 1000).astype(np.uint16), 65535, DepthEncoding.METRIC_Z, 0.001),
        )
        for name, z in zip(VIEW_NAMES, depths, strict=True)
    )
    found = calibrate(Dataset("metric", DatasetLayout.POSED, views, cameras, "0"))
    np.testing.assert_allclose(found.depth_scales, 65.535)
    assert found.residuals["overlap_rms_levels"] >= 0.0


def test_a_shifted_photo_is_measured(known):
    dataset, _ = rendered(random_object(3), FOV, DISTANCE, 256)
    front = dataset.views[0]
    moved = np.roll(front.rgb_srgb, (4, -3), axis=(0, 1))
    found = calibrate(replace(dataset, views=(replace(front, rgb_srgb=moved), *dataset.views[1:])))
    np.testing.assert_allclose(found.photo_shifts[0].shift_px, (-3, 4), atol=0.5)
    assert found.photo_shifts[1].shift_px == (0.0, 0.0)
    assert any("front" in warning for warning in found.warnings)


def test_the_caller_can_stop_it(known):
    def stop(step, total, message):
        raise Cancelled("stopped", suggestion="start again")

    with pytest.raises(Cancelled):
        calibrate(known[0], stop)


def test_the_bundled_sample_with_its_flat_faces_seen_edge_on_is_decided_by_its_depth():
    dataset = load_dataset(Path(__file__).parents[2] / "samples/lantern")
    found = calibrate(replace(dataset, cameras=None))
    assert found.method == "depth"
    assert abs(math.degrees(found.fov_x_rad) - 41.3) < 0.3


def evaluation_dataset(name):
    folder = DATASETS / name
    if not folder.exists():
        pytest.skip("the evaluation datasets are not at hand")
    views = []
    for view in VIEW_NAMES:
        depth = np.asarray(Image.open(folder / f"depth_renders/{view}.png"))
        rgb = np.asarray(Image.open(folder / f"multi_views/{view}.png").convert("RGB"))
        mask = Image.fromarray((depth > 0).astype(np.uint8)).resize(rgb.shape[1::-1], Image.Resampling.NEAREST)
        stored = DepthImage(depth.astype(np.uint16), 255)
        views.append(View(view, rgb, np.asarray(mask, dtype=np.float32), MaskSource.DEPTH, stored))
    return Dataset(name, DatasetLayout.SIX_VIEW, tuple(views), None, "0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "truth"), [("spot", "transforms.json"), ("avocado", "ground_truth/transforms.json"), ("shoe", None)]
)
def test_evaluation_datasets_come_out_at_their_true_field_of_view(name, truth):
    dataset = evaluation_dataset(name)
    true = math.radians(60) if truth is None else json.loads((DATASETS / name / truth).read_text())["camera_angle_x"]
    found = calibrate(dataset)
    assert found.method == "depth"
    assert abs(fov_error_deg(found, true)) < 0.25

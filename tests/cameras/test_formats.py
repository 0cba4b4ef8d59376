"""Camera files: round trips, known values, and what is refused."""

import contextlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from reconflow.cameras.camera import PinholeCamera, project_points, rigid_inverse
from reconflow.cameras.colmap import format_colmap_text, parse_colmap_text
from reconflow.cameras.formats import format_nerf, format_nerfstudio, parse_transforms
from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_rig
from reconflow.errors import InvalidFileFormatError, ReconflowError, ValidationFailedError

DATASETS = Path(__file__).parents[2] / "../shared/datasets"

finite = st.floats(-100, 100, allow_nan=False)


@st.composite
def poses(draw):
    pose = np.eye(4)
    quaternion = np.array([draw(finite) for _ in range(4)])
    if np.linalg.norm(quaternion) < 1e-6:
        quaternion = np.array([0, 0, 0, 1.0])
    pose[:3, :3] = Rotation.from_quat(quaternion).as_matrix()
    pose[:3, 3] = [draw(finite) for _ in range(3)]
    return pose


@st.composite
def pinhole_cameras(draw):
    hw = (draw(st.integers(64, 4096)), draw(st.integers(64, 4096)))
    focal = (draw(st.floats(10, 1e4)), draw(st.floats(10, 1e4)))
    centre = (draw(st.floats(0, 1e4)), draw(st.floats(0, 1e4)))
    return lambda name: (
        PinholeCamera(name, focal, centre, rigid_inverse(pose), hw) if (pose := draw(poses())) is not None else None
    )


def assert_same_cameras(got, want):
    assert [c.name for c in got] == [c.name for c in want]
    for a, b in zip(got, want, strict=True):
        assert a.image_hw == b.image_hw
        np.testing.assert_allclose(a.focal_px, b.focal_px, rtol=1e-12)
        np.testing.assert_allclose(a.centre_px, b.centre_px, rtol=1e-12)
        np.testing.assert_allclose(a.cam_from_world, b.cam_from_world, atol=1e-11)


@settings(max_examples=50, deadline=None)
@given(st.lists(pinhole_cameras(), min_size=1, max_size=4))
def test_cameras_survive_a_round_trip_through_nerfstudio(makers):
    cameras = [make(f"v{i}") for i, make in enumerate(makers)]
    text = json.dumps(format_nerfstudio(cameras, applied_transform=[[1, 0, 0, 0]]))
    parsed = parse_transforms(text)
    assert_same_cameras(parsed.cameras([c.image_hw for c in cameras]), cameras)
    assert parsed.extras == {"applied_transform": [[1, 0, 0, 0]]}


@settings(max_examples=50, deadline=None)
@given(st.lists(pinhole_cameras(), min_size=1, max_size=4))
def test_cameras_survive_a_round_trip_through_colmap(makers):
    cameras = [make(f"view {i}") for i, make in enumerate(makers)]
    assert_same_cameras(parse_colmap_text(*format_colmap_text(cameras)), cameras)


@settings(max_examples=50, deadline=None)
@given(st.floats(math.radians(5), math.radians(150)), st.floats(0.1, 50), st.integers(64, 4096))
def test_a_rig_survives_a_round_trip_through_nerf(fov, distance, size):
    rig = six_axis_rig(fov, distance, (size, size))
    parsed = parse_transforms(json.dumps(format_nerf(rig, extras={"aabb_scale": 2})))
    assert_same_cameras(parsed.cameras([(size, size)] * 6), rig)
    assert parsed.extras == {"aabb_scale": 2}
    assert [f.file_path for f in parsed.frames] == [f"./multi_views/{v}" for v in VIEW_NAMES]


def test_nerfstudio_with_shared_intrinsics_of_a_larger_picture_is_scaled_to_ours():
    spec = {"fl_x": 200, "fl_y": 210, "cx": 90, "cy": 110, "w": 200, "h": 200, "k1": 0, "camera_model": "OPENCV"}
    spec["frames"] = [{"file_path": "images/a.jpg", "transform_matrix": np.eye(4).tolist(), "mask_path": "m/a.png"}]
    parsed = parse_transforms(spec)
    (camera,) = parsed.cameras([(100, 100)])
    assert (camera.name, camera.focal_px, camera.centre_px) == ("a", (100, 105), (45, 55))
    assert parsed.frames[0].mask_path == "m/a.png"


def test_a_colmap_camera_looks_along_its_plus_z_with_y_down():
    cameras_txt = "# list\n7 SIMPLE_PINHOLE 64 48 100 32 24\n"
    images_txt = "# two lines each\n3 1 0 0 0 0 0 2 7 some/dir/left eye.png\n12.5 3.0 -1\n"
    (camera,) = parse_colmap_text(cameras_txt, images_txt)
    pixel, depth = project_points(np.array([0.2, 0.1, 0.0]), camera)
    assert (camera.name, camera.image_hw) == ("left eye", (48, 64))
    assert depth == pytest.approx(2.0)
    np.testing.assert_allclose(pixel, [32 + 10, 24 + 5])


def test_files_with_one_stem_in_two_folders_keep_their_paths_as_names():
    frames = [{"file_path": f"{side}/001.png", "transform_matrix": np.eye(4).tolist()} for side in ("l", "r")]
    assert [f.name for f in parse_transforms({"camera_angle_x": 1.0, "frames": frames}).frames] == ["l/001", "r/001"]


def eye(**changes):
    matrix = np.eye(4)
    for key, value in changes.items():
        matrix[int(key[1]), int(key[2])] = value
    return matrix.tolist()


@pytest.mark.parametrize(
    ("matrix", "says"),
    [
        (eye(m00=-1), "mirrored"),
        ((np.diag([2.0, 2, 2, 1])).tolist(), "scales by 2"),
        (eye(m01=0.1), "not orthonormal"),
        (eye(m03=float("nan")), "not finite"),
        (eye(m03=float("inf")), "not finite"),
        (eye(m03=1e12), "out of range"),
        (eye(m30=0.5), "last row"),
        ([[1, 0], [0, 1]], "4 x 4"),
        ("identity", "4 x 4"),
        ([["a", 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "not a number"),
        ([[True, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "not a number"),
        ([[10**400, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "too large"),
        (np.zeros((4, 4)).tolist(), "last row"),
    ],
)
def test_a_pose_that_is_not_rigid_is_refused_with_the_frames_name(matrix, says):
    with pytest.raises(ValidationFailedError, match="views/odd") as caught:
        parse_transforms({"camera_angle_x": 0.8, "frames": [{"file_path": "views/odd", "transform_matrix": matrix}]})
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "neither fl_x nor camera_angle_x"),
        ({"camera_angle_x": 0}, "out of range"),
        ({"camera_angle_x": 60}, "out of range"),
        ({"camera_angle_x": "0.8"}, "not a number"),
        ({"fl_x": -5}, "out of range"),
        ({"fl_x": 5, "w": 100}, "only one of w and h"),
        ({"fl_x": 5, "w": 100.5, "h": 100}, "not a picture's size"),
        ({"fl_x": 5, "k1": 0.01}, "distortion k1"),
        ({"fl_x": 5, "p2": -1e-4}, "distortion p2"),
        ({"fl_x": 5, "camera_model": "OPENCV_FISHEYE"}, "OPENCV_FISHEYE"),
    ],
)
def test_intrinsics_that_cannot_be_used_are_refused(fields, says):
    with pytest.raises(ValidationFailedError, match="frame a") as caught:
        parse_transforms({**fields, "frames": [{"file_path": "a", "transform_matrix": np.eye(4).tolist()}]})
    assert says in caught.value.message
    if "distortion" in says or "FISHEYE" in says:
        assert "undistort" in caught.value.suggestion.lower()
    if fields.get("camera_angle_x") == 60:
        assert "radians" in caught.value.suggestion


def test_every_fault_of_a_file_is_reported_at_once():
    frames = [
        {"file_path": "a", "transform_matrix": np.eye(4).tolist()},
        {"file_path": "./a.png", "transform_matrix": np.eye(4).tolist()},
        {"file_path": "b"},
        {"transform_matrix": np.eye(4).tolist()},
        7,
    ]
    with pytest.raises(ValidationFailedError) as caught:
        parse_transforms({"camera_angle_x": 1.0, "frames": frames})
    assert [f["where"] for f in caught.value.details["faults"]] == ["frame ./a.png", "frame b", "frame 3", "frame 4"]


@pytest.mark.parametrize("text", ["", "{", "[1]", "NaN", "[" * 100_000, '{"frames": [' + "9" * 5000 + "]}"])
def test_text_that_is_no_object_is_an_invalid_file(text):
    with pytest.raises((InvalidFileFormatError, ValidationFailedError)):
        parse_transforms(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["file_path", "transform_matrix", "fl_x", "w", "h", "k1"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["frames", "camera_angle_x", "fl_x", "w", "cx", "camera_model"]), json_values))
def test_whatever_a_file_holds_the_answer_is_cameras_or_a_named_error(spec):
    with contextlib.suppress(ReconflowError):
        assert parse_transforms(json.dumps(spec)).frames


GOOD_CAMERA, GOOD_IMAGE = "1 PINHOLE 64 64 50 50 32 32\n", "1 1 0 0 0 0 0 0 1 a.png\n\n"


@pytest.mark.parametrize(
    ("cameras_txt", "images_txt", "says"),
    [
        ("1 SIMPLE_RADIAL 64 64 50 32 32 0.1\n", GOOD_IMAGE, "SIMPLE_RADIAL"),
        ("1 PINHOLE 64 64 50 32 32\n", GOOD_IMAGE, "4 parameters"),
        ("1 PINHOLE 64 -64 50 50 32 32\n", GOOD_IMAGE, "size in pixels"),
        ("1 PINHOLE 64 64 nan 50 32 32\n", GOOD_IMAGE, "not finite"),
        ("1 PINHOLE 64 64 0 50 32 32\n", GOOD_IMAGE, "out of range"),
        (GOOD_CAMERA * 2, GOOD_IMAGE, "appears twice"),
        ("", GOOD_IMAGE, "no cameras"),
        (GOOD_CAMERA, "", "no images"),
        (GOOD_CAMERA, GOOD_IMAGE * 2, "appears twice"),
        (GOOD_CAMERA, "1 2 0 0 0 0 0 0 1 a.png\n\n", "length is 2"),
        (GOOD_CAMERA, "1 1 0 0 0 0 0 0 9 a.png\n\n", "camera 9"),
        (GOOD_CAMERA, "1 1 0 0 0 0 x 0 1 a.png\n\n", "not a number"),
        (GOOD_CAMERA, "1 1 0 0 0 0 0 0 1 a.png\n2 1 0 0 0 0 0 0 1 b.png\n", "expected the image's points"),
    ],
)
def test_a_colmap_model_that_cannot_be_used_is_refused(cameras_txt, images_txt, says):
    with pytest.raises(ValidationFailedError) as caught:
        parse_colmap_text(cameras_txt, images_txt)
    assert says in caught.value.message


def test_cameras_that_nerf_cannot_say_are_not_written_wrongly():
    camera = PinholeCamera("a", (50.0, 60.0), (32.0, 32.0), np.eye(4), (64, 64))
    with pytest.raises(ValidationFailedError, match="view a"):
        format_nerf([camera])


@pytest.mark.skipif(not (DATASETS / "evaluate.py").exists(), reason="the evaluation datasets are not at hand")
def test_the_independent_judge_reads_our_nerf_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DATASETS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    judge = pytest.importorskip("evaluate")
    rig = six_axis_rig(0.85, 3.0, (512, 512))
    (tmp_path / "transforms.json").write_text(json.dumps(format_nerf(rig)))
    fov, frames = judge.cameras(tmp_path / "transforms.json")
    truth_fov, truth_frames = judge.cameras(DATASETS / "spot/transforms.json")
    assert fov == pytest.approx(truth_fov, abs=1e-12)
    for (path, pose), (truth_path, truth_pose) in zip(frames, truth_frames, strict=True):
        assert path == truth_path
        np.testing.assert_allclose(pose, truth_pose, atol=1e-12)

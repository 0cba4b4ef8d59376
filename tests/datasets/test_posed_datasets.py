from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_datasets import (
    PX,
    depth,
    edit_json,
    look_from,
    photo,
    posed_views,
    rgba,
    save,
    silhouette,
    the_fault,
    write_json,
)

from reconflow.datasets.dataset import DatasetLayout, DepthEncoding, MaskSource
from reconflow.datasets.loading import load_dataset, validate_dataset
from reconflow.errors import ErrorCode, InvalidFileCountError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return posed_views(tmp_path / "mug")


def test_posed_views_load_in_the_files_order_with_their_cameras(root: Path) -> None:
    dataset = load_dataset(root)
    assert dataset.layout is DatasetLayout.POSED
    assert [view.name for view in dataset.views] == ["view_0", "view_1", "view_2"]
    assert dataset.cameras is not None
    assert [camera.name for camera in dataset.cameras] == ["view_0", "view_1", "view_2"]
    np.testing.assert_allclose(dataset.cameras[1].world_from_cam, look_from(0.7), atol=1e-9)
    assert dataset.cameras[0].fov_x_rad == pytest.approx(0.8)
    assert {view.mask_source for view in dataset.views} == {MaskSource.ALPHA}
    assert set(dataset.file_hashes) == {"transforms.json", *(f"images/view_{i}.png" for i in range(3))}


@pytest.mark.parametrize("up", ["y", "z"])
def test_the_up_axis_is_the_one_the_cameras_share(tmp_path: Path, up: str) -> None:
    assert load_dataset(posed_views(tmp_path / "mug", up=up)).world_up == f"+{up}"


def test_a_stated_up_axis_outranks_the_cameras(root: Path) -> None:
    write_json(root, {**edit_json(root), "world_up": "z"})
    assert load_dataset(root).world_up == "+z"
    write_json(root, {**edit_json(root), "world_up": "up"})
    assert "world_up" in the_fault(root).message


def test_photos_need_not_be_square(tmp_path: Path) -> None:
    root = posed_views(tmp_path / "mug")
    for i in range(3):
        save(root / f"images/view_{i}.png", np.pad(rgba(i), ((0, 0), (16, 16), (0, 0))))
    assert load_dataset(root).views[0].image_hw == (PX, PX + 32)


def test_nerf_synthetic_paths_without_suffix_are_found(tmp_path: Path) -> None:
    frames = [{"file_path": f"./train/r_{i}", "transform_matrix": look_from(0.5 * i, "z")} for i in range(3)]
    for i in range(3):
        save(tmp_path / f"train/r_{i}.png", rgba(i))
    write_json(tmp_path, {"camera_angle_x": 0.7, "frames": frames}, "transforms_train.json")
    dataset = load_dataset(tmp_path)
    assert [view.name for view in dataset.views] == ["r_0", "r_1", "r_2"]
    assert dataset.world_up == "+z"


def test_jpeg_photos_with_mask_files(tmp_path: Path) -> None:
    root = posed_views(tmp_path / "mug", mask_path="masks/{}.png")
    spec = edit_json(root)
    for i, frame in enumerate(spec["frames"]):
        frame["file_path"] = f"images/view_{i}.jpg"
        (root / f"images/view_{i}.png").unlink()
        Image.fromarray(photo(i)).save(root / f"images/view_{i}.jpg", quality=95)
        save(root / f"masks/view_{i}.png", silhouette(i).astype(np.uint8) * np.uint8(255))
    write_json(root, spec)
    dataset = load_dataset(root)
    assert {view.mask_source for view in dataset.views} == {MaskSource.FILE}
    np.testing.assert_array_equal(dataset.views[1].mask, silhouette(1))
    assert np.abs(dataset.views[1].rgb_srgb.astype(int) - photo(1)).mean() < 4
    save(root / "masks/view_1.png", np.zeros((32, 32), np.uint8))
    assert (the_fault(root).file, the_fault(root).code) == ("masks/view_1.png", ErrorCode.VALIDATION_FAILED)
    (root / "masks/view_1.png").unlink()
    assert the_fault(root).code is ErrorCode.INVALID_FILE_COUNT


def test_metric_depth_is_millimetres_and_no_mask(tmp_path: Path) -> None:
    root = posed_views(tmp_path / "mug", depth_file_path="depth/{}.png")
    for i in range(3):
        save(root / f"depth/view_{i}.png", np.full((PX, PX), 2500 + i, np.uint16))
        save(root / f"images/view_{i}.png", photo(i))
    view = load_dataset(root).views[1]
    assert view.depth is not None
    assert view.depth.encoding is DepthEncoding.METRIC_Z
    assert view.depth.unit is not None
    assert view.depth.values[0, 0] * view.depth.unit == pytest.approx(2.501)
    assert view.mask_source is MaskSource.BACKGROUND


def test_metric_depth_needs_sixteen_bits(tmp_path: Path) -> None:
    root = posed_views(tmp_path / "mug", depth_file_path="depth/{}.png")
    for i in range(3):
        save(root / f"depth/view_{i}.png", depth(i))
    assert {fault.code for fault in validate_dataset(root).faults} == {ErrorCode.INVALID_FILE_FORMAT}


def test_depth_renders_with_the_photos_stem_are_relative_depth(root: Path) -> None:
    for i in range(3):
        save(root / f"depth_renders/view_{i}.png", depth(i, 32))
    views = load_dataset(root).views
    assert {view.depth and view.depth.encoding for view in views} == {DepthEncoding.RELATIVE_Z}


def test_exif_orientation_is_applied_and_reported(tmp_path: Path) -> None:
    root = posed_views(tmp_path / "mug")
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = np.pad(rgba(0), ((0, 0), (16, 16), (0, 0)))
    Image.fromarray(np.rot90(wide)).save(root / "images/view_0.png", exif=exif)
    dataset = load_dataset(root)
    np.testing.assert_array_equal(dataset.views[0].rgb_srgb, wide[..., :3])
    assert any("EXIF" in warning for warning in dataset.warnings)


def test_a_size_written_for_the_unturned_picture_is_a_fault(root: Path) -> None:
    spec = edit_json(root)
    spec.update(w=64, h=96, fl_x=100.0)
    write_json(root, spec)
    faults = validate_dataset(root).faults
    assert {(fault.file, fault.code) for fault in faults} == {("transforms.json", ErrorCode.VALIDATION_FAILED)}


def test_one_view_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileCountError):
        load_dataset(posed_views(tmp_path / "mug", 1))


def test_a_missing_picture_is_a_fault(root: Path) -> None:
    (root / "images/view_1.png").unlink()
    fault = the_fault(root)
    assert (fault.code, fault.file) == (ErrorCode.INVALID_FILE_COUNT, "images/view_1.png")


@pytest.mark.parametrize(
    "path",
    [
        "../outside.png",
        "images/../../outside.png",
        "..\\outside.png",
        "/etc/passwd",
        "C:\\pictures\\a.png",
        "\\\\server\\a.png",
        "~/a.png",
        "file:///etc/passwd",
        "s3://bucket/a.png",
        "a\0b.png",
        "a\nb.png",
        "\ud800.png",
        "x" * 5000,
    ],
)
@pytest.mark.parametrize("key", ["file_path", "mask_path", "depth_file_path"])
def test_paths_that_leave_the_dataset_are_refused(root: Path, key: str, path: str) -> None:
    save(root.parent / "outside.png", rgba(1))
    spec = edit_json(root)
    spec["frames"][1][key] = path
    write_json(root, spec)
    faults = validate_dataset(root).faults
    assert {fault.file for fault in faults} == {"transforms.json"}
    assert all(fault.suggestion and fault.message.isprintable() for fault in faults)


def test_a_picture_used_twice_is_a_fault(root: Path) -> None:
    spec = edit_json(root)
    spec["frames"][1]["file_path"] = "images/./view_0"
    write_json(root, spec)
    assert "twice" in the_fault(root).message
    save(root / "multi_views/a.png", rgba(1))
    spec["frames"][1]["file_path"], spec["frames"][2]["file_path"] = "left/a.png", "right/a.png"
    write_json(root, spec)
    assert "two frames" in the_fault(root).message


def test_stems_that_repeat_get_names_that_differ(tmp_path: Path) -> None:
    root = posed_views(tmp_path / "mug", 2)
    spec = edit_json(root)
    for i, frame in enumerate(spec["frames"]):
        save(root / f"cam {i}/a.png", rgba(i))
        frame["file_path"] = f"cam {i}/a.png"
    write_json(root, spec)
    names = [view.name for view in load_dataset(root).views]
    assert len(set(names)) == 2
    assert not any(character in name for name in names for character in "/ ")


def nested(depth_: int) -> str:
    return "[" * depth_ + "]" * depth_


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"{", "JSON"),
        (b"[1, 2]", "no object"),
        (b'{"frames": []}', "frames"),
        (b'{"frames": [], "frames": []}', "twice"),
        (b'{"camera_angle_x": NaN, "frames": []}', "NaN"),
        (b'{"camera_angle_x": -Infinity, "frames": []}', "Infinity"),
        (b'{"x": 1' + b"0" * 5000 + b', "frames": []}', "JSON"),
        (b"\xff\xfe{\0}\0", "UTF-8"),
        (nested(100_000).encode(), "nested"),
        (('{"a":' * 50_000 + "1" + "}" * 50_000).encode(), "nested"),
    ],
)
def test_a_transforms_that_is_no_strict_json_is_a_fault(root: Path, content: bytes, word: str) -> None:
    (root / "transforms.json").write_bytes(content)
    fault = the_fault(root)
    assert fault.file == "transforms.json"
    assert word in fault.message


@pytest.mark.parametrize("value", ["1e999", "1e300", '"1"', "null", "true", "[]", "{}"])
def test_numbers_that_cannot_be_a_pose_are_faults(root: Path, value: str) -> None:
    spec = edit_json(root)
    spec["frames"][2]["transform_matrix"][1][3] = 12345.0
    (root / "transforms.json").write_text(json.dumps(spec).replace("12345.0", value))
    assert "view_2" in the_fault(root).message


def test_a_transforms_above_the_limit_is_not_read(root: Path) -> None:
    with (root / "transforms.json").open("ab") as stream:
        stream.truncate(5 * 1024 * 1024)
    assert the_fault(root).code is ErrorCode.FILE_TOO_LARGE


def test_all_frames_faults_are_named(root: Path) -> None:
    spec: dict[str, Any] = edit_json(root)
    del spec["frames"][0]["transform_matrix"]
    spec["frames"][2]["transform_matrix"][0][0] = 7
    write_json(root, spec)
    message = the_fault(root).message
    assert "view_0" in message
    assert "view_2" in message


def test_a_byte_order_mark_is_accepted(root: Path) -> None:
    content = (root / "transforms.json").read_bytes()
    (root / "transforms.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert validate_dataset(root).ok


def test_an_object_cut_by_the_frame_is_only_a_warning_with_posed_views(root: Path) -> None:
    picture = rgba(0)
    picture[20:40, :32, 3] = 255
    save(root / "images/view_0.png", picture)
    report = validate_dataset(root)
    assert report.ok
    assert any("touches the frame" in warning for warning in report.warnings)

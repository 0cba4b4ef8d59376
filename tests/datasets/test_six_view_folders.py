from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_datasets import PX, depth, edit_json, encode, photo, rgba, save, silhouette, six_views, the_fault, write_json

from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_rig
from reconflow.datasets.dataset import DatasetLayout, DepthEncoding, MaskSource
from reconflow.datasets.loading import load_dataset, validate_dataset
from reconflow.datasets.resources import loaded_bytes, peak_loading_bytes
from reconflow.datasets.writing import write_six_view
from reconflow.errors import ErrorCode, InvalidFileCountError, InvalidFileFormatError, ValidationFailedError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return six_views(tmp_path / "mug")


def test_a_written_dataset_is_read_back_unchanged(tmp_path: Path) -> None:
    dataset = load_dataset(six_views(tmp_path / "mug", bits=16, cameras=True))
    assert (dataset.name, dataset.layout) == ("mug", DatasetLayout.SIX_VIEW)
    assert tuple(view.name for view in dataset.views) == VIEW_NAMES
    for index, view in enumerate(dataset.views):
        assert view.depth is not None
        np.testing.assert_array_equal(view.rgb_srgb, photo(index))
        np.testing.assert_array_equal(view.depth.values, depth(index, bits=16))
        np.testing.assert_array_equal(view.mask, silhouette(index))
        assert view.rgb_srgb.dtype == np.uint8
        assert view.alpha.dtype == np.float32
        assert (view.mask_source, view.depth.max_value) == (MaskSource.DEPTH, 65535)
        assert view.depth.encoding is DepthEncoding.RELATIVE_Z
    assert dataset.cameras is not None
    for camera, true in zip(dataset.cameras, six_axis_rig(0.9, 3.0, (PX, PX)), strict=True):
        assert camera.name == true.name
        np.testing.assert_allclose(camera.cam_from_world, true.cam_from_world, atol=1e-12)
        np.testing.assert_allclose(camera.focal_px, true.focal_px)
    assert dataset.world_up == "+y"


def test_a_valid_dataset_has_no_faults_and_its_facts_are_reported(root: Path) -> None:
    report = validate_dataset(root)
    assert report.ok
    assert not report.warnings
    front = report.views[0]
    assert (front.photo_file, front.depth_file) == ("multi_views/front.png", "depth_renders/front.png")
    assert (front.photo_hw, front.depth_hw, front.depth_bits) == ((PX, PX), (PX, PX), 8)
    assert front.mask_source is MaskSource.DEPTH
    assert front.coverage == pytest.approx(silhouette(0).mean(), abs=1e-5)
    assert front.border_share == 0
    json.dumps(report.to_dict())


def test_without_transforms_there_are_no_cameras(root: Path) -> None:
    assert load_dataset(root).cameras is None


def test_depth_has_its_own_resolution(tmp_path: Path) -> None:
    root = six_views(tmp_path / "mug", px=128)
    for index, view in enumerate(VIEW_NAMES):
        save(root / f"depth_renders/{view}.png", depth(index, 64))
    front = load_dataset(root).views[0]
    assert front.depth is not None
    assert front.depth.values.shape == (64, 64)
    assert front.image_hw == (128, 128)
    assert ((front.alpha > 0) & (front.alpha < 1)).any()
    assert (front.mask != silhouette(0, 128)).mean() < 0.02


def test_the_digest_depends_on_content_and_names_only(tmp_path: Path) -> None:
    first = load_dataset(six_views(tmp_path / "a"))
    second = load_dataset(six_views(tmp_path / "b"))
    assert first.digest == second.digest
    assert len(first.file_hashes) == 12
    save(tmp_path / "b/multi_views/front.png", photo(0) - np.uint8(1))
    assert load_dataset(tmp_path / "b").digest != first.digest


def test_files_the_dataset_does_not_use_do_not_change_its_digest(root: Path) -> None:
    digest = load_dataset(root).digest
    (root / "README.md").write_text("a mug")
    (root / "multi_views/notes.txt").write_text("x")
    dataset = load_dataset(root)
    assert dataset.digest == digest
    assert dataset.warnings == ("Not used: multi_views/notes.txt.",)


def test_all_faults_are_reported_at_once_with_file_names(root: Path) -> None:
    (root / "multi_views/front.png").write_bytes(b"")
    (root / "multi_views/back.png").unlink()
    save(root / "multi_views/left.png", photo(2)[:, :48])
    save(root / "depth_renders/top.png", np.zeros((PX, PX), np.uint8))
    report = validate_dataset(root)
    assert {(fault.code.value, fault.file) for fault in report.faults} == {
        ("INVALID_FILE_FORMAT", "multi_views/front.png"),
        ("INVALID_FILE_COUNT", "multi_views/back.png"),
        ("VALIDATION_FAILED", "multi_views/left.png"),
        ("VALIDATION_FAILED", "depth_renders/top.png"),
    }
    with pytest.raises(ValidationFailedError) as caught:
        load_dataset(root)
    assert caught.value.details["faults"] == [fault.to_dict() for fault in report.faults]
    assert caught.value.suggestion
    assert str(root.parent) not in str(caught.value.to_dict())


def test_faults_of_one_kind_keep_their_own_error_type(root: Path) -> None:
    (root / "multi_views/back.png").unlink()
    (root / "depth_renders/top.png").unlink()
    with pytest.raises(InvalidFileCountError) as caught:
        load_dataset(root)
    assert [fault["file"] for fault in caught.value.details["faults"]] == [  # type: ignore[attr-defined]
        "multi_views/back.png",
        "depth_renders/top.png",
    ]


def test_without_depth_renders_the_background_gives_the_mask_and_says_so(tmp_path: Path) -> None:
    root = six_views(tmp_path / "mug", with_depth=False)
    dataset = load_dataset(root)
    assert {view.mask_source for view in dataset.views} == {MaskSource.BACKGROUND}
    for index, view in enumerate(dataset.views):
        np.testing.assert_array_equal(view.mask, silhouette(index))
    assert any("depth_renders" in warning for warning in dataset.warnings)
    assert any("estimated" in warning for warning in dataset.warnings)


def test_alpha_outranks_depth(root: Path) -> None:
    picture = rgba(0)
    picture[..., 3] = np.where(silhouette(0), 255, 100)
    picture[30:34, 30:34, 3] = 51
    save(root / "multi_views/front.png", picture)
    front = load_dataset(root).views[0]
    assert front.mask_source is MaskSource.ALPHA
    assert front.alpha[31, 31] == pytest.approx(0.2)
    assert not front.mask[31, 31]


def test_an_opaque_alpha_channel_is_no_mask(root: Path) -> None:
    picture = np.concatenate([photo(0), np.full((PX, PX, 1), 255, np.uint8)], axis=-1)
    save(root / "multi_views/front.png", picture)
    dataset = load_dataset(root)
    assert dataset.views[0].mask_source is MaskSource.DEPTH
    assert any("opaque" in warning for warning in dataset.warnings)


def test_names_in_another_case_are_taken_with_a_warning(root: Path) -> None:
    (root / "multi_views/front.png").rename(root / "multi_views/Front.PNG")
    dataset = load_dataset(root)
    assert dataset.views[0].name == "front"
    assert "multi_views/Front.PNG" in dataset.warnings[0]


def test_two_spellings_of_one_name_are_a_fault(root: Path) -> None:
    os.link(root / "multi_views/front.png", root / "multi_views/Front.png")
    (root / "multi_views/front.png").rename(root / "multi_views/FRONT.png")
    assert the_fault(root).code is ErrorCode.INVALID_FILE_COUNT


def test_a_jpeg_in_place_of_a_png_is_named_in_the_fault(root: Path) -> None:
    (root / "multi_views/front.png").unlink()
    Image.fromarray(photo(0)).save(root / "multi_views/front.jpg")
    fault = the_fault(root)
    assert fault.code is ErrorCode.INVALID_FILE_COUNT
    assert "front.jpg" in fault.message


def test_a_jpeg_called_png_is_refused_by_its_content(root: Path) -> None:
    (root / "multi_views/front.png").write_bytes(encode(Image.fromarray(photo(0)), "JPEG"))
    fault = the_fault(root)
    assert (fault.code, fault.file) == (ErrorCode.INVALID_FILE_FORMAT, "multi_views/front.png")
    assert "JPEG" in fault.message


@pytest.mark.parametrize("view", ["multi_views/front.png", "depth_renders/front.png"])
def test_an_empty_file_is_a_fault(root: Path, view: str) -> None:
    (root / view).write_bytes(b"")
    fault = the_fault(root)
    assert (fault.code, fault.file) == (ErrorCode.INVALID_FILE_FORMAT, view)
    with pytest.raises(InvalidFileFormatError):
        load_dataset(root)


@pytest.mark.parametrize("folder", ["multi_views", "depth_renders"])
def test_an_empty_folder_misses_six_files(root: Path, folder: str) -> None:
    for path in (root / folder).iterdir():
        path.unlink()
    faults = validate_dataset(root).faults
    assert len(faults) == 6
    assert {fault.code for fault in faults} == {ErrorCode.INVALID_FILE_COUNT}


@pytest.mark.parametrize("file", ["multi_views/front.png", "depth_renders/front.png"])
def test_a_picture_that_is_not_square_is_a_fault(root: Path, file: str) -> None:
    with Image.open(root / file) as image:
        save(root / file, np.pad(np.asarray(image), ((0, 0), (0, 20), (0, 0))[: np.ndim(image)]))
    fault = the_fault(root)
    assert (fault.code, fault.file) == (ErrorCode.VALIDATION_FAILED, file)
    assert "square" in fault.message


def test_a_grey_photo_is_a_fault_that_suspects_a_depth_render(root: Path) -> None:
    save(root / "multi_views/front.png", depth(0))
    fault = the_fault(root)
    assert fault.code is ErrorCode.INVALID_FILE_FORMAT
    assert "depth_renders" in fault.suggestion


def test_a_coloured_depth_render_is_a_fault(root: Path) -> None:
    save(root / "depth_renders/front.png", photo(0))
    assert the_fault(root).code is ErrorCode.INVALID_FILE_FORMAT


@pytest.mark.parametrize(("value", "word"), [(0, "empty"), (200, "constant")])
def test_a_depth_of_one_value_is_a_fault(root: Path, value: int, word: str) -> None:
    save(root / "depth_renders/front.png", np.full((PX, PX), value, np.uint8))
    fault = the_fault(root)
    assert fault.file == "depth_renders/front.png"
    assert word in fault.message


def test_a_depth_with_a_white_background_is_a_fault(root: Path) -> None:
    values = depth(0)
    save(root / "depth_renders/front.png", np.where(values == 0, 255, values).astype(np.uint8))
    assert "background" in the_fault(root).message


def test_a_flat_depth_is_used_with_a_warning_because_boxes_have_it(root: Path) -> None:
    save(root / "depth_renders/front.png", np.where(silhouette(0), 255, 0).astype(np.uint8))
    dataset = load_dataset(root)
    assert any("flat" in warning for warning in dataset.warnings)


@pytest.mark.parametrize(("alpha", "word"), [(0, "empty"), (127, "empty")])
def test_an_empty_alpha_is_a_fault(root: Path, alpha: int, word: str) -> None:
    picture = rgba(0)
    picture[..., 3] = alpha
    save(root / "multi_views/front.png", picture)
    assert word in the_fault(root).message


def test_an_almost_full_alpha_is_a_fault(root: Path) -> None:
    picture = rgba(0)
    picture[..., 3] = 255
    picture[0, 0, 3] = 0
    save(root / "multi_views/front.png", picture)
    assert "full" in the_fault(root).message


def test_an_object_cut_by_the_frame_is_a_fault_and_a_touch_is_a_warning(root: Path) -> None:
    cut = photo(0), depth(0)
    cut[0][20:40, :32], cut[1][20:40, :32] = (90, 60, 20), 240
    save(root / "multi_views/front.png", cut[0])
    save(root / "depth_renders/front.png", cut[1])
    fault = the_fault(root)
    assert "cut by the frame" in fault.message
    touching = photo(0), depth(0)
    touching[0][30:33, :32], touching[1][30:33, :32] = (90, 60, 20), 240
    save(root / "multi_views/front.png", touching[0])
    save(root / "depth_renders/front.png", touching[1])
    report = validate_dataset(root)
    assert report.ok
    assert any("touches the frame" in warning for warning in report.warnings)


def test_six_identical_photos_are_a_fault(root: Path) -> None:
    for view in VIEW_NAMES:
        save(root / f"multi_views/{view}.png", photo(0))
        save(root / f"depth_renders/{view}.png", depth(0))
    assert "identical" in the_fault(root).message


def test_two_identical_photos_are_a_warning(root: Path) -> None:
    save(root / "multi_views/back.png", photo(0))
    save(root / "depth_renders/back.png", depth(0))
    assert any("identical" in warning for warning in load_dataset(root).warnings)


def test_exchanged_depth_renders_are_found_and_paired(root: Path) -> None:
    folder = root / "depth_renders"
    (folder / "front.png").rename(folder / "x")
    (folder / "left.png").rename(folder / "front.png")
    (folder / "x").rename(folder / "left.png")
    fault = the_fault(root)
    assert "multi_views/front.png with depth_renders/left.png" in fault.message
    assert "multi_views/left.png with depth_renders/front.png" in fault.message


def test_a_depth_of_something_else_is_a_fault(root: Path) -> None:
    other = np.zeros((PX, PX), np.uint8)
    other[4:14, 4:60] = 250
    other[4, 4] = 200
    save(root / "depth_renders/front.png", other)
    assert "does not show what" in the_fault(root).message


def test_a_pale_object_and_a_shadow_are_no_contradiction(root: Path) -> None:
    pale = np.where(silhouette(0)[..., None], np.uint8(248), np.uint8(255)).repeat(3, axis=-1)
    pale[26:34, 26:34] = 30
    save(root / "multi_views/front.png", pale)
    shadow = photo(1)
    shadow[40:58, 6:58] = np.minimum(shadow[40:58, 6:58], 200)
    shadow[8:22, 6:58] = np.minimum(shadow[8:22, 6:58], 200)
    save(root / "multi_views/back.png", shadow)
    dataset = load_dataset(root)
    np.testing.assert_array_equal(dataset.views[0].mask, silhouette(0))
    assert any("multi_views/front.png and depth_renders/front.png" in warning for warning in dataset.warnings)


def test_an_object_that_one_sees_through_agrees_with_its_depth(root: Path) -> None:
    ys, xs = (np.mgrid[0:PX, 0:PX] + 0.5) / PX - 0.5
    ring = np.abs(np.hypot(xs, ys) - 0.38) < 0.05
    save(root / "multi_views/front.png", np.where(ring[..., None], np.uint8(60), np.uint8(255)).repeat(3, axis=-1))
    save(root / "depth_renders/front.png", np.where(ring, np.uint8(250), np.uint8(0)))
    dataset = load_dataset(root)
    np.testing.assert_array_equal(dataset.views[0].mask, ring)
    assert not [warning for warning in dataset.warnings if "overlap" in warning]


def test_too_few_pixels_are_a_fault(root: Path) -> None:
    save(root / "multi_views/front.png", photo(0, 48))
    fault = the_fault(root)
    assert fault.code is ErrorCode.VALIDATION_FAILED
    assert "48 x 48" in fault.message


def test_a_missing_dataset_a_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "archive.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "empty").mkdir()
    for name in ("absent", "archive.zip", "empty"):
        fault = the_fault(tmp_path / name)
        assert name in fault.message
        assert str(tmp_path) not in fault.message + fault.suggestion


def test_a_dataset_one_folder_down_is_pointed_out(tmp_path: Path) -> None:
    six_views(tmp_path / "unpacked/mug")
    assert "sub-folder mug" in the_fault(tmp_path / "unpacked").suggestion


def test_loose_pictures_are_pointed_out(tmp_path: Path) -> None:
    save(tmp_path / "front.png", photo(0))
    assert "multi_views" in the_fault(tmp_path).suggestion


def test_transforms_frames_are_matched_by_stem(root: Path) -> None:
    rig = six_axis_rig(0.9, 3.0, (PX, PX))
    frames = [{"file_path": f"renders/{c.name}", "transform_matrix": c.world_from_cam.tolist()} for c in rig[::-1]]
    write_json(root, {"camera_angle_x": 0.9, "aabb_scale": 4, "frames": frames})
    dataset = load_dataset(root)
    assert dataset.layout is DatasetLayout.SIX_VIEW
    assert dataset.cameras is not None
    assert [camera.name for camera in dataset.cameras] == list(VIEW_NAMES)
    np.testing.assert_allclose(dataset.cameras[2].position_world, [3, 0, 0], atol=1e-12)
    assert dataset.extras == {"aabb_scale": 4}


def test_a_broken_transforms_does_not_hide_the_pictures_faults(tmp_path: Path) -> None:
    root = six_views(tmp_path / "mug", cameras=True)
    spec = edit_json(root)
    spec["frames"][1]["transform_matrix"][0][0] = "one"
    write_json(root, spec)
    (root / "multi_views/top.png").unlink()
    faults = validate_dataset(root).faults
    assert {fault.file for fault in faults} == {"transforms.json", "multi_views/top.png"}


def test_a_subset_of_the_six_views_is_a_posed_dataset_with_relative_depth(tmp_path: Path) -> None:
    root = six_views(tmp_path / "mug", cameras=True)
    spec = edit_json(root)
    spec["frames"] = spec["frames"][:4]
    write_json(root, spec)
    dataset = load_dataset(root)
    assert dataset.layout is DatasetLayout.POSED
    assert [view.name for view in dataset.views] == list(VIEW_NAMES[:4])
    assert {view.depth and view.depth.encoding for view in dataset.views} == {DepthEncoding.RELATIVE_Z}


def test_the_writer_refuses_to_overwrite_and_leaves_nothing_behind(tmp_path: Path) -> None:
    six_views(tmp_path / "mug")
    with pytest.raises(ValidationFailedError):
        six_views(tmp_path / "mug")
    with pytest.raises(ValidationFailedError):
        write_six_view(tmp_path / "five", {view: photo(0) for view in VIEW_NAMES[:5]})
    with pytest.raises(ValidationFailedError):
        write_six_view(tmp_path / "float", {view: photo(0).astype(np.float32) for view in VIEW_NAMES})  # type: ignore[misc]
    assert [path.name for path in tmp_path.iterdir()] == ["mug"]


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = six_views(tmp_path / "a", cameras=True), six_views(tmp_path / "b", cameras=True)
    for path in sorted(first.rglob("*.*")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_memory_is_known_from_the_report(root: Path) -> None:
    report, dataset = validate_dataset(root), load_dataset(root)
    held = sum(v.rgb_srgb.nbytes + v.alpha.nbytes + (v.depth.values.nbytes if v.depth else 0) for v in dataset.views)
    assert loaded_bytes(report) == held
    assert peak_loading_bytes(report) > held

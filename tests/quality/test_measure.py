"""The measurement of a packaged mesh: perfect on its own pictures, and worse for what is worse."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reconflow.cameras.camera import PinholeCamera
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.datasets.dataset import Dataset, DatasetLayout, DepthImage, MaskSource, View
from reconflow.errors import IncompleteResultsError, ValidationFailedError
from reconflow.geometry.mesh import TexturedMesh
from reconflow.outputs.glb import write_glb
from reconflow.quality.measure import measure_quality, reference_view
from reconflow.quality.report import QualityReport, QualityStatus
from reconflow.rendering.shade import render_depth, render_textured
from tests.outputs.objects import labelled_box

RIG = six_axis_rig(0.9, 2.4, (96, 96))


def picture_of(textured: TexturedMesh, camera: PinholeCamera) -> View:
    """A photo on white whose mask takes in every pixel the object touches, so that masking changes nothing."""
    render = render_textured(textured, camera)
    depth = render_depth(textured.mesh, camera.resized((64, 64)))
    levels = np.round(255 * depth / depth.max()).astype(np.uint16)
    return View(
        camera.name,
        np.round(render.rgb_srgb * 255).astype(np.uint8),
        (render.coverage > 0).astype(np.float32),
        MaskSource.DEPTH,
        DepthImage(levels, 255),
    )


def dataset_of(textured: TexturedMesh, cameras: tuple[PinholeCamera, ...] = RIG) -> Dataset:
    views = tuple(picture_of(textured, camera) for camera in cameras)
    return Dataset("box", DatasetLayout.SIX_VIEW, views, None, "0" * 64)


@pytest.fixture(scope="module")
def box() -> TexturedMesh:
    return labelled_box()


@pytest.fixture(scope="module")
def dataset(box: TexturedMesh) -> Dataset:
    return dataset_of(box)


@pytest.fixture(scope="module")
def glb(box: TexturedMesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quality") / "mesh.glb"
    write_glb(box, path)
    return path


@pytest.fixture(scope="module")
def report(glb: Path, dataset: Dataset) -> QualityReport:
    return measure_quality(glb, RIG, dataset)


def test_a_mesh_scores_perfectly_on_its_own_pictures(report: QualityReport) -> None:
    assert report.status is QualityStatus.NORMAL
    assert report.mean.psnr_db > 60
    assert report.mean.ssim > 0.9999
    assert [view.view for view in report.views] == ["front", "back", "left", "right", "top", "bottom"]


def test_the_silhouette_is_compared_at_half_coverage(glb: Path, box: TexturedMesh, dataset: Dataset) -> None:
    views = tuple(
        replace(view, alpha=render_textured(box, camera).coverage)
        for view, camera in zip(dataset.views, RIG, strict=True)
    )
    assert measure_quality(glb, RIG, replace(dataset, views=views)).mean.mask_iou == 1.0


def test_the_depth_error_of_its_own_depth_is_the_rounding_of_eight_bits(report: QualityReport) -> None:
    assert report.mean.depth_mae_levels is not None
    assert report.mean.depth_mae_levels < 0.3
    assert report.mean.depth_max_value == 255
    assert {view.depth_scale_source for view in report.views} == {"median ratio"}


def test_a_given_depth_scale_is_used_and_named(glb: Path, dataset: Dataset) -> None:
    fitted = measure_quality(glb, RIG, dataset).views[0]
    given = measure_quality(glb, RIG, dataset, {"front": 1.1 * (fitted.depth_z_of_max or 0)}).views[0]
    assert given.depth_scale_source == "calibration"
    assert given.depth_mae_relative == pytest.approx(1 - 1 / 1.1, abs=0.01)


def test_the_mesh_facts_are_those_of_the_file(report: QualityReport) -> None:
    mesh = report.mesh
    assert (mesh.faces, mesh.vertices, mesh.components, mesh.genus) == (192, 98, 1, 0)
    assert mesh.watertight
    assert (mesh.charts, mesh.texture_hw) == (6, (192, 288))
    assert mesh.atlas_use == pytest.approx((1 - 8 / 96) ** 2)
    assert mesh.volume == pytest.approx(0.594, rel=1e-3)


def test_a_mirrored_texture_scores_worse(
    box: TexturedMesh, dataset: Dataset, report: QualityReport, tmp_path: Path
) -> None:
    mirrored = replace(box, uvs=box.uvs * np.float32([-1, 1]) + np.float32([1, 0]))
    write_glb(mirrored, tmp_path / "mesh.glb")
    worse = measure_quality(tmp_path / "mesh.glb", RIG, dataset)
    assert worse.mean.psnr_db < report.mean.psnr_db - 20
    assert worse.mean.mask_iou == report.mean.mask_iou


def test_a_shifted_camera_lowers_the_mask_iou(glb: Path, dataset: Dataset) -> None:
    shifted = tuple(replace(camera, centre_px=(camera.centre_px[0] + 8, camera.centre_px[1])) for camera in RIG)
    worse = measure_quality(glb, shifted, dataset)
    assert worse.mean.mask_iou < 0.8
    assert worse.status is not QualityStatus.NORMAL
    assert worse.reasons


def test_large_views_are_measured_at_the_given_size(glb: Path, dataset: Dataset) -> None:
    view = reference_view(dataset.views[0], 48)
    assert view.rgb_srgb.shape == (48, 48, 3)
    small = measure_quality(glb, RIG, dataset, size=48)
    assert small.mean.psnr_db > 30
    assert "48 px" in small.protocol.resolution


def test_alpha_is_composited_over_white_in_linear_light() -> None:
    view = View("v", np.zeros((16, 16, 3), np.uint8), np.full((16, 16), 0.5, np.float32), MaskSource.ALPHA)
    assert reference_view(view, 1024).rgb_srgb[0, 0, 0] == pytest.approx(0.735, abs=2e-3)


def test_a_photo_without_alpha_keeps_its_edge_pixels_as_they_are() -> None:
    alpha = np.ones((16, 16), np.float32)
    alpha[:, :8], alpha[:, 8] = 0, 0.6
    view = View("v", np.full((16, 16, 3), 51, np.uint8), alpha, MaskSource.DEPTH)
    row = reference_view(view, 1024).rgb_srgb[0, :, 0]
    np.testing.assert_allclose(row, [1.0] * 8 + [0.2] * 8, atol=1e-6)


def test_a_view_without_a_camera_is_refused(glb: Path, dataset: Dataset) -> None:
    with pytest.raises(ValidationFailedError) as caught:
        measure_quality(glb, RIG[:5], dataset)
    assert caught.value.details == {"missing": ["bottom"]}


def test_a_missing_mesh_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(IncompleteResultsError):
        measure_quality(tmp_path / "mesh.glb", RIG, dataset)


def test_the_report_survives_json(report: QualityReport) -> None:
    assert QualityReport.model_validate_json(report.model_dump_json()) == report

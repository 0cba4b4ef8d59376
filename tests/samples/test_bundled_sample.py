"""The bundled dataset keeps the conventions it promises, judged from its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import minimum_filter

from reconflow.cameras.camera import PinholeCamera, project_points
from reconflow.cameras.six_axis import VIEW_NAMES, six_axis_rig
from samples.paint import stencil
from samples.shapes import SHAPES
from samples.surface import build_surface

LANTERN = Path(__file__).parents[2] / "samples" / "lantern"


def read(path: str) -> NDArray[np.uint8]:
    with Image.open(LANTERN / path) as image:
        return np.asarray(image)


def rig(image_hw: tuple[int, int]) -> tuple[PinholeCamera, ...]:
    spec = json.loads((LANTERN / "ground_truth" / "transforms.json").read_text())
    cameras = []
    for frame in spec["frames"]:
        pose = np.array(frame["transform_matrix"])
        cameras.append(PinholeCamera.from_fov(Path(frame["file_path"]).name, spec["camera_angle_x"], pose, image_hw))
    return tuple(cameras)


@pytest.fixture(scope="module")
def truth() -> trimesh.Trimesh:
    return trimesh.load(LANTERN / "ground_truth" / "mesh.ply", process=False)


def test_the_sample_has_six_pictures_six_depths_and_no_cameras() -> None:
    for view in VIEW_NAMES:
        assert read(f"multi_views/{view}.png").shape == (512, 512, 3)
        depth = read(f"depth_renders/{view}.png")
        assert (depth.shape, depth.dtype, depth.max()) == ((512, 512), np.uint8, 255)
    assert not (LANTERN / "transforms.json").exists()


def test_the_sample_takes_less_than_three_megabytes() -> None:
    assert sum(path.stat().st_size for path in LANTERN.rglob("*") if path.is_file()) < 3_000_000


def test_the_true_cameras_are_the_six_axis_rig() -> None:
    cameras = rig((512, 512))
    expected = six_axis_rig(cameras[0].fov_x_rad, float(np.linalg.norm(cameras[0].position_world)), (512, 512))
    for camera, other in zip(cameras, expected, strict=True):
        assert camera.name == other.name
        np.testing.assert_allclose(camera.cam_from_world, other.cam_from_world, atol=1e-12)


def test_the_true_mesh_is_closed_normalised_and_has_the_lanterns_two_holes(truth: trimesh.Trimesh) -> None:
    assert truth.is_watertight
    assert truth.is_winding_consistent
    assert truth.volume > 0
    assert truth.body_count == 1
    assert 1 - truth.euler_number // 2 == SHAPES["lantern"]().genus == 2
    np.testing.assert_allclose(truth.bounds.sum(axis=0), 0.0, atol=2e-3)
    assert np.linalg.norm(truth.vertices, axis=1).max() == pytest.approx(1.0, abs=2e-3)


def share_in_front(vertices: NDArray[np.float64], camera: PinholeCamera, codes: NDArray[np.uint8]) -> float:
    """Return the share of vertices outside the silhouette or before the stored surface, give or take a pixel."""
    points, depth = project_points(vertices, camera)
    column, row = np.floor(points).astype(int).T
    stored = codes.astype(float)
    nearest = minimum_filter(np.where(stored > 0, stored, np.inf), size=3)[row, column]
    seen = stored[row, column] > 0
    z_max = float(np.percentile(255.0 * depth[seen] / stored[row, column][seen], 5))
    return float(np.mean(np.isinf(nearest) | (255.0 * depth / z_max < nearest - 2.0)))


@pytest.mark.parametrize("view", VIEW_NAMES)
def test_true_points_lie_on_or_behind_the_depth_renders_and_mirrored_ones_do_not(
    view: str, truth: trimesh.Trimesh
) -> None:
    camera = next(c for c in rig((512, 512)) if c.name == view)
    codes = read(f"depth_renders/{view}.png")
    assert share_in_front(truth.vertices, camera, codes) < 0.003
    mirror = np.array([1.0, 1.0, -1.0]) if view in ("left", "right") else np.array([-1.0, 1.0, 1.0])
    assert share_in_front(truth.vertices * mirror, camera, codes) > 0.03


@pytest.mark.parametrize("view", VIEW_NAMES)
def test_pictures_are_white_exactly_where_the_depth_is_empty(view: str) -> None:
    picture, empty = read(f"multi_views/{view}.png"), read(f"depth_renders/{view}.png") == 0
    white = (picture == 255).all(axis=2)
    assert white[0].all()
    assert np.mean(white != empty) < 0.01


@pytest.mark.parametrize(
    ("view", "text"), [("front", "RECONFLOW"), ("back", "BACK"), ("left", "LEFT"), ("right", "RIGHT")]
)
def test_the_print_reads_forwards(view: str, text: str) -> None:
    shape = SHAPES["lantern"]()
    surface = build_surface(shape.solids, shape.half_extent, 0.03)
    item = next(item for item in shape.prints if item.text == text)
    letters = stencil(text)
    height, width = letters.shape
    u, v = np.meshgrid((np.arange(width) + 0.5) / width - 0.5, 0.5 - (np.arange(height) + 0.5) / height)
    right, up = np.array(item.right), np.array(item.up)
    points = np.array(item.centre) + item.width * (u[..., None] * right + v[..., None] * (height / width) * up)
    camera = next(c for c in rig((512, 512)) if c.name == view)
    column, row = np.moveaxis(np.floor(project_points((points - surface.centre) / surface.radius, camera)[0]), -1, 0)
    seen = 255.0 - read(f"multi_views/{view}.png").mean(axis=2)[row.astype(int), column.astype(int)]
    forwards = np.corrcoef(seen.ravel(), letters.ravel())[0, 1]
    backwards = np.corrcoef(seen[:, ::-1].ravel(), letters.ravel())[0, 1]
    assert forwards > 0.6
    assert forwards > backwards + 0.25


def test_held_out_views_have_alpha_and_a_camera_each() -> None:
    spec = json.loads((LANTERN / "novel" / "transforms_novel.json").read_text())
    assert len(spec["frames"]) == len(list((LANTERN / "novel").glob("*.png"))) >= 4
    for frame in spec["frames"]:
        picture = read(f"{frame['file_path']}.png")
        assert picture.shape == (256, 256, 4)
        assert 0 < np.mean(picture[..., 3] > 0) < 0.6

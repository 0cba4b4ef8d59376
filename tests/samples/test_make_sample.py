"""The script that makes sample datasets: its geometry, its light, and that it repeats itself."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numba
import numpy as np
import pytest

from reconflow.cameras.camera import PinholeCamera, pixel_centres, project_points
from reconflow.cameras.six_axis import six_axis_pose
from reconflow.errors import ValidationFailedError
from reconflow.geometry.components import face_components
from reconflow.geometry.mesh import TriangleMesh
from samples.drawing import find_visible
from samples.make_sample import SampleOptions, encode_depth, make_sample, novel_cameras
from samples.shading import Lighting, shade
from samples.shapes import SHAPES
from samples.solids import box, cylinder, distance_and_part, ellipsoid, rows_of, torus
from samples.surface import build_surface, sky_visibility

SMALL = SampleOptions(size=64, depth_size=64, novel=1, cell=0.04, supersampling=2)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_arguments_give_the_same_bytes_on_one_thread_and_on_all(tmp_path: Path) -> None:
    make_sample("glossy", tmp_path / "all", SMALL)
    threads = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        make_sample("glossy", tmp_path / "one", SMALL)
    finally:
        numba.set_num_threads(threads)
    assert len(digests(tmp_path / "one")) == 6 + 6 + 2 + 2
    assert digests(tmp_path / "one") == digests(tmp_path / "all")


def test_cameras_that_would_cut_the_object_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationFailedError, match="cut by the frame"):
        make_sample("box", tmp_path, SampleOptions(fov_deg=20.0, distance=3.0))
    assert not any(tmp_path.iterdir())


def test_depth_is_stored_as_a_share_of_the_views_largest() -> None:
    depth = np.array([[0.0, 2.0], [3.0, 4.0]])
    assert encode_depth(depth, 8).tolist() == [[0, 128], [191, 255]]
    assert encode_depth(depth, 16).tolist() == [[0, 32768], [49151, 65535]]


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_object_is_closed_and_has_the_pieces_and_holes_it_claims(name: str) -> None:
    shape = SHAPES[name]()
    surface = build_surface(shape.solids, shape.half_extent, 0.0125 if name in ("posts", "wheel") else 0.02)
    faces, vertices = surface.faces, surface.vertices_world
    edges, uses = np.unique(np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)), axis=0, return_counts=True)
    assert (uses == 2).all()
    assert face_components(TriangleMesh(vertices.astype(np.float32), faces.astype(np.int32)))[1] == shape.pieces
    assert 2 * shape.pieces - 2 * shape.genus == len(vertices) - len(edges) + len(faces)
    corners = vertices[faces]
    assert np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) > 0
    assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(1.0)


def test_distances_are_those_of_simple_bodies() -> None:
    ball = rows_of((ellipsoid(3, (1.0, 0.0, 0.0), (0.5, 0.5, 0.5)),))
    assert distance_and_part(ball, 2.0, 0.0, 0.0) == (pytest.approx(0.5), 3)
    donut = rows_of((torus(0, (0.0, 0.0, 0.0), 1.0, 0.25),))
    assert distance_and_part(donut, 0.0, 0.0, 0.0)[0] == pytest.approx(0.75)
    assert distance_and_part(donut, 0.0, 0.0, 1.0)[0] == pytest.approx(-0.25)
    drilled = rows_of((box(0, (0, 0, 0), (1.0, 1.0, 1.0)), cylinder(1, (0, 0, 0), 0.5, 2.0).removed()))
    assert distance_and_part(drilled, 0.25, 0.0, 0.0) == (pytest.approx(0.25), 1)
    assert distance_and_part(drilled, 0.9, 0.0, 0.0) == (pytest.approx(-0.1), 0)


def test_a_ball_sees_the_whole_sky_and_the_bottom_of_a_shaft_sees_little_of_it() -> None:
    ball = build_surface((ellipsoid(0, (0, 0, 0), (0.5, 0.5, 0.5)),), (0.6, 0.6, 0.6), 0.04)
    assert sky_visibility(ball, 64, 0).min() == 1.0
    shaft = cylinder(1, (0, 0.3, 0), 0.3, 0.9).removed()
    block = build_surface((box(0, (0, 0, 0), (0.8, 0.9, 0.8)), shaft), (0.9, 1.0, 0.9), 0.07)
    floor = (np.abs(block.vertices_model[:, 1] + 0.6) < 1e-3) & (np.hypot(*block.vertices_model[:, ::2].T) < 0.1)
    expected = 0.3**2 / (0.3**2 + 1.5**2)
    assert sky_visibility(block, 512, 0)[floor].mean() == pytest.approx(expected, rel=0.3)


def test_an_open_surface_under_a_white_sky_shows_its_albedo() -> None:
    albedo = np.array([[0.2, 0.5, 0.8]])
    up = np.array([[0.0, 1.0, 0.0]])
    radiance = shade(Lighting(1.0), albedo, up, up, np.ones(1), np.ones((1, 0)))
    np.testing.assert_allclose(radiance, albedo, rtol=1e-3)


def test_a_sample_sees_the_nearer_triangle_at_its_true_depth() -> None:
    camera = PinholeCamera.from_fov("front", math.radians(50.0), six_axis_pose("front", 3.0), (32, 32))
    far = np.array([[-2.0, -2.0, -0.5], [2.0, -2.0, -0.5], [0.0, 2.0, -0.5]])
    near = np.array([[-0.2, -0.2, 0.4], [0.3, -0.2, 0.6], [0.0, 0.3, 0.8]])
    visible = find_visible(np.concatenate([far, near]), np.array([[0, 1, 2], [3, 4, 5]], np.int32), camera)
    points = visible.interpolate(np.concatenate([far, near]))
    pixels, depth = project_points(points, camera)
    np.testing.assert_allclose(pixels, pixel_centres((32, 32)).reshape(-1, 2)[visible.sample], atol=1e-9)
    np.testing.assert_allclose(depth, visible.depth, atol=1e-9)
    middle = visible.sample == 16 * 32 + 16
    assert visible.corners[middle].tolist() == [[3, 4, 5]]


def test_held_out_cameras_look_at_the_object_and_stand_near_no_axis() -> None:
    for camera in novel_cameras(12, 0, math.radians(41.3), 3.2, 64):
        pixel, depth = project_points(np.zeros(3), camera)
        np.testing.assert_allclose(pixel, [32.0, 32.0])
        assert depth == pytest.approx(3.2)
        assert np.abs(camera.position_world).max() < 3.2 * math.cos(math.radians(20.0))
        assert np.linalg.det(camera.world_from_cam) == pytest.approx(1.0)

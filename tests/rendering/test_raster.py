from __future__ import annotations

import numpy as np
import pytest
from render_shapes import bumpy_sphere, look_from

from reconflow.cameras.camera import PinholeCamera, project_points, unproject_pixels
from reconflow.rendering.raster import RasterBuffers, rasterize_view

LOOKING_DOWN_Z = PinholeCamera("view", (20.0, 20.0), (16.0, 12.0), np.eye(4), (24, 32))


def raycast(vertices: np.ndarray, faces: np.ndarray, camera: PinholeCamera) -> RasterBuffers:
    """The same answer by intersecting the ray of every pixel with every face, slowly."""
    height, width = camera.image_hw
    ys, xs = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    ahead = unproject_pixels(np.stack([xs, ys], -1), np.ones((height, width)), camera)
    eye = camera.position_world
    ray = ahead - eye
    face_id, depth = np.full((height, width), -1, np.int32), np.full((height, width), np.inf)
    bary = np.zeros((height, width, 2))
    for f, (a, b, c) in enumerate(vertices[faces].astype(float)):
        matrix = np.stack([a - eye, b - eye, c - eye], axis=1)
        if abs(np.linalg.det(matrix)) < 1e-15:
            continue
        weights = ray @ np.linalg.inv(matrix).T  # ray = sum of weights * corners, at depth 1
        total = weights.sum(-1)
        with np.errstate(divide="ignore"):
            z = 1.0 / total
        near = 1e-3 * project_points(vertices, camera)[1].max()
        closer = (weights >= 0).all(-1) & (total > 0) & (z < depth) & (z > near)
        face_id[closer], depth[closer] = f, z[closer]
        bary[closer] = (weights / np.where(total == 0, 1, total)[..., None])[closer][:, :2]
    depth = np.where(face_id >= 0, depth, 0)
    return RasterBuffers(face_id, bary.astype(np.float32), depth.astype(np.float32))


def test_a_triangle_covers_the_pixels_whose_centres_it_contains() -> None:
    corners = unproject_pixels(np.array([[3.0, 2.0], [9.0, 2.0], [3.0, 8.0]]), np.full(3, 5.0), LOOKING_DOWN_Z)
    seen = rasterize_view(corners, np.array([[0, 1, 2]]), LOOKING_DOWN_Z)
    rows, cols = np.nonzero(seen.face_id == 0)
    expected = {(y, x) for y in range(2, 8) for x in range(3, 9) if (x + 0.5 - 3) + (y + 0.5 - 2) <= 6}
    assert set(zip(rows.tolist(), cols.tolist(), strict=True)) == expected
    assert seen.depth[2, 3] == pytest.approx(5.0)
    assert seen.face_id[0, 0] == -1
    assert seen.depth[0, 0] == 0


def test_every_pixel_agrees_with_casting_its_ray() -> None:
    vertices, faces = bumpy_sphere(2)
    camera = look_from((0.5, 0.3, -1.0), 3.2, 40)
    seen, expected = rasterize_view(vertices, faces, camera), raycast(vertices, faces, camera)
    assert (seen.face_id != expected.face_id).mean() < 0.002
    same = seen.face_id == expected.face_id
    np.testing.assert_allclose(seen.bary[same], expected.bary[same], atol=2e-5)
    np.testing.assert_allclose(seen.depth[same], expected.depth[same], atol=1e-5)


def test_a_camera_inside_the_mesh_sees_its_walls_all_around() -> None:
    vertices, faces = bumpy_sphere(2)
    camera = look_from((0.5, 0.3, -1.0), 0.4, 40, fov=1.5)
    seen, expected = rasterize_view(vertices, faces, camera), raycast(vertices, faces, camera)
    assert (seen.face_id >= 0).all()
    assert (seen.face_id == expected.face_id).mean() > 0.998


def test_a_floor_reaching_behind_the_camera_is_cut_at_the_near_plane() -> None:
    floor = np.array([[-50.0, -1, -40], [50, -1, -40], [50, -1, 30], [-50, -1, 30]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    seen, expected = rasterize_view(floor, faces, LOOKING_DOWN_Z), raycast(floor, faces, LOOKING_DOWN_Z)
    assert (seen.face_id[:12] == -1).all()
    assert (seen.face_id[13:] >= 0).all()
    np.testing.assert_allclose(seen.depth, expected.depth, rtol=1e-5)


def test_faces_that_share_an_edge_leave_no_gap() -> None:
    rng = np.random.default_rng(3)
    ring = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    for _ in range(10):
        centre = rng.uniform(-0.2, 0.2, 2)
        rim = np.stack([1.5 * np.cos(ring), 1.5 * np.sin(ring), np.full(40, -2.0)], axis=1)
        fan = np.concatenate([[[*centre, -2.0]], rim])
        faces = np.array([[0, 1 + k, 1 + (k + 1) % 40] for k in range(40)])
        seen = rasterize_view(fan, faces, LOOKING_DOWN_Z)
        assert (seen.face_id[2:22, 4:28] >= 0).all()


def test_a_mesh_behind_the_camera_is_not_seen() -> None:
    vertices, faces = bumpy_sphere(1)
    assert (rasterize_view(vertices + np.float32([0, 0, 9]), faces, LOOKING_DOWN_Z).face_id == -1).all()


def test_an_empty_mesh_gives_an_empty_picture() -> None:
    seen = rasterize_view(np.zeros((0, 3)), np.zeros((0, 3), np.int32), LOOKING_DOWN_Z)
    assert (seen.face_id == -1).all()

import numpy as np
import pytest

from reconflow.cameras.camera import project_points
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.holes import fill_holes
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh import fix_non_manifold
from reconflow.geometry.similarity import Similarity, rotation_from_vector
from reconflow.reconviagen.inner_walls import face_visibility, remove_inner_walls
from reconflow.reconviagen.sphere_cameras import sphere_cameras
from tests.geometry.shapes import Points, iso_surface, joined


def ball(radius: float, *, inside_out: bool = False, resolution: int = 24) -> TriangleMesh:
    mesh = iso_surface(lambda p: np.linalg.norm(p, axis=-1) - radius, resolution, 0.55)
    return TriangleMesh(mesh.vertices, mesh.faces[:, ::-1] if inside_out else mesh.faces)


def shell_with_a_pinhole(p: Points) -> Points:
    shell = np.abs(np.linalg.norm(p, axis=-1) - 0.4) - 0.06
    hole = np.where(p[..., 2] > 0, np.hypot(p[..., 0], p[..., 1]) - 0.05, 1.0)
    return np.maximum(shell, -hole)


def seen(mesh: TriangleMesh, views: int = 60, size: int = 128) -> np.ndarray:
    return face_visibility(mesh, sphere_cameras(views, size))


def test_a_cavity_that_nobody_sees_goes() -> None:
    mesh = joined(ball(0.45), ball(0.3, inside_out=True))
    cleaned, walls = remove_inner_walls(mesh, seen(mesh))
    assert walls.parts == 1
    assert walls.faces == len(ball(0.3).faces)
    assert np.linalg.norm(cleaned.vertices, axis=1).min() > 0.4
    assert mesh_facts(cleaned).watertight


def test_a_shell_with_a_pinhole_loses_its_inside_and_can_be_closed() -> None:
    mesh = iso_surface(shell_with_a_pinhole, 44, 0.55)
    cleaned, walls = remove_inner_walls(mesh, seen(mesh, 100))
    assert walls.faces > 0.3 * len(mesh.faces)
    middles = cleaned.vertices[cleaned.faces].mean(axis=1)
    assert (np.linalg.norm(middles, axis=1) < 0.36).mean() < 0.02
    closed, filling = fill_holes(fix_non_manifold(cleaned), 100)
    assert filling.left_open == 0
    assert mesh_facts(closed).watertight
    assert mesh_facts(closed).genus == 0


def test_a_surface_without_hidden_faces_is_returned_as_it_is() -> None:
    mesh = ball(0.45, resolution=16)
    cleaned, walls = remove_inner_walls(mesh, seen(mesh))
    assert walls.faces == 0
    assert cleaned is mesh


def test_visibility_counts_views() -> None:
    """A face of a sphere at radius 2 away is seen by a bit less than half of all views."""
    visibility = seen(ball(0.4, resolution=14))
    assert visibility.mean() == pytest.approx(0.5 * (1 - 0.4 / 2), abs=0.05)
    assert visibility.max() < 0.6


def test_sphere_cameras_look_at_the_object_wherever_it_lies() -> None:
    place = Similarity(0.7, rotation_from_vector(np.array([0.5, 1.0, -2.0])), np.array([3.0, -1.0, 2.0]))
    for here, there in zip(sphere_cameras(7, 64), sphere_cameras(7, 64, place), strict=True):
        assert np.linalg.det(here.cam_from_world[:3, :3]) == pytest.approx(1.0)
        assert project_points(np.zeros(3), here)[0] == pytest.approx([32.0, 32.0])
        point = np.array([0.3, -0.2, 0.1])
        before, depth = project_points(point, here)
        after, far = project_points(place.apply(point), there)
        assert after == pytest.approx(before, abs=1e-5)
        assert far == pytest.approx(0.7 * depth)

"""The result's frame: a mesh and its cameras move together, so that no picture changes."""

from __future__ import annotations

import math

import flow_objects
import numpy as np
import pytest

from reconflow.cameras.camera import project_points
from reconflow.cameras.six_axis import six_axis_rig
from reconflow.outputs.package import ScaleSource
from reconflow.reconstruction import Reconstruction
from reconflow.result_frame import ResultFrame, choose_result_frame, move_reconstruction

BOXES = flow_objects.coloured_boxes()


def moved(frame: ResultFrame) -> Reconstruction:
    cameras = six_axis_rig(math.radians(50.0), 1.0, (64, 64))
    return move_reconstruction(Reconstruction(BOXES, cameras), frame)


def test_without_cameras_the_farthest_vertex_is_at_distance_1() -> None:
    frame = choose_result_frame(BOXES.mesh, cameras_given=False)
    assert frame.source is ScaleSource.UNIT_RADIUS
    vertices = moved(frame).textured.mesh.vertices
    assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(1.0)


def test_given_cameras_keep_their_units() -> None:
    frame = choose_result_frame(BOXES.mesh, cameras_given=True)
    assert frame.source is ScaleSource.DATASET
    assert np.array_equal(moved(frame).textured.mesh.vertices, BOXES.mesh.vertices)


def test_an_object_size_is_the_longest_side_in_metres() -> None:
    frame = choose_result_frame(BOXES.mesh, cameras_given=True, object_size_m=0.3)
    assert frame.source is ScaleSource.METRES
    vertices = moved(frame).textured.mesh.vertices
    assert np.ptp(vertices, axis=0).max() == pytest.approx(0.3, rel=1e-6)


def test_up_in_a_z_up_world_becomes_y() -> None:
    frame = choose_result_frame(BOXES.mesh, cameras_given=True, world_up="+z")
    assert frame.rotation @ np.array([0.0, 0.0, 1.0]) == pytest.approx([0.0, 1.0, 0.0])
    assert np.linalg.det(frame.rotation) == pytest.approx(1.0)


@pytest.mark.parametrize("world_up", ["+y", "+z"])
def test_moving_changes_no_pixel_and_scales_depth(world_up: str) -> None:
    frame = choose_result_frame(BOXES.mesh, cameras_given=False, world_up=world_up)
    result = moved(frame)
    for before, after in zip(six_axis_rig(math.radians(50.0), 1.0, (64, 64)), result.cameras, strict=True):
        pixels, depth = project_points(BOXES.mesh.vertices.astype(np.float64), before)
        moved_pixels, moved_depth = project_points(result.textured.mesh.vertices.astype(np.float64), after)
        np.testing.assert_allclose(moved_pixels, pixels, atol=1e-4)
        np.testing.assert_allclose(moved_depth, frame.scale * depth, rtol=1e-5)

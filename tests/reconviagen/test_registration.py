"""Registration recovers random similarity transforms of known meshes, and says when the views leave them open."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from reconflow.cameras.calibration import calibrate
from reconflow.datasets.loading import load_dataset
from reconflow.errors import Cancelled, ValidationFailedError
from reconflow.geometry.depth import observe
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import (
    Similarity,
    quaternion_wxyz,
    rotation_angle_deg,
    rotation_from_vector,
)
from reconflow.nvdiffrec.photos import prepare_photo
from reconflow.reconviagen.gaussian_rendering import rotation_matrices
from reconflow.reconviagen.registration import register
from reconflow.reconviagen.registration_search import axis_rotations, even_rotations
from tests.cameras.rendered_objects import box, random_object, sphere
from tests.nvdiffrec.painted_objects import painted, photographed, rig
from tests.reconviagen.registration_objects import errors, observations_of, random_similarity

DATASETS = Path(__file__).parents[2] / "../shared/datasets"


@cache
def solid(seed: int) -> TriangleMesh:
    vertices, faces = random_object(seed, cells=36)
    return TriangleMesh(vertices.astype(np.float32), faces.astype(np.int32))


def assert_recovered(found: Similarity, truth: Similarity, mesh_in_world: TriangleMesh) -> None:
    turn_deg, scale, translation = errors(found, truth, mesh_in_world)
    assert turn_deg < 0.5
    assert scale < 0.005
    assert translation < 0.005


@pytest.mark.parametrize(("seed", "bits"), [(0, 8), (3, None)])
def test_a_random_similarity_transform_is_recovered(seed: int, bits: int | None) -> None:
    """With depth renders and from silhouettes alone."""
    mesh, move = solid(seed), random_similarity(seed)
    found = register(move.apply_to_mesh(mesh), observations_of(mesh, 128, bits=bits), longest_side=128)
    assert_recovered(found.world_from_mesh, move.inverse(), mesh)
    assert found.confidence > 0.7
    assert not found.ambiguous
    assert found.residuals["mask_iou"] > 0.98


def test_a_mesh_that_differs_from_the_object_lies_where_the_object_is() -> None:
    """Displaced by 2 % of the radius, smoothly, as generated shapes are."""
    mesh, move = solid(1), random_similarity(8)
    bumps = 0.02 * np.sin(7.0 * mesh.vertices[:, [1, 2, 0]] + 1.0)
    other = TriangleMesh((mesh.vertices + bumps).astype(np.float32), mesh.faces)
    found = register(move.apply_to_mesh(other), observations_of(mesh, 128), longest_side=128)
    turn_deg, scale, translation = errors(found.world_from_mesh, move.inverse(), mesh)
    assert turn_deg < 2.0
    assert scale < 0.02
    assert translation < 0.02
    assert not found.ambiguous


@pytest.mark.parametrize("name", ["sphere", "box"])
def test_a_symmetric_object_is_called_ambiguous(name: str) -> None:
    vertices, faces = sphere() if name == "sphere" else box((0.5, 0.7, 1.0))
    mesh = TriangleMesh(vertices.astype(np.float32), faces.astype(np.int32))
    found = register(random_similarity(2).apply_to_mesh(mesh), observations_of(mesh, 96), longest_side=96)
    assert found.ambiguous
    assert found.confidence < 0.2
    assert found.residuals["mask_iou"] > 0.95


def test_colours_decide_where_the_shape_does_not() -> None:
    """A box with a gradient from one end to the other; half-turns change nothing but the colours."""
    vertices, faces = box((0.5, 0.7, 1.0))
    corners = TriangleMesh(vertices.astype(np.float32), faces.astype(np.int32))
    mesh = subdivided(corners, 4)
    textured = painted(mesh, lambda p: 0.4 + 0.35 * p, 256)
    dataset, calibration = photographed(textured, rig(96))
    views = list(zip(dataset.views, calibration.cameras, calibration.depth_scales, strict=True))
    move = random_similarity(5)
    found = register(
        move.apply_to_mesh(mesh),
        [observe(view, camera, scale) for view, camera, scale in views],
        colours=(0.4 + 0.35 * mesh.vertices).astype(np.float32),
        photos=[prepare_photo(view, camera, 96) for view, camera, _ in views],
        longest_side=96,
    )
    assert rotation_angle_deg(found.world_from_mesh.rotation, move.inverse().rotation) < 1.0
    assert not found.ambiguous


def subdivided(mesh: TriangleMesh, times: int) -> TriangleMesh:
    vertices, faces = mesh.vertices.astype(np.float64), mesh.faces
    for _ in range(times):
        corners = vertices[faces]
        middles = 0.5 * (corners + np.roll(corners, -1, axis=1))
        pieces = [
            np.stack([corners[:, 0], middles[:, 0], middles[:, 2]], axis=1),
            np.stack([middles[:, 0], corners[:, 1], middles[:, 1]], axis=1),
            np.stack([middles[:, 2], middles[:, 1], corners[:, 2]], axis=1),
            middles,
        ]
        vertices, inverse = np.unique(np.concatenate(pieces).reshape(-1, 3), axis=0, return_inverse=True)
        faces = inverse.reshape(-1, 3)
    return TriangleMesh(vertices.astype(np.float32), faces.astype(np.int32))


@pytest.mark.parametrize("name", ["spot", "avocado"])
def test_known_meshes_of_the_evaluation_data_are_recovered(name: str) -> None:
    folder = DATASETS / name
    if not folder.is_dir():
        pytest.skip(f"no evaluation data at {folder}")
    import trimesh

    loaded = trimesh.load(folder / "ground_truth" / "mesh.ply", process=False)
    mesh = TriangleMesh(loaded.vertices.astype(np.float32), loaded.faces.astype(np.int32))
    dataset = load_dataset(folder)
    calibration = calibrate(dataset)
    observations = [
        observe(view, camera, scale)
        for view, camera, scale in zip(dataset.views, calibration.cameras, calibration.depth_scales, strict=True)
    ]
    given, hidden = folder / "transforms.json", folder / "ground_truth" / "transforms.json"
    frames = json.loads((given if given.is_file() else hidden).read_text())["frames"]
    true_distance = float(np.linalg.norm(np.array(frames[0]["transform_matrix"])[:3, 3]))
    scale = float(np.linalg.norm(calibration.cameras[0].position_world)) / true_distance
    move = random_similarity(len(name))
    found = register(move.apply_to_mesh(mesh), observations, longest_side=256)
    into_world = found.world_from_mesh.after(move)
    assert rotation_angle_deg(into_world.rotation, np.eye(3)) < 0.5
    assert np.linalg.norm(into_world.translation) / into_world.scale < 0.005
    assert into_world.scale == pytest.approx(scale, rel=0.005)
    assert not found.ambiguous


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    script = (
        "from tests.reconviagen.test_registration import *;"
        "found = register(solid(0), observations_of(solid(0), 48), longest_side=48);"
        "print(found.world_from_mesh.matrix.tobytes().hex())"
    )
    variables = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | dict.fromkeys(variables, threads),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(printed) == 1


def test_nothing_to_align_is_refused() -> None:
    views = observations_of(solid(0), 32)
    with pytest.raises(ValidationFailedError, match="nothing to align"):
        register(TriangleMesh(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int32)), views)
    with pytest.raises(ValidationFailedError, match="nothing to align"):
        register(solid(0), [])


def test_it_can_be_cancelled() -> None:
    def cancel(step: int, total: int, message: str) -> None:
        raise Cancelled("stop", suggestion="none")

    with pytest.raises(Cancelled):
        register(solid(0), observations_of(solid(0), 32), on_progress=cancel)


def test_rotations_are_covered_to_25_degrees_but_for_few() -> None:
    cover = np.concatenate([axis_rotations(), even_rotations(480)])
    assert np.allclose(cover @ cover.transpose(0, 2, 1), np.eye(3))
    assert np.allclose(np.linalg.det(cover), 1)
    assert np.array_equal(cover[0], np.eye(3))
    rng = np.random.default_rng(0)
    nearest = [
        min(rotation_angle_deg(random_similarity(int(seed)).rotation, rotation) for rotation in cover)
        for seed in rng.integers(0, 10_000, 60)
    ]
    assert np.quantile(nearest, 0.9) < 25
    assert max(nearest) < 35


def test_similarities_compose_and_undo_each_other() -> None:
    first, second = random_similarity(1), random_similarity(2)
    points = np.random.default_rng(0).standard_normal((5, 3))
    assert np.allclose(second.after(first).apply(points), second.apply(first.apply(points)))
    assert np.allclose(first.inverse().apply(first.apply(points)), points)
    homogeneous = np.concatenate([points, np.ones((5, 1))], axis=1) @ first.matrix.T
    assert np.allclose(homogeneous[:, :3], first.apply(points))


def test_quaternions_stand_for_their_rotations() -> None:
    for vector in ([0.3, -0.2, 1.0], [3.1, 0.1, 0.0], [0.0, 0.0, 0.0], [0.0, np.pi, 0.0]):
        rotation = rotation_from_vector(np.array(vector))
        assert np.allclose(rotation_matrices(quaternion_wxyz(rotation)[None])[0], rotation, atol=1e-9)

"""The file of Gaussians, read back by a reader that knows the format alone, and pictured like before."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from reconflow.errors import ModelConvergenceError
from reconflow.geometry.gaussians import Gaussians
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.outputs.gaussian_ply import write_gaussian_ply
from reconflow.outputs.package import ScaleSource
from reconflow.reconstruction import Reconstruction
from reconflow.reconviagen.gaussian_rendering import render_gaussians
from reconflow.result_frame import ResultFrame, move_reconstruction
from tests.nvdiffrec.painted_objects import looking_at_origin

UNIT = "1 unit = 1 metre"


def read(path: Path) -> tuple[list[str], dict[str, NDArray[np.float64]]]:
    """Return the header's lines and the values by property."""
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    assert not [line for line in lines if line.startswith("property") and not line.startswith("property float ")]
    values = np.frombuffer(body, "<f4").reshape(count, len(names)).astype(np.float64)
    return lines, dict(zip(names, values.T, strict=True))


def activated(stored: dict[str, NDArray[np.float64]]) -> Gaussians:
    """Read stored values as viewers do: exponentials, a sigmoid, degree 0 about a middle grey, normalised rotations."""

    def stack(*names: str) -> NDArray[np.float64]:
        return np.stack([stored[name] for name in names], axis=1)

    rotations = stack("rot_0", "rot_1", "rot_2", "rot_3")
    return Gaussians(
        positions=stack("x", "y", "z").astype(np.float32),
        scales=np.exp(stack("scale_0", "scale_1", "scale_2")).astype(np.float32),
        rotations=(rotations / np.linalg.norm(rotations, axis=1, keepdims=True)).astype(np.float32),
        opacities=(1 / (1 + np.exp(-stored["opacity"]))).astype(np.float32),
        colours=(0.28209479177387814 * stack("f_dc_0", "f_dc_1", "f_dc_2") + 0.5).astype(np.float32),
    )


def needles(count: int = 60) -> Gaussians:
    """Long thin Gaussians that point anywhere, of all colours, some of them as good as opaque."""
    rng = np.random.default_rng(5)
    turns = Rotation.random(count, rng=rng).as_quat()[:, [3, 0, 1, 2]]
    return Gaussians(
        positions=rng.uniform(-0.5, 0.5, (count, 3)).astype(np.float32),
        scales=(rng.uniform(0.5, 1, (count, 3)) * [0.15, 0.03, 0.01]).astype(np.float32),
        rotations=turns.astype(np.float32),
        opacities=np.append(rng.uniform(0.05, 0.95, count - 1), 1.0).astype(np.float32),
        colours=rng.uniform(-0.1, 1.1, (count, 3)).astype(np.float32),
    )


def test_the_file_has_the_properties_that_viewers_look_for_in_their_order(tmp_path: Path) -> None:
    write_gaussian_ply(needles(), tmp_path / "gaussians.ply", unit=UNIT)
    lines, stored = read(tmp_path / "gaussians.ply")
    wanted = "x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3"
    assert list(stored) == wanted.split()
    assert "element vertex 60" in lines
    assert f"comment unit: {UNIT}" in lines
    assert all(np.isfinite(values).all() for values in stored.values())


def test_values_are_stored_before_their_activation(tmp_path: Path) -> None:
    """One Gaussian that can be checked by hand: half opaque, e times a unit long, a quarter turn about x, white."""
    half = math.sqrt(0.5)
    one = Gaussians(
        positions=np.array([[1, 2, 3]], np.float32),
        scales=np.array([[math.e, 1, 1 / math.e]], np.float32),
        rotations=np.array([[half, half, 0, 0]], np.float32),
        opacities=np.array([0.5], np.float32),
        colours=np.array([[1, 0.5, 0]], np.float32),
    )
    write_gaussian_ply(one, tmp_path / "one.ply", unit=UNIT)
    _, stored = read(tmp_path / "one.ply")
    values = [float(column[0]) for column in stored.values()]
    white = 0.5 / 0.28209479177387814
    assert_allclose(values, [1, 2, 3, 0, 0, 0, white, 0, -white, 0, 1, 0, -1, half, half, 0, 0], atol=1e-6)


def test_the_picture_after_reading_back_is_the_one_before(tmp_path: Path) -> None:
    before = needles()
    write_gaussian_ply(before, tmp_path / "gaussians.ply", unit=UNIT)
    after = activated(read(tmp_path / "gaussians.ply")[1])
    for eye in ((0.4, 0.3, 2.5), (2.0, -0.8, -1.2)):
        camera = looking_at_origin("eye", eye, 96)
        ours, theirs = render_gaussians(before, camera), render_gaussians(after, camera)
        assert ours.alpha.max() > 0.7
        assert_allclose(theirs.rgb, ours.rgb, atol=2e-4)
        assert_allclose(theirs.alpha, ours.alpha, atol=2e-4)


def test_moved_with_the_mesh_they_look_the_same_from_the_moved_camera(tmp_path: Path) -> None:
    """Position, size and direction of every Gaussian follow the result's frame, as its cameras do."""
    camera = looking_at_origin("eye", (0.9, 0.5, 2.2), 96)
    mesh = TriangleMesh(np.eye(3, dtype=np.float32), np.array([[0, 1, 2]], np.int32))
    textured = TexturedMesh(mesh, np.zeros((3, 2), np.float32), mesh.faces, np.zeros((4, 4, 3), np.uint8))
    frame = ResultFrame(ScaleSource.METRES, 2.5, np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]))
    moved = move_reconstruction(Reconstruction(textured, (camera,), gaussians=needles()), frame)
    assert moved.gaussians is not None
    write_gaussian_ply(moved.gaussians, tmp_path / "gaussians.ply", unit=UNIT)
    ours = render_gaussians(needles(), camera)
    theirs = render_gaussians(activated(read(tmp_path / "gaussians.ply")[1]), moved.cameras[0])
    assert_allclose(theirs.rgb, ours.rgb, atol=1e-3)
    still = render_gaussians(needles(), moved.cameras[0])
    assert np.abs(still.rgb - ours.rgb).max() > 0.1


def test_none_and_nonsense_are_refused(tmp_path: Path) -> None:
    whole = needles()
    broken = Gaussians(
        whole.positions * np.float32(np.nan), whole.scales, whole.rotations, whole.opacities, whole.colours
    )
    none = Gaussians(*(values[:0] for values in vars(whole).values()))
    for gaussians in (broken, none):
        with pytest.raises(ModelConvergenceError):
            write_gaussian_ply(gaussians, tmp_path / "gaussians.ply", unit=UNIT)
    assert not (tmp_path / "gaussians.ply").exists()

"""GLB, OBJ and PLY: valid for the Khronos validator, and the same mesh for another reader."""

import contextlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from reconflow.errors import IncompleteResultsError, ModelConvergenceError, ValidationFailedError
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TexturedMesh, TriangleMesh
from reconflow.outputs.corners import split_at_seams, vertex_normals
from reconflow.outputs.glb import encode_glb, write_glb
from reconflow.outputs.obj import write_obj, write_texture
from reconflow.outputs.ply import bake_vertex_colours, write_ply
from reconflow.quality.glb_reader import read_container, read_glb, weld_positions
from tests.outputs.objects import SIDE_COLOURS, labelled_box

REPOSITORY = Path(__file__).parents[2]


def corner_positions(textured: TexturedMesh) -> np.ndarray:
    return textured.mesh.vertices[textured.mesh.faces]


def corner_uvs(textured: TexturedMesh) -> np.ndarray:
    return textured.uvs[textured.uv_faces]


def khronos_report(path: Path) -> dict:
    if shutil.which("node") is None or not (REPOSITORY / "node_modules" / "gltf-validator").is_dir():
        pytest.skip("the Khronos validator is not installed (npm ci)")
    script = Path(__file__).with_name("validate_gltf.js")
    done = subprocess.run(["node", script, path], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_all(textured: TexturedMesh, folder: Path) -> None:
    write_glb(textured, folder / "mesh.glb", extras={"unit": "1 unit = 1 metre"})
    write_texture(textured, folder / "texture_kd.png")
    write_obj(textured, folder / "mesh.obj", folder / "mesh.mtl", folder / "texture_kd.png", unit="1 unit = 1 metre")
    write_ply(textured, folder / "mesh.ply", unit="1 unit = 1 metre")


def test_khronos_finds_neither_errors_nor_warnings(tmp_path: Path) -> None:
    write_all(labelled_box(), tmp_path)
    report = khronos_report(tmp_path / "mesh.glb")
    assert (report["issues"]["numErrors"], report["issues"]["numWarnings"]) == (0, 0), report["issues"]["messages"]
    assert report["info"]["totalTriangleCount"] == 192


def test_khronos_accepts_a_mesh_that_came_with_collapsed_triangles_and_unused_vertices(tmp_path: Path) -> None:
    write_glb(with_a_collapsed_edge(labelled_box()), tmp_path / "mesh.glb")
    issues = khronos_report(tmp_path / "mesh.glb")["issues"]
    assert (issues["numErrors"], issues["numWarnings"]) == (0, 0), issues["messages"]


def test_the_glb_read_back_is_the_mesh_that_was_written(tmp_path: Path) -> None:
    box = labelled_box()
    write_glb(box, tmp_path / "mesh.glb")
    again = read_glb(tmp_path / "mesh.glb")
    np.testing.assert_array_equal(corner_positions(again), corner_positions(box))
    np.testing.assert_allclose(corner_uvs(again), corner_uvs(box), atol=1e-7)
    np.testing.assert_array_equal(again.base_colour_srgb, box.base_colour_srgb)
    assert mesh_facts(again.mesh) == mesh_facts(box.mesh)


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_all(labelled_box(), tmp_path / "a")
    write_all(labelled_box(), tmp_path / "b")
    for name in ("mesh.glb", "mesh.obj", "mesh.mtl", "mesh.ply", "texture_kd.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_vertices_are_doubled_at_seams_only(tmp_path: Path) -> None:
    box = labelled_box(cells=4)
    summary = write_glb(box, tmp_path / "mesh.glb")
    assert (len(box.mesh.vertices), summary.vertices) == (98, 6 * 25)


def test_a_second_uv_with_the_same_value_is_no_seam() -> None:
    box = labelled_box()
    private = TexturedMesh(
        box.mesh,
        corner_uvs(box).reshape(-1, 2),
        np.arange(3 * len(box.uv_faces), dtype=np.int32).reshape(-1, 3),
        box.base_colour_srgb,
    )
    assert len(split_at_seams(private).positions) == len(split_at_seams(box).positions)


def test_both_sides_of_a_seam_have_the_normal_of_the_undivided_surface() -> None:
    split = split_at_seams(labelled_box())
    _, place = weld_positions(split.positions)
    for vertex in range(place.max() + 1):
        assert len(np.unique(split.normals[place == vertex], axis=0)) == 1
    np.testing.assert_allclose(np.linalg.norm(split.normals, axis=1), 1, atol=1e-6)


def test_normals_of_a_sphere_point_away_from_its_centre() -> None:
    sphere = trimesh.creation.icosphere(subdivisions=3)
    mesh = TriangleMesh(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32))
    assert (vertex_normals(mesh) * mesh.vertices).sum(1).min() > 0.999


def test_a_normal_that_cancels_out_is_replaced_by_a_unit_one() -> None:
    folded = TriangleMesh(
        np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32), np.array([[0, 1, 2], [0, 2, 1]], np.int32)
    )
    np.testing.assert_allclose(np.linalg.norm(vertex_normals(folded), axis=1), 1)


def with_a_collapsed_edge(box: TexturedMesh) -> TexturedMesh:
    """Pull one inner vertex of a side onto its neighbour, and add a vertex nobody uses."""
    vertices = np.concatenate([box.mesh.vertices, [[9, 9, 9]]]).astype(np.float32)
    start, end = box.mesh.faces[20, :2]
    vertices[start] = vertices[end]
    return TexturedMesh(TriangleMesh(vertices, box.mesh.faces), box.uvs, box.uv_faces, box.base_colour_srgb)


def test_collapsed_triangles_are_left_out_and_the_surface_stays_closed(tmp_path: Path) -> None:
    summary = write_glb(with_a_collapsed_edge(labelled_box()), tmp_path / "mesh.glb")
    facts = mesh_facts(read_glb(tmp_path / "mesh.glb").mesh)
    assert summary.removed_faces == 2
    assert facts.watertight
    assert facts.degenerate_faces == 0
    assert max(facts.bbox_max) < 1


def test_trimesh_reads_the_same_geometry_uvs_and_material_from_the_glb(tmp_path: Path) -> None:
    box = labelled_box()
    write_glb(box, tmp_path / "mesh.glb")
    (other,) = trimesh.load(tmp_path / "mesh.glb", process=False).geometry.values()
    np.testing.assert_array_equal(other.vertices[other.faces].astype(np.float32), corner_positions(box))
    np.testing.assert_allclose(other.visual.uv[other.faces], corner_uvs(box), atol=1e-7)
    material = other.visual.material
    assert (material.metallicFactor, material.roughnessFactor, material.alphaMode) == (0.0, 1.0, "OPAQUE")
    assert not material.doubleSided
    np.testing.assert_array_equal(np.asarray(material.baseColorTexture), box.base_colour_srgb)


def test_trimesh_reads_the_same_geometry_uvs_and_texture_from_the_obj(tmp_path: Path) -> None:
    box = labelled_box()
    write_all(box, tmp_path)
    other = trimesh.load(tmp_path / "mesh.obj", process=False)
    np.testing.assert_array_equal(other.vertices[other.faces].astype(np.float32), corner_positions(box))
    np.testing.assert_allclose(other.visual.uv[other.faces], corner_uvs(box), atol=1e-7)
    np.testing.assert_array_equal(np.asarray(other.visual.material.image.convert("RGB")), box.base_colour_srgb)


def test_trimesh_reads_a_closed_coloured_mesh_from_the_ply(tmp_path: Path) -> None:
    box = labelled_box()
    write_all(box, tmp_path)
    other = trimesh.load(tmp_path / "mesh.ply", process=False)
    assert other.is_watertight
    np.testing.assert_array_equal(other.vertices[other.faces].astype(np.float32), corner_positions(box))
    np.testing.assert_array_equal(other.visual.vertex_colors[:, :3], bake_vertex_colours(box))
    np.testing.assert_allclose(other.vertex_normals, vertex_normals(box.mesh), atol=1e-6)


def test_a_vertex_inside_a_plain_area_gets_exactly_its_colour() -> None:
    box = labelled_box(cells=8)
    colours = bake_vertex_colours(box)
    out = np.flatnonzero(np.isclose(box.mesh.vertices[:, 2], 0.3) & np.isclose(box.mesh.vertices[:, 1], 0))
    assert tuple(SIDE_COLOURS["front"]) in {tuple(int(c) for c in colours[v]) for v in out}


def test_the_axis_asset_keeps_red_on_x_green_on_y_blue_on_z_in_every_format(tmp_path: Path) -> None:
    write_all(axis_asset(), tmp_path)
    for name in ("mesh.glb", "mesh.obj", "mesh.ply"):
        loaded = trimesh.load(tmp_path / name, process=False)
        other = loaded if isinstance(loaded, trimesh.Trimesh) else next(iter(loaded.geometry.values()))
        colours = (
            other.visual.to_color().vertex_colors if other.visual.kind == "texture" else other.visual.vertex_colors
        )
        for axis in range(3):
            tip = int(np.argmax(other.vertices[:, axis]))
            assert other.vertices[tip, axis] == pytest.approx(1 + axis)
            assert int(np.argmax(colours[tip, :3])) == axis, name


def axis_asset() -> TexturedMesh:
    """Three thin spikes: +x red and 1 long, +y green and 2 long, +z blue and 3 long."""
    texture = np.zeros((16, 48, 3), np.uint8)
    for axis in range(3):
        texture[:, 16 * axis : 16 * axis + 16, axis] = 255
    vertices, faces, uvs = [], [], []
    for axis in range(3):
        side, other = np.eye(3)[(axis + 1) % 3] * 0.1, np.eye(3)[(axis + 2) % 3] * 0.1
        vertices += [np.eye(3)[axis] * (1 + axis), -side - other, side - other, other]
        a = 4 * axis
        faces += [(a, a + 1, a + 2), (a, a + 2, a + 3), (a, a + 3, a + 1), (a + 1, a + 3, a + 2)]
        uvs += [((axis + 0.5) / 3, 0.5)] * 4
    corners = np.array(faces, np.int32)
    return TexturedMesh(
        TriangleMesh(np.array(vertices, np.float32), corners), np.array(uvs, np.float32), corners, texture
    )


def test_the_obj_refers_to_bare_names_and_states_unit_and_axes(tmp_path: Path) -> None:
    write_all(labelled_box(), tmp_path)
    text, material = (tmp_path / "mesh.obj").read_text(), (tmp_path / "mesh.mtl").read_text()
    assert "mtllib mesh.mtl\n" in text
    assert "map_Kd texture_kd.png\n" in material
    assert "# unit: 1 unit = 1 metre\n" in text
    assert "+y up" in text


def test_a_name_with_a_space_is_refused_for_obj(tmp_path: Path) -> None:
    with pytest.raises(ValidationFailedError):
        write_obj(labelled_box(), tmp_path / "my mesh.obj", tmp_path / "m.mtl", tmp_path / "t.png", unit="")
    assert not list(tmp_path.iterdir())


def test_many_vertices_get_wide_indices(tmp_path: Path) -> None:
    box = labelled_box(cells=106)
    write_glb(box, tmp_path / "mesh.glb")
    document, _ = read_container(tmp_path / "mesh.glb")
    assert document["accessors"][-1]["componentType"] == 5125
    np.testing.assert_array_equal(corner_positions(read_glb(tmp_path / "mesh.glb")), corner_positions(box))


def test_values_that_are_not_finite_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    box = labelled_box()
    box.mesh.vertices[3, 1] = np.nan
    with pytest.raises(ModelConvergenceError) as caught:
        write_glb(box, tmp_path / "mesh.glb")
    assert caught.value.details == {"what": "vertices", "count": 1}
    assert not list(tmp_path.iterdir())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20_000), st.binary(min_size=1, max_size=8))
def test_a_damaged_glb_is_refused_or_still_a_mesh_but_never_a_traceback(where: int, junk: bytes) -> None:
    data = bytearray(damaged_source())
    where %= len(data)
    data[where : where + len(junk)] = junk
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(IncompleteResultsError):
        path = Path(folder) / "mesh.glb"
        path.write_bytes(data)
        assert np.isfinite(read_glb(path).mesh.vertices).all()


@pytest.mark.parametrize("length", [0, 11, 300, -1])
def test_a_cut_off_glb_is_refused_without_telling_where_it_lay(length: int, tmp_path: Path) -> None:
    (tmp_path / "mesh.glb").write_bytes(damaged_source()[:length])
    with pytest.raises(IncompleteResultsError) as caught:
        read_glb(tmp_path / "mesh.glb")
    assert "mesh.glb" in caught.value.message
    assert str(tmp_path) not in caught.value.message


_SOURCE: list[bytes] = []


def damaged_source() -> bytes:
    if not _SOURCE:
        box = labelled_box(2)
        _SOURCE.append(encode_glb(split_at_seams(box), box.base_colour_srgb))
    return _SOURCE[0]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_triangles_survive_the_round_trip_through_glb(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count, uv_count, face_count = rng.integers(3, 12), rng.integers(3, 9), rng.integers(1, 30)
    faces = np.array([rng.choice(count, 3, replace=False) for _ in range(face_count)], np.int32)
    textured = TexturedMesh(
        TriangleMesh(rng.standard_normal((count, 3)).astype(np.float32), faces),
        rng.random((uv_count, 2)).astype(np.float32),
        rng.integers(0, uv_count, (face_count, 3)).astype(np.int32),
        rng.integers(0, 256, (4, 8, 3)).astype(np.uint8),
    )
    with tempfile.TemporaryDirectory() as folder:
        write_glb(textured, Path(folder) / "mesh.glb")
        again = read_glb(Path(folder) / "mesh.glb")
    np.testing.assert_array_equal(corner_positions(again), corner_positions(textured))
    np.testing.assert_allclose(corner_uvs(again), corner_uvs(textured), atol=1e-7)
    np.testing.assert_array_equal(again.base_colour_srgb, textured.base_colour_srgb)


def test_the_texture_file_is_the_texture(tmp_path: Path) -> None:
    box = labelled_box()
    write_texture(box, tmp_path / "t.png")
    with Image.open(tmp_path / "t.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), box.base_colour_srgb)

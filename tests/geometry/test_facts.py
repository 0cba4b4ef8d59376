import numpy as np
import pytest

from reconflow.errors import ModelConvergenceError
from reconflow.geometry.components import face_components, keep_components, remove_unreferenced
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TriangleMesh
from tests.geometry.shapes import SOLIDS, cube, iso_surface, joined, tetrahedron


def test_a_unit_cube_has_the_area_volume_and_genus_of_a_cube() -> None:
    facts = mesh_facts(cube())
    assert facts.area == pytest.approx(6.0)
    assert facts.volume == pytest.approx(1.0)
    assert (facts.euler, facts.genus, facts.components) == (2, 0, 1)
    assert facts.watertight
    assert facts.manifold
    assert (facts.bbox_min, facts.bbox_max) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("name", list(SOLIDS))
def test_the_genus_of_known_solids_is_found(name: str) -> None:
    distance, genus = SOLIDS[name]
    facts = mesh_facts(iso_surface(distance))
    assert facts.watertight
    assert facts.genus == genus
    assert facts.volume > 0


def test_a_missing_face_leaves_three_boundary_edges_and_no_genus() -> None:
    mesh = tetrahedron()
    facts = mesh_facts(TriangleMesh(mesh.vertices, mesh.faces[1:]))
    assert facts.boundary_edges == 3
    assert not facts.watertight
    assert facts.genus is None


def test_a_face_turned_round_breaks_the_winding_but_not_the_closedness() -> None:
    mesh = tetrahedron()
    faces = mesh.faces.copy()
    faces[2] = faces[2, ::-1]
    facts = mesh_facts(TriangleMesh(mesh.vertices, faces))
    assert facts.watertight
    assert not facts.consistent_winding
    assert facts.genus is None


def test_two_tetrahedra_touching_in_one_vertex_are_not_manifold_there() -> None:
    first = tetrahedron()
    second = np.where(first.faces == 0, 0, first.faces + 3)
    mesh = TriangleMesh(
        np.concatenate([first.vertices, -first.vertices[1:]]), np.concatenate([first.faces, second[:, ::-1]])
    )
    facts = mesh_facts(TriangleMesh(mesh.vertices, mesh.faces.astype(np.int32)))
    assert facts.non_manifold_vertices == 1
    assert facts.components == 2
    assert facts.genus is None


def test_two_cubes_sharing_an_edge_have_one_non_manifold_edge() -> None:
    first = cube()
    second = cube(low=(1, 1, 0))
    index = {tuple(v): i for i, v in enumerate(first.vertices.tolist())}
    vertices = first.vertices.tolist()
    renamed = []
    for vertex in second.vertices.tolist():
        if tuple(vertex) not in index:
            index[tuple(vertex)] = len(vertices)
            vertices.append(vertex)
        renamed.append(index[tuple(vertex)])
    faces = np.concatenate([first.faces, np.array(renamed, dtype=np.int32)[second.faces]])
    assert mesh_facts(TriangleMesh(np.array(vertices, dtype=np.float32), faces)).non_manifold_edges == 1


def test_only_pieces_of_enough_area_stay_and_their_vertices_with_them() -> None:
    mesh = joined(cube(), cube(low=(3, 0, 0), size=0.05), cube(low=(6, 0, 0), size=0.5))
    assert face_components(mesh)[1] == 3
    kept = keep_components(mesh, min_share=0.01)
    assert (len(kept.vertices), len(kept.faces)) == (16, 24)
    assert mesh_facts(keep_components(mesh, min_share=0.9)).volume == pytest.approx(1.0)


def test_an_empty_surface_is_refused_with_a_way_out() -> None:
    empty = TriangleMesh(np.zeros((0, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.int32))
    assert not mesh_facts(empty).watertight
    with pytest.raises(ModelConvergenceError) as caught:
        keep_components(empty)
    assert caught.value.suggestion


def test_vertices_that_no_face_names_are_dropped() -> None:
    mesh = cube()
    padded = TriangleMesh(np.concatenate([np.full((2, 3), 9, dtype=np.float32), mesh.vertices]), mesh.faces + 2)
    np.testing.assert_array_equal(remove_unreferenced(padded).vertices, mesh.vertices)
    np.testing.assert_array_equal(remove_unreferenced(padded).faces, mesh.faces)

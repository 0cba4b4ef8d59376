import numpy as np
import pytest
from numpy.typing import NDArray

from reconflow.errors import ValidationFailedError
from reconflow.geometry.closest import SurfaceLocator
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.remesh import (
    adaptive_sizing,
    decimate,
    edge_length_for_faces,
    fix_non_manifold,
    remesh_isotropic,
    remesh_to_budget,
    vertex_curvature,
)
from reconflow.geometry.surface import face_areas, face_normals
from tests.geometry.shapes import SOLIDS, cube, iso_surface, joined, sphere, tetrahedron


def shape_qualities(mesh: TriangleMesh) -> NDArray[np.float64]:
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    edges = ((corners - np.roll(corners, 1, axis=1)) ** 2).sum(axis=(1, 2))
    return 4 * np.sqrt(3) * face_areas(mesh) / edges


def turned_faces(mesh: TriangleMesh, solid: str) -> int:
    """Faces whose normal points into the solid, by the gradient of its distance."""
    distance = SOLIDS[solid][0]
    centres = mesh.vertices.astype(np.float64)[mesh.faces].mean(axis=1)
    ahead = distance(centres + 0.02 * face_normals(mesh))
    return int(np.count_nonzero(ahead < distance(centres)))


@pytest.mark.parametrize("name", list(SOLIDS))
def test_decimation_meets_the_budget_and_keeps_the_topology(name: str) -> None:
    distance, genus = SOLIDS[name]
    mesh = fix_non_manifold(iso_surface(distance))
    result = decimate(mesh, len(mesh.faces) // 5)
    facts = mesh_facts(result)
    assert facts.manifold
    assert facts.genus == genus
    assert facts.degenerate_faces == 0
    assert 0.98 * len(mesh.faces) / 5 - 2 <= facts.faces <= len(mesh.faces) / 5
    assert facts.volume == pytest.approx(mesh_facts(mesh).volume, rel=0.03)
    assert np.abs(distance(result.vertices.astype(np.float64))).max() < 0.03
    assert turned_faces(result, name) <= turned_faces(mesh, name)


@pytest.mark.parametrize("name", list(SOLIDS))
def test_isotropic_remeshing_makes_even_triangles_and_keeps_the_topology(name: str) -> None:
    distance, genus = SOLIDS[name]
    mesh = iso_surface(distance)
    edge = edge_length_for_faces(float(face_areas(mesh).sum()), len(mesh.faces) // 2)
    result = remesh_isotropic(fix_non_manifold(mesh), edge)
    facts = mesh_facts(result)
    assert facts.manifold
    assert facts.genus == genus
    assert np.percentile(shape_qualities(result), 2) > 0.65
    corners = result.vertices[result.faces]
    lengths = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    assert np.percentile(lengths, 99) < 4 / 3 * edge * 1.1
    assert np.percentile(lengths, 1) > 4 / 5 * edge * 0.7
    assert np.abs(distance(result.vertices.astype(np.float64))).max() < 0.03


def test_remeshing_to_a_budget_never_exceeds_it() -> None:
    mesh = iso_surface(SOLIDS["bumpy_sphere"][0])
    for adaptivity in (0.0, 0.5):
        result = remesh_to_budget(mesh, 4000, adaptivity=adaptivity)
        assert 3900 <= len(result.faces) <= 4000
        assert mesh_facts(result).manifold


def test_a_budget_above_the_input_refines_it() -> None:
    result = remesh_to_budget(iso_surface(sphere, resolution=16), 8000)
    assert 7600 <= len(result.faces) <= 8000
    assert mesh_facts(result).genus == 0


def test_large_flat_faces_are_refined_in_their_planes_and_edges_lose_little() -> None:
    result = remesh_isotropic(cube(), 0.06)
    assert len(result.faces) > 2500
    depth = np.minimum(result.vertices, 1 - result.vertices).min(axis=1)
    assert np.quantile(depth, 0.99) < 1e-6
    assert depth.max() < 0.03
    assert mesh_facts(result).volume == pytest.approx(1.0, abs=0.01)
    assert mesh_facts(result).genus == 0


def test_the_nearest_point_agrees_with_trying_every_face() -> None:
    mesh = decimate(iso_surface(SOLIDS["torus"][0], resolution=32), 600)
    rng = np.random.default_rng(1)
    points = mesh.vertices[rng.integers(0, len(mesh.vertices), 60)] + rng.normal(0, 0.05, (60, 3))
    found, face, bary = SurfaceLocator(mesh, spacing=0.1).project(points)
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    np.testing.assert_allclose((corners[face] * bary[:, :, None]).sum(axis=1), found, atol=1e-12)
    grid = np.array([(i / 40, j / 40) for i in range(41) for j in range(41 - i)])
    weights = np.column_stack([1 - grid.sum(axis=1), grid])
    samples = np.einsum("sk,fki->fsi", weights, corners).reshape(-1, 3)
    slow = np.sqrt(((points[:, None] - samples) ** 2).sum(axis=2)).min(axis=1)
    distance = np.linalg.norm(points - found, axis=1)
    assert (distance <= slow + 1e-9).all()
    np.testing.assert_allclose(distance, slow, atol=2e-3)


def test_the_curvature_of_a_sphere_is_one_over_its_radius() -> None:
    mesh = remesh_isotropic(iso_surface(sphere), 0.08)
    assert np.median(vertex_curvature(mesh)) == pytest.approx(1.0, rel=0.1)


def test_adaptive_lengths_are_shorter_where_the_surface_bends() -> None:
    mesh = iso_surface(SOLIDS["thin_post"][0])
    sizing = adaptive_sizing(mesh, 4000, adaptivity=0.5)
    on_post = (mesh.vertices[:, 1] > 0) & (mesh.vertices[:, 1] < 0.8)
    on_disc = (np.abs(mesh.vertices[:, 1] + 0.6) < 0.03) & (np.hypot(mesh.vertices[:, 0], mesh.vertices[:, 2]) < 0.6)
    assert np.median(sizing[on_post]) < 0.7 * np.median(sizing[on_disc & (np.abs(mesh.vertices[:, 0]) > 0.3)])


def test_boundaries_stay_where_they_are() -> None:
    mesh = iso_surface(sphere, resolution=32)
    open_mesh = fix_non_manifold(
        TriangleMesh(mesh.vertices, mesh.faces[mesh.vertices[mesh.faces][:, :, 1].max(1) < 0.4])
    )
    before = mesh_facts(open_mesh)
    after = mesh_facts(decimate(open_mesh, len(open_mesh.faces) // 3))
    assert after.boundary_edges == before.boundary_edges
    assert after.euler == before.euler
    remeshed = mesh_facts(remesh_isotropic(open_mesh, 0.1))
    assert remeshed.euler == before.euler
    assert remeshed.non_manifold_edges == 0


def test_a_zero_length_edge_goes_without_a_crack() -> None:
    mesh = iso_surface(sphere, resolution=24)
    vertices = mesh.vertices.copy()
    a, b, _ = mesh.faces[100]
    vertices[a] = vertices[b]
    broken = TriangleMesh(vertices, mesh.faces)
    assert mesh_facts(broken).degenerate_faces >= 2
    repaired = mesh_facts(fix_non_manifold(broken))
    assert repaired.degenerate_faces == 0
    assert repaired.manifold


def test_cubes_that_share_an_edge_come_apart_along_it() -> None:
    pair = joined(cube(), cube(low=(1, 1, 0)))
    _, first, index = np.unique(pair.vertices, axis=0, return_index=True, return_inverse=True)
    welded = TriangleMesh(pair.vertices[first], index.reshape(-1)[pair.faces].astype(np.int32))
    assert mesh_facts(welded).non_manifold_edges == 1
    facts = mesh_facts(fix_non_manifold(welded))
    assert facts.manifold
    assert facts.components == 2
    assert facts.volume == pytest.approx(2.0)


def test_a_pinched_vertex_is_split() -> None:
    first = tetrahedron()
    second = np.where(first.faces == 0, 0, first.faces + 3)[:, ::-1]
    pinched = TriangleMesh(
        np.concatenate([first.vertices, -first.vertices[1:]]), np.concatenate([first.faces, second]).astype(np.int32)
    )
    with pytest.raises(ValidationFailedError) as caught:
        remesh_isotropic(pinched, 0.1)
    assert caught.value.details["non_manifold_vertices"] == 1
    assert mesh_facts(fix_non_manifold(pinched)).manifold


def test_faces_back_to_back_and_copies_are_dropped() -> None:
    mesh = tetrahedron()
    flap = np.array([[0, 1, 2], [0, 2, 1]], dtype=np.int32)
    faces = np.concatenate([mesh.faces, mesh.faces[:1][:, [1, 2, 0]], flap])
    assert mesh_facts(fix_non_manifold(TriangleMesh(mesh.vertices, faces))).manifold


def test_a_target_length_of_nothing_is_refused() -> None:
    with pytest.raises(ValidationFailedError):
        remesh_isotropic(tetrahedron(), 0.0)


def test_the_smallest_closed_surface_cannot_be_decimated() -> None:
    np.testing.assert_array_equal(decimate(tetrahedron(), 2).faces, tetrahedron().faces)


def test_equal_inputs_give_equal_bytes() -> None:
    mesh = iso_surface(SOLIDS["torus"][0])
    first, second = (remesh_to_budget(decimate(mesh, 6000), 3000, adaptivity=0.5) for _ in range(2))
    assert first.vertices.tobytes() == second.vertices.tobytes()
    assert first.faces.tobytes() == second.faces.tobytes()

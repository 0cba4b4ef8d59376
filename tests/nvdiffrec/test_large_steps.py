import numpy as np
import pytest
from scipy import sparse
from scipy.linalg import solve

from reconflow.geometry.mesh import TriangleMesh
from reconflow.nvdiffrec.large_steps import PreconditionedDescent, conjugate_gradient, edge_laplacian
from tests.geometry.shapes import SOLIDS, cube, iso_surface, joined


def small_torus() -> TriangleMesh:
    return iso_surface(SOLIDS["torus"][0], resolution=16)


def test_the_laplacian_of_a_cube_is_the_one_counted_by_hand() -> None:
    mesh = cube()
    laplacian = edge_laplacian(mesh.faces, 8).toarray()
    expected = np.zeros((8, 8))
    for face in mesh.faces:
        for i in range(3):
            expected[face[i], face[(i + 1) % 3]] = expected[face[(i + 1) % 3], face[i]] = -1
    expected -= np.diag(expected.sum(axis=1))
    np.testing.assert_array_equal(laplacian, expected)


def test_only_moving_whole_pieces_costs_nothing() -> None:
    """The null space of the Laplacian: one constant per connected piece, and nothing else."""
    pieces = joined(small_torus(), cube())
    count = len(pieces.vertices)
    laplacian = edge_laplacian(pieces.faces, count)
    first = np.arange(count) < count - 8
    for constant in (np.ones(count), first.astype(float)):
        assert np.abs(laplacian @ constant).max() < 1e-12
    energies = np.linalg.eigvalsh(laplacian.toarray())
    assert energies.min() > -1e-9
    assert np.count_nonzero(energies < 1e-6) == 2


def test_a_vertex_that_no_face_uses_stays_where_it_is() -> None:
    mesh = TriangleMesh(np.concatenate([cube().vertices, np.float32([[5, 5, 5]])]), cube().faces)
    descent = PreconditionedDescent(mesh, smoothness=10.0, learning_rate=0.1)
    gradient = np.zeros((9, 3))
    gradient[:8] = 1
    np.testing.assert_allclose(descent.step(gradient)[8], [5, 5, 5], atol=1e-9)


def test_before_the_first_step_the_vertices_are_the_meshs() -> None:
    mesh = small_torus()
    descent = PreconditionedDescent(mesh, smoothness=25.0, learning_rate=0.1)
    np.testing.assert_allclose(descent.vertices, mesh.vertices, atol=1e-6)


def test_descent_reaches_the_minimum_of_a_quadratic() -> None:
    """|v - a|^2 + c |L v|^2 has a solution that a dense solver knows."""
    mesh = small_torus()
    count = len(mesh.vertices)
    target = 1.1 * mesh.vertices.astype(np.float64) + np.array([0.1, -0.05, 0.02])
    target[: count // 2] += 0.05
    laplacian = edge_laplacian(mesh.faces, count)
    bend = 0.02 * (laplacian.T @ laplacian).toarray()
    exact = solve(np.eye(count) + bend, target, assume_a="pos")
    descent = PreconditionedDescent(mesh, smoothness=5.0, learning_rate=0.1, betas=(0.8, 0.95))
    vertices = descent.vertices
    start = np.abs(vertices - exact).max()
    for step in range(900):
        gradient = 2 * (vertices - target + bend @ vertices)
        vertices = descent.step(gradient, rate_scale=0.99**step)
    assert np.abs(vertices - exact).max() < 1e-3 * start


def test_a_push_on_one_vertex_moves_its_neighbourhood() -> None:
    mesh = small_torus()
    gradient = np.zeros((len(mesh.vertices), 3))
    gradient[7, 0] = -1
    moved = [
        PreconditionedDescent(mesh, smoothness=s, learning_rate=0.01).step(gradient)[:, 0] - mesh.vertices[:, 0]
        for s in (0.1, 20.0)
    ]
    neighbours = np.unique(mesh.faces[(mesh.faces == 7).any(axis=1)])
    shares = [np.delete(m[neighbours], np.searchsorted(neighbours, 7)).mean() / m[7] for m in moved]
    assert all(m[7] > 0 for m in moved)
    assert shares[0] < 0.3
    assert shares[1] > 0.5


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_the_length_of_a_step_does_not_depend_on_the_gradients_scale(size: float) -> None:
    mesh = small_torus()
    gradient = np.random.default_rng(3).normal(size=(len(mesh.vertices), 3))
    reference = PreconditionedDescent(mesh, smoothness=5.0, learning_rate=0.05).step(gradient)
    scaled = PreconditionedDescent(mesh, smoothness=5.0, learning_rate=0.05).step(size * gradient)
    np.testing.assert_allclose(scaled, reference, atol=1e-7)


def test_no_gradient_no_step() -> None:
    mesh = small_torus()
    descent = PreconditionedDescent(mesh, smoothness=5.0, learning_rate=0.05)
    np.testing.assert_allclose(descent.step(np.zeros((len(mesh.vertices), 3))), mesh.vertices, atol=1e-6)


def test_conjugate_gradients_agree_with_a_direct_solve() -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((40, 40))
    system = sparse.csr_matrix(dense @ dense.T + 40 * np.eye(40))
    right = rng.standard_normal(40)
    found = conjugate_gradient(system, right, np.zeros(40), tolerance=1e-10, max_iterations=200)
    np.testing.assert_allclose(found, np.linalg.solve(system.toarray(), right), atol=1e-8)

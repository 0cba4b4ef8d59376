"""FlexiCubes on sparse cubes: closed, outwards, in the right place, differentiable; and the derived tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from reconflow.errors import ValidationFailedError
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.flexicubes import CubeGrid, CubeWeights, DualSurface, extract_surface, surface_normals
from reconflow.geometry.flexicubes_tables import EDGES, dual_tables, dual_vertices
from reconflow.geometry.mesh import TriangleMesh


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def all_cubes(resolution: int) -> Tensor:
    axis = torch.arange(resolution)
    return torch.cartesian_prod(axis, axis, axis)


def lattice(grid: CubeGrid) -> Tensor:
    return 2.0 * grid.vertex_coords().double() / grid.resolution - 1


def random_weights(cubes: int) -> CubeWeights:
    return CubeWeights(*(0.2 + torch.rand(shape, dtype=torch.float64) for shape in ((cubes, 12), (cubes, 8), (cubes,))))


def as_mesh(surface: DualSurface) -> TriangleMesh:
    return TriangleMesh(surface.vertices.numpy().astype(np.float32), surface.faces.numpy().astype(np.int32))


def directed_edges(faces: Tensor) -> Tensor:
    return torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


@pytest.mark.parametrize("radius", [0.5, 0.61])
def test_a_sphere_is_closed_faces_outwards_and_has_its_volume(radius: float) -> None:
    # at radius 0.5 the field is exactly 0 at grid vertices
    grid = CubeGrid.of_cubes(all_cubes(24), 24)
    points = lattice(grid)
    surface = extract_surface(grid, points.norm(dim=1) - radius, points)
    facts = mesh_facts(as_mesh(surface))
    assert facts.manifold
    assert facts.genus == 0
    assert facts.components == 1
    assert facts.volume == pytest.approx(4 / 3 * torch.pi * radius**3, rel=0.04)  # dual vertices lie inside
    distances = surface.vertices.norm(dim=1)
    torch.testing.assert_close(distances, torch.full_like(distances, radius), rtol=0.03, atol=0)
    _, normals = surface_normals(surface.vertices, surface.faces)
    assert ((normals * surface.vertices).sum(1) > 0.97 * radius).all()


def test_cubes_around_the_surface_give_what_the_whole_grid_gives() -> None:
    whole = CubeGrid.of_cubes(all_cubes(10), 10)
    points = lattice(whole)
    field = points.abs().sum(1) - 0.73 + 0.1 * torch.rand(len(points), dtype=torch.float64)
    weights = random_weights(len(whole.cubes))
    expected = extract_surface(whole, field, points, weights, points[:, :1].exp())
    negative = (field < 0)[whole.corners]
    chosen = torch.nonzero(negative.any(1) & ~negative.all(1)).squeeze(1)
    chosen = chosen[torch.randperm(len(chosen))]
    part = CubeGrid.of_cubes(all_cubes(10)[chosen], 10)
    rows = torch.searchsorted(whole.vertices, part.vertices)
    parts = CubeWeights(weights.edges[chosen], weights.corners[chosen], weights.quads[chosen])
    surface = extract_surface(part, field[rows], points[rows], parts, points[rows, :1].exp())
    assert torch.equal(surface.faces, expected.faces)
    assert torch.equal(surface.vertices, expected.vertices)
    assert surface.attributes is not None
    assert expected.attributes is not None
    assert torch.equal(surface.attributes, expected.attributes)


@pytest.mark.parametrize("seed", range(4))
def test_noise_gives_a_closed_surface_wound_alike_everywhere(seed: int) -> None:
    torch.manual_seed(seed)
    grid = CubeGrid.of_cubes(all_cubes(9), 9)
    coords = grid.vertex_coords()
    field = torch.rand(len(coords), dtype=torch.float64) - 0.6
    field[((coords == 0) | (coords == 9)).any(1)] = 1.0
    surface = extract_surface(grid, field, lattice(grid), random_weights(len(grid.cubes)))
    edges, counts = torch.unique(directed_edges(surface.faces), dim=0, return_counts=True)
    assert int(counts.max()) <= 2
    forward = {tuple(edge): count for edge, count in zip(edges.tolist(), counts.tolist(), strict=True)}
    assert all(forward.get((b, a)) == count for (a, b), count in forward.items())


def test_the_ambiguity_is_resolved_where_two_problematic_cubes_meet() -> None:
    # without it, noise has edges with four faces that no choice of pairs makes manifold
    tables = dual_tables()
    assert int(tables.problematic.sum()) == 36
    for case in np.flatnonzero(tables.problematic):
        assert tables.counts[case] == 1
        assert tables.counts[255 - case] == 2
        assert abs(tables.across[case]).sum() == 1
    grid = CubeGrid.of_cubes(torch.tensor([[0, 0, 0], [1, 0, 0]]), 2)
    coords = grid.vertex_coords()
    field = torch.full((len(coords),), -1.0)
    for corner in ((1, 0, 0), (1, 1, 1)):  # a diagonal of the shared face is outside
        field[(coords == torch.tensor(corner)).all(1)] = 1.0
    both = extract_surface(grid, field, coords.float())
    assert len(both.vertices) == 4
    single = CubeGrid.of_cubes(torch.tensor([[0, 0, 0]]), 2)
    inside = torch.isin(grid.vertices, single.vertices)
    assert len(extract_surface(single, field[inside], coords[inside].float()).vertices) == 1


def test_every_crossed_edge_belongs_to_one_dual_vertex() -> None:
    for case in range(256):
        crossed = [i for i, (a, b) in enumerate(EDGES) if (case >> a & 1) != (case >> b & 1)]
        duals = dual_vertices(case)
        assert sorted(edge for dual in duals for edge in dual) == crossed
        assert all(3 <= len(dual) <= 7 for dual in duals)
        assert len(duals) <= 4


def test_a_plane_is_met_exactly_whatever_pulls_at_the_vertices() -> None:
    grid = CubeGrid.of_cubes(all_cubes(5), 5)
    points = lattice(grid)
    field = points @ torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64) + 0.05
    weights = random_weights(len(grid.cubes))
    uniform = CubeWeights(weights.edges, torch.ones_like(weights.corners), weights.quads)
    surface = extract_surface(grid, field, points, uniform, field[:, None])
    assert surface.attributes is not None
    torch.testing.assert_close(surface.attributes, torch.zeros_like(surface.attributes), rtol=0, atol=1e-12)


def test_gradients_are_right() -> None:
    grid = CubeGrid.of_cubes(all_cubes(3), 3)
    field = torch.rand(len(grid.vertices), dtype=torch.float64) + 0.2
    field[((grid.vertex_coords() > 0) & (grid.vertex_coords() < 3)).all(1)] *= -1
    points, weights = lattice(grid), random_weights(len(grid.cubes))
    colours = torch.rand(len(points), 2, dtype=torch.float64)
    inputs = [t.clone().requires_grad_() for t in (field, points, weights.edges, weights.corners, colours)]

    def surface(field: Tensor, points: Tensor, edges: Tensor, corners: Tensor, colours: Tensor) -> tuple[Tensor, ...]:
        result = extract_surface(grid, field, points, CubeWeights(edges, corners, weights.quads), colours)
        assert result.attributes is not None
        return result.vertices, result.attributes

    assert torch.autograd.gradcheck(surface, inputs, fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda v: CubeGrid.of_cubes(all_cubes(2), 2).mean_of_corners(v),
        torch.rand(8, 8, 2, dtype=torch.float64, requires_grad=True),
    )


def test_a_field_can_be_fitted_to_a_volume_by_its_gradients() -> None:
    grid = CubeGrid.of_cubes(all_cubes(10), 10)
    points = lattice(grid)
    field = (points.norm(dim=1) - 0.4).requires_grad_()
    optimiser = torch.optim.Adam([field], lr=0.02)
    for _ in range(60):
        surface = extract_surface(grid, field, points)
        loss = (surface.vertices.norm(dim=1) - 0.6).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    distances = extract_surface(grid, field.detach(), points).vertices.norm(dim=1)
    assert distances.min() > 0.55
    assert distances.max() < 0.65


def test_corner_values_are_averaged_over_the_cubes_that_touch() -> None:
    grid = CubeGrid.of_cubes(torch.tensor([[0, 0, 0], [1, 0, 0]]), 2)
    means = grid.mean_of_corners(torch.tensor([1.0, 3.0])[:, None, None].expand(2, 8, 1))
    assert [means[(grid.vertex_coords()[:, 0] == x)].unique().tolist() for x in range(3)] == [[1], [2], [3]]


def test_without_a_change_of_sign_there_is_no_surface() -> None:
    grid = CubeGrid.of_cubes(all_cubes(2), 2)
    for value in (-1.0, 0.0, 1.0):
        surface = extract_surface(grid, torch.full((27,), value), grid.vertex_coords().float())
        assert surface.vertices.shape == surface.faces.shape == (0, 3)


def test_bad_cubes_and_lengths_are_refused() -> None:
    for coords, message in (
        (torch.tensor([[0, 0, 2]]), "outside"),
        (torch.tensor([[0, 0, 1], [0, 0, 1]]), "more than once"),
        (torch.tensor([[0.0, 0, 1]]), "no cubes"),
    ):
        with pytest.raises(ValidationFailedError, match=message):
            CubeGrid.of_cubes(coords, 2)
    grid = CubeGrid.of_cubes(all_cubes(2), 2)
    with pytest.raises(ValidationFailedError, match="The field"):
        extract_surface(grid, torch.zeros(26), torch.zeros(27, 3))
    with pytest.raises(ValidationFailedError, match="attributes"):
        extract_surface(grid, torch.zeros(27), torch.zeros(27, 3), attributes=torch.zeros(8, 2))

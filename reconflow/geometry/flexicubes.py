"""FlexiCubes: the surface where a signed field on a sparse set of cubes changes its sign, differentiable.

Dual marching cubes with weights that may shift every crossing and every vertex (Shen et al., "Flexible Isosurface
Extraction for Gradient-Based Mesh Optimization", 2023), on exactly those cubes that the caller names: no dense grid.
Which cubes those are, and where field and weights come from, is the caller's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody knows

from reconflow.errors import ValidationFailedError
from reconflow.geometry.flexicubes_tables import CORNERS, EDGES, DualTables, dual_tables

_AXIS_RANK = (2, 1, 2, 1, 2, 1, 2, 1, 0, 0, 0, 0)
"""Orders edges that begin at one vertex by their second vertex: -y, then +z, then +x."""


@dataclass(frozen=True, eq=False)
class CubeGrid:
    """A set of cubes of a cubic grid and the vertices at their corners.

    Attributes:
        resolution: R: cubes are numbered 0 to R - 1 and vertices 0 to R along each axis, the last axis fastest.
        cubes: [M] int64 cube numbers, in the caller's order.
        vertices: [V] int64 vertex numbers, ascending.
        corners: [M, 8] int64, where the cubes' corners are in `vertices`.
    """

    resolution: int
    cubes: Tensor
    vertices: Tensor
    corners: Tensor

    @classmethod
    def of_cubes(cls, coords: Tensor, resolution: int) -> CubeGrid:
        """Collect the vertices of distinct cubes [M, 3].

        Raises:
            ValidationFailedError: No cubes' coordinates, cubes outside the grid, or a cube that occurs twice.
        """
        if coords.ndim != 2 or coords.shape[1] != 3 or coords.is_floating_point():
            raise ValidationFailedError(
                f"Cube coordinates of the shape {tuple(coords.shape)} and type {coords.dtype} are no cubes.",
                suggestion="Give three integers for each cube.",
            )
        wide = coords.long()
        if bool(((wide < 0) | (wide >= resolution)).any()):
            raise ValidationFailedError(
                f"Cubes lie outside the grid of {resolution}³.", suggestion="Check the resolution of the grid."
            )
        cubes = ravel(wide, resolution)
        if len(torch.unique(cubes)) != len(cubes):
            raise ValidationFailedError("A cube occurs more than once.", suggestion="Give every cube once.")
        numbers = ravel(wide[:, None] + torch.tensor(CORNERS, device=wide.device), resolution + 1)
        vertices, corners = torch.unique(numbers, return_inverse=True)
        return cls(resolution, cubes, vertices, corners)

    def vertex_coords(self) -> Tensor:
        """Integer coordinates [V, 3] of the vertices."""
        return unravel(self.vertices, self.resolution + 1)

    def mean_of_corners(self, values: Tensor) -> Tensor:
        """Average what the cubes say about their corners, [M, 8, K], at each vertex, [V, K]; differentiable.

        What is said about a vertex is added in the order of the cubes on every device, without collisions.
        """
        sayings, said_of = values.flatten(0, 1), self.corners.reshape(-1)
        order = torch.argsort(said_of, stable=True)
        count = torch.bincount(said_of, minlength=len(self.vertices))
        starts = count.cumsum(0) - count
        turn = torch.arange(len(order), device=order.device) - starts.repeat_interleave(count)
        total = values.new_zeros(len(self.vertices), values.shape[2])
        for number in range(8):
            rows = order[turn == number]
            total = total.index_add_(0, said_of[rows], sayings.index_select(0, rows))
        return total / count[:, None]


@dataclass(frozen=True, eq=False)
class CubeWeights:
    """What shifts crossings and vertices; all positive.

    Attributes:
        edges: [M, 12], how strongly the crossing of each edge pulls at its vertex.
        corners: [M, 8], multiply the field at the corners before crossings are interpolated.
        quads: [M], decide along which diagonal quads are split.
    """

    edges: Tensor
    corners: Tensor
    quads: Tensor

    @classmethod
    def uniform(cls, like: Tensor, cubes: int) -> CubeWeights:
        """Weights of 1, on the device and of the dtype of `like`."""
        return cls(like.new_ones(cubes, 12), like.new_ones(cubes, 8), like.new_ones(cubes))


@dataclass(frozen=True, eq=False)
class DualSurface:
    """A surface; its normals point to where the field is positive.

    Attributes:
        vertices: [N, 3]; some may belong to no face where the set of cubes ends.
        faces: [F, 3] int64.
        attributes: [N, A], interpolated like the positions; None without any.
    """

    vertices: Tensor
    faces: Tensor
    attributes: Tensor | None


def extract_surface(
    grid: CubeGrid,
    field: Tensor,
    positions: Tensor,
    weights: CubeWeights | None = None,
    attributes: Tensor | None = None,
) -> DualSurface:
    """Extract the surface where the field changes its sign; differentiable in all tensors but the grid's.

    Faces exist around edges all four of whose cubes are in the grid. For a closed surface it must hold every cube whose
    corners' signs differ.

    Args:
        grid: The cubes.
        field: [V], negative inside; 0 counts as outside.
        positions: [V, 3] of the vertices.
        weights: Of the cubes; None for 1 everywhere.
        attributes: [V, A] further values at the vertices to interpolate.

    Returns:
        The surface: vertices by the number of vertices in their cube, then by cube and case; first the quads around
        edges that begin outside, in the order of the edges' vertices.

    Raises:
        ValidationFailedError: A tensor does not have one row for each vertex or cube.
    """
    weights = CubeWeights.uniform(field, len(grid.cubes)) if weights is None else weights
    _check_lengths(grid, field, positions, weights, attributes)
    negative = field.detach() < 0
    bits = torch.tensor([1 << corner for corner in range(8)], device=field.device)
    cases = (negative[grid.corners] * bits).sum(1)
    rows = torch.nonzero((cases > 0) & (cases < 255)).squeeze(1)
    rows = rows[torch.argsort(grid.cubes[rows])]
    tables = dual_tables()
    numbering = _number_duals(_resolve_ambiguity(grid, rows, cases[rows], tables), tables)
    values = positions if attributes is None else torch.cat([positions, attributes], dim=1)
    duals = _interpolate(grid, rows, numbering, field, values, weights)
    faces = _connect(grid, rows, numbering, negative, weights.quads.detach())
    return DualSurface(duals[:, :3], faces, None if attributes is None else duals[:, 3:])


def surface_normals(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals of faces [F, 3], and of vertices [N, 3] by their faces' areas; zero where there is no area."""
    a, b, c = (vertices.index_select(0, faces[:, corner]) for corner in range(3))
    doubled = torch.linalg.cross(b - a, c - a)
    total = torch.zeros_like(vertices)
    for corner in range(3):
        total = total.index_add(0, faces[:, corner], doubled)
    return F.normalize(doubled, dim=1), F.normalize(total, dim=1)


def ravel(coords: Tensor, side: int) -> Tensor:
    """Number coordinates [..., 3] of a cubic grid, the last axis fastest."""
    return (coords[..., 0] * side + coords[..., 1]) * side + coords[..., 2]


def unravel(numbers: Tensor, side: int) -> Tensor:
    """Undo `ravel`."""
    return torch.stack([numbers // (side * side), numbers // side % side, numbers % side], dim=-1)


def find_rows(haystack: Tensor, needles: Tensor) -> tuple[Tensor, Tensor]:
    """Look numbers up in ascending ones.

    Returns:
        Rows in the haystack, of no meaning where nothing was found; and whether it was.
    """
    if not len(haystack):
        return torch.zeros_like(needles), torch.zeros_like(needles, dtype=torch.bool)
    rows = torch.searchsorted(haystack, needles).clamp_(max=len(haystack) - 1)
    return rows, haystack[rows] == needles


@dataclass(frozen=True, eq=False)
class _Numbering:
    """The dual vertices of surface cubes.

    Attributes:
        duals: [S, 12] int64, the dual vertex of each edge; -1 where the edge is not crossed.
        count: Number of dual vertices.
    """

    duals: Tensor
    count: int


def _check_lengths(
    grid: CubeGrid, field: Tensor, positions: Tensor, weights: CubeWeights, attributes: Tensor | None
) -> None:
    cubes, vertices = len(grid.cubes), len(grid.vertices)
    shapes = {
        "field": (field, (vertices,)),
        "positions": (positions, (vertices, 3)),
        "edge weights": (weights.edges, (cubes, 12)),
        "corner weights": (weights.corners, (cubes, 8)),
        "quad weights": (weights.quads, (cubes,)),
    }
    if attributes is not None:
        shapes["attributes"] = (attributes, (vertices, attributes.shape[-1]))
    for name, (tensor, shape) in shapes.items():
        if tensor.shape != shape:
            raise ValidationFailedError(
                f"The {name} have the shape {tuple(tensor.shape)}; the grid needs {shape}.",
                suggestion="Give one row for each vertex or cube of the grid.",
            )


def _resolve_ambiguity(grid: CubeGrid, rows: Tensor, cases: Tensor, tables: DualTables) -> Tensor:
    """Take the inverse case where two problematic cubes share their ambiguous face, so that they stay manifold."""
    problematic = torch.as_tensor(tables.problematic, device=cases.device)[cases]
    suspects = torch.nonzero(problematic).squeeze(1)
    cubes = grid.cubes[rows]
    across = torch.as_tensor(tables.across, device=cases.device)[cases[suspects]].long()
    beyond = unravel(cubes[suspects], grid.resolution) + across
    inside = ((beyond >= 0) & (beyond < grid.resolution)).all(1)
    at, found = find_rows(cubes, ravel(beyond, grid.resolution))
    meeting = suspects[inside & found & problematic[at]]
    resolved = cases.clone()
    resolved[meeting] = 255 - cases[meeting]
    return resolved


def _number_duals(cases: Tensor, tables: DualTables) -> _Numbering:
    counts = torch.as_tensor(tables.counts, device=cases.device)[cases].long()
    order = torch.argsort(counts, stable=True)
    base = torch.empty_like(counts)
    base[order] = counts[order].cumsum(0) - counts[order]
    owners = torch.as_tensor(tables.owners, device=cases.device)[cases].long()
    return _Numbering(torch.where(owners < 0, owners, base[:, None] + owners), int(counts.sum()))


def _interpolate(
    grid: CubeGrid, rows: Tensor, numbering: _Numbering, field: Tensor, values: Tensor, weights: CubeWeights
) -> Tensor:
    """Average the values at the crossings of each dual vertex's edges, [N, K]."""
    total = values.new_zeros(numbering.count, values.shape[1])
    total_weight = values.new_zeros(numbering.count, 1)
    for edge, (first, second) in enumerate(EDGES):  # an edge belongs to a dual vertex once: no collisions
        crossed = torch.nonzero(numbering.duals[:, edge] >= 0).squeeze(1)
        duals, cubes = numbering.duals[crossed, edge], rows[crossed]
        ends = []
        for corner in (first, second):
            vertices = grid.corners[cubes, corner]
            scaled = field.index_select(0, vertices) * weights.corners[:, corner].index_select(0, cubes)
            ends.append((values.index_select(0, vertices), scaled[:, None]))
        (value_a, field_a), (value_b, field_b) = ends
        crossing = (value_a * field_b - value_b * field_a) / (field_b - field_a)
        pull = weights.edges[:, edge].index_select(0, cubes)[:, None]
        total = total.index_add_(0, duals, crossing * pull)
        total_weight = total_weight.index_add_(0, duals, pull)
    return total / total_weight


def _connect(grid: CubeGrid, rows: Tensor, numbering: _Numbering, negative: Tensor, gammas: Tensor) -> Tensor:
    """Two triangles around each crossed edge of the grid that has all its four cubes, [F, 3]."""
    device = rows.device
    cube, edge = torch.nonzero(numbering.duals >= 0).unbind(1)
    first = grid.corners[rows[cube], torch.tensor([first for first, _ in EDGES], device=device)[edge]]
    keys = grid.vertices[first] * 3 + torch.tensor(_AXIS_RANK, device=device)[edge]
    keys, order = torch.sort(keys, stable=True)  # cubes ascend within a key
    _, counts = torch.unique_consecutive(keys, return_counts=True)
    starts = (counts.cumsum(0) - counts)[counts == 4]
    quads = order[starts[:, None] + torch.arange(4, device=device)]
    starts_inside = negative[first[quads[:, 0]]]
    ring = torch.where(
        starts_inside[:, None], torch.tensor([2, 3, 1, 0], device=device), torch.tensor([0, 1, 3, 2], device=device)
    )
    quads = quads.gather(1, ring)[torch.argsort(starts_inside, stable=True)]
    gamma = gammas[rows[cube[quads]]]
    along_02 = (gamma[:, 0] * gamma[:, 2] > gamma[:, 1] * gamma[:, 3])[:, None]
    corners = torch.where(
        along_02,
        torch.tensor([0, 1, 2, 0, 2, 3], device=device),
        torch.tensor([0, 1, 3, 3, 1, 2], device=device),
    )
    duals = numbering.duals[cube[quads], edge[quads]]
    return duals.gather(1, corners).reshape(-1, 3)

"""From solids to a watertight, normalised triangle mesh and to what each of its vertices sees of the sky.

Nothing here knows colours, cameras or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import fast_simplification
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from skimage import measure

from reconflow.errors import ValidationFailedError
from samples.solids import Solid, distance_and_gradient, rows_of, sample_field

_NEWTON_STEPS = 3
_MARGIN_CELLS = 3


@dataclass(frozen=True, eq=False)
class Surface:
    """A model's surface, both where it was modelled and where it is rendered.

    The model's frame is that of its solids. The world frame has the bounding box's centre in the origin and the
    farthest vertex at distance 1: world = (model - centre) / radius.

    Attributes:
        solids: (N, 21) the model's rows.
        vertices_model: (V, 3) float64.
        normals: (V, 3) float64, unit, outwards.
        faces: (F, 3) int32, counter-clockwise from outside.
        centre: (3,) in the model's frame.
        radius: World unit in the model's units.
        field: (NX, NY, NZ) float32 signed distance, model units.
        field_origin: (3,) position of node (0, 0, 0), model units.
        cell: Grid spacing, model units.
    """

    solids: NDArray[np.float64]
    vertices_model: NDArray[np.float64]
    normals: NDArray[np.float64]
    faces: NDArray[np.int32]
    centre: NDArray[np.float64]
    radius: float
    field: NDArray[np.float32]
    field_origin: NDArray[np.float64]
    cell: float

    @property
    def vertices_world(self) -> NDArray[np.float64]:
        """(V, 3) float64 vertices in the world frame."""
        return (self.vertices_model - self.centre) / self.radius


def build_surface(solids: tuple[Solid, ...], half_extent: tuple[float, float, float], cell: float) -> Surface:
    """Extract the zero level of a model's distance field.

    Args:
        solids: The model.
        half_extent: (x, y, z) of a box around the model's origin that contains it.
        cell: Grid spacing, model units; vertices are moved onto the exact surface afterwards.
    """
    rows = rows_of(solids)
    half = np.ceil(np.array(half_extent) / cell).astype(int) + _MARGIN_CELLS
    origin = -(half - 0.317) * cell
    field = sample_field(rows, origin, cell, (int(2 * half[0]), int(2 * half[1]), int(2 * half[2])))
    extract: Any = measure.marching_cubes
    vertices, faces, _, _ = extract(field, 0.0, spacing=(cell, cell, cell), allow_degenerate=False)
    vertices = vertices.astype(np.float64) + origin
    for _ in range(_NEWTON_STEPS):
        distance, gradient = distance_and_gradient(rows, vertices)
        slope = np.maximum((gradient**2).sum(1, keepdims=True), 0.25)
        step = np.clip(distance[:, None], -0.5 * cell, 0.5 * cell) * gradient / slope
        vertices = vertices - 0.8 * step
    _, gradient = distance_and_gradient(rows, vertices)
    normals = gradient / np.maximum(np.linalg.norm(gradient, axis=1, keepdims=True), 1e-9)
    low, high = vertices.min(0), vertices.max(0)
    centre = (low + high) / 2
    radius = float(np.linalg.norm(vertices - centre, axis=1).max())
    return Surface(rows, vertices, normals, faces.astype(np.int32), centre, radius, field, origin, cell)


def simplify_surface(surface: Surface, face_limit: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return world vertices (V, 3) float32 and faces (F, 3) int32 with at most about `face_limit` faces.

    Quadric edge collapse at a slow pace keeps the surface closed and, at these counts, no farther from the model than
    the fine mesh is.

    Raises:
        ValidationFailedError: Something tore open, which a higher limit avoids.
    """
    vertices, faces = surface.vertices_world.astype(np.float32), surface.faces
    if len(faces) > face_limit:
        vertices, faces = fast_simplification.simplify(vertices, faces, target_count=face_limit, agg=2)
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    if np.any(np.unique(edges, axis=0, return_counts=True)[1] != 2):
        raise ValidationFailedError(
            f"The object has no closed surface of {face_limit} faces.", suggestion="Raise the number of faces."
        )
    return vertices.astype(np.float32), faces.astype(np.int32)


@njit(cache=True)
def _field_at(field: NDArray[np.float32], x: float, y: float, z: float) -> float:
    """Interpolate the field at grid coordinates; outside the grid there is nothing near."""
    if not (0.0 <= x < field.shape[0] - 1 and 0.0 <= y < field.shape[1] - 1 and 0.0 <= z < field.shape[2] - 1):
        return math.inf
    i, j, k = int(x), int(y), int(z)
    u, v, w = x - i, y - j, z - k
    near = (field[i, j, k] * (1 - u) + field[i + 1, j, k] * u) * (1 - v) + (
        field[i, j + 1, k] * (1 - u) + field[i + 1, j + 1, k] * u
    ) * v
    far = (field[i, j, k + 1] * (1 - u) + field[i + 1, j, k + 1] * u) * (1 - v) + (
        field[i, j + 1, k + 1] * (1 - u) + field[i + 1, j + 1, k + 1] * u
    ) * v
    return float(near * (1 - w) + far * w)


@njit(cache=True)
def _escapes(
    field: NDArray[np.float32], cell: float, start: NDArray[np.float64], dx: float, dy: float, dz: float
) -> bool:
    """Follow a ray through the field from grid coordinates; true when it leaves without touching the surface."""
    t = 1.5
    for _ in range(400):
        distance = _field_at(field, start[0] + t * dx, start[1] + t * dy, start[2] + t * dz) / cell
        if distance == math.inf:
            return True
        if distance < 0.05:
            return False
        t += max(0.9 * distance, 0.25)
    return False


@njit(cache=True, parallel=True)
def _open_share(
    field: NDArray[np.float32],
    cell: float,
    starts: NDArray[np.float64],
    normals: NDArray[np.float64],
    directions: NDArray[np.float64],
    around_normal: bool,  # noqa: FBT001 - Numba kernels take positional arguments
) -> NDArray[np.float64]:
    share = np.empty(len(starts))
    for n in prange(len(starts)):
        nx, ny, nz = normals[n, 0], normals[n, 1], normals[n, 2]
        start = starts[n] + normals[n]
        sign = 1.0 if nz >= 0.0 else -1.0
        a = -1.0 / (sign + nz)
        b = nx * ny * a
        free = 0.0
        for m in range(len(directions)):
            dx, dy, dz = directions[m, 0], directions[m, 1], directions[m, 2]
            if around_normal:
                tx, ty, tz = dx, dy, dz
                dx = tx * (1.0 + sign * nx * nx * a) + ty * b + tz * nx
                dy = tx * sign * b + ty * (sign + ny * ny * a) + tz * ny
                dz = -tx * sign * nx - ty * ny + tz * nz
            if dx * nx + dy * ny + dz * nz > 0.0 and _escapes(field, cell, start, dx, dy, dz):
                free += 1.0
        share[n] = free / len(directions)
    return share


def sky_visibility(surface: Surface, rays: int, seed: int) -> NDArray[np.float64]:
    """Return the cosine-weighted share (V,) of the sky that every vertex sees, by tracing rays.

    All vertices use one cosine-distributed spiral of directions, turned by the seed, so neighbours do not differ by
    chance and the result has no speckle.
    """
    turn = 2.399963229728653 * np.arange(rays) + seed
    outwards = np.sqrt((np.arange(rays) + 0.5) / rays)
    directions = np.stack([outwards * np.cos(turn), outwards * np.sin(turn), np.sqrt(1 - outwards**2)], axis=1)
    return _open_share(*_grid_rays(surface), directions, True)  # noqa: FBT003


def light_visibility(surface: Surface, direction: NDArray[np.float64], spread: float, rays: int) -> NDArray[np.float64]:
    """Return the share (V,) of a distant round light that every vertex sees.

    Args:
        surface: What casts the shadows and what receives them.
        direction: (3,) unit vector towards the light.
        spread: Tangent of the light's angular radius.
        rays: Directions over the light's disc.
    """
    side = np.cross(direction, np.eye(3)[int(np.argmin(np.abs(direction)))])
    side /= np.linalg.norm(side)
    other = np.cross(direction, side)
    turn = 2.399963229728653 * np.arange(rays)[:, None]
    reach = spread * np.sqrt((np.arange(rays)[:, None] + 0.5) / rays)
    directions = direction + reach * (np.cos(turn) * side + np.sin(turn) * other)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return _open_share(*_grid_rays(surface), directions, False)  # noqa: FBT003


def _grid_rays(
    surface: Surface,
) -> tuple[NDArray[np.float32], float, NDArray[np.float64], NDArray[np.float64]]:
    starts = (surface.vertices_model - surface.field_origin) / surface.cell
    return surface.field, surface.cell, starts, surface.normals

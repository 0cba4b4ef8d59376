"""Solids as rows of numbers and the signed distance field they add up to. No objects, no meshes, no colours.

A model is a list of primitives applied in order, each joined to (`union`) or cut from (`cut`) what came before, with an
optional blend radius. Distances are lower bounds near tapers and blends, exact elsewhere; negative inside. Primitives
stand in their own frame: boxes on three axes, cylinders, cones and capsules along y, tori around y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

Vector = tuple[float, float, float]

BOX: Final = 0
CYLINDER: Final = 1
TORUS: Final = 2
CAPSULE: Final = 3
ELLIPSOID: Final = 4
_PARAMETER: Final = 16
"""Column of the first of five parameters; before it stand kind, cut?, blend, part, centre and rotation."""


@dataclass(frozen=True)
class Solid:
    """One primitive of a model.

    Attributes:
        kind: One of the kinds above.
        parameters: Up to five numbers whose meaning the constructor functions below state.
        part: Which part of the object its surface belongs to; colours are chosen by part.
        centre: (x, y, z) in the model's frame.
        axes: The world directions of the primitive's own x and y axes, orthonormal.
        blend: Radius within which it melts into what is there already; 0 gives a crease.
        is_cut: Whether it is removed instead of added; the cut's walls then belong to `part`.
    """

    kind: int
    parameters: tuple[float, ...]
    part: int
    centre: Vector
    axes: tuple[Vector, Vector] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    blend: float = 0.0
    is_cut: bool = False

    def turned(self, axes: tuple[Vector, Vector]) -> Solid:
        """Return the solid with its own x and y axes along two directions (made orthonormal)."""
        y = np.array(axes[1]) / np.linalg.norm(axes[1])
        x = np.array(axes[0]) - np.dot(axes[0], y) * y
        x /= np.linalg.norm(x)
        return replace(self, axes=((x[0], x[1], x[2]), (y[0], y[1], y[2])))

    def melted(self, blend: float) -> Solid:
        """Return the solid with a blend radius."""
        return replace(self, blend=blend)

    def removed(self) -> Solid:
        """Return the solid as a cut."""
        return replace(self, is_cut=True)

    def row(self) -> NDArray[np.float64]:
        """Return the (21,) numbers that the kernels read."""
        x, y = np.array(self.axes[0]), np.array(self.axes[1])
        local_from_world = np.stack([x, y, np.cross(x, y)])
        parameters = np.zeros(5)
        parameters[: len(self.parameters)] = self.parameters
        head = [self.kind, float(self.is_cut), self.blend, self.part, *self.centre]
        return np.concatenate([head, local_from_world.ravel(), parameters])


def box(part: int, centre: Vector, half: Vector, *, rounding: float = 0.0, taper: float = 0.0) -> Solid:
    """Return a box; at height y its x and z extents are multiplied by 1 + taper * y / half[1]."""
    return Solid(BOX, (*half, rounding, taper), part, centre)


def cylinder(
    part: int, centre: Vector, radius: float, half_height: float, *, rounding: float = 0.0, taper: float = 0.0
) -> Solid:
    """Return a cylinder, or a cone's frustum whose radius is multiplied by 1 + taper * y / half_height."""
    return Solid(CYLINDER, (radius, half_height, rounding, taper), part, centre)


def torus(part: int, centre: Vector, radius: float, tube: float, *, stretch: float = 0.0) -> Solid:
    """Return a torus, drawn out along its x axis by `stretch` to each side."""
    return Solid(TORUS, (radius, tube, stretch), part, centre)


def capsule(part: int, start: Vector, end: Vector, radius: float) -> Solid:
    """Return a rod with round ends between two points."""
    a, b = np.array(start), np.array(end)
    middle, along = (a + b) / 2, b - a
    side = np.eye(3)[int(np.argmin(np.abs(along)))]
    solid = Solid(CAPSULE, (float(np.linalg.norm(along)) / 2, radius), part, (middle[0], middle[1], middle[2]))
    return solid.turned(((side[0], side[1], side[2]), (along[0], along[1], along[2])))


def ellipsoid(part: int, centre: Vector, radii: Vector) -> Solid:
    """Return an ellipsoid."""
    return Solid(ELLIPSOID, radii, part, centre)


def rows_of(solids: tuple[Solid, ...]) -> NDArray[np.float64]:
    """Return the (N, 21) array that the kernels read."""
    return np.stack([solid.row() for solid in solids])


@njit(cache=True)
def _rounded(outside_a: float, outside_b: float, outside_c: float, rounding: float) -> float:
    a, b, c = outside_a + rounding, outside_b + rounding, outside_c + rounding
    outer = math.sqrt(max(a, 0.0) ** 2 + max(b, 0.0) ** 2 + max(c, 0.0) ** 2)
    return outer + min(max(a, b, c), 0.0) - rounding


@njit(cache=True)
def _primitive_distance(row: NDArray[np.float64], x: float, y: float, z: float) -> float:
    kind = int(row[0])
    a, b, c, d, e = row[_PARAMETER], row[_PARAMETER + 1], row[_PARAMETER + 2], row[_PARAMETER + 3], row[_PARAMETER + 4]
    if kind == BOX:
        wide = 1.0 + e * min(max(y / b, -1.0), 1.0)
        lean = max(a, c) * e / b
        return _rounded(abs(x) - a * wide, abs(y) - b, abs(z) - c * wide, d) / math.sqrt(1.0 + lean * lean)
    if kind == CYLINDER:
        wide = 1.0 + d * min(max(y / b, -1.0), 1.0)
        lean = a * d / b
        return _rounded(math.hypot(x, z) - a * wide, abs(y) - b, -1e9, c) / math.sqrt(1.0 + lean * lean)
    if kind == TORUS:
        return float(math.hypot(math.hypot(max(abs(x) - c, 0.0), z) - a, y) - b)
    if kind == CAPSULE:
        return float(math.sqrt(x * x + (y - min(max(y, -a), a)) ** 2 + z * z) - b)
    near = math.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    slope = math.sqrt((x / (a * a)) ** 2 + (y / (b * b)) ** 2 + (z / (c * c)) ** 2)
    return float(near * (near - 1.0) / max(slope, 1e-9))


@njit(cache=True)
def distance_and_part(solids: NDArray[np.float64], px: float, py: float, pz: float) -> tuple[float, int]:
    """Return the signed distance of a point to the model and the part that its nearest surface belongs to."""
    total, part = 1e9, -1
    for row in solids:
        x, y, z = px - row[4], py - row[5], pz - row[6]
        d = _primitive_distance(
            row,
            row[7] * x + row[8] * y + row[9] * z,
            row[10] * x + row[11] * y + row[12] * z,
            row[13] * x + row[14] * y + row[15] * z,
        )
        sign = 1.0
        if row[1] != 0.0:
            sign, d, total = -1.0, d, -total
        blend = row[2]
        melt = max(blend - abs(d - total), 0.0) / blend if blend > 0.0 else 0.0
        if d < total:
            total, part = d, int(row[3])
        total = sign * (total - 0.25 * melt * melt * blend)
    return total, part


@njit(cache=True, parallel=True)
def sample_field(
    solids: NDArray[np.float64], origin: NDArray[np.float64], cell: float, shape: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Return the signed distance at the nodes of a grid, (NX, NY, NZ) float32; node (0, 0, 0) is at `origin`."""
    field = np.empty(shape, np.float32)
    for i in prange(shape[0]):
        for j in range(shape[1]):
            for k in range(shape[2]):
                field[i, j, k] = distance_and_part(
                    solids, origin[0] + i * cell, origin[1] + j * cell, origin[2] + k * cell
                )[0]
    return field


@njit(cache=True, parallel=True)
def parts_at(solids: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the part (N,) that each of (N, 3) surface points belongs to."""
    part = np.empty(len(points), np.int64)
    for n in prange(len(points)):
        part[n] = distance_and_part(solids, points[n, 0], points[n, 1], points[n, 2])[1]
    return part


@njit(cache=True, parallel=True)
def distance_and_gradient(
    solids: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Evaluate the field at (N, 3) points: distance (N,) and its gradient (N, 3) by central differences."""
    count, step = len(points), 1e-4
    distance, gradient = np.empty(count), np.empty((count, 3))
    for n in prange(count):
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        distance[n] = distance_and_part(solids, x, y, z)[0]
        for axis in range(3):
            dx, dy, dz = step * (axis == 0), step * (axis == 1), step * (axis == 2)
            ahead = distance_and_part(solids, x + dx, y + dy, z + dz)[0]
            behind = distance_and_part(solids, x - dx, y - dy, z - dz)[0]
            gradient[n, axis] = (ahead - behind) / (2.0 * step)
    return distance, gradient

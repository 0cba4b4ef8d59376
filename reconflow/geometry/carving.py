"""Carving: the largest solid that no view contradicts, as a signed field on a grid, and its iso-surface.

A point is outside when any view sees through it: it projects outside that view's silhouette, or in front of the
surface that the view's depth shows. A view whose frame holds all of the object also rules out what lies outside of the
frame and behind the camera. What no view decides stays solid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from skimage import measure

from reconflow.cameras.camera import unproject_pixels
from reconflow.errors import ModelConvergenceError
from reconflow.geometry.depth import SurfaceObservation, depth_jump, sample_depth
from reconflow.geometry.facts import mesh_facts
from reconflow.geometry.mesh import TriangleMesh
from reconflow.parallel import row_bands, run_jobs, thread_count

_CLEARANCES = (1e-2, 5e-2, 2e-1)
"""Samples nearer to the level than this part of a cell are moved off it: triangles through a sample degenerate, and
the table of cases can leave a hole between two cells that round it differently. The first that leaves none is taken."""


@dataclass(frozen=True, eq=False)
class Grid:
    """A regular grid of samples: sample (i, j, k) is at `origin + (i, j, k) * spacing`, world units."""

    origin: NDArray[np.float64]
    spacing: float
    shape: tuple[int, int, int]


def bounding_grid(observations: Sequence[SurfaceObservation], resolution: int, margin_cells: int = 3) -> Grid:
    """Find a grid around everything the views can see.

    Args:
        observations: The views.
        resolution: Cells along the longest side.
        margin_cells: Empty cells to leave on each side.
    """
    low, high = visible_bounds(observations)
    spacing = float((high - low).max()) / resolution
    counts = np.ceil((high - low) / spacing).astype(int) + 1 + 2 * margin_cells
    centre = (low + high) / 2
    origin = centre - (counts - 1) * spacing / 2
    return Grid(origin, spacing, (int(counts[0]), int(counts[1]), int(counts[2])))


def visible_bounds(
    observations: Sequence[SurfaceObservation],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (3,) lower and upper corner of the box of all surface points seen, or of a coarse silhouette hull."""
    points = []
    for observation in observations:
        if observation.depth is None:
            continue
        rows, columns = np.nonzero(observation.mask & (observation.depth > 0))
        pixels = np.stack([columns + 0.5, rows + 0.5], axis=-1)
        points.append(unproject_pixels(pixels, observation.depth[rows, columns].astype(np.float64), observation.camera))
    if points:
        cloud = np.concatenate(points)
        return cloud.min(axis=0), cloud.max(axis=0)
    return _hull_bounds(observations)


def _hull_bounds(
    observations: Sequence[SurfaceObservation],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bound the silhouettes' hull by carving coarse grids, twice, around the point where the cameras look."""
    positions = np.stack([o.camera.position_world for o in observations])
    axes = np.stack([-o.camera.world_from_cam[:3, 2] for o in observations])
    projectors = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    target = np.linalg.lstsq(
        projectors.sum(axis=0), (projectors @ positions[:, :, None]).sum(axis=0)[:, 0], rcond=None
    )[0]
    reach = float(np.linalg.norm(positions - target, axis=1).min())
    low, high = target - reach, target + reach
    for _ in range(2):
        spacing = float((high - low).max()) / 64
        grid = Grid(low, spacing, tuple(int(n) for n in np.ceil((high - low) / spacing).astype(int) + 1))  # type: ignore[arg-type]
        inside = np.argwhere(carve(observations, grid) < 0)
        if len(inside) == 0:
            raise _empty_hull()
        low, high = (
            grid.origin + (inside.min(axis=0) - 1) * spacing,
            grid.origin + (inside.max(axis=0) + 1) * spacing,
        )
    return low, high


def carve(observations: Sequence[SurfaceObservation], grid: Grid) -> NDArray[np.float32]:
    """Evaluate the carved field on a grid.

    Args:
        observations: The views.
        grid: Where to sample.

    Returns:
        (nx, ny, nz) float32: how far outside (positive) or inside (negative) a sample is, world units, measured along
        viewing rays or across silhouettes; the zero level is the surface.
    """
    field = np.full(grid.shape, -np.inf, np.float32)
    for observation in observations:
        camera = observation.camera
        depth = observation.depth if observation.depth is not None else np.zeros((0, 0), np.float32)
        jump = depth_jump(observation)
        slabs = row_bands(grid.shape[0], thread_count())
        run_jobs([
            partial(
                _carve_view, field, grid.origin, grid.spacing, np.ascontiguousarray(camera.cam_from_world),
                np.array([*camera.focal_px, *camera.centre_px]), depth, observation.mask_distance_px, jump,
                observation.frame_cuts_object, start, stop,
            )
            for start, stop in slabs
        ])  # fmt: skip
    return field


def extract_surface(field: NDArray[np.float32], grid: Grid) -> TriangleMesh:
    """Return the zero level of a field by marching cubes (Lewiner et al. 2003), front faces outwards.

    Args:
        field: (nx, ny, nz), negative inside.
        grid: Where the samples are.

    Raises:
        ModelConvergenceError: The field has no inside.
    """
    if not (field < 0).any():
        raise _empty_hull()
    for clearance in _CLEARANCES:
        mesh = _marched(field, grid, clearance)
        if mesh_facts(mesh).boundary_edges == 0:
            break
    return mesh


def _marched(field: NDArray[np.float32], grid: Grid, clearance: float) -> TriangleMesh:
    """March the cubes of a field whose samples keep `clearance` cells away from the level."""
    clear, limit = np.float32(clearance * grid.spacing), np.float32(4 * grid.spacing)
    off_level = np.where(np.abs(field) < clear, np.where(field < 0, -clear, clear), field)
    padded = np.pad(np.clip(off_level, -limit, limit), 1, constant_values=limit)
    marching_cubes: Any = measure.marching_cubes
    vertices, faces, _, _ = marching_cubes(padded, 0.0, gradient_direction="descent")
    world = grid.origin + (vertices - 1.0) * grid.spacing
    return TriangleMesh(world.astype(np.float32), np.ascontiguousarray(faces, np.int32))


def _empty_hull() -> ModelConvergenceError:
    return ModelConvergenceError(
        "The views have no common solid: every point is outside some view's silhouette or in front of its surface.",
        suggestion="Check that all views show the same object and that the supplied cameras belong to them.",
    )


@njit(cache=True, nogil=True)
def _carve_view(
    field: NDArray[np.float32],
    origin: NDArray[np.float64],
    spacing: float,
    cam_from_world: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    depth: NDArray[np.float32],
    mask_distance_px: NDArray[np.float32],
    jump: float,
    frame_cuts_object: bool,  # noqa: FBT001
    start: int,
    stop: int,
) -> None:
    """Raise `field` to what one view says: max over views of the distance by which a sample is seen to be outside."""
    _, ny, nz = field.shape
    height, width = mask_distance_px.shape
    fx, fy, cx, cy = intrinsics
    for i in range(start, stop):
        for j in range(ny):
            for k in range(nz):
                wx, wy, wz = origin[0] + i * spacing, origin[1] + j * spacing, origin[2] + k * spacing
                m = cam_from_world
                z = -(m[2, 0] * wx + m[2, 1] * wy + m[2, 2] * wz + m[2, 3])
                if z <= 1e-6:
                    if not frame_cuts_object:
                        field[i, j, k] = max(field[i, j, k], np.float32(spacing - z))
                    continue
                px = cx + fx * (m[0, 0] * wx + m[0, 1] * wy + m[0, 2] * wz + m[0, 3]) / z - 0.5
                py = cy - fy * (m[1, 0] * wx + m[1, 1] * wy + m[1, 2] * wz + m[1, 3]) / z - 0.5
                qx, qy = min(max(px, 0.0), width - 1.001), min(max(py, 0.0), height - 1.001)
                beyond = max(abs(px - qx), abs(py - qy))
                if beyond > 1.0 and frame_cuts_object:
                    continue
                x0, y0 = int(qx), int(qy)
                ax, ay = qx - x0, qy - y0
                d = mask_distance_px
                outside_px = (d[y0, x0] * (1 - ax) + d[y0, x0 + 1] * ax) * (1 - ay) + (
                    d[y0 + 1, x0] * (1 - ax) + d[y0 + 1, x0 + 1] * ax
                ) * ay
                value = (outside_px + beyond) * z / fx
                if depth.shape[0] > 0:
                    surface = sample_depth(depth, x0, y0, ax, ay, jump)
                    if surface > 0:
                        value = max(value, surface - z)
                field[i, j, k] = max(field[i, j, k], np.float32(value))

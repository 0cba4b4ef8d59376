"""Where a mesh may lie in front of the cameras, roughly: every rotation of a cover is tried, nothing is refined."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reconflow.cameras.camera import PinholeCamera
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import Similarity, rotation_angle_deg
from reconflow.parallel import row_bands, run_jobs, thread_count
from reconflow.reconviagen.gaussian_rendering import rotation_matrices
from reconflow.reconviagen.registration_views import Appearance, Misfit, Target, appearance, misfit

Float64 = NDArray[np.float64]

_COVER: Final = 480
"""Rotations besides those of the axes; about 25 degrees between neighbours."""
_KEPT: Final = 72
"""Placements that are worth a second look."""
_APART_DEG: Final = 15.0
"""Placements whose rotations are nearer than this are the same."""


@dataclass(frozen=True, eq=False)
class Placement:
    """A mesh in the world: where, and how badly it fits there."""

    world_from_mesh: Similarity
    misfit: Misfit


def axis_rotations() -> Float64:
    """Return the (24, 3, 3) rotations that take the axes to axes, the identity first."""
    rotations = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            rotation = np.zeros((3, 3))
            rotation[range(3), order] = signs
            if np.linalg.det(rotation) > 0:
                rotations.append(rotation)
    return np.stack(rotations)


def even_rotations(count: int) -> Float64:
    """Return (count, 3, 3) rotations that cover all of them evenly (Alexa, "Super-Fibonacci spirals", 2022)."""
    s = np.arange(count) + 0.5
    inner, outer = np.sqrt(s / count), np.sqrt(1.0 - s / count)
    alpha, beta = 2 * np.pi * s / np.sqrt(2.0), 2 * np.pi * s / 1.533751168755204288118041
    return rotation_matrices(
        np.stack([inner * np.sin(alpha), inner * np.cos(alpha), outer * np.sin(beta), outer * np.cos(beta)], axis=1)
    )


def rough_placements(
    mesh: TriangleMesh, targets: Sequence[Target], colours: NDArray[np.float32] | None
) -> list[Placement]:
    """Try the axis rotations and an even cover of the others, each with the scale and place that suit it.

    Args:
        mesh: Centred on the origin, of radius 1; coarse.
        targets: The views, coarse.
        colours: (V, 3) linear light; None leaves colour out.

    Returns:
        The most promising placements, best first, all apart from each other.
    """
    centre, radius = common_place([target.camera for target in targets], [target.mask for target in targets])
    rotations = np.concatenate([axis_rotations(), even_rotations(_COVER)])
    starts = [Similarity(radius, rotation, centre) for rotation in rotations]
    placements = _looked_at(mesh, targets, colours, starts, moves=1)
    placements = sorted(placements, key=lambda placement: placement.misfit.total)[:_KEPT]
    again = _looked_at(mesh, targets, colours, [p.world_from_mesh for p in placements], moves=2)
    return distinct(sorted(again, key=lambda placement: placement.misfit.total))


def distinct(placements: Sequence[Placement]) -> list[Placement]:
    """Drop every placement whose rotation is near an earlier one's."""
    kept: list[Placement] = []
    for placement in placements:
        rotation = placement.world_from_mesh.rotation
        if all(rotation_angle_deg(rotation, other.world_from_mesh.rotation) > _APART_DEG for other in kept):
            kept.append(placement)
    return kept


def common_place(cameras: Sequence[PinholeCamera], masks: Sequence[NDArray[np.bool_]]) -> tuple[Float64, float]:
    """Estimate an object's centre (3,) and radius from the middles and areas of its silhouettes, world units."""
    system, right = np.zeros((3, 3)), np.zeros(3)
    for camera, mask in zip(cameras, masks, strict=True):
        rows, columns = np.nonzero(mask)
        if len(rows) == 0:
            continue
        (fx, fy), (cx, cy) = camera.focal_px, camera.centre_px
        ray = np.array([(columns.mean() + 0.5 - cx) / fx, -(rows.mean() + 0.5 - cy) / fy, -1.0])
        ray = camera.world_from_cam[:3, :3] @ (ray / np.linalg.norm(ray))
        across = np.eye(3) - np.outer(ray, ray)
        system += across
        right += across @ camera.position_world
    # what one view leaves open is taken from the origin
    centre = np.asarray(np.linalg.solve(system + 1e-6 * np.eye(3), right), dtype=np.float64)
    radii = []
    for camera, mask in zip(cameras, masks, strict=True):
        depth = -(camera.cam_from_world[2, :3] @ centre + camera.cam_from_world[2, 3])
        if mask.any() and depth > 0:
            radii.append(np.sqrt(mask.sum() / np.pi) * depth / np.sqrt(camera.focal_px[0] * camera.focal_px[1]))
    return centre, 1.4 * float(np.median(radii))


def _looked_at(
    mesh: TriangleMesh,
    targets: Sequence[Target],
    colours: NDArray[np.float32] | None,
    starts: Sequence[Similarity],
    moves: int,
) -> list[Placement]:
    """Move every start `moves` times so that the silhouettes' middles and areas agree, then compare it."""
    found: dict[int, Placement] = {}
    points, faces = mesh.vertices.astype(np.float64), mesh.faces

    def show_all(place: Similarity) -> list[Appearance]:
        vertices = place.apply(points)
        return [appearance(vertices, faces, target.camera) for target in targets]

    def work(start: int, stop: int) -> None:
        for index in range(start, stop):
            place = starts[index]
            for _ in range(moves):
                place = _moved(place, show_all(place), targets)
            found[index] = Placement(place, misfit(show_all(place), targets, place.scale, faces, colours))

    jobs: list[Callable[[], None]] = [partial(work, *band) for band in row_bands(len(starts), thread_count())]
    run_jobs(jobs)
    return [found[index] for index in range(len(starts))]


def _moved(place: Similarity, shown: Sequence[Appearance], targets: Sequence[Target]) -> Similarity:
    """Scale and shift a mesh so that its silhouettes' middles and areas come closer to the views'."""
    rows, right = [], []
    for look, target in zip(shown, targets, strict=True):
        if not (look.mask.any() and target.mask.any()):
            continue
        camera = target.camera
        rotation = camera.cam_from_world[:3, :3]
        depth = -(rotation[2] @ place.translation + camera.cam_from_world[2, 3])
        pixel = depth / camera.focal_px[0]
        row_shift, column_shift = _middle(target.mask) - _middle(look.mask)
        growth = 0.5 * np.log(target.mask.sum() / look.mask.sum())
        rows += [[*rotation[0], 0.0], [*rotation[1], 0.0], [*(rotation[2] * place.scale / depth), place.scale]]
        right += [column_shift * pixel, -row_shift * pixel, growth * place.scale]
    if not rows:
        return place
    solution = np.linalg.lstsq(np.array(rows), np.array(right), rcond=1e-6)[0]
    shift, growth = solution[:3], float(np.clip(solution[3], -0.7, 0.7))
    return Similarity(place.scale * float(np.exp(growth)), place.rotation, place.translation + shift)


def _middle(mask: NDArray[np.bool_]) -> Float64:
    rows, columns = np.nonzero(mask)
    return np.array([rows.mean(), columns.mean()])

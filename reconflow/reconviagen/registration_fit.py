"""Moving a placed mesh until silhouettes, depth and colours coincide with the views: Gauss-Newton in seven unknowns.

The unknowns turn the mesh about its centre (3, radians), scale it (1, logarithm) and shift it (3, its radii). Every
residual is a length in pixels: of a silhouette's rim from the other's, of a surface point from the depth render along
the mesh's normal, of a colour divided by the photo's slope. Each kind weighs as much as the silhouettes' rims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from reconflow.cameras.camera import FloatArray, PinholeCamera, pixel_centres, unproject_pixels
from reconflow.geometry.depth import signed_mask_distance
from reconflow.geometry.mesh import TriangleMesh
from reconflow.geometry.similarity import Similarity, rotation_from_vector
from reconflow.geometry.surface import face_normals
from reconflow.reconviagen.registration_search import Placement
from reconflow.reconviagen.registration_views import (
    Appearance,
    Misfit,
    Target,
    colour_residual,
    misfit,
    show,
    slope_of,
)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_LEAST_SLOPE = 0.3
"""Where a distance map is flatter than this it points nowhere."""
_LEAST_COSINE = 0.15
"""Surfaces seen more edge-on than this say nothing about depth."""
_NEIGHBOURS = 10.0
"""So many neighbouring residuals err alike."""
_LARGEST_TURN_RAD, _LARGEST_GROWTH = 0.35, 0.25
_WORSE = 1.02
"""The last step is taken for the best unless its misfit exceeds the least one by this factor."""


@dataclass
class _System:
    """Normal equations of robust residuals of one kind."""

    hessian: Float64 = field(default_factory=lambda: np.zeros((7, 7)))
    gradient: Float64 = field(default_factory=lambda: np.zeros(7))
    squares: float = 0.0
    count: float = 0.0

    def add(self, rows: Float64, residuals: Float64, gate_px: float) -> None:
        """Take (N, 7) derivatives and (N,) residuals, those beyond the gate not at all (Tukey's biweight)."""
        weights = np.square(np.maximum(1.0 - np.square(residuals / gate_px), 0.0))
        # einsum sums in one order whatever the number of threads; a matrix product need not
        self.hessian += np.einsum("ni,nj->ij", rows * weights[:, None], rows)
        self.gradient += np.einsum("ni,n->i", rows, weights * residuals)
        self.squares += float((weights * residuals**2).sum())
        self.count += float(weights.sum())


@dataclass(frozen=True, eq=False)
class Refined:
    """A refined placement.

    Attributes:
        placement: Where, and the misfit.
        sigma: (7,) one standard deviation of the unknowns (radians, logarithm, radii); infinite where nothing decides.
        rms_px: Root mean square of the residuals by kind, pixels of the working resolution.
    """

    placement: Placement
    sigma: Float64
    rms_px: dict[str, float]


def refine(
    mesh: TriangleMesh,
    colours: Float32 | None,
    targets: Sequence[Target],
    start: Similarity,
    steps: int,
    gates_px: tuple[float, float],
) -> Refined:
    """Refine a placement.

    Args:
        mesh: Centred on the origin, of radius 1.
        colours: (V, 3) linear light; None leaves colour out.
        targets: The views.
        start: Where the mesh lies.
        steps: Gauss-Newton steps.
        gates_px: Residuals beyond this do not count, in the first and in the last step.
    """
    place, points = start, mesh.vertices.astype(np.float64)
    history: list[tuple[Similarity, Misfit, dict[str, _System]]] = []
    for step in range(steps + 1):
        vertices = place.apply(points)
        shown = show(vertices, mesh.faces, targets)
        gate = gates_px[0] * (gates_px[1] / gates_px[0]) ** (step / max(steps, 1))
        normals = face_normals(TriangleMesh(vertices.astype(np.float32), mesh.faces))
        systems = _systems(shown, targets, place, mesh.faces, normals, colours, gate)
        history.append((place, misfit(shown, targets, place.scale, mesh.faces, colours), systems))
        if step < steps:
            place = _stepped(place, systems)
    least = min(range(len(history)), key=lambda k: history[k][1].total)
    if history[-1][1].total <= _WORSE * history[least][1].total + 1e-4:
        least = len(history) - 1
    place, found, systems = history[least]
    rms = {name: float(np.sqrt(s.squares / s.count)) for name, s in systems.items() if s.count > 0}
    return Refined(Placement(place, found), _sigma(systems), rms)


def _systems(
    shown: Sequence[Appearance],
    targets: Sequence[Target],
    place: Similarity,
    faces: NDArray[np.int32],
    normals: Float64,
    colours: Float32 | None,
    gate_px: float,
) -> dict[str, _System]:
    systems = {"silhouette": _System(), "depth": _System(), "colour": _System()}
    for look, target in zip(shown, targets, strict=True):
        if not (look.mask.any() and target.mask.any()):
            continue
        _add_rims(systems["silhouette"], look, target, place, gate_px)
        if target.depth is not None:
            _add_depth(systems["depth"], look, target, place, normals, gate_px)
        if colours is not None and target.colour is not None:
            _add_colour(systems["colour"], look, target, place, faces, colours, gate_px)
    return systems


def _rim(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rim: NDArray[np.bool_] = mask & ~ndimage.binary_erosion(mask, border_value=1)
    return rim


def _add_rims(system: _System, look: Appearance, target: Target, place: Similarity, gate_px: float) -> None:
    """The mesh's rim should lie on the mask's, and the mask's on the mesh's; a rim's pixels lie half a pixel inside."""
    camera, centres = target.camera, pixel_centres(target.camera.image_hw)
    mesh_rim, mask_rim = _rim(look.mask), _rim(target.mask)
    if not (mesh_rim.any() and mask_rim.any()):
        return
    slope = target.slope[mesh_rim].astype(np.float64)
    points = unproject_pixels(centres[mesh_rim], look.depth[mesh_rim].astype(np.float64), camera)
    usable = np.linalg.norm(slope, axis=1) > _LEAST_SLOPE
    residuals = target.distance_px[mesh_rim].astype(np.float64) + 0.5
    system.add(_pixel_rows(points, slope, camera, place)[usable], residuals[usable], gate_px)

    distance = signed_mask_distance(look.mask)
    nearest = ndimage.distance_transform_edt(~mesh_rim, return_distances=False, return_indices=True)
    row, column = nearest[:, mask_rim]
    slope = slope_of(distance)[mask_rim].astype(np.float64)
    points = unproject_pixels(centres[row, column], look.depth[row, column].astype(np.float64), camera)
    usable = np.linalg.norm(slope, axis=1) > _LEAST_SLOPE
    residuals = distance[mask_rim].astype(np.float64) + 0.5
    system.add(_pixel_rows(points, -slope, camera, place)[usable], residuals[usable], gate_px)


def _add_depth(
    system: _System, look: Appearance, target: Target, place: Similarity, normals: Float64, gate_px: float
) -> None:
    """The mesh's points should lie on the depth render's surface, measured along the mesh's normals."""
    assert target.depth is not None
    camera = target.camera
    known = look.mask & (target.depth > 0)
    if not known.any():
        return
    centres = pixel_centres(camera.image_hw)[known]
    depth = look.depth[known].astype(np.float64)
    points = unproject_pixels(centres, depth, camera)
    seen = unproject_pixels(centres, target.depth[known].astype(np.float64), camera)
    normal = normals[look.face[known]]
    towards = points - camera.position_world
    cosine = np.abs((normal * towards).sum(axis=1)) / np.linalg.norm(towards, axis=1)
    pixel = depth / camera.focal_px[0]
    residuals = (normal * (points - seen)).sum(axis=1) / pixel
    rows = _point_rows(points, normal / pixel[:, None], place)
    usable = cosine > _LEAST_COSINE
    system.add(rows[usable], residuals[usable], gate_px)


def _add_colour(
    system: _System,
    look: Appearance,
    target: Target,
    place: Similarity,
    faces: NDArray[np.int32],
    colours: Float32,
    gate_px: float,
) -> None:
    """The photo at the mesh's points should have the mesh's colours."""
    assert target.colour is not None
    inside, residual, _, _ = colour_residual(look, target, faces, colours)
    if not inside.any():
        return
    camera = target.camera
    points = unproject_pixels(pixel_centres(camera.image_hw)[inside], look.depth[inside].astype(np.float64), camera)
    for channel in range(3):
        slope = slope_of(target.colour[..., channel])[inside].astype(np.float64)
        steepness = float(np.sqrt((slope**2).sum(axis=1).mean()))
        if steepness < 1e-4:
            continue
        rows = _pixel_rows(points, slope / steepness, camera, place)
        system.add(rows, residual[:, channel].astype(np.float64) / steepness, 2.0 * gate_px)


def _pixel_rows(points: FloatArray, slopes: FloatArray, camera: PinholeCamera, place: Similarity) -> Float64:
    """Differentiate values in a picture, of (N, 2) slopes, by the unknowns that move the (N, 3) points shown there."""
    rotation = camera.cam_from_world[:3, :3]
    in_cam = points @ rotation.T + camera.cam_from_world[:3, 3]
    depth = -in_cam[:, 2]
    gx, gy = slopes[:, 0] * camera.focal_px[0] / depth, -slopes[:, 1] * camera.focal_px[1] / depth
    along_z = (gx * in_cam[:, 0] + gy * in_cam[:, 1]) / depth
    return _point_rows(points, np.stack([gx, gy, along_z], axis=1) @ rotation, place)


def _point_rows(points: FloatArray, slopes: FloatArray, place: Similarity) -> Float64:
    """Differentiate values in space, of (N, 3) slopes, by the unknowns; (N, 7)."""
    arms = points - place.translation
    along = (arms * slopes).sum(axis=1, keepdims=True)
    return np.concatenate([np.cross(arms, slopes), along, place.scale * slopes], axis=1)


def _weights(systems: dict[str, _System]) -> dict[str, float]:
    rims = systems["silhouette"].count
    return {
        name: 0.0 if system.count == 0 else (1.0 if rims == 0 else min(1.0, rims / system.count))
        for name, system in systems.items()
    }


def _stepped(place: Similarity, systems: dict[str, _System]) -> Similarity:
    weights = _weights(systems)
    hessian = sum((weights[name] * system.hessian for name, system in systems.items()), np.zeros((7, 7)))
    gradient = sum((weights[name] * system.gradient for name, system in systems.items()), np.zeros(7))
    damping = 1e-3 * np.diag(np.diag(hessian)) + 1e-9 * (1.0 + np.trace(hessian)) * np.eye(7)
    change = -np.linalg.solve(hessian + damping, gradient)
    turn = change[:3] * min(1.0, _LARGEST_TURN_RAD / max(float(np.linalg.norm(change[:3])), 1e-12))
    growth = float(np.clip(change[3], -_LARGEST_GROWTH, _LARGEST_GROWTH))
    shift = place.scale * np.clip(change[4:], -0.5, 0.5)
    left, _, right = np.linalg.svd(rotation_from_vector(turn) @ place.rotation)
    return Similarity(place.scale * float(np.exp(growth)), left @ right, place.translation + shift)


def _sigma(systems: dict[str, _System]) -> Float64:
    """One standard deviation of the unknowns, from the residuals' own spread and their dependence on each other."""
    weights = _weights(systems)
    hessian, middle = np.zeros((7, 7)), np.zeros((7, 7))
    for name, system in systems.items():
        if system.count > 0:
            variance = max(system.squares / system.count, 1e-4)
            hessian += weights[name] * system.hessian
            middle += weights[name] ** 2 * variance * system.hessian
    if np.linalg.eigvalsh(hessian)[0] < 1e-9 * max(float(np.trace(hessian)), 1e-30):
        return np.full(7, np.inf)
    inverse = np.linalg.inv(hessian)
    sigma: Float64 = np.sqrt(_NEIGHBOURS * np.diag(inverse @ middle @ inverse))
    return sigma

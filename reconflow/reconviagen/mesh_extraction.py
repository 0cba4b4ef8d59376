"""From the mesh decoder's features of cubes to a mesh: what the channels mean. The surface itself is FlexiCubes' work.

Space is the decoder's: the cube [-0.5, 0.5]³, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reconflow.errors import ModelConvergenceError, ValidationFailedError
from reconflow.geometry.flexicubes import (
    CubeGrid,
    CubeWeights,
    extract_surface,
    find_rows,
    ravel,
    surface_normals,
    unravel,
)
from reconflow.geometry.flexicubes_tables import CORNERS
from reconflow.reconviagen.elementwise import sigmoid

_FIELD, _SHIFT, _WEIGHTS, _COLOUR = 8, 8 * 3, 21, 8 * 6
_KEEP_INSIDE = 1 - 1e-8
"""A vertex moves by less than half a cube."""


@dataclass(frozen=True, eq=False)
class ExtractedMesh:
    """A mesh with what the decoder says about its surface.

    Attributes:
        vertices: [N, 3] in [-0.5, 0.5]³.
        faces: [F, 3] int64, counter-clockwise seen from outside.
        attributes: [N, 6] in [0, 1]: red, green, blue, and a normal (1 + x, 1 + y, 1 + z) / 2; None without colour.
        face_normals: [F, 3] unit normals.
        vertex_normals: [N, 3] unit normals, weighted by the faces' areas.
    """

    vertices: Tensor
    faces: Tensor
    attributes: Tensor | None
    face_normals: Tensor
    vertex_normals: Tensor


def feature_channels(*, use_color: bool) -> int:
    """Number of features of a cube."""
    return _FIELD + _SHIFT + _WEIGHTS + (_COLOUR if use_color else 0)


def extract_mesh(feats: Tensor, coords: Tensor, resolution: int, *, use_color: bool = True) -> ExtractedMesh:
    """Extract the surface of predicted cubes; differentiable in the features.

    Where the predicted cubes end, the field counts as outside: an object whose inside is not predicted gets an inner
    surface there.

    Args:
        feats: [N, channels]: field at 8 corners, shift of 8 corners, 21 weights, and 6 colours of 8 corners.
        coords: [N, 3] integer coordinates of the cubes; four times as fine as the latent's voxels.
        resolution: Cubes along an axis.
        use_color: Whether the features hold colours.

    Raises:
        ValidationFailedError: Features or cubes do not fit.
        ModelConvergenceError: The features are not finite, or hold no surface.
    """
    if feats.shape != (len(coords), feature_channels(use_color=use_color)):
        raise ValidationFailedError(
            f"Features of the shape {tuple(feats.shape)} do not fit {len(coords)} cubes.",
            suggestion=f"Give {feature_channels(use_color=use_color)} features for each cube.",
        )
    if not bool(torch.isfinite(feats).all()):
        raise ModelConvergenceError(
            "The decoded mesh holds values that are not numbers.",
            suggestion="Run the model in float32, or try another seed.",
        )
    predicted = CubeGrid.of_cubes(coords, resolution)
    at_vertices = predicted.mean_of_corners(corner_values(feats, resolution, use_color=use_color))
    surface = CubeGrid.of_cubes(cubes_at(predicted, at_vertices[:, 0] < 0), resolution)
    vertex_rows, is_known = find_rows(predicted.vertices, surface.vertices)
    values = torch.where(is_known[:, None], at_vertices.index_select(0, vertex_rows), 0.0)
    field = torch.where(is_known, values[:, 0], 1.0)
    lattice = surface.vertex_coords().to(feats.dtype) / resolution - 0.5
    positions = lattice + _KEEP_INSIDE / (2 * resolution) * torch.tanh(values[:, 1:4])
    attributes = sigmoid(values[:, 4:]) if use_color else None
    weights = _cube_weights(feats, predicted, surface)
    result = extract_surface(surface, field, positions, weights, attributes)
    if not len(result.faces):
        raise ModelConvergenceError(
            "The decoded mesh has no surface: its field does not change sign.",
            suggestion="Try another seed, or check that the object fills the pictures.",
        )
    face_normals, vertex_normals = surface_normals(result.vertices, result.faces)
    return ExtractedMesh(result.vertices, result.faces, result.attributes, face_normals, vertex_normals)


def corner_values(feats: Tensor, resolution: int, *, use_color: bool) -> Tensor:
    """Sort features by corner, [N, 8, 1 + 3 (+ 6)]: the field (biased towards inside), the shift, the colour."""
    field, shift, _, colour = torch.split(feats, [_FIELD, _SHIFT, _WEIGHTS, _COLOUR if use_color else 0], dim=1)
    biased = field[:, :, None] - 1 / resolution
    return torch.cat(
        [biased, shift.reshape(len(feats), 8, 3), colour.reshape(len(feats), 8, colour.shape[1] // 8)], dim=2
    )


def cubes_at(grid: CubeGrid, chosen: Tensor) -> Tensor:
    """Coordinates [M, 3] of all cubes, in the grid's set or not, that touch chosen vertices [V] bool; ascending."""
    vertices = unravel(grid.vertices[chosen], grid.resolution + 1)
    cubes = (vertices[:, None] - torch.tensor(CORNERS, device=vertices.device)).flatten(0, 1)
    inside = ((cubes >= 0) & (cubes < grid.resolution)).all(1)
    return unravel(torch.unique(ravel(cubes[inside], grid.resolution)), grid.resolution)


def _cube_weights(feats: Tensor, predicted: CubeGrid, surface: CubeGrid) -> CubeWeights:
    """Weights of the surface's cubes; cubes that were not predicted have features of 0."""
    numbers, order = torch.sort(predicted.cubes)
    rows, is_known = find_rows(numbers, surface.cubes)
    start = _FIELD + _SHIFT
    raw = feats[:, start : start + _WEIGHTS].index_select(0, order[rows])
    raw = torch.where(is_known[:, None], raw, 0.0)
    return CubeWeights(
        edges=torch.tanh(raw[:, :12]) * 0.99 + 1,
        corners=torch.tanh(raw[:, 12:20]) * 0.99 + 1,
        quads=sigmoid(raw[:, 20]) * 0.99 + 0.005,
    )

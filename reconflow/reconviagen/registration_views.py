"""What a placed mesh looks like beside what the views show, and how costly the differences are. Decides nothing.

All lengths in pictures are pixels of the working resolution, so that silhouettes and depth weigh alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from reconflow.cameras.camera import PinholeCamera
from reconflow.geometry.depth import SurfaceObservation, resample_depth, signed_mask_distance
from reconflow.nvdiffrec.photos import Photo, shrink
from reconflow.parallel import run_jobs
from reconflow.rendering.raster import (
    pixel_homogeneous,
    raster_rows,
    resolve_rows,
    screen_from_homogeneous,
)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_DEPTH_WEIGHT: Final = 0.5
_DEPTH_REACH: Final = 0.15
"""Depth that is wrong by this part of the object's size counts as wrong altogether."""
_COLOUR_WEIGHT: Final = 0.3
_COLOUR_NOISE: Final = 0.02
"""Differences of linear light that mean nothing."""


@dataclass(frozen=True, eq=False)
class Target:
    """One view at a working resolution.

    Attributes:
        camera: At this resolution.
        mask: (h, w) bool.
        distance_px: (h, w) float32, signed distance to the mask's border, negative inside.
        slope: (h, w, 2) float32, the distance's gradient along x and y.
        depth: (h, w) float32, world units, 0 where unknown; None without depth.
        colour: (h, w, 3) float32 linear light; None without a photo.
    """

    camera: PinholeCamera
    mask: NDArray[np.bool_]
    distance_px: Float32
    slope: Float32
    depth: Float32 | None
    colour: Float32 | None


@dataclass(frozen=True, eq=False)
class Appearance:
    """The placed mesh in one view: `face` (-1 where there is none), `bary` and `depth` as the rasteriser's buffers."""

    face: NDArray[np.int32]
    bary: Float32
    depth: Float32

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w) bool, where the mesh is."""
        mask: NDArray[np.bool_] = self.face >= 0
        return mask

    def colours(self, faces: NDArray[np.int32], colours: Float32) -> Float32:
        """Interpolate (V, 3) vertex colours, (h, w, 3) float32; of no use where there is no face."""
        corners = faces[np.maximum(self.face, 0)]
        first, second = self.bary[..., :1], self.bary[..., 1:]
        mixed: Float32 = (
            first * colours[corners[..., 0]]
            + second * colours[corners[..., 1]]
            + (1 - first - second) * colours[corners[..., 2]]
        )
        return mixed


def make_targets(
    observations: Sequence[SurfaceObservation], photos: Sequence[Photo] | None, longest_side: int
) -> list[Target]:
    """Bring the views to a working resolution; smaller ones stay as they are.

    Args:
        observations: What the views know of the surface.
        photos: In the same order; None leaves colour out.
        longest_side: Pixels.
    """
    looks = photos if photos is not None else [None] * len(observations)
    return [_target(seen, photo, longest_side) for seen, photo in zip(observations, looks, strict=True)]


def _target(observation: SurfaceObservation, photo: Photo | None, longest_side: int) -> Target:
    height, width = observation.mask.shape
    scale = min(1.0, longest_side / max(height, width))
    image_hw = (max(2, round(height * scale)), max(2, round(width * scale)))
    mask = observation.mask
    if mask.shape != image_hw:
        mask = shrink(mask.astype(np.float32)[..., None], image_hw)[..., 0] >= 0.5
    distance = signed_mask_distance(mask)
    depth = None if observation.depth is None else resample_depth(observation, image_hw)
    colour = None
    if photo is not None:
        colour = ndimage.gaussian_filter(shrink(photo.linear, image_hw), (0.7, 0.7, 0))
    return Target(observation.camera.resized(image_hw), mask, distance, slope_of(distance), depth, colour)


def slope_of(image: Float32) -> Float32:
    """Return the (h, w, 2) float32 gradient of a slightly smoothed image along x and y."""
    smooth = ndimage.gaussian_filter(image, 0.7)
    along_y, along_x = np.gradient(smooth)
    return np.stack([along_x, along_y], axis=-1).astype(np.float32)


def show(vertices: Float64, faces: NDArray[np.int32], targets: Sequence[Target]) -> list[Appearance]:
    """Rasterise a placed mesh into all views, a view per thread."""
    shown: dict[int, Appearance] = {}

    def job(index: int) -> None:
        shown[index] = appearance(vertices, faces, targets[index].camera)

    run_jobs([partial(job, index) for index in range(len(targets))])
    return [shown[index] for index in range(len(targets))]


def appearance(vertices: Float64, faces: NDArray[np.int32], camera: PinholeCamera) -> Appearance:
    """Rasterise a placed mesh into one view, in the calling thread."""
    image_hw = camera.image_hw
    homog = pixel_homogeneous(vertices, camera)
    face, key = np.empty(image_hw, np.int32), np.empty(image_hw, np.float32)
    bary, depth = np.empty((*image_hw, 2), np.float32), np.empty(image_hw, np.float32)
    raster_rows(homog, screen_from_homogeneous(homog), faces, 0, key, face)
    resolve_rows(homog, faces, 0, face, bary, depth)
    return Appearance(face, bary, depth)


@dataclass(frozen=True)
class Misfit:
    """How far a placed mesh is from the views.

    Attributes:
        silhouette: 1 less the mean intersection over union of the silhouettes.
        depth: Mean depth error over pixels that both cover, clipped at and divided by a share of the object's size; 0
            without depth.
        colour: Share of the photos' variance that the mesh's colours leave unexplained; 0 without colours.
    """

    silhouette: float
    depth: float
    colour: float

    @property
    def total(self) -> float:
        """The weighted sum by which placements are compared."""
        return self.silhouette + _DEPTH_WEIGHT * self.depth + _COLOUR_WEIGHT * self.colour


def misfit(
    shown: Sequence[Appearance],
    targets: Sequence[Target],
    size: float,
    faces: NDArray[np.int32],
    colours: Float32 | None,
) -> Misfit:
    """Compare a placed mesh with the views.

    Args:
        shown: The mesh in every view.
        targets: The views.
        size: The object's radius, world units.
        faces: (F, 3) of the mesh.
        colours: (V, 3) linear light; None leaves colour out.
    """
    silhouettes, depths, unexplained, variance = [], [], 0.0, 0.0
    for look, target in zip(shown, targets, strict=True):
        both, either = look.mask & target.mask, look.mask | target.mask
        silhouettes.append(1.0 - both.sum() / max(either.sum(), 1))
        if target.depth is not None:
            known = both & (target.depth > 0)
            error = np.abs(look.depth[known] - target.depth[known]) / (_DEPTH_REACH * size)
            depths.append(float(np.minimum(error, 1.0).mean()) if known.any() else 1.0)
        if colours is not None and target.colour is not None:
            left, total = colour_residual(look, target, faces, colours)[2:]
            unexplained, variance = unexplained + left, variance + total
    depth = float(np.mean(depths)) if depths else 0.0
    return Misfit(float(np.mean(silhouettes)), depth, unexplained / variance if variance > 0 else 0.0)


def colour_residual(
    look: Appearance, target: Target, faces: NDArray[np.int32], colours: Float32
) -> tuple[NDArray[np.bool_], Float32, float, float]:
    """Compare the mesh's colours with a photo, after the gain and offset per channel that suit the photo best.

    Returns:
        inside: (h, w) bool, the pixels compared: inside both silhouettes by a pixel.
        residual: (P, 3) float32, photo less mesh at those pixels, linear light.
        unexplained: Sum of squares of it.
        variance: Sum of the photo's squared deviations from its mean, and of what counts as noise.
    """
    assert target.colour is not None
    inside: NDArray[np.bool_] = ndimage.binary_erosion(look.mask & target.mask)
    if inside.sum() < 16:
        return np.zeros_like(inside), np.zeros((0, 3), np.float32), 0.0, 0.0
    seen = target.colour[inside].astype(np.float64)
    drawn = look.colours(faces, colours)[inside].astype(np.float64)
    seen_mean, drawn_mean = seen.mean(axis=0), drawn.mean(axis=0)
    deviation = drawn - drawn_mean
    gain = (deviation * (seen - seen_mean)).sum(axis=0) / np.maximum((deviation**2).sum(axis=0), 1e-9)
    residual = seen - seen_mean - np.maximum(gain, 0.0) * deviation
    noise = 3 * len(seen) * _COLOUR_NOISE**2
    variance = float(((seen - seen_mean) ** 2).sum()) + noise
    return inside, residual.astype(np.float32), float((residual**2).sum()), variance

"""Silhouettes finer than a pixel, read from the soft edges of photos on a plain background. No cameras, no fitting.

A depth render's mask rounds every straight edge to whole pixels, alike along its whole length. A photo's edge pixels
mix the object's colour with the background's in proportion to what each covers, in linear light.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, spatial, special
from skimage.measure import find_contours

from reconflow.cameras.calibration_views import PreparedViews, clean_mask
from reconflow.cameras.photo_alignment import PhotoShift
from reconflow.colour import linear_from_srgb_u8
from reconflow.datasets.background import fit_background
from reconflow.datasets.dataset import Dataset, MaskSource, View

FloatArray = NDArray[np.float64]

_MAX_NOISE: Final = 1.5
"""Noise of the background, 8-bit levels, beyond which its mixtures are not read."""

_LEAST_CONTRAST: Final = 0.1
"""Difference of object and background, linear light, below which a mixture says nothing."""

_MAX_OFF_LINE: Final = 0.1
"""How far an edge pixel's colour may be from any mixture of the two, as a share of their difference: beyond, other
colours are in it."""

_BAND_PX, _BLUR_PX, _REACH_PX = 2, 0.7, 6.0
_MAX_OFF_PX: Final = 0.8
"""How far a photo's outline may run from the mask's, which is right within half a pixel along either axis."""

_LEAST_SHARE: Final = 0.4
"""Share of a photo's outline that must be readable and run along the mask's."""

_MIXED: Final = (0.15, 0.7)
"""Coverage of a pixel that is mixed for certain: texture alone dims or brightens a pixel of the object less."""

_LEAST_MIXED: Final = 0.25
"""Mixed pixels per pixel of the mask's outline: soft edges have half of them and more, edges in whole pixels none,
and those are no finer than the mask's."""

_LEAST_SHARP: Final = 4
"""Number of views to be read for the others to be left out."""

_LENIENT_PX: Final = 0.5
"""Where the photo cannot be read, the silhouette is taken to reach as far as the mask allows, so that nothing counts as
a miss there; such rims are not drawn as rays either."""


def with_photo_rims(views: PreparedViews, dataset: Dataset, shifts: Sequence[PhotoShift | None]) -> PreparedViews:
    """Replace signed distances near the rims by those to the photos' outlines, where these can be read.

    Args:
        views: The prepared views.
        dataset: What they were prepared from.
        shifts: Per view how its photo lies against its depth; a shifted photo is not used.

    Returns:
        The views with finer `outside_px`, all of them `sharp`; or the same views when too few photos can be read.
    """
    outside, sharp = views.outside_px.copy(), np.zeros(len(views.names), dtype=bool)
    read = {}
    for index, (view, shift) in enumerate(zip(dataset.views, shifts, strict=True)):
        in_place = shift is None or shift.shift_px == (0.0, 0.0)
        if in_place and (coverage := _coverage(view)) is not None:
            read[index] = coverage
    if not _are_soft([(dataset.views[index], *coverage) for index, coverage in read.items()]):
        return views
    for index, coverage in read.items():
        sharp[index] = _refine(outside[index], views, index, *coverage)
    if sharp.sum() < _LEAST_SHARP:
        return views
    outside[~sharp] -= _LENIENT_PX
    return replace(views, outside_px=outside, sharp=True)


def _coverage(view: View) -> tuple[FloatArray, NDArray[np.bool_]] | None:
    """(H, W) how much of each pixel the object covers and whether it can be told; None when no photo tells."""
    mask = clean_mask(view.mask)
    core = ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=_BAND_PX)
    band = ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=_BAND_PX) & ~core
    if not core.any():
        return None
    if view.mask_source is MaskSource.ALPHA:
        return np.where(band, view.alpha, core).astype(np.float64), np.ones(mask.shape, dtype=bool)
    model = fit_background(view.rgb_srgb)
    if not model.usable or model.noise > _MAX_NOISE:
        return None
    linear = linear_from_srgb_u8(view.rgb_srgb).astype(np.float64)
    ys, xs = np.nonzero(band)
    here, behind = linear[ys, xs], _background_at(model.plane, ys, xs, mask.shape)
    contrast = _colours_inside(linear, core, ys, xs) - behind
    strength = (contrast**2).sum(axis=1)
    mixture = ((here - behind) * contrast).sum(axis=1) / np.maximum(strength, 1e-9)
    off_line = np.abs(here - behind - mixture[:, None] * contrast).max(axis=1)
    coverage, told = core.astype(np.float64), np.ones(mask.shape, dtype=bool)
    told[ys, xs] = (strength > _LEAST_CONTRAST**2) & (off_line < _MAX_OFF_LINE * np.sqrt(strength))
    coverage[ys, xs] = np.where(told[ys, xs], np.clip(mixture, 0.0, 1.0), mask[ys, xs])
    return coverage, told


def _are_soft(coverages: Sequence[tuple[View, FloatArray, NDArray[np.bool_]]]) -> bool:
    """Whether the edges are softer than whole pixels; asked of all views together, as a box has four edges in each."""
    mixed = outlines = 0
    for view, coverage, told in coverages:
        mask = clean_mask(view.mask)
        outlines += int(np.count_nonzero(mask & ~ndimage.binary_erosion(mask)))
        mixed += int(np.count_nonzero(told & (coverage > _MIXED[0]) & (coverage < _MIXED[1])))
    return mixed > _LEAST_MIXED * outlines


def _background_at(plane: FloatArray, ys: NDArray[np.int64], xs: NDArray[np.int64], hw: tuple[int, ...]) -> FloatArray:
    where = np.stack([np.ones(len(xs)), (xs + 0.5) / hw[1], (ys + 0.5) / hw[0]], axis=1)
    levels = np.clip(where @ plane.T, 0.0, 255.0)
    return linear_from_srgb_u8(np.round(levels).astype(np.uint8)).astype(np.float64)


def _colours_inside(
    linear: FloatArray, core: NDArray[np.bool_], ys: NDArray[np.int64], xs: NDArray[np.int64]
) -> FloatArray:
    """(N, 3) mean colour of the object around the core pixel nearest to each of N pixels."""
    near_y, near_x = ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True)[:, ys, xs]
    weight = ndimage.uniform_filter(core.astype(np.float64), 3)
    sums = (ndimage.uniform_filter(np.where(core, linear[..., c], 0.0), 3) for c in range(3))
    return np.stack([(total / np.maximum(weight, 1e-9))[near_y, near_x] for total in sums], axis=1)


def _refine(
    outside_px: NDArray[np.float32],
    views: PreparedViews,
    index: int,
    coverage: FloatArray,
    told: NDArray[np.bool_],
) -> bool:
    """Write signed distances to the coverage's outline where it runs along the mask's; False when it hardly does."""
    soft = ndimage.gaussian_filter(coverage, _BLUR_PX)
    scale, offset = views.photo_from_px[index]
    outlines = [line[:, ::-1] for line in _lines_at_half(soft) if len(line) > 2]
    if not outlines:
        return False
    starts = np.concatenate([line[:-1] for line in outlines])
    ends = np.concatenate([line[1:] for line in outlines])
    middles = 0.5 * (starts + ends)
    readable = _at(ndimage.minimum_filter(told.astype(np.float64), 3), middles) > 0.5
    starts, ends, middles = (np.asarray((p + 0.5 - offset) / scale, dtype=np.float64) for p in (starts, ends, middles))
    grid = outside_px.astype(np.float64)
    along = readable & (np.abs(_at(grid, middles - 0.5)) < _MAX_OFF_PX)
    if along.mean() < _LEAST_SHARE:
        return False
    height, width = views.sizes_hw[index]
    ys, xs = np.nonzero(np.abs(grid[:height, :width]) < _REACH_PX)
    px = np.stack([xs, ys], axis=1).astype(np.float64) + 0.5
    near = spatial.cKDTree(middles).query(px, k=4)[1]
    distance = _distance_to_segments(px, starts[near], ends[near]).min(axis=1)
    inside = _at(soft, px * scale + offset - 0.5) > 0.5
    signed = np.where(inside, -distance, distance)
    trusted = along[near].all(axis=1) & (np.abs(signed - grid[ys, xs]) < 1.0)
    outside_px[ys, xs] = np.where(trusted, signed, grid[ys, xs] - _LENIENT_PX)
    return True


def _lines_at_half(soft: FloatArray) -> list[FloatArray]:
    """Outlines at half coverage; a blurred straight edge is a straight line in probits, so interpolation is exact."""
    contours: Any = find_contours
    probits = special.ndtri(np.clip(soft, 1e-4, 1.0 - 1e-4))
    lines: list[FloatArray] = contours(probits, 0.0)
    return lines


def _at(image: FloatArray, xy: FloatArray) -> FloatArray:
    values: FloatArray = ndimage.map_coordinates(image, xy.T[::-1], order=1, mode="nearest")
    return values


def _distance_to_segments(px: FloatArray, starts: FloatArray, ends: FloatArray) -> FloatArray:
    """(N, K) distances of (N, 2) points to K segments each, (N, K, 2) starts and ends."""
    step = ends - starts
    share = ((px[:, None] - starts) * step).sum(axis=2) / np.maximum((step**2).sum(axis=2), 1e-12)
    distance: FloatArray = np.linalg.norm(px[:, None] - starts - np.clip(share, 0.0, 1.0)[..., None] * step, axis=2)
    return distance

"""A dataset prepared for calibration: cleaned masks, smoothed depth, signed distances and sample points. No fitting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from reconflow.cameras.calibration_kernels import smooth_within_rounding
from reconflow.cameras.camera import PinholeCamera
from reconflow.datasets.dataset import Dataset, DepthEncoding, DepthImage, View
from reconflow.geometry.depth import smooth_inside_intervals

WORKING_SIZE: Final = 512
"""Larger pictures are sampled with a stride, so that the cost does not grow with their resolution."""

MANY_VIEWS: Final = 24
"""With more views than this the working size is halved, which bounds the memory."""

SPECK_FRACTION: Final = 0.01
"""Pieces of a mask smaller than this share of its largest piece are specks."""

_SWEEPS: Final = 60
_FINE_LEVELS: Final = 4096
_PLATE_SHARE: Final = 0.7
"""By experiment: on random objects in 8 bits depth scales are 0.22 levels too small with the membrane alone, 0.08 too
large with the plate alone (`python -m benchmarks.calibration`)."""


@dataclass(frozen=True, eq=False)
class SamplePoints:
    """Pixels of all views that are back-projected; rims are sampled as densely as faces.

    Attributes:
        view: (P,) int64.
        px: (P, 2) working pixels, x then y, pixel centres at half-integers.
        value: (P,) depth as a fraction of the view's scale.
        slope: (P, 2) its derivatives along x and y, per working pixel; NaN where a surface ends.
    """

    view: NDArray[np.int64]
    px: NDArray[np.float64]
    value: NDArray[np.float64]
    slope: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PreparedViews:
    """All views of a dataset as stacked arrays, at a working resolution of their own.

    Attributes:
        names: View names.
        sizes_hw: (V, 2) int64 working (height, width).
        photo_from_px: (V, 2, 2) scale and offset, x and y: photo pixel = scale * working pixel + offset.
        masks: (V, H, W) bool, padded with false.
        values: (V, H, W) depth as a fraction of the view's scale (the depth of the largest code), 0 = nothing.
        outside_px: (V, H, W) signed distance to the silhouette, positive outside, working pixels.
        rounding: (V,) standard deviation of a stored depth as a fraction of the scale; 0 without depth.
        has_depth: (V,) bool.
        known_scale: (V,) world units of value 1 where the encoding is metric, else 0.
        sharp: Whether `outside_px` is finer than whole pixels near the silhouettes.
    """

    names: tuple[str, ...]
    sizes_hw: NDArray[np.int64]
    photo_from_px: NDArray[np.float64]
    masks: NDArray[np.bool_]
    values: NDArray[np.float32]
    outside_px: NDArray[np.float32]
    rounding: NDArray[np.float64]
    has_depth: NDArray[np.bool_]
    known_scale: NDArray[np.float64]
    sharp: bool = False

    def intrinsics_px(self, cameras: Sequence[PinholeCamera]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (V, 2) focal lengths and (V, 2) principal points of cameras at the photos' size, in working pixels."""
        scale, offset = self.photo_from_px[:, 0], self.photo_from_px[:, 1]
        focal = np.array([camera.focal_px for camera in cameras]) / scale
        return focal, (np.array([camera.centre_px for camera in cameras]) - offset) / scale

    def sample(self, faces_per_view: int, rims_per_view: int) -> SamplePoints:
        """Draw pixels of every view that has depth; the same ones every time.

        Args:
            faces_per_view: Number of pixels drawn from the whole mask.
            rims_per_view: Number of further pixels drawn from the silhouette's rim.
        """
        random = np.random.default_rng(0)
        parts = []
        for index in np.flatnonzero(self.has_depth):
            valid = self.values[index] > 0
            rim = valid & (self.outside_px[index] > -1.0)
            for candidates, number in ((np.flatnonzero(valid), faces_per_view), (np.flatnonzero(rim), rims_per_view)):
                chosen = np.sort(random.permutation(candidates)[:number])
                parts.append(np.stack([np.full(len(chosen), index), chosen], axis=1))
        view, flat = np.concatenate(parts).T if parts else np.zeros((2, 0), dtype=np.int64)
        y, x = np.divmod(flat, self.masks.shape[2])
        slope = np.stack([self._slope(view, y, x, 0, 1), self._slope(view, y, x, 1, 0)], axis=1)
        return SamplePoints(
            view, np.stack([x + 0.5, y + 0.5], axis=1), self.values[view, y, x].astype(np.float64), slope
        )

    def rims(self, per_view: int) -> SamplePoints:
        """Draw points on the silhouettes, in all views; their values and slopes are not set (NaN).

        A silhouette runs half-way between the last pixel centre inside and the first one outside.

        Args:
            per_view: Number of points per view.
        """
        random = np.random.default_rng(0)
        parts = []
        for index in range(len(self.names)):
            candidates = np.flatnonzero(self.masks[index] & (self.outside_px[index] > -0.75))
            chosen = np.sort(random.permutation(candidates)[:per_view])
            parts.append(np.stack([np.full(len(chosen), index), chosen], axis=1))
        view, flat = np.concatenate(parts).T
        y, x = np.divmod(flat, self.masks.shape[2])
        unset = np.full(len(view), np.nan)
        outward = np.array([np.gradient(image) for image in self.outside_px])[view, :, y, x][:, ::-1]
        outward = outward / np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-6)
        px = np.stack([x + 0.5, y + 0.5], axis=1) - self.outside_px[view, y, x][:, None] * outward
        return SamplePoints(view, px, unset, np.stack([unset, unset], axis=1))

    def _slope(
        self, view: NDArray[np.int64], y: NDArray[np.int64], x: NDArray[np.int64], dy: int, dx: int
    ) -> NDArray[np.float64]:
        height, width = self.masks.shape[1:]
        here = self.values[view, y, x].astype(np.float64)
        after = self.values[view, np.minimum(y + dy, height - 1), np.minimum(x + dx, width - 1)]
        before = self.values[view, np.maximum(y - dy, 0), np.maximum(x - dx, 0)]
        forward, backward = np.where(after > 0, after - here, np.nan), np.where(before > 0, here - before, np.nan)
        return np.where(np.abs(forward) < np.abs(backward), forward, np.where(np.isnan(backward), forward, backward))


def clean_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the (H, W) mask without specks: pieces far smaller than the largest one."""
    labels, count = ndimage.label(mask, np.ones((3, 3), dtype=int))
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes >= SPECK_FRACTION * sizes.max())[labels]
    return kept


def prepare_views(dataset: Dataset) -> PreparedViews:
    """Stack a dataset's masks and depth renders at the working resolution."""
    largest = WORKING_SIZE if len(dataset.views) <= MANY_VIEWS else WORKING_SIZE // 2
    prepared = [_prepare(view, largest) for view in dataset.views]
    sizes = np.array([p[0].shape for p in prepared], dtype=np.int64)
    height, width = sizes.max(axis=0)
    count = len(prepared)
    masks = np.zeros((count, height, width), dtype=bool)
    values = np.zeros((count, height, width), dtype=np.float32)
    outside = np.full((count, height, width), height + width, dtype=np.float32)
    for index, (mask, value, distance, _, _) in enumerate(prepared):
        part = (index, slice(mask.shape[0]), slice(mask.shape[1]))
        masks[part], values[part], outside[part] = mask, value, distance
    return PreparedViews(
        names=tuple(view.name for view in dataset.views),
        sizes_hw=sizes,
        photo_from_px=np.array([_photo_from_px(view, largest) for view in dataset.views]),
        masks=masks,
        values=values,
        outside_px=outside,
        rounding=np.array([p[3] for p in prepared]),
        has_depth=np.array([view.depth is not None for view in dataset.views]),
        known_scale=np.array([p[4] for p in prepared]),
    )


def is_coarse(view: View) -> bool:
    """Return whether a view's depth is stored in so few levels that terraces matter."""
    return view.depth is not None and view.depth.max_value < _FINE_LEVELS


def with_unbiased_depth(views: PreparedViews, dataset: Dataset) -> PreparedViews:
    """Return the views with depth whose errors have no common sign.

    Inside the rounding intervals a membrane, as `prepare_views` has it, flattens bulges and puts surfaces too far away;
    a thin plate overshoots and puts them too near. Mixed as their biases are, they cancel.
    """
    values = views.values.copy()
    largest = WORKING_SIZE if len(dataset.views) <= MANY_VIEWS else WORKING_SIZE // 2
    for index, view in enumerate(dataset.views):
        if view.depth is not None and is_coarse(view):
            height, width = views.sizes_hw[index]
            membrane = values[index, :height, :width]
            counts = np.where(membrane > 0, _strided(view.depth.values, largest), 0).astype(np.float32)
            plate = smooth_inside_intervals(counts, np.full_like(counts, 0.5)) / view.depth.max_value
            values[index, :height, :width] = _PLATE_SHARE * plate + (1 - _PLATE_SHARE) * membrane
    return replace(views, values=values)


def _prepare(
    view: View, largest: int
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64], float, float]:
    depth = view.depth
    has_own_mask = depth is None or depth.encoding is not DepthEncoding.RELATIVE_Z
    counts = None if depth is None else _strided(depth.values, largest).astype(np.float64)
    if has_own_mask or counts is None:
        shape = None if counts is None else counts.shape
        mask = clean_mask(_strided(view.mask, largest) if shape is None else _resampled(view.mask, shape))
    else:
        mask = clean_mask(counts > 0)
    value, rounding, known = np.zeros(mask.shape), 0.0, 0.0
    if depth is not None and counts is not None:
        counts = np.where(mask, counts, 0.0)
        value = _fractions(counts, depth)
        rounding = 0.3 / depth.max_value
        known = depth.max_value * (depth.unit or 0.0) if depth.encoding is DepthEncoding.METRIC_Z else 0.0
    distance: NDArray[np.float64] = ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)
    distance = distance - 0.5 * np.sign(
        distance
    )  # zero half-way between the centres of the last pixel in and the first out
    return mask, value, distance, rounding, known


def _fractions(counts: NDArray[np.float64], depth: DepthImage) -> NDArray[np.float64]:
    smooth: Any = smooth_within_rounding(counts, 0.5, float(depth.max_value), 2.0, _SWEEPS, 1.8)
    return np.asarray(smooth / depth.max_value, dtype=np.float64)


def _photo_from_px(view: View, largest: int) -> tuple[tuple[float, float], tuple[float, float]]:
    source_hw = view.image_hw if view.depth is None else view.depth.values.shape
    stride = _stride(source_hw, largest)
    # A sample sits at the centre of source pixel stride // 2, stride // 2 + stride, ...
    offset = stride // 2 + 0.5 - 0.5 * stride
    sx, sy = view.image_hw[1] / source_hw[1], view.image_hw[0] / source_hw[0]
    return (stride * sx, stride * sy), (offset * sx, offset * sy)


def _stride(hw: tuple[int, ...], largest: int) -> int:
    return max(1, -(-max(hw) // largest))


def _strided(image: NDArray[Any], largest: int) -> NDArray[Any]:
    stride = _stride(image.shape, largest)
    return image[stride // 2 :: stride, stride // 2 :: stride]


def _resampled(mask: NDArray[np.bool_], hw: tuple[int, ...]) -> NDArray[np.bool_]:
    ys = ((np.arange(hw[0]) + 0.5) * mask.shape[0] / hw[0]).astype(int)
    xs = ((np.arange(hw[1]) + 0.5) * mask.shape[1] / hw[1]).astype(int)
    return mask[np.ix_(ys, xs)]

"""Which pixels of a photo show the object: from alpha, a mask file, the depth render or the background's colour.

The sources are tried in that order and the one used is always reported. Nothing here reads files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from reconflow.datasets.background import fit_background
from reconflow.datasets.dataset import DepthEncoding, DepthImage, MaskSource
from reconflow.datasets.image_decoding import Photo
from reconflow.errors import ValidationFailedError

_EIGHT: Final = np.ones((3, 3), bool)
_TINY_SHARE: Final = 2e-4
_SMALL_SHARE: Final = 1e-2
_FAR_SHARE: Final = 0.03
_HOLE_SHARE: Final = 5e-4
_SUPPLY: Final = "Supply the mask as alpha channel, a depth render, or (with a transforms.json) a mask file."


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """An object mask at the photo's resolution.

    Attributes:
        alpha: (H, W) float32 in [0, 1], how much of each pixel the object covers.
        source: Where it came from.
        notes: What was done on the way, sentences for a person.
    """

    alpha: NDArray[np.float32]
    source: MaskSource
    notes: tuple[str, ...] = ()


def object_mask(photo: Photo, mask_file: NDArray[np.uint8] | None, depth: DepthImage | None, view: str) -> ObjectMask:
    """Choose a view's mask.

    Args:
        photo: The view's picture.
        mask_file: (H, W) uint8 content of a mask file at the photo's resolution.
        depth: The view's depth; only RELATIVE_Z tells the object, in METRIC_Z a zero means unknown.
        view: The view's name, for messages.

    Raises:
        ValidationFailedError: When nothing is left but a background that is not plain.
    """
    notes: list[str] = []
    if photo.alpha is not None:
        if photo.alpha.min() < 128:
            return ObjectMask(_unit(photo.alpha), MaskSource.ALPHA)
        notes.append(f"{view}: the alpha channel is opaque throughout and not used as a mask.")
    if mask_file is not None:
        return ObjectMask(_unit(mask_file), MaskSource.FILE, tuple(notes))
    if depth is not None and depth.encoding is DepthEncoding.RELATIVE_Z:
        kept, removed_px = without_specks(depth.values > 0)
        if removed_px:
            notes.append(f"{view}: {removed_px} stray pixels of the depth render, far from the object, are not used.")
        return ObjectMask(coverage_at(kept, photo.rgb_srgb.shape[:2]), MaskSource.DEPTH, tuple(notes))
    notes.append(
        f"{view}: the mask was estimated from the background's colour; shadows and pale parts may be wrong in it."
    )
    return ObjectMask(mask_from_background(photo.rgb_srgb, view), MaskSource.BACKGROUND, tuple(notes))


def without_specks(mask: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], int]:
    """Remove components that cannot be part of the object.

    Dropped are components below 0.02 % of the largest one's area, and those below 1 % of it that also lie farther
    from every larger one than 3 % of the picture's longer side.

    Args:
        mask: (h, w).

    Returns:
        kept: (h, w), the input itself when nothing was dropped.
        removed_px: Pixels dropped.
    """
    labels, count = ndimage.label(mask, structure=_EIGHT)
    if count <= 1:
        return mask, 0
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    tiny = areas < max(2.0, _TINY_SHARE * areas.max())
    small = (areas < _SMALL_SHARE * areas.max()) & ~tiny
    dropped = tiny.copy()
    dropped[0] = False
    candidates = np.flatnonzero(small[1:]) + 1
    if candidates.size:
        dropped[candidates[_gaps_px(labels, ~(tiny | small), candidates) > _FAR_SHARE * max(mask.shape)]] = True
    if not dropped.any():
        return mask, 0
    return mask & ~dropped[labels], int(areas[dropped].sum())


def coverage_at(mask: NDArray[np.bool_], image_hw: tuple[int, ...]) -> NDArray[np.float32]:
    """Resample a binary mask to a photo's resolution as coverage, 0 to 1, fractional at the rim.

    Bilinear between sample centres when enlarging, area-weighted when shrinking; unchanged at equal size.

    Args:
        mask: (h, w), same field of view as the photo.
        image_hw: (H, W) wanted.
    """
    if mask.shape == tuple(image_hw):
        return mask.astype(np.float32)
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    shrinking = mask.shape[0] > image_hw[0]
    method = Image.Resampling.BOX if shrinking else Image.Resampling.BILINEAR
    return _unit(np.asarray(image.resize((image_hw[1], image_hw[0]), method)))


def mask_from_background(rgb_srgb: NDArray[np.uint8], view: str) -> NDArray[np.float32]:
    """Estimate the mask of an object in front of a plain background.

    At the rim a pixel's coverage is its distance from the background relative to the largest one beside it, so that
    the mask ends at half contrast. Background-coloured regions inside the object count as holes only when they are
    larger than 0.05 % of the picture and lie clearly within the background's noise.

    Args:
        rgb_srgb: (H, W, 3) display values.
        view: The view's name, for messages.

    Returns:
        alpha: (H, W) float32 in [0, 1].

    Raises:
        ValidationFailedError: When the rim of the picture is not plain.
    """
    background = fit_background(rgb_srgb)
    if not background.usable:
        raise ValidationFailedError(
            f"{view}: the object cannot be told from the background, which is not plain.",
            suggestion=_SUPPLY,
            noise_levels=None if np.isinf(background.noise) else round(background.noise, 1),
            plain_rim_share=round(background.inlier_share, 3),
        )
    distance = background.distance(rgb_srgb)
    threshold = background.threshold
    solid, _ = without_specks(distance >= threshold)
    filled = _without_false_holes(solid, distance, 0.5 * threshold)
    contrast = np.maximum(ndimage.maximum_filter(distance, 3).astype(np.float32), np.float32(2 * threshold))
    alpha: NDArray[np.float32] = np.minimum(distance / contrast, np.float32(1))
    alpha[(distance < 0.5 * threshold) | ~ndimage.binary_dilation(filled, _EIGHT)] = 0
    alpha[(filled & ~solid) | ndimage.binary_erosion(filled, _EIGHT, iterations=2)] = 1
    return alpha


def border_share(mask: NDArray[np.bool_]) -> float:
    """Return the share of the frame's outermost pixels that the mask covers, 0 to 1."""
    rim = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    return float(rim.mean())


def _without_false_holes(solid: NDArray[np.bool_], distance: NDArray[np.uint8], within: float) -> NDArray[np.bool_]:
    labels, count = ndimage.label(~solid)
    outside = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    plain = np.bincount(labels.ravel(), weights=(distance < within).ravel(), minlength=count + 1)
    is_hole = (areas > _HOLE_SHARE * solid.size) & (plain > 0.5 * areas)
    is_hole[outside] = True
    is_hole[0] = False
    filled: NDArray[np.bool_] = ~is_hole[labels]
    return filled


def _gaps_px(labels: NDArray[np.int32], large: NDArray[np.bool_], candidates: NDArray[Any]) -> NDArray[np.float64]:
    """Return each candidate's distance to the nearest large component, measured on at most 512 samples a side."""
    step = max(1, max(labels.shape) // 512)
    is_large = large.copy()
    is_large[0] = False
    body = is_large[labels][: labels.shape[0] // step * step, : labels.shape[1] // step * step]
    coarse = body.reshape(body.shape[0] // step, step, body.shape[1] // step, step).any(axis=(1, 3))
    to_body = ndimage.distance_transform_edt(~coarse) * step
    gaps = np.empty(len(candidates))
    boxes = ndimage.find_objects(labels)
    for i, label in enumerate(candidates):
        box = boxes[label - 1]
        ys, xs = np.nonzero(labels[box] == label)
        rows = np.minimum((ys + box[0].start) // step, coarse.shape[0] - 1)
        columns = np.minimum((xs + box[1].start) // step, coarse.shape[1] - 1)
        gaps[i] = to_body[rows, columns].min()
    return gaps


def _unit(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    return values * np.float32(1 / 255)

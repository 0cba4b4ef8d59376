"""From a user's picture to what the networks see: the object cut out, centred and resized on black. Finds no masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reconflow.errors import InvalidFileFormatError, ValidationFailedError

RESOLUTION = 518
"""Width and height in pixels of the images that the networks take."""
Matting = Callable[[Image.Image], NDArray[np.bool_]]
"""Finds the object in an RGB image: the mask [H, W], True on the object."""

_OPAQUE = 0.8
_MARGIN = 1.1
_LONGEST_SIDE = 1024


def prepare_image(image: Image.Image, *, resolution: int = RESOLUTION, matting: Matting | None = None) -> Image.Image:
    """Cut the object out, centre it with a margin of a tenth, and resize it.

    Args:
        image: A picture whose alpha marks the object; one that is opaque everywhere needs `matting`.
        resolution: Width and height of the result in pixels.
        matting: Finds the object in pictures that do not mark it.

    Returns:
        RGBA, resolution × resolution, black where alpha is at most 0.8. An object cut by the border of its picture is
        not in the middle.

    Raises:
        InvalidFileFormatError: The picture marks no object and there is no `matting`.
        ValidationFailedError: Nothing, or only a point, of the picture belongs to the object.
    """
    rgba = np.asarray(_with_alpha(image, matting))
    cropped = rgba[_crop_box(rgba[..., 3])]
    height, width = cropped.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cropped.astype(np.float32) / 255
    resized = _resize(square, resolution)
    resized[..., :3] *= resized[..., 3:] > _OPAQUE
    return Image.fromarray((resized * 255).astype(np.uint8), "RGBA")


def images_to_tensor(images: Sequence[Image.Image], *, resolution: int = RESOLUTION) -> Tensor:
    """Stack prepared images as [N, 3, resolution, resolution] RGB in [0, 1]; alpha is dropped, not blended.

    Raises:
        ValidationFailedError: There are no images.
    """
    if not images:
        raise ValidationFailedError("There are no images.", suggestion="Supply at least one view.")
    return torch.stack([_network_input(image, resolution) for image in images])


def _network_input(image: Image.Image, resolution: int) -> Tensor:
    rgb = image.convert("RGB")
    if rgb.size != (resolution, resolution):
        rgb = rgb.resize((resolution, resolution), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).float() / 255


def _with_alpha(image: Image.Image, matting: Matting | None) -> Image.Image:
    """The picture as RGBA whose alpha marks the object."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if np.asarray(rgba)[..., 3].min() < 255:
            return rgba
    if matting is None:
        raise InvalidFileFormatError(
            "A picture has no transparency that would mark the object.",
            suggestion="Supply pictures with an alpha channel, or masks beside them.",
        )
    rgb = image.convert("RGB")
    longest = max(rgb.size)
    if longest > _LONGEST_SIDE:
        scale = _LONGEST_SIDE / longest
        rgb = rgb.resize((int(rgb.width * scale), int(rgb.height * scale)), Image.Resampling.LANCZOS)
    rgb.putalpha(Image.fromarray(255 * matting(rgb).astype(np.uint8), "L"))
    return rgb


def _crop_box(alpha: NDArray[np.uint8]) -> tuple[slice, slice]:
    """Rows and columns of the square around the object, clipped to the picture."""
    rows, columns = np.nonzero(alpha > _OPAQUE * 255)
    extent = max(np.ptp(rows), np.ptp(columns)) if len(rows) else 0
    half = int(_MARGIN * extent) // 2
    if not half:
        raise ValidationFailedError(
            "A picture shows no object: nothing in it, or a single point, is opaque.",
            suggestion="Check the picture's alpha channel or its mask.",
            opaque_pixels=len(rows),
        )
    return _side(rows, half, alpha.shape[0]), _side(columns, half, alpha.shape[1])


def _side(indices: NDArray[np.intp], half: int, length: int) -> slice:
    centre = (int(indices.min()) + int(indices.max())) / 2
    return slice(max(int(centre - half), 0), min(int(centre + half), length))


def _resize(square: NDArray[np.float32], resolution: int) -> NDArray[Any]:
    """Resize [S, S, 4] bilinearly without antialiasing; colours are not weighted by alpha."""
    grid = torch.from_numpy(square).permute(2, 0, 1)[None]
    size = (resolution, resolution)
    resized = torch.nn.functional.interpolate(grid, size=size, mode="bilinear", align_corners=False)
    array: NDArray[Any] = resized[0].permute(1, 2, 0).contiguous().numpy()
    return array

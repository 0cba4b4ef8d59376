"""Photos as the fit uses them: decoded to linear light, at a working resolution, over a known background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from reconflow.cameras.camera import PinholeCamera
from reconflow.colour import linear_from_srgb_u8
from reconflow.datasets.dataset import View

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo as the fit uses it.

    Attributes:
        camera: Its camera, at this resolution.
        linear: (H, W, 3) float32 linear light, as photographed.
        coverage: (H, W) float32, how much of each pixel the object covers.
        on_white: Whether the photo's own background is white, so that its edge pixels already blend with white.
    """

    camera: PinholeCamera
    linear: Float32
    coverage: Float32
    on_white: bool

    @property
    def over_white(self) -> Float32:
        """(H, W, 3) the object over white, linear light: the picture a render is compared with."""
        if self.on_white:
            return self.linear
        alpha = self.coverage[..., None]
        blended: Float32 = self.linear * alpha + (1 - alpha)
        return blended


def prepare_photo(view: View, camera: PinholeCamera, longest_side: int) -> Photo:
    """Decode a photo; one larger than `longest_side` is shrunk to it by area averaging in linear light.

    Args:
        view: The view.
        camera: Its camera, at the photo's resolution.
        longest_side: Pixels.
    """
    linear, coverage = linear_from_srgb_u8(view.rgb_srgb), view.alpha
    height, width = view.image_hw
    if max(height, width) > longest_side:
        scale = longest_side / max(height, width)
        image_hw = (max(1, round(height * scale)), max(1, round(width * scale)))
        linear = shrink(linear, image_hw)
        coverage = shrink(coverage[..., None], image_hw)[..., 0]
        camera = camera.resized(image_hw)
    return Photo(camera, linear, np.ascontiguousarray(coverage), _is_on_white(linear, coverage))


def shrink(image: Float32, image_hw: tuple[int, int]) -> Float32:
    """Average an (H, W, C) float32 image over the areas of a smaller image's pixels."""
    size = (image_hw[1], image_hw[0])
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(image[..., c])).resize(size, Image.Resampling.BOX))
        for c in range(image.shape[2])
    ]
    return np.ascontiguousarray(np.stack(channels, axis=2), np.float32)


def _is_on_white(linear: Float32, coverage: Float32) -> bool:
    """Tell whether nearly everything well outside the object is white to within two per cent of linear light."""
    outside = ~ndimage.binary_dilation(coverage > 0, iterations=3)
    if outside.sum() < 0.02 * outside.size:
        return False
    return bool((linear[outside].min(axis=1) > 0.98).mean() > 0.999)

"""Encoding pictures to bytes, the same bytes for the same pixels, and to data URLs. No drawing, no files."""

from __future__ import annotations

import base64
import io
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MIME_TYPES: Final = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

ImageFormat = Literal["png", "jpeg", "webp"]


def encode_image(image: NDArray[np.uint8], kind: ImageFormat = "png", quality: int = 88) -> bytes:
    """Encode one picture without metadata.

    Args:
        image: (H, W, 3) uint8 sRGB, row 0 on top.
        kind: File format; only `png` is lossless here.
        quality: Of `jpeg` and `webp`, 0 to 100.
    """
    stream = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(image))
    if kind == "png":
        picture.save(stream, "PNG", compress_level=4)
    elif kind == "jpeg":
        picture.save(stream, "JPEG", quality=quality, subsampling=0, optimize=False, progressive=False)
    else:
        picture.save(stream, "WEBP", quality=quality, method=4)
    return stream.getvalue()


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture that `encode_image` made: (H, W, 3) uint8 sRGB, row 0 on top."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def resize_to_width(image: NDArray[np.uint8], width: int) -> NDArray[np.uint8]:
    """Shrink a picture to a width by area averaging; return it as it is when it is not wider."""
    if image.shape[1] <= width:
        return image
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def data_url(data: bytes, mime_type: str) -> str:
    """Return a `data:` URL that holds the bytes, base64."""
    return f"data:{mime_type};base64,{base64.b64encode(data).decode('ascii')}"


def thumbnail_url(image: NDArray[np.uint8], width: int = 160) -> str:
    """Return a small picture as a data URL of a few kilobytes, for orchestrators' artifact pages.

    Args:
        image: (H, W, 3) uint8 sRGB.
        width: Of the thumbnail, pixels.
    """
    return data_url(encode_image(resize_to_width(image, width), "webp", quality=80), MIME_TYPES["webp"])

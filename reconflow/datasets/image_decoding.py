"""Decoding of photos, depth renders and mask files into arrays. Formats are judged by content; no dataset logic here.

Stored values are kept in 8 or 16 bits; nothing is converted to floating point. The decoder only sees the parts of a
file that it needs (`image_headers`), and its own complaints become `InvalidFileFormatError`.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from reconflow.datasets.image_headers import Colours, ImageFormat, ImageHeader
from reconflow.errors import InvalidFileFormatError

_DECODER_ERRORS: Final = (
    OSError,  # also UnidentifiedImageError and truncation
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_TRANSPOSE: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded photo.

    Attributes:
        rgb_srgb: (H, W, 3) uint8, straight, row 0 on top, upright.
        alpha: (H, W) uint8, or None when the file has none.
        notes: What was converted, sentences for a person.
    """

    rgb_srgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    notes: tuple[str, ...]


def decode_photo(content: bytes, header: ImageHeader, file: str) -> Photo:
    """Decode a colour picture: 8-bit sRGB, EXIF orientation applied, colour profile converted.

    Args:
        content: The file.
        header: Its header.
        file: Its name, for messages.

    Raises:
        InvalidFileFormatError: When it holds no RGB colours or cannot be decoded completely.
    """
    if header.colours in (Colours.GREY, Colours.GREY_ALPHA, Colours.CMYK):
        raise InvalidFileFormatError(
            f"{file} is stored as {header.colours}; a photo has to be RGB or RGBA.",
            suggestion="Save it as 8-bit RGB or RGBA; if it is a depth render, it belongs into depth_renders.",
            file=file,
        )
    notes = []
    image = _decoded(content, header, file)
    if header.bits > 8:
        notes.append(f"{file} has {header.bits} bits per channel; it is used with 8.")
    if header.colours is Colours.PALETTE:
        notes.append(f"{file} has a palette; it was expanded to RGB.")
    has_alpha = header.colours is Colours.RGBA or "transparency" in image.info
    image = image.convert("RGBA" if has_alpha else "RGB")
    if header.orientation != 1:
        image = image.transpose(_TRANSPOSE[header.orientation])
        notes.append(f"{file} was turned upright as its EXIF orientation says.")
    alpha = np.asarray(image.getchannel("A")) if has_alpha else None
    colours = image.convert("RGB")
    if header.profile is not None:
        colours, note = _to_srgb(colours, header.profile, file)
        notes += [note] if note else []
    return Photo(np.asarray(colours), alpha, tuple(notes))


def decode_depth(content: bytes, header: ImageHeader, file: str) -> NDArray[np.uint16]:
    """Decode a depth render: one grey channel of 8 or 16 bits, stored values untouched.

    Args:
        content: The file.
        header: Its header.
        file: Its name, for messages.

    Returns:
        values: (h, w) uint16, row 0 on top.

    Raises:
        InvalidFileFormatError: When it is no PNG, has colours or another bit depth, or cannot be decoded.
    """
    if header.format is not ImageFormat.PNG or header.colours is not Colours.GREY or header.bits not in (8, 16):
        raise InvalidFileFormatError(
            f"{file} is a {header.bits}-bit {header.colours} {header.format}; a depth render has to be a grey PNG "
            "of 8 or 16 bits.",
            suggestion="Save the depth as a single-channel PNG, 16 bits if you can; lossy formats destroy it.",
            file=file,
        )
    return np.asarray(_decoded(content, header, file)).astype(np.uint16)


def decode_mask(content: bytes, header: ImageHeader, file: str) -> NDArray[np.uint8]:
    """Decode a mask file: one channel, white = object, black = ignore.

    Args:
        content: The file.
        header: Its header.
        file: Its name, for messages.

    Returns:
        mask: (h, w) uint8, 0 to 255, row 0 on top.

    Raises:
        InvalidFileFormatError: When its channels differ or it cannot be decoded.
    """
    image = _decoded(content, header, file)
    if header.orientation != 1:
        image = image.transpose(_TRANSPOSE[header.orientation])
    if header.colours is Colours.GREY:
        values = np.asarray(image)
        if header.bits == 16:
            return (values >> 8).astype(np.uint8)
        return np.asarray(image.convert("L"))
    channels = np.asarray(image.convert("RGB"))
    if np.ptp(channels, axis=-1).max() > 2:
        raise InvalidFileFormatError(
            f"{file} is a colour picture; a mask has one channel.",
            suggestion="Save the mask as an 8-bit grey PNG: white on the object, black elsewhere.",
            file=file,
        )
    return np.ascontiguousarray(channels[..., 0])


def _decoded(content: bytes, header: ImageHeader, file: str) -> Image.Image:
    essential = b"".join(content[start:stop] for start, stop in header.essential)
    try:
        image = Image.open(io.BytesIO(essential), formats=[header.format.value])
        image.load()
    except _DECODER_ERRORS as error:
        raise InvalidFileFormatError(
            f"{file} cannot be decoded to the end: {type(error).__name__}.",
            suggestion="Export or copy the file again; it is damaged or incomplete.",
            file=file,
        ) from error
    height, width = header.stored_hw
    if image.size != (width, height):
        raise InvalidFileFormatError(
            f"{file} decodes to another size than its header says.",
            suggestion="Export the file again with another program.",
            file=file,
        )
    return image


def _to_srgb(image: Image.Image, profile: bytes, file: str) -> tuple[Image.Image, str | None]:
    """Convert RGB values to sRGB; returns the picture and a note unless it was sRGB already."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        description = ImageCms.getProfileDescription(source).strip()
        if "srgb" in description.lower():
            return image, None
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        converted, description = None, ""
    if converted is None:
        return image, f"The colour profile in {file} cannot be used; its values are taken as sRGB."
    printable = "".join(c for c in description if c.isprintable())[:60]
    return converted, f"{file} was converted from its colour profile ({printable}) to sRGB."

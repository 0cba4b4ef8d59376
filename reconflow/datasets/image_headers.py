"""What PNG and JPEG files say about themselves, read without decoding a pixel. Decoding is `image_decoding`'s work.

Both formats are walked chunk by chunk: a PNG's checksums are all verified, and only the parts a decoder needs are
kept, so that damaged or hostile metadata never reaches it. Sources: the PNG specification (third edition), ITU T.81
(JPEG) and the TIFF 6.0 field layout that EXIF uses.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from reconflow.datasets.limits import MAX_SIDE_PX
from reconflow.errors import FileTooLargeError, InvalidFileFormatError, ValidationFailedError

PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE: Final = b"\xff\xd8\xff"

_OTHER_SIGNATURES: Final = {
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"v/1\x01": "OpenEXR",
    b"%PDF": "PDF",
    b"PK\x03\x04": "ZIP",
    b"version https://git-lfs": "Git LFS pointer (the file itself was not fetched)",
}
_CRITICAL_CHUNKS: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_BIT_DEPTHS: Final = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_MAX_CHUNKS: Final = 100_000
_MAX_SCANS: Final = 200
_MAX_PROFILE_BYTES: Final = 4 * 1024 * 1024
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DAMAGED: Final = "Export or copy the file again; it is damaged or incomplete."


class ImageFormat(StrEnum):
    """Accepted file formats."""

    PNG = "PNG"
    JPEG = "JPEG"


class Colours(StrEnum):
    """How a file stores colours."""

    GREY = "grey"
    GREY_ALPHA = "grey with alpha"
    RGB = "RGB"
    RGBA = "RGBA"
    PALETTE = "palette"
    CMYK = "CMYK"


_PNG_COLOURS: Final = {0: Colours.GREY, 2: Colours.RGB, 3: Colours.PALETTE, 4: Colours.GREY_ALPHA, 6: Colours.RGBA}
_JPEG_COLOURS: Final = {1: Colours.GREY, 3: Colours.RGB, 4: Colours.CMYK}


@dataclass(frozen=True)
class ImageHeader:
    """A picture file's own description.

    Attributes:
        format: PNG or JPEG.
        stored_hw: (height, width), pixels, before EXIF orientation.
        bits: Per channel.
        colours: Channels stored.
        orientation: EXIF orientation, 1 (upright) to 8.
        profile: Embedded ICC colour profile, if any.
        essential: (start, stop) byte ranges that a decoder needs, in order.
    """

    format: ImageFormat
    stored_hw: tuple[int, int]
    bits: int
    colours: Colours
    orientation: int
    profile: bytes | None
    essential: tuple[tuple[int, int], ...]

    @property
    def image_hw(self) -> tuple[int, int]:
        """(height, width) once the EXIF orientation is applied, pixels."""
        height, width = self.stored_hw
        return (width, height) if self.orientation >= 5 else (height, width)


def read_header(content: bytes, file: str, min_side_px: int) -> ImageHeader:
    """Read a PNG's or JPEG's header and check its structure; the name's suffix plays no part.

    Args:
        content: The file.
        file: Its name, for messages.
        min_side_px: Fewest pixels accepted on the shorter side.

    Raises:
        InvalidFileFormatError: When it is another format, animated, truncated or damaged.
        FileTooLargeError: When it has more than `MAX_SIDE_PX` pixels on a side.
        ValidationFailedError: When it has too few pixels.
    """
    if content.startswith(PNG_SIGNATURE):
        return _read_png(content, file, min_side_px)
    if content.startswith(JPEG_SIGNATURE):
        return _read_jpeg(content, file, min_side_px)
    found = next((name for start, name in _OTHER_SIGNATURES.items() if content.startswith(start)), None)
    raise InvalidFileFormatError(
        f"{file} is {'a ' + found + ' file' if found else 'no picture'}, judged by its content, not PNG or JPEG.",
        suggestion="Save the picture as PNG; renaming a file does not convert it.",
        file=file,
    )


def _damaged(file: str, what: str) -> InvalidFileFormatError:
    return InvalidFileFormatError(f"{file} is damaged: {what}.", suggestion=_DAMAGED, file=file)


def _check_pixels(file: str, image_hw: tuple[int, int], min_side_px: int) -> None:
    height, width = image_hw
    if max(height, width) > MAX_SIDE_PX:
        raise FileTooLargeError(
            f"{file} has {width} x {height} pixels; at most {MAX_SIDE_PX} on a side are accepted.",
            suggestion=f"Scale the picture down to {MAX_SIDE_PX} pixels or fewer on its longer side.",
            file=file,
            width=width,
            height=height,
        )
    if min(height, width) < min_side_px:
        raise ValidationFailedError(
            f"{file} has {width} x {height} pixels; at least {min_side_px} on a side are needed.",
            suggestion="Supply the picture in a higher resolution; 512 pixels or more give a useful result.",
            file=file,
            width=width,
            height=height,
        )


def _read_png(content: bytes, file: str, min_side_px: int) -> ImageHeader:
    if len(content) < 33 or content[12:16] != b"IHDR":
        raise _damaged(file, "the PNG header is incomplete")
    width, height, bits, colour_type, compression, filtering, interlace = struct.unpack(">IIBBBBB", content[16:29])
    _check_pixels(file, (height, width), min_side_px)
    if bits not in _BIT_DEPTHS.get(colour_type, ()) or compression or filtering or interlace > 1:
        raise _damaged(file, "the PNG header contradicts the specification")
    essential = [(0, len(PNG_SIGNATURE))]
    orientation, profile, kinds = 1, None, set[bytes]()
    for kind, start, stop in _png_chunks(content, file):
        if kind == b"acTL":
            raise InvalidFileFormatError(
                f"{file} is an animated PNG.", suggestion="Save one frame as a plain PNG.", file=file
            )
        if kind in (b"IHDR", b"PLTE", b"tRNS") and kind in kinds:
            raise _damaged(file, f"the {kind.decode()} chunk appears twice")
        kinds.add(kind)
        if kind in _CRITICAL_CHUNKS:
            essential.append((start - 8, stop + 4))
        elif kind == b"eXIf":
            orientation = _exif_orientation(content[start:stop])
        elif kind == b"iCCP":
            profile = _png_profile(content[start:stop])
    if b"IDAT" not in kinds:
        raise _damaged(file, "it holds no pixels")
    colours = _PNG_COLOURS[colour_type]
    return ImageHeader(ImageFormat.PNG, (height, width), bits, colours, orientation, profile, tuple(essential))


def _png_chunks(content: bytes, file: str) -> list[tuple[bytes, int, int]]:
    """List (kind, start, stop of the data) of all chunks to IEND after verifying their checksums."""
    chunks: list[tuple[bytes, int, int]] = []
    position, view = len(PNG_SIGNATURE), memoryview(content)
    while not chunks or chunks[-1][0] != b"IEND":
        if position + 12 > len(content):
            raise _damaged(file, "it ends early (truncated)")
        length = int.from_bytes(content[position : position + 4], "big")
        start, stop = position + 8, position + 8 + length
        if stop + 4 > len(content):
            raise _damaged(file, "it ends early (truncated)")
        if zlib.crc32(view[position + 4 : stop]) != int.from_bytes(content[stop : stop + 4], "big"):
            raise _damaged(file, "a checksum does not match")
        if len(chunks) >= _MAX_CHUNKS:
            raise _damaged(file, "it is cut into too many pieces")
        chunks.append((content[position + 4 : position + 8], start, stop))
        position = stop + 4
    return chunks


def _png_profile(chunk: bytes) -> bytes | None:
    """Return the ICC profile of an iCCP chunk, or None when it cannot be unpacked."""
    _, _, packed = chunk.partition(b"\0")
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(packed[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if inflate.eof else b""


def _read_jpeg(content: bytes, file: str, min_side_px: int) -> ImageHeader:
    essential = [(0, 2)]
    orientation, profile = 1, list[bytes]()
    frame: tuple[int, int, int, int] | None = None
    position = 2
    for _ in range(_MAX_CHUNKS):
        marker, start, stop = _jpeg_segment(content, position, file)
        if marker in _JPEG_FRAMES:
            if stop - start < 6 or frame is not None:
                raise _damaged(file, "the JPEG frame header is invalid")
            frame = struct.unpack(">BHHB", content[start : start + 6])
            _check_pixels(file, (frame[1], frame[2]), min_side_px)
        elif marker == 0xE1 and content[start : start + 6] == b"Exif\0\0":
            orientation = _exif_orientation(content[start + 6 : stop])
        elif marker == 0xE2 and content[start : start + 12] == b"ICC_PROFILE\0":
            profile.append(content[start + 14 : stop])
        if marker == 0xDA:
            break
        if marker in (0xE0, 0xEE) or not 0xE0 <= marker <= 0xFE:
            essential.append((position, stop))
        position = stop
    else:
        raise _damaged(file, "it is cut into too many pieces")
    if frame is None or content.count(b"\xff\xda", position) > _MAX_SCANS:
        raise _damaged(file, "the JPEG has no frame header or far too many scans")
    essential.append((position, len(content)))
    bits, height, width, components = frame
    if components not in _JPEG_COLOURS:
        raise _damaged(file, f"it has {components} colour components")
    colours = _JPEG_COLOURS[components]
    stored = (height, width)
    return ImageHeader(
        ImageFormat.JPEG, stored, bits, colours, orientation, b"".join(profile) or None, tuple(essential)
    )


def _jpeg_segment(content: bytes, position: int, file: str) -> tuple[int, int, int]:
    """Return (marker, start, stop of the payload) of the segment at a position."""
    if position + 4 > len(content):
        raise _damaged(file, "it ends early (truncated)")
    marker = content[position + 1]
    length = int.from_bytes(content[position + 2 : position + 4], "big")
    if content[position] != 0xFF or marker in (0x00, 0xFF, 0xD8, 0xD9) or length < 2:
        raise _damaged(file, "a JPEG marker is invalid")
    stop = position + 2 + length
    if stop > len(content):
        raise _damaged(file, "it ends early (truncated)")
    return marker, position + 4, stop


def _exif_orientation(tiff: bytes) -> int:
    """Return the orientation of an EXIF block (TIFF tag 0x0112 of the first directory); 1 when it states none."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    directory = int(struct.unpack(order + "I", tiff[4:8])[0])
    if directory + 2 > len(tiff):
        return 1
    (count,) = struct.unpack(order + "H", tiff[directory : directory + 2])
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        field = tiff[entry : entry + 12]
        if len(field) < 12:
            return 1
        tag, kind, _, value = struct.unpack(order + "HHIH", field[:10])
        if tag == 0x0112 and kind == 3:
            return int(value) if 1 <= value <= 8 else 1
    return 1

"""What a dataset may be at most: sizes, counts and pixels. Numbers only; who checks them is elsewhere.

The limits on stored bytes are checked before a file is read, those on pixels before it is decoded, so that neither a
huge file nor a decompression bomb costs more than its header.
"""

from __future__ import annotations

from typing import Final

MEBIBYTE: Final = 1024 * 1024

MAX_FILE_BYTES: Final = 20 * MEBIBYTE
"""One picture, depth render or mask."""

MAX_TOTAL_BYTES: Final = 200 * MEBIBYTE
"""All files of a dataset together."""

MAX_TRANSFORMS_BYTES: Final = 4 * MEBIBYTE
"""`transforms.json`; a frame takes about 600 bytes."""

MIN_PHOTO_PX: Final = 64
"""Shortest side of a photo."""

MIN_DEPTH_PX: Final = 32
"""Shortest side of a depth render."""

MAX_SIDE_PX: Final = 4096
"""Longest side of any picture."""

MAX_TOTAL_PIXELS: Final = 16 * MAX_SIDE_PX**2
"""Photos of a dataset together: about 1.9 GB once decoded."""

MIN_POSED_VIEWS: Final = 2
MAX_POSED_VIEWS: Final = 512

"""Between display values (sRGB) and linear light. No image files, no rendering."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def linear_from_srgb(rgb_srgb: NDArray[Any]) -> NDArray[np.float32]:
    """Decode sRGB display values in [0, 1] to linear light (IEC 61966-2-1); any shape, float32 out."""
    value = np.asarray(rgb_srgb, dtype=np.float64)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def srgb_from_linear(rgb_linear: NDArray[Any]) -> NDArray[np.float32]:
    """Encode linear light as sRGB display values, clamped to [0, 1]; any shape, float32 out."""
    value = np.clip(np.asarray(rgb_linear, dtype=np.float32), 0.0, 1.0)
    curved = np.float32(1.0) - np.float32(1.055) * (np.float32(1.0) - value ** np.float32(1 / 2.4))  # exactly 1 at 1
    return np.where(value <= 0.0031308, value * np.float32(12.92), curved).astype(np.float32)


_LINEAR_OF_CODE = linear_from_srgb(np.arange(256) / 255)


def linear_from_srgb_u8(rgb_srgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Decode 8-bit sRGB codes to linear light by table; any shape, float32 out."""
    linear: NDArray[np.float32] = _LINEAR_OF_CODE[rgb_srgb]
    return linear

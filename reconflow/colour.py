"""Conversions between display values and linear light (sRGB, IEC 61966-2-1). Arrays in, arrays out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def linear_from_srgb(srgb: NDArray[np.floating] | NDArray[np.uint8]) -> Float32:
    """Decode sRGB; uint8 input is taken as 0..255, floats as 0..1. Same shape, float32."""
    if srgb.dtype == np.uint8:
        codes = (np.arange(256) / 255.0).astype(np.float32)
        return _decode(codes)[srgb]
    return _decode(srgb.astype(np.float32))


def srgb_from_linear(linear: Float32) -> Float32:
    """Encode linear light in 0..1 (clipped) as sRGB in 0..1. Same shape, float32."""
    x = np.clip(linear, 0, 1)
    return np.where(x <= 0.0031308, 12.92 * x, 1.055 * np.maximum(x, 1e-9) ** (1 / 2.4) - 0.055).astype(np.float32)


def _decode(x: Float32) -> Float32:
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)

"""Colour as a function of position: hex colours, patterns and printed text. No light, no objects.

Colours are sRGB display values in [0, 1] here; `shading` makes them linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Points = NDArray[np.float64]
Colours = NDArray[np.float64]
Vector = tuple[float, float, float]

_FONT_PX = 160
_PAD_PX = 12


def colour(code: str) -> NDArray[np.float64]:
    """Return (3,) from a hex code such as `#1f7a8c`."""
    return np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def mix(a: Colours, b: Colours, share: NDArray[np.float64]) -> Colours:
    """Return a where share (N,) is 0, b where it is 1, blended between; a and b are (3,) or (N, 3)."""
    return a + share[:, None] * (b - a)


def stripes(coordinate: NDArray[np.float64], period: float, share: float = 0.5) -> NDArray[np.float64]:
    """Return 1 inside stripes and 0 between them, (N,)."""
    return (np.mod(coordinate / period, 1.0) < share).astype(np.float64)


def grain(points: Points, frequency: float) -> NDArray[np.float64]:
    """Return a smooth irregular pattern (N,) in about [-1, 1]: a few sines at unrelated angles."""
    waves = np.array([[1.0, 0.31, 0.17], [-0.42, 0.93, 0.38], [0.23, -0.57, 1.07], [0.81, 0.66, -0.73]])
    phase = (frequency * points @ waves.T).astype(np.float32)
    bent = phase + np.float32(0.8) * np.roll(np.sin(np.float32(0.61) * phase), 1, axis=1)
    return np.asarray(1.4 * np.sin(bent).mean(axis=1), dtype=np.float64)


def wood(points: Points, light: str, dark: str) -> Colours:
    """Return the colour of turned wood (N, 3): warped year rings around an upright axis, with fine pores."""
    x, y, z = points.T
    radius = np.hypot(x + 0.9, z - 0.35) + 0.05 * grain(points, 4.0) + 0.12 * y
    rings = np.mod(radius / 0.085, 1.0) ** 2
    return mix(colour(light), colour(dark), np.clip(rings + 0.15 * grain(points, 55.0), 0.0, 1.0))


@dataclass(frozen=True)
class Print:
    """Text printed onto the surface along a direction, or wrapped around an upright cylinder.

    Attributes:
        text: What is printed, one line.
        centre: Middle of the text, model frame.
        right: Unit direction of reading.
        up: Unit direction of the letters' top.
        width: Length of the line, model units.
        ink: Hex colour.
        reach: How far from the centre, along the print's normal, the surface is still printed.
        wrap_radius: Radius of the cylinder around the model's `up` axis through the origin; 0 prints flat.
    """

    text: str
    centre: Vector
    right: Vector
    up: Vector
    width: float
    ink: str
    reach: float = 0.12
    wrap_radius: float = 0.0


def apply_prints(points: Points, normals: Points, colours: Colours, prints: tuple[Print, ...]) -> Colours:
    """Return the colours (N, 3) with every text printed where the surface faces its direction."""
    for item in prints:
        right, up = np.array(item.right), np.array(item.up)
        facing = np.cross(right, up)
        offset = points - np.array(item.centre)
        across, away, front = offset @ right, offset @ facing, normals @ facing
        if item.wrap_radius > 0.0:
            angle = np.arctan2(points @ right, points @ facing)
            across = item.wrap_radius * angle
            away = np.hypot(points @ right, points @ facing) - item.wrap_radius
            front = normals @ right * np.sin(angle) + normals @ facing * np.cos(angle)
        letters = stencil(item.text)
        height = item.width * letters.shape[0] / letters.shape[1]
        coverage = _look_up(letters, across / item.width + 0.5, 0.5 - (offset @ up) / height)
        coverage = np.where((np.abs(away) < item.reach) & (front > 0.4), coverage, 0.0)
        colours = mix(colours, colour(item.ink), coverage)
    return colours


@lru_cache
def stencil(text: str) -> NDArray[np.float64]:
    """Return the coverage (H, W) in [0, 1] of a line of text, cropped to its ink plus a margin."""
    font = ImageFont.load_default(_FONT_PX)
    left, top, right, bottom = font.getbbox(text, stroke_width=3)
    image = Image.new("L", (int(right - left) + 2 * _PAD_PX, int(bottom - top) + 2 * _PAD_PX), 0)
    ImageDraw.Draw(image).text((_PAD_PX - left, _PAD_PX - top), text, fill=255, font=font, stroke_width=3)
    return np.asarray(image, dtype=np.float64) / 255


def _look_up(stencil: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate a stencil at u (right) and v (down) in [0, 1]; nothing outside."""
    height, width = stencil.shape
    x, y = u * width - 0.5, v * height - 0.5
    inside = (x >= 0) & (x < width - 1) & (y >= 0) & (y < height - 1)
    x, y = np.where(inside, x, 0.0), np.where(inside, y, 0.0)
    i, j = y.astype(int), x.astype(int)
    fy, fx = y - i, x - j
    top = stencil[i, j] * (1 - fx) + stencil[i, j + 1] * fx
    bottom = stencil[i + 1, j] * (1 - fx) + stencil[i + 1, j + 1] * fx
    return np.where(inside, top * (1 - fy) + bottom * fy, 0.0)

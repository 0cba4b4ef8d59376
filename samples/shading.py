"""Light on a surface: what its vertices receive, and the linear radiance its samples send to an eye.

A surface that sees the whole of a uniform white sky shows its albedo. Light that bounces between surfaces is
approximated by Jimenez et al., "Practical Realtime Strategies for Accurate Indirect Occlusion" (2016), eq. 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from samples.surface import Surface, light_visibility, sky_visibility

LIGHTINGS: Final = ("uniform", "studio", "glossy")


@dataclass(frozen=True)
class Lamp:
    """A distant round light, fixed in the world.

    Attributes:
        towards: Direction from the object to the lamp; normalised before use.
        power: Radiance that a white diffuse surface facing it sends back.
        spread: Tangent of its angular radius, which softens the shadows' edges.
    """

    towards: tuple[float, float, float]
    power: float
    spread: float

    @property
    def direction(self) -> NDArray[np.float64]:
        """(3,) unit vector towards the lamp."""
        towards = np.array(self.towards)
        return towards / float(np.linalg.norm(towards))


@dataclass(frozen=True)
class Lighting:
    """A uniform sky, lamps, and how much the surface shines.

    Attributes:
        sky: Radiance of the sky.
        lamps: The lamps, key light first.
        gloss: Weight of the mirror-like reflection; 0 is matt.
        roughness: GGX roughness of that reflection.
    """

    sky: float
    lamps: tuple[Lamp, ...] = ()
    gloss: float = 0.0
    roughness: float = 0.25


_LAMPS: Final = (Lamp((0.55, 0.75, 0.8), 0.62, 0.22), Lamp((-0.9, 0.25, 0.35), 0.18, 0.4))
_SIDE_LAMPS: Final = (Lamp((0.95, 0.45, 0.35), 0.75, 0.15), Lamp((-0.3, 0.8, -0.7), 0.2, 0.3))
_PRESETS: Final = {
    "uniform": Lighting(1.0),
    "studio": Lighting(0.55, _LAMPS),
    "glossy": Lighting(0.5, _SIDE_LAMPS, gloss=1.0),
}


@dataclass(frozen=True, eq=False)
class Illumination:
    """What every vertex receives.

    Attributes:
        lighting: From what.
        sky: (V,) cosine-weighted share of the sky that the vertex sees.
        lamps: (L, V) share of each lamp that it sees, without the cosine.
    """

    lighting: Lighting
    sky: NDArray[np.float64]
    lamps: NDArray[np.float64]


def illuminate(surface: Surface, name: str, seed: int, sky_rays: int = 256, lamp_rays: int = 32) -> Illumination:
    """Trace what reaches every vertex under one of `LIGHTINGS`."""
    lighting = _PRESETS[name]
    lamps = [light_visibility(surface, lamp.direction, lamp.spread, lamp_rays) for lamp in lighting.lamps]
    stacked = np.stack(lamps) if lamps else np.zeros((0, len(surface.vertices_model)))
    return Illumination(lighting, sky_visibility(surface, sky_rays, seed), stacked)


def shade(
    lighting: Lighting,
    albedo: NDArray[np.float64],
    normals: NDArray[np.float64],
    towards_eye: NDArray[np.float64],
    sky: NDArray[np.float64],
    lamps: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return linear radiance (S, 3) of surface samples.

    Args:
        lighting: What lights them.
        albedo: (S, 3) linear.
        normals: (S, 3) unit.
        towards_eye: (S, 3) unit.
        sky: (S,) visible share of the sky.
        lamps: (S, L) visible share of each lamp.
    """
    radiance = lighting.sky * albedo * _with_bounces(sky[:, None], albedo)
    if lighting.gloss > 0.0:
        radiance = radiance + lighting.gloss * lighting.sky * (_fresnel(normals, towards_eye) * sky)[:, None]
    for index, lamp in enumerate(lighting.lamps):
        cosine = np.maximum(normals @ lamp.direction, 0.0) * lamps[:, index]
        radiance = radiance + lamp.power * cosine[:, None] * albedo
        if lighting.gloss > 0.0:
            shine = _highlight(normals, towards_eye, lamp.direction, lighting.roughness)
            radiance = radiance + (lighting.gloss * lamp.power * shine * cosine)[:, None]
    return radiance


def _with_bounces(sky: NDArray[np.float64], albedo: NDArray[np.float64]) -> NDArray[np.float64]:
    a, b, c = 2.0404 * albedo - 0.3324, -4.7951 * albedo + 0.6417, 2.7552 * albedo + 0.6903
    return np.maximum(sky, ((sky * a + b) * sky + c) * sky)


def _fresnel(normals: NDArray[np.float64], towards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Schlick's reflectance (S,) of a dielectric."""
    cosine = np.clip((normals * towards).sum(axis=1), 0.0, 1.0)
    return np.asarray(0.04 + 0.96 * (1.0 - cosine) ** 5)


def _highlight(
    normals: NDArray[np.float64], towards_eye: NDArray[np.float64], lamp: NDArray[np.float64], roughness: float
) -> NDArray[np.float64]:
    """Return the GGX reflection of a lamp (S,), in units of a white diffuse reflection of it."""
    half = towards_eye + lamp
    half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-9)
    alpha = roughness**2
    facing = np.clip((normals * half).sum(axis=1), 0.0, 1.0)
    spread = alpha**2 / (facing**2 * (alpha**2 - 1.0) + 1.0) ** 2
    narrow = np.maximum((half @ lamp) ** 2, 0.1) * (roughness + 0.5)
    return np.asarray(_fresnel(half, towards_eye) * spread / (4.0 * narrow))

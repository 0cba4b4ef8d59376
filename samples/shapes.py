"""The objects: which solids they are made of, how they are painted, how they are lit. No rendering, no files.

Every object stands upright with its front towards +z, has its own left at +x, and no symmetry that could hide a
mirrored or turned reconstruction unless its purpose is to be that difficult.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from samples.paint import Colours, Points, Print, Vector, colour, grain, mix, stripes, wood
from samples.solids import Solid, box, capsule, cylinder, ellipsoid, torus

Painter = Callable[[Points, NDArray[np.int64]], Colours]

_X: Final[Vector] = (1.0, 0.0, 0.0)
_Y: Final[Vector] = (0.0, 1.0, 0.0)
_Z: Final[Vector] = (0.0, 0.0, 1.0)
_BACK_X: Final[Vector] = (-1.0, 0.0, 0.0)
_BACK_Z: Final[Vector] = (0.0, 0.0, -1.0)
FRONT: Final = (_X, _Y)
BACK: Final = (_BACK_X, _Y)
LEFT: Final = (_BACK_Z, _Y)
RIGHT: Final = (_Z, _Y)
TOP: Final = (_BACK_X, _Z)
BOTTOM: Final = (_X, _Z)


@dataclass(frozen=True)
class Shape:
    """One object.

    Attributes:
        solids: What it is made of.
        half_extent: (x, y, z) of a box around the origin that contains it.
        paint: Colours (N, 3) in sRGB for points (N, 3) of given parts (N,).
        prints: Text on it.
        lighting: The light it is shown in unless another is asked for.
        genus: Number of holes, which the tests check.
        pieces: Number of separate pieces, likewise.
    """

    solids: tuple[Solid, ...]
    half_extent: Vector
    paint: Painter
    prints: tuple[Print, ...]
    lighting: str
    genus: int
    pieces: int = 1


def _by_part(points: Points, parts: NDArray[np.int64], palette: tuple[str, ...]) -> Colours:
    """Return each part's plain colour with a little irregular variation, (N, 3)."""
    plain = np.stack([colour(code) for code in palette])[np.maximum(parts, 0)]
    return np.asarray(plain * (1.0 + 0.035 * grain(points, 23.0) + 0.02 * grain(points, 71.0))[:, None])


def _lantern() -> Shape:
    wooden, brass, enamel, roof, niche, wax, flame = range(7)
    solids = (
        cylinder(wooden, (0, -0.85, 0), 0.64, 0.06, rounding=0.03),
        box(brass, (0, -0.775, 0), (0.48, 0.035, 0.41), rounding=0.02),
        box(enamel, (0, -0.27, 0), (0.43, 0.48, 0.36), rounding=0.05, taper=-0.08),
        box(niche, (0, -0.13, 0.33), (0.19, 0.16, 0.17), rounding=0.01, taper=0.2).turned((_X, _Z)).removed(),
        cylinder(niche, (0, 0.0, 0.33), 0.19, 0.16, rounding=0.01, taper=0.2).turned((_X, _Z)).removed(),
        cylinder(wax, (0, -0.19, 0.24), 0.075, 0.13, rounding=0.015),
        ellipsoid(flame, (0.005, 0.025, 0.24), (0.045, 0.09, 0.05)),
        cylinder(niche, (0.06, -0.11, -0.37), 0.19, 0.13, rounding=0.02, taper=0.25).turned((_X, _BACK_Z)).removed(),
        ellipsoid(brass, (0.06, -0.11, -0.23), (0.09, 0.09, 0.06)),
        box(brass, (0, 0.235, 0), (0.49, 0.035, 0.42), rounding=0.02),
        box(roof, (0, 0.405, 0), (0.30, 0.15, 0.26), rounding=0.01, taper=-0.56),
        cylinder(brass, (0, 0.575, 0), 0.11, 0.055, rounding=0.015),
        cylinder(brass, (0, 0.64, 0), 0.145, 0.035, rounding=0.02, taper=-0.35),
        torus(brass, (0.02, 0.81, 0), 0.135, 0.034).turned(((0.9, 0, 0.43), (-0.43, 0, 0.9))),
        torus(wooden, (-0.415, -0.13, -0.02), 0.21, 0.05, stretch=0.08).turned((_Y, _Z)).melted(0.05),
        cylinder(brass, (0.455, -0.25, 0.05), 0.095, 0.075, rounding=0.025, taper=0.2).turned((_Y, _X)),
    )

    def paint(points: Points, parts: NDArray[np.int64]) -> Colours:
        x, y, z = points.T
        colours = _by_part(points, parts, ("#7a4a24", "#d9a441", "#1f8a8a", "#c2452d", "#f3d9a0", "#fbf3e0", "#ff9b1a"))
        planks = wood(points, "#a86f3d", "#6b3f1d")
        colours = np.where((parts == wooden)[:, None], planks, colours)
        tiles = stripes(y - 0.27, 0.08, 0.82) * stripes(np.where(np.abs(x) > np.abs(z) * 1.15, z, x), 0.11, 0.88)
        colours = np.where((parts == roof)[:, None], mix(colours, colour("#8a2a1c"), 1 - tiles), colours)
        on_body = parts == enamel
        label = on_body & (np.abs(y + 0.575) < 0.115)
        edge = on_body & (np.abs(np.abs(y + 0.575) - 0.115) < 0.012)
        colours = np.where(
            label[:, None], mix(colour("#fff6e2"), colour("#f1e3c2"), 0.5 + 0.4 * grain(points, 9.0)), colours
        )
        dots = (np.mod(x + z, 0.09) - 0.045) ** 2 + (np.mod(y, 0.09) - 0.045) ** 2 < 0.013**2
        colours = np.where((on_body & (y > -0.42) & dots)[:, None], colour("#8fd0c6"), colours)
        colours = np.where(edge[:, None], colour("#d9a441"), colours)
        tip = np.clip((y - 0.02) / 0.1, 0.0, 1.0)
        return np.where((parts == flame)[:, None], mix(colour("#fff2a8"), colour("#f2711c"), tip), colours)

    prints = (
        Print("RECONFLOW", (0, -0.575, 0.37), *FRONT, 0.74, "#173f5f", reach=0.06),
        Print("BACK", (0, -0.575, -0.37), *BACK, 0.38, "#7d1f3c", reach=0.06),
        Print("LEFT", (0.44, -0.575, 0), *LEFT, 0.35, "#2d5d2a", reach=0.06),
        Print("RIGHT", (-0.44, -0.575, 0), *RIGHT, 0.42, "#3d2c6e", reach=0.06),
        Print("TOP", (0, 0.4, -0.29), *TOP, 0.28, "#fff6e2", reach=0.2),
        Print("BOTTOM", (0, -0.91, 0), *BOTTOM, 0.8, "#fff6e2", reach=0.03),
    )
    return Shape(solids, (0.75, 1.05, 0.7), paint, prints, "studio", 2)


def _mug() -> Shape:
    glaze, inside, handle, foot = range(4)
    solids = (
        cylinder(glaze, (0, 0, 0), 0.52, 0.62, rounding=0.05, taper=0.06),
        cylinder(foot, (0, -0.63, 0), 0.40, 0.04, rounding=0.02),
        torus(handle, (-0.56, 0.02, 0.05), 0.25, 0.065, stretch=0.1)
        .turned(((0.0, 1.0, 0.0), (0.18, 0, 1.0)))
        .melted(0.06),
        cylinder(inside, (0, 0.13, 0), 0.45, 0.62, rounding=0.12, taper=0.07).removed(),
    )

    def paint(points: Points, parts: NDArray[np.int64]) -> Colours:
        x, y, z = points.T
        colours = _by_part(points, parts, ("#f2ead8", "#e8b04a", "#d4573b", "#8d7b68"))
        angle = np.arctan2(x, z)
        wave = np.abs(y + 0.45 - 0.04 * np.sin(7 * angle)) < 0.05
        band = (y > 0.42) & (y < 0.52) & (stripes(angle, 2 * np.pi / 24, 0.5) > 0)
        glazed = parts == glaze
        colours = np.where((glazed & wave)[:, None], colour("#2f6f9f"), colours)
        return np.where(
            (glazed & band)[:, None], mix(colour("#d4573b"), colour("#2f6f9f"), (angle > 0.4) * 1.0), colours
        )

    prints = (
        Print("RECONFLOW", (0, 0.1, 0), *FRONT, 0.78, "#26323f", reach=0.06, wrap_radius=0.52),
        Print("front", (0, -0.18, 0), *FRONT, 0.3, "#d4573b", reach=0.06, wrap_radius=0.52),
        Print("back", (0, 0.05, 0), *BACK, 0.5, "#2d6a4f", reach=0.06, wrap_radius=0.52),
        Print("left", (0, 0.05, 0), *LEFT, 0.42, "#6b3fa0", reach=0.06, wrap_radius=0.52),
        Print("mug", (0, -0.66, 0), *BOTTOM, 0.4, "#f2ead8", reach=0.06),
    )
    return Shape(solids, (1.0, 0.75, 0.65), paint, prints, "uniform", 1)


def _posts() -> Shape:
    seat, leg, rung, rail = range(4)
    thin = 0.018
    solids = (
        box(seat, (0, -0.1, 0.02), (0.46, 0.04, 0.42), rounding=0.03),
        *(
            capsule(leg, (0.38 * a, -0.1, 0.34 * b), (0.46 * a, -0.92, 0.42 * b), thin)
            for a in (-1, 1)
            for b in (-1, 1)
        ),
        capsule(rung, (-0.43, -0.6, 0.39), (0.43, -0.6, 0.39), thin * 0.9),
        capsule(rung, (0.42, -0.45, -0.375), (0.42, -0.45, 0.375), thin * 0.9),
        *(capsule(leg, (x, -0.1, -0.34), (1.08 * x, 0.75, -0.44), thin) for x in (-0.36, -0.12, 0.12, 0.36)),
        box(rail, (0, 0.78, -0.445), (0.46, 0.09, 0.03), rounding=0.025),
        ellipsoid(rung, (0.34, 0.0, 0.3), (0.09, 0.12, 0.09)),
    )

    def paint(points: Points, parts: NDArray[np.int64]) -> Colours:
        x, _, z = points.T
        colours = _by_part(points, parts, ("#3c6e71", "#c98f4e", "#b5382f", "#3c6e71"))
        checks = np.mod(np.floor(x / 0.115) + np.floor(z / 0.115), 2.0)
        weave = mix(colour("#e9d8a6"), colour("#3c6e71"), 0.15 + 0.7 * checks)
        return np.where((parts == seat)[:, None], weave, colours)

    prints = (
        Print("RECONFLOW", (0, 0.78, -0.41), *FRONT, 0.8, "#ffffff", reach=0.05),
        Print("BACK", (0, 0.78, -0.47), *BACK, 0.4, "#ffd166", reach=0.05),
        Print("SEAT", (0, -0.06, 0.0), *TOP, 0.5, "#8a1c1c", reach=0.03),
    )
    return Shape(solids, (0.6, 1.0, 0.6), paint, prints, "uniform", 5)


def _box() -> Shape:
    carton = 0
    solids = (box(carton, (0, 0, 0), (0.55, 0.75, 0.27), rounding=0.006),)

    def paint(points: Points, parts: NDArray[np.int64]) -> Colours:
        x, y, z = points.T
        colours = _by_part(points, parts, ("#f4c95d",))
        colours = mix(colours, colour("#dd6e42"), stripes(x + 0.8 * y - 0.4 * z, 0.34, 0.45))
        window = (np.hypot(x - 0.1, y + 0.28) < 0.24) & (z > 0)
        colours = np.where(window[:, None], mix(colour("#4f6d7a"), colour("#c0d6df"), stripes(x - y, 0.06)), colours)
        panel = (np.abs(y - 0.35) < 0.22) | (np.abs(y) > 0.745)
        return np.where(
            panel[:, None], mix(colour("#e8f1f2"), colour("#cfdfe3"), 0.5 + 0.5 * grain(points, 14.0)), colours
        )

    prints = (
        Print("RECONFLOW", (0, 0.42, 0.27), *FRONT, 0.96, "#14213d"),
        Print("six views, one mesh", (0, 0.24, 0.27), *FRONT, 0.8, "#9b2226"),
        Print("BACK SIDE", (0, 0.36, -0.27), *BACK, 0.9, "#14213d"),
        Print("No. 0123456789", (0, -0.55, -0.27), *BACK, 0.9, "#14213d"),
        Print("LEFT", (0.55, 0.36, 0), *LEFT, 0.42, "#14213d"),
        Print("RIGHT", (-0.55, 0.36, 0), *RIGHT, 0.46, "#9b2226"),
        Print("OPEN TOP", (0, 0.75, 0), *TOP, 0.8, "#14213d"),
        Print("BOTTOM", (0, -0.75, 0), *BOTTOM, 0.8, "#9b2226"),
    )
    return Shape(solids, (0.57, 0.77, 0.29), paint, prints, "uniform", 0)


def _glossy() -> Shape:
    body, head, beak, eye, wing = range(5)
    solids = (
        ellipsoid(body, (0, -0.3, -0.05), (0.52, 0.42, 0.72)),
        ellipsoid(body, (0.08, 0.0, -0.68), (0.18, 0.2, 0.22)).melted(0.25),
        ellipsoid(head, (0.05, 0.35, 0.32), (0.36, 0.35, 0.36)).melted(0.22),
        ellipsoid(wing, (0.47, -0.2, -0.1), (0.13, 0.2, 0.36)).melted(0.06),
        ellipsoid(wing, (-0.47, -0.14, -0.12), (0.13, 0.22, 0.36)).melted(0.06),
        ellipsoid(beak, (0.07, 0.27, 0.70), (0.19, 0.075, 0.17)).melted(0.03),
        ellipsoid(eye, (0.22, 0.46, 0.60), (0.06, 0.075, 0.05)),
        ellipsoid(eye, (-0.09, 0.46, 0.61), (0.06, 0.075, 0.05)),
    )

    def paint(points: Points, parts: NDArray[np.int64]) -> Colours:
        _, y, z = points.T
        colours = _by_part(points, parts, ("#e3b505", "#edc31a", "#d95d1e", "#1d1d24", "#c28f0a"))
        collar = (np.abs(y - 0.08 - 0.25 * (z - 0.3)) < 0.035) & (z > -0.2)
        return np.where((collar & (parts < beak))[:, None], colour("#a4243b"), colours)

    prints = (
        Print("DUCK", (0, -0.32, 0.62), *FRONT, 0.5, "#5a189a", reach=0.2),
        Print("LEFT", (0.6, -0.2, -0.1), *LEFT, 0.4, "#1b4332", reach=0.2),
    )
    return Shape(solids, (0.75, 0.85, 1.0), paint, prints, "glossy", 0)


def _ring() -> Shape:
    band, plate, gem, claw = range(4)
    solids = (
        torus(band, (0, -0.12, 0), 0.64, 0.13).turned((_X, _Z)),
        ellipsoid(band, (-0.18, 0.48, 0.0), (0.34, 0.16, 0.24)).melted(0.15),
        box(plate, (0.02, 0.62, 0.0), (0.36, 0.07, 0.27), rounding=0.03),
        ellipsoid(gem, (0.16, 0.72, 0.05), (0.13, 0.11, 0.13)),
        *(
            capsule(claw, (0.16 + a, 0.66, 0.05 + b), (0.16 + 0.7 * a, 0.8, 0.05 + 0.7 * b), 0.026)
            for a, b in ((0.11, 0.11), (-0.11, 0.11), (0.11, -0.11), (-0.11, -0.11))
        ),
    )

    def paint(points: Points, parts: NDArray[np.int64]) -> Colours:
        x, y, z = points.T
        colours = _by_part(points, parts, ("#b08d57", "#cfb53b", "#a3123f", "#e6e2d3"))
        angle = np.arctan2(x, y + 0.12)
        rope = stripes(angle * 8.0 + 6.0 * z, np.pi, 0.5) * (np.abs(z) < 0.09)
        return np.where((parts == band)[:, None], mix(colours, colour("#5c4426"), rope), colours)

    prints = (
        Print("RF", (-0.16, 0.69, -0.02), *TOP, 0.26, "#2b2118", reach=0.03),
        Print("FRONT", (0.02, 0.62, 0.27), *FRONT, 0.4, "#2b2118", reach=0.05),
        Print("BACK", (0.02, 0.62, -0.27), *BACK, 0.34, "#2b2118", reach=0.05),
    )
    return Shape(solids, (0.85, 0.95, 0.4), paint, prints, "studio", 1)


_PIPS: Final = {
    1: [(0.0, 0.0)],
    2: [(-0.5, -0.5), (0.5, 0.5)],
    3: [(-0.5, -0.5), (0.0, 0.0), (0.5, 0.5)],
    4: [(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)],
    5: [(-0.5, -0.5), (-0.5, 0.5), (0.0, 0.0), (0.5, -0.5), (0.5, 0.5)],
    6: [(-0.5, -0.5), (-0.5, 0.0), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.0), (0.5, 0.5)],
}


def _die(part: int, pip: int, centre: Vector, half: float, x: Vector, y: Vector) -> tuple[Solid, ...]:
    """A die whose axes are x, y made perpendicular to it, and their cross product; opposite sides add up to seven."""
    right = np.array(x) / np.linalg.norm(x)
    up = np.array(y) - np.dot(y, right) * right
    up /= np.linalg.norm(up)
    out = np.cross(right, up)
    body = box(part, centre, (half, half, half), rounding=0.3 * half).turned((tuple(right), tuple(up)))
    sides = {1: (out, right, up), 6: (-out, right, up), 2: (right, up, out), 5: (-right, up, out), 3: (up, right, out)}
    sides[4] = (-up, right, out)
    places = [
        np.array(centre) + half * (normal + u * across + v * along)
        for number, (normal, across, along) in sides.items()
        for u, v in _PIPS[number]
    ]
    return body, *(ellipsoid(pip, tuple(place), (0.17 * half,) * 3).removed() for place in places)


def _dice() -> Shape:
    red, red_pip, ivory, ivory_pip = range(4)
    solids = (
        *_die(red, red_pip, (-0.48, -0.1, 0.12), 0.36, (0.9, 0.0, -0.44), (0.0, 1.0, 0.0)),
        *_die(ivory, ivory_pip, (0.5, 0.02, -0.15), 0.3, (0.8, 0.5, 0.33), (-0.4, 0.85, 0.2)),
    )

    def paint(points: Points, parts: NDArray[np.int64]) -> Colours:
        colours = _by_part(points, parts, ("#c2302a", "#f5f0e6", "#f1ead8", "#1d2a4a"))
        veins = mix(colours, colour("#8a1c1c"), 0.6 * stripes(points.sum(axis=1), 0.2, 0.2))
        return np.where((parts == red)[:, None], veins, colours)

    return Shape(solids, (1.0, 0.8, 0.8), paint, (), "studio", 0, pieces=2)


def _wheel() -> Shape:
    tyre, rim, spoke, hub, reflector = range(5)
    facing, count = (_X, _Z), 9
    angles = 2 * np.pi * np.arange(count) / count + 0.1
    spokes = (
        capsule(
            spoke,
            (0.08 * np.sin(angle + lean), 0.08 * np.cos(angle + lean), 0.2 * lean),
            (0.79 * np.sin(angle), 0.79 * np.cos(angle), 0.0),
            0.025,
        )
        for angle, lean in zip(angles, 0.5 * (-1.0) ** np.arange(count), strict=True)
    )
    solids = (
        torus(tyre, (0, 0, 0), 0.86, 0.085).turned(facing),
        torus(rim, (0, 0, 0), 0.79, 0.05).turned(facing),
        cylinder(hub, (0, 0, 0.02), 0.12, 0.15, rounding=0.02).turned(facing),
        cylinder(hub, (0, 0, 0.2), 0.05, 0.06, rounding=0.01).turned(facing),
        *spokes,
        box(reflector, (0.5 * np.sin(angles[2]), 0.5 * np.cos(angles[2]), 0.02), (0.09, 0.05, 0.035), rounding=0.01),
    )

    def paint(points: Points, parts: NDArray[np.int64]) -> Colours:
        x, y, z = points.T
        colours = _by_part(points, parts, ("#2c2c30", "#b8bcc4", "#d9dbe0", "#5a6a7a", "#e8751a"))
        around = np.arctan2(x, y)
        tread = (parts == tyre) & (np.hypot(x, y) > 0.9) & (stripes(around + 2 * z, 2 * np.pi / 60) > 0)
        mark = (parts == rim) & (np.abs(around - 0.6) < 0.35)
        return np.where(mark[:, None], colour("#c2302a"), np.where(tread[:, None], colour("#46464d"), colours))

    return Shape(solids, (1.0, 1.0, 0.4), paint, (), "studio", count)


SHAPES: Final[dict[str, Callable[[], Shape]]] = {
    "lantern": _lantern,
    "mug": _mug,
    "posts": _posts,
    "box": _box,
    "glossy": _glossy,
    "ring": _ring,
    "dice": _dice,
    "wheel": _wheel,
}

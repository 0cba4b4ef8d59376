"""The report's part on cameras as plain values: where they stand, what calibration left over, how photos are shifted.

No pictures and no measuring.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from reconflow.cameras.camera import PinholeCamera
from reconflow.outputs.report_parts import Table, short

_EVERY_VIEW: Final = "all views"


@dataclass(frozen=True)
class Residual:
    """How one of calibration's residuals is told.

    Attributes:
        label: With its unit.
        meaning: One line.
        factor: What the number is multiplied by for the label's unit.
    """

    label: str
    meaning: str
    factor: float = 1.0


RESIDUALS: Final = {
    "mask_violation": Residual("outside silhouettes, %", "share of points outside another view's silhouette", 100),
    "front_violation": Residual("in front of surfaces, %", "share of points in front of another view's surface", 100),
    "overlap": Residual("overlap, %", "share of points that lie on a surface which another view sees too", 100),
    "overlap_rms_levels": Residual(
        "disagreement, grey levels", "how far the views' depths differ where they overlap, root mean square, of 255"
    ),
    "agreement": Residual("tests passed, %", "share of all comparisons with other views that agree", 100),
    "rim_miss_px": Residual(
        "silhouettes' rims miss by, px", "how far rays along one outline miss the other views' outlines"
    ),
    "fov_difference_deg": Residual(
        "field of view by depth minus the given one, °", "what the depth renders alone would say, against what was used"
    ),
}
"""By the name that calibration gives it, in the order to show."""


def camera_table(cameras: Sequence[PinholeCamera]) -> Table:
    """Return where every camera stands and how wide it sees."""
    rows = []
    for camera in cameras:
        position = camera.position_world
        rows.append(
            (
                camera.name,
                f"{math.degrees(camera.fov_x_rad):.2f}",
                f"{float(np.linalg.norm(position)):.3f}",
                ", ".join(f"{value:.3f}".replace("-0.000", "0.000") for value in position),
                f"{camera.image_hw[1]} × {camera.image_hw[0]}",
            )
        )
    return Table(("view", "field of view °", "distance", "position x, y, z", "image px"), tuple(rows))


def residual_table(residuals: Mapping[str, float], cameras: Sequence[PinholeCamera]) -> Table | None:
    """Return what calibration left over by view, the whole in the last row; None when no view has residuals.

    Args:
        residuals: Those named `view.residual` belong to a view.
        cameras: The views.
    """
    split = {key: _of_view(key, cameras) for key in residuals}
    names = _in_order({found[1] for found in split.values() if found is not None})
    if not names:
        return None
    rows = [
        (view.name, *(_shown(name, residuals.get(f"{view.name}.{name}")) for name in names))
        for view in cameras
        if any(f"{view.name}.{name}" in residuals for name in names)
    ]
    whole = any(name in residuals for name in names)
    if whole:
        rows.append((_EVERY_VIEW, *(_shown(name, residuals.get(name)) for name in names)))
    return Table(("view", *(_told(name).label for name in names)), tuple(rows), mean_last=whole)


def overall_residuals(residuals: Mapping[str, float], cameras: Sequence[PinholeCamera]) -> list[tuple[str, str]]:
    """Return label and value of the residuals that `residual_table` does not show."""
    by_view = {found[1] for key in residuals if (found := _of_view(key, cameras)) is not None}
    names = _in_order({key for key in residuals if _of_view(key, cameras) is None} - by_view)
    return [(_told(name).label, _shown(name, residuals[name])) for name in names]


def residual_meanings(residuals: Mapping[str, float], cameras: Sequence[PinholeCamera]) -> list[tuple[str, str]]:
    """Return label and one line of explanation of every residual that occurs and has one."""
    names = {found[1] if (found := _of_view(key, cameras)) is not None else key for key in residuals}
    return [(RESIDUALS[name].label, RESIDUALS[name].meaning) for name in _in_order(names) if name in RESIDUALS]


def shift_table(photo_shifts_px: Mapping[str, tuple[float, float]], cameras: Sequence[PinholeCamera]) -> Table | None:
    """Return how far each photo lies off its depth render; None when nothing was measured.

    Args:
        photo_shifts_px: By view, right and down, pixels.
        cameras: The views; those without a measured shift get dashes.
    """
    if not photo_shifts_px:
        return None
    rows = []
    for camera in cameras:
        shift = photo_shifts_px.get(camera.name)
        if shift is None:
            rows.append((camera.name, "–", "–", "–", "–"))
            continue
        length = math.hypot(*shift)
        share = 100 * length / camera.image_hw[1]
        rows.append((camera.name, _signed(shift[0]), _signed(shift[1]), f"{length:.1f}", f"{share:.2f}"))
    return Table(("view", "to the right, px", "down, px", "in all, px", "of the width, %"), tuple(rows))


def _signed(value_px: float) -> str:
    text = f"{value_px:+.1f}"
    return "0.0" if float(text) == 0 else text


def _told(name: str) -> Residual:
    return RESIDUALS.get(name, Residual(name.replace("_", " "), ""))


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{RESIDUALS[name].factor * value:.2f}" if name in RESIDUALS else short(float(value))


def _in_order(names: set[str]) -> list[str]:
    known = list(RESIDUALS)
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def _of_view(key: str, cameras: Sequence[PinholeCamera]) -> tuple[str, str] | None:
    """Split `view.residual`; None when the key names no view."""
    view, dot, name = key.rpartition(".")
    return (view, name) if dot and any(camera.name == view for camera in cameras) else None

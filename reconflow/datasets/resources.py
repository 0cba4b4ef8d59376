"""How much memory a dataset takes once decoded, known from its headers. Measures nothing and decides nothing."""

from __future__ import annotations

from typing import Final

from reconflow.datasets.limits import MAX_FILE_BYTES
from reconflow.datasets.report import ValidationReport

RGB_BYTES: Final = 3
ALPHA_BYTES: Final = 4
DEPTH_BYTES: Final = 2

_DECODING_BYTES: Final = 24
"""Per pixel of the largest view while it is read: decoder, RGBA copy, labels, resampling (17 to 22 measured)."""


def loaded_bytes(report: ValidationReport) -> int:
    """Return the bytes that the loaded `Dataset` occupies.

    Args:
        report: Of a dataset without faults; views of unknown size count nothing.
    """
    total = 0
    for view in report.views:
        if view.photo_hw is not None:
            total += view.photo_hw[0] * view.photo_hw[1] * (RGB_BYTES + ALPHA_BYTES)
        if view.depth_hw is not None:
            total += view.depth_hw[0] * view.depth_hw[1] * DEPTH_BYTES
    return total


def peak_loading_bytes(report: ValidationReport) -> int:
    """Return an upper bound of the bytes needed while loading: the result plus the work on the largest view."""
    areas = [hw[0] * hw[1] for view in report.views for hw in (view.photo_hw, view.depth_hw) if hw is not None]
    return loaded_bytes(report) + _DECODING_BYTES * max(areas, default=0) + 2 * MAX_FILE_BYTES

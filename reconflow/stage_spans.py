"""Which part of a run's time each stage takes, by experience: what progress bars and forecasts go by."""

from __future__ import annotations

from typing import Final

from reconflow.nvdiffrec.options import Preset

STAGES: Final = ("validate", "transforms", "load", "infer", "quality", "preview", "package")
_PERCENT: Final = {
    Preset.DRAFT: (1, 15, 1, 62, 3, 14, 4),
    Preset.STANDARD: (1, 10, 1, 80, 2, 5, 1),
    Preset.HIGH: (1, 4, 1, 90, 1, 2, 1),
}
"""Per preset, in the order of `STAGES`; they add up to 100."""


def stage_span(stage: str, preset: Preset) -> tuple[float, float]:
    """Return the fractions of the whole run at which a stage begins and ends.

    Args:
        stage: One of `STAGES`.
        preset: How much work the run spends.
    """
    percent, place = _PERCENT[preset], STAGES.index(stage)
    return sum(percent[:place]) / 100, sum(percent[: place + 1]) / 100

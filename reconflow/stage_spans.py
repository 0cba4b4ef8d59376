"""Which part of a run's time each stage takes, by experience: what progress bars and forecasts go by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from reconflow.nvdiffrec.options import Preset

STAGES: Final = ("validate", "transforms", "load", "infer", "quality", "preview", "package")
MODEL_STAGES: Final = ("load", "infer", "quality", "preview")
"""Those that every model of a run goes through."""
PROGRESS_STEPS: Final = 1000
"""In how many steps the progress of a whole run is told."""
_PERCENT: Final = {
    Preset.DRAFT: (1, 15, 1, 62, 3, 14, 4),
    Preset.STANDARD: (1, 10, 1, 80, 2, 5, 1),
    Preset.HIGH: (1, 4, 1, 90, 1, 2, 1),
}
"""Per preset, in the order of `STAGES`; they add up to 100."""


def stage_span(stage: str, preset: Preset, place: int = 0, models: int = 1) -> tuple[float, float]:
    """Return the fractions of the whole run at which a stage begins and ends.

    Args:
        stage: One of `STAGES`.
        preset: How much work the run spends.
        place: Which of the run's models the stage is about, from 0; no matter for stages that all share.
        models: How many there are; they take equal shares of what one takes.
    """
    start, stop = _span(stage, preset)
    if stage not in MODEL_STAGES:
        return start, stop
    first, last = _span(MODEL_STAGES[0], preset)[0], _span(MODEL_STAGES[-1], preset)[1]
    begin = first + place * (last - first) / models
    return begin + (start - first) / models, begin + (stop - first) / models


class RunFraction:
    """How much of a whole run is done, from how much of its stages is; never falls.

    Args:
        preset: How much work the run spends.
        models: The names of its models, which take equal shares.

    Attributes:
        side_by_side: Whether the models compute at the same time, so that what each has done adds up.
        done: Fraction of the whole run.
    """

    def __init__(self, preset: Preset, models: Sequence[str] = ()) -> None:
        self.side_by_side = False
        self.done = 0.0
        self._preset = preset
        self._models = tuple(models)
        self._done_of: dict[str, float] = {}

    def span(self, stage: str, model: str | None = None) -> tuple[float, float]:
        """Return the fractions of the whole run at which a stage begins and ends when models take turns."""
        place = self._models.index(model) if model in self._models else 0
        return stage_span(stage, self._preset, place, max(len(self._models), 1))

    def move_to(self, stage: str, model: str | None, fraction: float) -> float:
        """Take note that a fraction of a stage is done, and return `done`; a step back is left out."""
        start, stop = self.span(stage, model)
        reached = start + fraction * (stop - start)
        if self.side_by_side and model is not None:
            begin = self.span(MODEL_STAGES[0], model)[0]
            self._done_of[model] = max(self._done_of.get(model, 0.0), reached - begin)
            reached = self.span(MODEL_STAGES[0])[0] + sum(self._done_of.values())
        self.done = max(self.done, reached)
        return self.done


def _span(stage: str, preset: Preset) -> tuple[float, float]:
    percent, position = _PERCENT[preset], STAGES.index(stage)
    return sum(percent[:position]) / 100, sum(percent[: position + 1]) / 100

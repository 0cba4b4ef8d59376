"""How far a run is and how long it may still take, in numbers and as a page for people. Sends nothing.

The forecast goes by the shares of `reconflow.stage_spans` and by how long this run has taken for its share so far.
What an earlier attempt had finished does not count: it says nothing about this machine's pace.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from reconflow.nvdiffrec.options import Preset
from reconflow.stage_spans import MODEL_STAGES, STAGES, stage_span

MIN_SHARE: Final = 0.03
MIN_ELAPSED_S: Final = 5.0
"""Before so much was done in so long, a forecast would be a guess."""


@dataclass
class _Part:
    """One stage of one model, or one that all models share."""

    stage: str
    model: str | None
    label: str
    start: float
    stop: float
    began_s: float | None = None
    ended_s: float | None = None
    kept: bool = False


class Forecast:
    """Where a run is among its stages.

    Args:
        preset: How much work the run spends.
        models: The names of the models that run one after another.
        clock: Seconds, monotonic.
    """

    def __init__(self, preset: Preset, models: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._parts = _parts(preset, tuple(models) or (None,))
        self._current: _Part | None = None
        self.fraction = 0.0
        """Of the whole run, never falling."""

    def begin(self, stage: str, model: str | None = None) -> tuple[float, float]:
        """Note that a stage begins, and with it the end of the one before.

        Returns:
            The fractions of the whole run at which it begins and ends.
        """
        part = self._part(stage, model)
        if self._current is not None and part is not self._current:
            self._current.ended_s = self._clock()
        if part.began_s is None:
            part.began_s = self._clock()
        self._current = part
        self.move_to(part.start)
        return part.start, part.stop

    def keep(self, stage: str, model: str | None = None) -> None:
        """Note that an earlier attempt had finished a stage."""
        self._part(stage, model).kept = True

    def move_to(self, fraction: float) -> None:
        """Note how much of the whole run is done; what would be a step back is left out."""
        self.fraction = max(self.fraction, fraction)

    def elapsed_s(self) -> float:
        """Return the seconds since the run began its first stage."""
        return self._clock() - self._began_s

    def remaining_s(self) -> float | None:
        """Return the seconds that the rest takes at the pace so far; None while that would be a guess."""
        worked, elapsed_s = self._worked(), self.elapsed_s()
        if worked < MIN_SHARE or elapsed_s < MIN_ELAPSED_S:
            return None
        return elapsed_s * (1.0 - self.fraction) / worked

    def _worked(self) -> float:
        """Return the share that this attempt has done; the stage under way counts once it is not at its end.

        At its end it may be over in an instant, because an earlier attempt had finished it.
        """
        ended = [part for part in self._parts if part.ended_s is not None and not part.kept]
        worked = sum(part.stop - part.start for part in ended)
        current = self._current
        if current is not None and not current.kept and self.fraction < current.stop - 1e-6:
            worked += max(0.0, self.fraction - current.start)
        return worked

    def page(self, message: str) -> str:
        """Return the page of a run under way, Markdown.

        Args:
            message: What is being done now.
        """
        current = self._current
        if current is None:
            return message
        detail = message.removeprefix(f"{current.stage}: ")
        doing = f"**{current.label}**" + (f": {detail}" if detail != current.stage else "")
        gone = f"{duration_text(self.elapsed_s())} so far, {remaining_text(self.remaining_s())}."
        return f"{doing}\n\n{gone}\n\n{self._table('now')}"

    def closing_page(self, ending: str, facts: str = "", *, completed: bool) -> str:
        """Return the page of a run that has ended, Markdown.

        Args:
            ending: In a word: Done, Failed, Cancelled.
            facts: What else is to be said.
            completed: Whether all stages were done.
        """
        if completed and self._current is not None:
            self._current.ended_s = self._clock()
        stage = "" if completed or self._current is None else f" in {self._current.label}"
        head = f"**{ending}**{stage} after {duration_text(self.elapsed_s())}."
        return "\n\n".join(filter(None, [head, facts, self._table("stopped here")]))

    def _table(self, current: str) -> str:
        rows = [self._row(part, current) for part in self._parts]
        return "\n".join(["| stage | share of the work | |", "|---|---|---|", *rows])

    def _row(self, part: _Part, current: str) -> str:
        said = ""
        if part.kept:
            said = "done by an earlier attempt"
        elif part.ended_s is not None and part.began_s is not None:
            said = f"done in {duration_text(part.ended_s - part.began_s)}"
        elif part is self._current:
            said = current
        label = f"**{part.label}**" if part is self._current and part.ended_s is None else part.label
        return f"| {label} | {100 * (part.stop - part.start):.0f} % | {said} |"

    def _part(self, stage: str, model: str | None) -> _Part:
        own = [part for part in self._parts if part.stage == stage]
        return next((part for part in own if part.model == model), own[0])


def _parts(preset: Preset, models: tuple[str | None, ...]) -> list[_Part]:
    parts = []
    for place, model in enumerate(models):
        for stage in MODEL_STAGES:
            label = f"{model} {stage}" if len(models) > 1 else stage
            parts.append(_Part(stage, model, label, *stage_span(stage, preset, place, len(models))))
    shared = [_Part(stage, None, stage, *stage_span(stage, preset)) for stage in STAGES if stage not in MODEL_STAGES]
    return sorted([*parts, *shared], key=lambda part: part.start)


def duration_text(seconds: float) -> str:
    """Return a duration for people: `7 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def remaining_text(seconds: float | None) -> str:
    """Return a forecast for people, no more exact than it is."""
    if seconds is None:
        return "too early to say how long it takes"
    if seconds < 15:
        return "a few seconds left"
    if seconds < 60:
        return "less than a minute left"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"about {minutes} min left"
    return f"about {seconds / 3600:.1f} h left"

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
from reconflow.stage_spans import MODEL_STAGES, STAGES, RunFraction

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
    failed: bool = False
    done: float = 0.0
    """Fraction of the stage."""
    message: str = ""

    @property
    def share(self) -> float:
        """Of the whole run's work."""
        return self.stop - self.start


class Forecast:
    """Where a run is among its stages.

    Args:
        preset: How much work the run spends.
        models: The names of the run's models.
        clock: Seconds, monotonic.
    """

    def __init__(self, preset: Preset, models: Sequence[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._whole = RunFraction(preset, models)
        self._parts = _parts(self._whole, tuple(models) or (None,))
        self._under_way: list[_Part] = []

    @property
    def fraction(self) -> float:
        """Of the whole run, never falling."""
        return self._whole.done

    def run_side_by_side(self) -> None:
        """Note that the run's models compute at the same time, so that one's stage does not end another's."""
        self._whole.side_by_side = True

    def begin(self, stage: str, model: str | None = None) -> None:
        """Note that a stage begins, and with it the end of the one before."""
        part = self._part(stage, model)
        goes_on = [other for other in self._under_way if other is part or self._go_together(other, part)]
        for other in self._under_way:
            if other not in goes_on:
                other.ended_s = self._clock()
        if part.began_s is None:
            part.began_s = self._clock()
        self._under_way = [other for other in self._parts if other is part or other in goes_on]
        self.move_to(stage, model, 0.0)

    def end_model(self, model: str, *, completed: bool) -> None:
        """Note that nothing more is done of a model, whether or not others are still under way."""
        for part in self._under_way:
            if part.model == model:
                part.ended_s, part.failed = self._clock(), not completed
        self._under_way = [part for part in self._under_way if part.model != model]
        self._whole.move_to(MODEL_STAGES[-1], model, 1.0)

    def keep(self, stage: str, model: str | None = None) -> None:
        """Note that an earlier attempt had finished a stage."""
        self._part(stage, model).kept = True

    def move_to(self, stage: str, model: str | None, fraction: float, message: str = "") -> None:
        """Note how much of a stage is done, and what is being done now; what would be a step back is left out."""
        part = self._part(stage, model)
        part.done, part.message = max(part.done, fraction), message
        self._whole.move_to(stage, model, fraction)

    def elapsed_s(self) -> float:
        """Return the seconds since the run began its first stage."""
        return self._clock() - self._began_s

    def remaining_s(self) -> float | None:
        """Return the seconds that the rest takes at the pace so far; None while that would be a guess.

        Of models side by side each has a pace of its own, and the slowest one decides.
        """
        models = {part.model for part in self._under_way if self._whole.side_by_side}
        rests = [self._rest_s(model) for model in models or {None}]
        known = [rest_s for rest_s in rests if rest_s is not None]
        return max(known) if len(known) == len(rests) else None

    def _rest_s(self, model: str | None) -> float | None:
        """Return what the rest of a model takes at its own pace, or that of the whole run at the run's."""
        if model is None:
            return _at_pace(1.0 - self.fraction, _worked(self._parts), self.elapsed_s())
        parts = [part for part in self._parts if part.model == model]
        left = sum((1.0 - part.done) * part.share for part in parts if part.ended_s is None and not part.kept)
        began_s = min(part.began_s for part in parts if part.began_s is not None)
        return _at_pace(left, _worked(parts), self._clock() - began_s)

    def page(self) -> str:
        """Return the page of a run under way, Markdown."""
        doing = "\n\n".join(map(_doing, self._under_way))
        gone = f"{duration_text(self.elapsed_s())} so far, {remaining_text(self.remaining_s())}."
        return f"{doing}\n\n{gone}\n\n{self._table('now')}"

    def closing_page(self, ending: str, facts: str = "", *, completed: bool) -> str:
        """Return the page of a run that has ended, Markdown.

        Args:
            ending: In a word: Done, Failed, Cancelled.
            facts: What else is to be said.
            completed: Whether all stages were done.
        """
        if completed:
            for part in self._under_way:
                part.ended_s = self._clock()
        labels = " and ".join(part.label for part in self._under_way)
        stage = "" if completed or not labels else f" in {labels}"
        head = f"**{ending}**{stage} after {duration_text(self.elapsed_s())}."
        return "\n\n".join(filter(None, [head, facts, self._table("stopped here")]))

    def _table(self, current: str) -> str:
        rows = [self._row(part, current) for part in self._parts]
        return "\n".join(["| stage | share of the work | |", "|---|---|---|", *rows])

    def _row(self, part: _Part, current: str) -> str:
        said = ""
        if part.kept:
            said = "done by an earlier attempt"
        elif part.failed:
            said = "failed"
        elif part.ended_s is not None and part.began_s is not None:
            said = f"done in {duration_text(part.ended_s - part.began_s)}"
        elif part in self._under_way:
            said = current
        label = f"**{part.label}**" if part in self._under_way and part.ended_s is None else part.label
        return f"| {label} | {100 * part.share:.0f} % | {said} |"

    def _part(self, stage: str, model: str | None) -> _Part:
        own = [part for part in self._parts if part.stage == stage]
        return next((part for part in own if part.model == model), own[0])

    def _go_together(self, part: _Part, other: _Part) -> bool:
        return self._whole.side_by_side and None not in (part.model, other.model) and part.model != other.model


def _parts(whole: RunFraction, models: tuple[str | None, ...]) -> list[_Part]:
    parts = []
    for model in models:
        for stage in MODEL_STAGES:
            label = f"{model} {stage}" if len(models) > 1 else stage
            parts.append(_Part(stage, model, label, *whole.span(stage, model)))
    shared = [_Part(stage, None, stage, *whole.span(stage)) for stage in STAGES if stage not in MODEL_STAGES]
    return sorted([*parts, *shared], key=lambda part: part.start)


def _worked(parts: Sequence[_Part]) -> float:
    """Return the share that this attempt has done of some stages; one under way counts once it is not at its end.

    At its end it may be over in an instant, because an earlier attempt had finished it.
    """
    own = [part for part in parts if part.began_s is not None and not part.kept]
    at_work = [part for part in own if part.ended_s is None and part.done < 1.0 - 1e-6]
    return sum(part.share for part in own if part.ended_s is not None) + sum(part.done * part.share for part in at_work)


def _at_pace(left: float, worked: float, elapsed_s: float) -> float | None:
    return None if worked < MIN_SHARE or elapsed_s < MIN_ELAPSED_S else elapsed_s * left / worked


def _doing(part: _Part) -> str:
    detail = part.message.removeprefix(f"{part.stage}: ")
    return f"**{part.label}**" + (f": {detail}" if detail not in ("", part.stage) else "")


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

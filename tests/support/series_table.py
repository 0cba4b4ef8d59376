"""Series of equal trials, side by side, and the table that a suite prints of them. Knows nothing of what is tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

Trial = Callable[[], float]
"""Tries something once and returns how long what matters took, seconds; raises when something was lost."""


@dataclass
class Series:
    """Trials of one kind.

    Attributes:
        name: For people.
        meaning: What the seconds are.
        seconds: Of the trials that went well.
        lost: Why the others did not.
        notes: Counted remarks of the trials.
    """

    name: str
    meaning: str
    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def run(self, trials: Sequence[Trial], jobs: int) -> None:
        """Make all trials, `jobs` at a time; one that is lost does not keep the others from being made."""
        with ThreadPoolExecutor(jobs) as pool:
            for number, ended in enumerate([pool.submit(trial) for trial in trials]):
                try:
                    self.seconds.append(ended.result())
                except Exception as error:
                    lines = str(error).splitlines() or [""]
                    self.lost.append(f"trial {number}: {type(error).__name__}: {' / '.join(lines)[:600]}")

    def note(self, text: str) -> None:
        """Count a remark."""
        self.notes[text] = self.notes.get(text, 0) + 1


class SeriesTable:
    """All series of a session."""

    def __init__(self) -> None:
        self._all: list[Series] = []

    def series(self, name: str, meaning: str) -> Series:
        """Begin a series."""
        self._all.append(Series(name, meaning))
        return self._all[-1]

    def show(self, reporter: pytest.TerminalReporter) -> None:
        """Print the table; nothing when there was no series."""
        if not self._all:
            return
        width = max(len(series.name) for series in self._all)
        reporter.write_sep("=", "series")
        reporter.write_line(f"{'series':{width}}  count   ok  lost    p50    p95  seconds are")
        for series in self._all:
            ok, lost = len(series.seconds), len(series.lost)
            p50, p95 = (f"{_percentile(series.seconds, share):6.1f}" for share in (0.5, 0.95))
            line = f"{series.name:{width}}  {ok + lost:5d}  {ok:3d}  {lost:4d} {p50} {p95}  {series.meaning}"
            reporter.write_line(line)
        for series in self._all:
            for text, count in sorted(series.notes.items()):
                reporter.write_line(f"{series.name}: {count} × {text}")
            for text in series.lost:
                reporter.write_line(f"LOST: {series.name}: {text}")


def _percentile(values: Sequence[float], share: float) -> float:
    """Return the value that so large a share of the values does not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan

"""Small line charts as inline SVG for the report. Numbers in, markup out; every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH, _HEIGHT = 300, 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 16, 22
_MAX_POINTS: Final = 240


@dataclass(frozen=True)
class Mark:
    """A step from which on the values mean something else: the line breaks there.

    Attributes:
        step: The first step of the new meaning.
        label: Written at the mark.
    """

    step: float
    label: str


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of a computation.

    Attributes:
        name: Shown above the chart.
        points: (step, value) in ascending order of the step.
        marks: In ascending order of the step.
    """

    name: str
    points: tuple[tuple[float, float], ...]
    marks: tuple[Mark, ...] = ()


def curve_svg(curve: Curve) -> str:
    """Draw one curve; the value axis is logarithmic when all values are positive.

    Zeros before the first other value are left out: the quantity did not take part yet. So are values that are not
    finite. Without any value the chart says so. The line breaks at every mark.
    """
    points = _started([(x, y) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)])
    label = escape(curve.name, quote=True)
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    if not points:
        return f'{head}<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">no values</text></svg>'
    lowest, highest = min(y for _, y in points), max(y for _, y in points)
    logarithmic = lowest > 0
    low, high = _spread(lowest, highest, logarithmic=logarithmic)
    first = min((x for x, _ in curve.points if math.isfinite(x)), default=points[0][0])
    last = max(points[-1][0], first + 1e-9)

    def column(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - first) / (last - first)

    def place(x: float, y: float) -> str:
        value = math.log10(y) if logarithmic else y
        row = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (high - low))
        return f"{column(x):.1f},{row:.1f}"

    end_x, end_y = place(*points[-1]).split(",")
    return "".join(
        [
            head,
            _grid(low, high, logarithmic=logarithmic),
            *(_mark(column(mark.step), mark.label) for mark in curve.marks if first <= mark.step <= last),
            f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{_number(first)}</text>',
            f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{_number(points[-1][0])}</text>',
            *(
                f'<polyline points="{" ".join(place(x, y) for x, y in _thinned(piece))}"/>'
                for piece in _pieces(points, [mark.step for mark in curve.marks])
            ),
            f'<circle cx="{end_x}" cy="{end_y}" r="2.6"/></svg>',
        ]
    )


def _started(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points from the first value that is not zero, or all when all are zero."""
    start = next((k for k, (_, value) in enumerate(points) if value != 0.0), 0)
    return list(points[start:])


def _pieces(points: Sequence[tuple[float, float]], breaks: Sequence[float]) -> list[list[tuple[float, float]]]:
    """Split points before every break; pieces without points are left out."""
    bounds = [-math.inf, *breaks, math.inf]
    pieces = [[point for point in points if bounds[k] <= point[0] < bounds[k + 1]] for k in range(len(bounds) - 1)]
    return [piece for piece in pieces if piece]


def _mark(x: float, label: str) -> str:
    return (
        f'<line class="mark" x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}"/>'
        f'<text class="mark" x="{x + 3:.1f}" y="{_TOP - 3}">{escape(label)}</text>'
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = max(1, math.ceil(len(points) / _MAX_POINTS))
    thin = list(points[::stride])
    return thin if not points or thin[-1] == points[-1] else [*thin, points[-1]]


def _spread(lowest: float, highest: float, *, logarithmic: bool) -> tuple[float, float]:
    low, high = (math.log10(lowest), math.log10(highest)) if logarithmic else (lowest, highest)
    margin = 0.06 * (high - low) or max(abs(high) * 0.05, 1e-12)
    floor = 0.0 if low >= 0 and not logarithmic else -math.inf
    return max(low - margin, floor), high + margin


def _grid(low: float, high: float, *, logarithmic: bool) -> str:
    marks = []
    for fraction in (0.0, 0.5, 1.0):
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - fraction)
        value = low + (high - low) * fraction
        shown = _number(10**value if logarithmic else value)
        marks.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        marks.append(f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{shown}</text>')
    return "".join(marks)


def _number(value: float) -> str:
    """Write an axis label: at most six characters for anything between 1e-9 and 1e9."""
    if value == 0 or 0.01 <= abs(value) < 100_000:
        return f"{value:.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"

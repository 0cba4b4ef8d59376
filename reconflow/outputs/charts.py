"""Small line charts as inline SVG for the report. Numbers in, markup out; every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH, _HEIGHT = 300, 132
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 22
_MAX_POINTS: Final = 240
_LOG_FROM_RATIO: Final = 20.0


@dataclass(frozen=True)
class Curve:
    """One quantity over the steps of a computation.

    Attributes:
        name: Shown above the chart.
        points: (step, value) in ascending order of the step.
    """

    name: str
    points: tuple[tuple[float, float], ...]


def curve_svg(curve: Curve) -> str:
    """Draw one curve; the value axis is logarithmic when the values span more than a factor of twenty.

    Values that are not finite are left out; without any value the chart says so.
    """
    points = _thinned([(x, y) for x, y in curve.points if math.isfinite(x) and math.isfinite(y)])
    label = escape(curve.name, quote=True)
    head = f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    if not points:
        return f'{head}<text x="{_WIDTH / 2}" y="{_HEIGHT / 2}" text-anchor="middle">no values</text></svg>'
    lowest, highest = min(y for _, y in points), max(y for _, y in points)
    logarithmic = lowest > 0 and highest / lowest > _LOG_FROM_RATIO
    low, high = _spread(lowest, highest, logarithmic=logarithmic)
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1e-9)

    def place(x: float, y: float) -> str:
        value = math.log10(y) if logarithmic else y
        px = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (x - first) / (last - first)
        py = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (value - low) / (high - low))
        return f"{px:.1f},{py:.1f}"

    path = " ".join(place(x, y) for x, y in points)
    end_x, end_y = place(*points[-1]).split(",")
    return "".join(
        [
            head,
            _grid(low, high, logarithmic=logarithmic),
            f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{_number(first)}</text>',
            f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{_number(points[-1][0])}</text>',
            f'<polyline points="{path}"/><circle cx="{end_x}" cy="{end_y}" r="2.6"/></svg>',
        ]
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
    if value == 0 or 0.001 <= abs(value) < 100_000:
        return f"{value:.0f}" if abs(value) >= 1000 or value == round(value) else f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"

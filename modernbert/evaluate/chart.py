"""Series of numbers → an SVG chart as text, drawn with the page's own colours so that it follows light and dark.

Coordinates keep a tenth of a unit: a line of 300 points takes some 4 kB. Colour n is the page's CSS class `s{n}`;
dashes and markers differ too, so that nothing is told by colour alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TypeAlias

Values: TypeAlias = Sequence[float | None]
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 16, 20, 34
_DASHES = ("", "", "6 3", "2 3", "8 3 2 3", "4 2", "1 2")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line; None interrupts it."""

    name: str
    x: Sequence[float]
    y: Values
    low: Values | None = None  # with `high`: a faint band
    high: Values | None = None
    color: int = 0
    markers: bool = False
    faint: bool = False  # drawn thin, behind the others
    breaks: Sequence[int] = ()  # indices that begin a new stroke


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What is drawn, and how it is labelled.

    Attributes:
        title: short; read out by screen readers.
        description: a sentence that stands in for the picture.
        series: at most as many as there are colours.
        x_label: below the axis.
        x_ticks: labels x values.
        y_ticks: labels y values.
        y_range: lowest and highest shown; from the series where not given.
        boundaries: x and label of the vertical lines.
        marks: x and text of the triangles on the axis.
        log2_x: whether x is spaced by its logarithm.
    """

    title: str
    description: str
    series: Sequence[Series]
    x_label: str
    x_ticks: Callable[[float], str] = field(default=lambda value: quantity(value))
    y_ticks: Callable[[float], str] = field(default=lambda value: quantity(value))
    y_range: tuple[float, float] | None = None
    boundaries: Sequence[tuple[float, str]] = ()
    marks: Sequence[tuple[float, str]] = ()
    log2_x: bool = False

    def svg(self, name: str, width: int = 360, height: int = 200) -> str:
        """The drawing; `name` must be unique in its page."""
        box = _Box.around(self, width, height)
        parts = [
            f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(self.title)}. '
            f'{escape(self.description)}" data-box="{box}">',  # no <title>: browsers would show it over the readout
            f'<clipPath id="{name}-c"><rect x="{box.left - 4}" y="{box.top - 1}" '
            f'width="{box.right - box.left + 8}" height="{box.bottom - box.top + 1}"/></clipPath>',
            *self._axes(box),
            f'<g clip-path="url(#{name}-c)">',
            *(_band(series, box) for series in self.series if series.low is not None),
            *(_line(series, box) for series in sorted(self.series, key=lambda series: not series.faint)),
            "</g>",
            *(_mark(box.px(x), box.bottom, text) for x, text in self.marks),
            f'<line class="cursor" y1="{box.top}" y2="{box.bottom}"/></svg>',
        ]
        return "".join(parts)

    def _axes(self, box: _Box) -> list[str]:
        parts = []
        for value in nice_ticks(box.y0, box.y1, 4 if box.bottom - box.top < 200 else 7):
            y = box.py(value)
            parts.append(f'<line class="grid" x1="{box.left}" x2="{box.right}" y1="{y}" y2="{y}"/>')
            parts.append(f'<text x="{box.left - 6}" y="{y + 3.5:.1f}" class="end">{escape(self.y_ticks(value))}</text>')
        for value in box.x_ticks():
            at = box.px(value)
            parts.append(f'<line class="tick" x1="{at}" x2="{at}" y1="{box.bottom}" y2="{box.bottom + 4}"/>')
            label = self.x_ticks(value)
            x = min(at, box.right + _RIGHT - 3.2 * len(label))
            parts.append(f'<text x="{x:.1f}" y="{box.bottom + 15}" class="mid">{escape(label)}</text>')
        last_end = float("-inf")
        for x, label in self.boundaries:
            at = box.px(x)
            parts.append(f'<line class="boundary" x1="{at}" x2="{at}" y1="{box.top - 4}" y2="{box.bottom}"/>')
            wide = 6.2 * len(label)
            start = max(min(at + 3, box.right - wide), last_end + 6)
            if start + wide <= box.right + _RIGHT:
                parts.append(f'<text x="{start:.1f}" y="{box.top - 8}">{escape(label)}</text>')
                last_end = start + wide
        parts.append(f'<line class="axis" x1="{box.left}" x2="{box.right}" y1="{box.bottom}" y2="{box.bottom}"/>')
        parts.append(f'<text x="{box.right}" y="{box.bottom + 29}" class="end">{escape(self.x_label)}</text>')
        return parts


@dataclass(frozen=True)
class _Box:
    """The plot's rectangle, and which values lie at its edges."""

    left: int
    right: int
    top: int
    bottom: int
    x0: float
    x1: float
    y0: float
    y1: float
    log2_x: bool

    @classmethod
    def around(cls, chart: Chart, width: int, height: int) -> _Box:
        xs = [x for series in chart.series for x in series.x] + [x for x, _ in chart.marks]
        low_x, high_x = (min(xs), max(xs)) if xs else (0.0, 1.0)
        x0 = low_x if chart.log2_x else 0.0
        low, high = chart.y_range or value_range([series.y for series in chart.series])
        return cls(
            left=_LEFT, right=width - _RIGHT, top=_TOP, bottom=height - _BOTTOM, x0=x0,
            x1=high_x if high_x > x0 else x0 + 1, y0=low, y1=high, log2_x=chart.log2_x,
        )  # fmt: skip

    def px(self, x: float) -> float:
        if self.log2_x:
            share = math.log2(max(x, self.x0) / self.x0) / max(math.log2(self.x1 / self.x0), 1e-9)
        else:
            share = (x - self.x0) / (self.x1 - self.x0)
        return round(self.left + share * (self.right - self.left), 1)

    def py(self, y: float) -> float:
        return round(self.bottom - (y - self.y0) / (self.y1 - self.y0) * (self.bottom - self.top), 1)

    def x_ticks(self) -> list[float]:
        if not self.log2_x:
            return nice_ticks(self.x0, self.x1, 4 if self.right - self.left < 500 else 8)
        powers = range(math.ceil(math.log2(self.x0)), math.floor(math.log2(self.x1)) + 1)
        return [2.0**power for power in powers][:: max(1, len(powers) // 6)]

    def __str__(self) -> str:
        ends = (self.left, self.right, self.top, self.bottom, self.x0, self.x1, self.y0, self.y1, int(self.log2_x))
        return " ".join(f"{end:.8g}" for end in ends)


def value_range(columns: Sequence[Values], *, from_zero: bool = False) -> tuple[float, float]:
    """The lowest and highest of some values, with a little air; zero where the lowest is near it."""
    values = [value for column in columns for value in column if value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    if from_zero and low >= 0:
        return 0.0, high + air
    return (0.0 if 0 <= low < air else low - air), high + air


def without_extremes(values: Values, share: float) -> list[float]:
    """The values less a share of the lowest and of the highest: one step of thousands must not flatten a picture."""
    known = sorted(value for value in values if value is not None)
    cut = int(share * len(known))
    return known[cut : len(known) - cut]


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Some `about` round values from low to high: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.75 * rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def quantity(value: float) -> str:
    """Three or four digits and a thousand's letter: 985 k, 1.7 T."""
    for limit, letter in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{float(f'{value / limit:.4g}'):g}{letter}"
    return f"{value:.4g}".replace("e-0", "e-")


def duration(seconds: float | None) -> str:
    """Days and hours, hours and minutes, minutes, or seconds."""
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def number(value: float | None, form: str = ",") -> str:
    """A number in a form, a dash where there is none."""
    return "–" if value is None else format(value, form)


def percent(value: float) -> str:
    """A share in per cent, four digits at most."""
    return f"{100 * value:.4g}%"


def _strokes(series: Series, box: _Box) -> list[list[tuple[float, float]]]:
    """Points in the drawing's units, cut where a value is missing or a stroke begins."""
    strokes: list[list[tuple[float, float]]] = [[]]
    for index, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
        if (y is None or index in series.breaks) and strokes[-1]:
            strokes.append([])
        if y is not None:
            strokes[-1].append((box.px(x), box.py(y)))
    return [stroke for stroke in strokes if stroke]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def _line(series: Series, box: _Box) -> str:
    strokes = _strokes(series, box)
    kind = f"s{series.color} line{' faint' if series.faint else ''}"
    dash = _DASHES[series.color % len(_DASHES)]
    data = f' data-name="{escape(series.name)}"' if not series.faint else ""
    path = f'<path class="{kind}"{data} d="{"".join(map(_path, strokes))}"'
    path += f' stroke-dasharray="{dash}"/>' if dash and not series.faint else "/>"
    if not series.markers and not any(len(stroke) == 1 for stroke in strokes):
        return path
    dots = strokes if series.markers else [stroke for stroke in strokes if len(stroke) == 1]
    radius = 2.6 if series.markers else 1.6
    drawn = (f'<circle class="s{series.color} dot" cx="{x:g}" cy="{y:g}" r="{radius}"/>' for s in dots for x, y in s)
    return path + "".join(itertools.islice(drawn, 400))


def _band(series: Series, box: _Box) -> str:
    assert series.low is not None and series.high is not None
    edges = (Series(name="", x=series.x, y=edge, breaks=series.breaks) for edge in (series.high, series.low))
    shapes = [
        _path(upper + lower[::-1]) + "Z"
        for upper, lower in zip(*(_strokes(edge, box) for edge in edges), strict=True)
        if len(upper) > 1
    ]
    return f'<path class="s{series.color} band" d="{"".join(shapes)}"/>' if shapes else ""


def _mark(x: float, y: float, text: str) -> str:
    return f'<path class="mark" d="M{x:g} {y - 9:g}l5 9h-10Z"><title>{escape(text)}</title></path>'

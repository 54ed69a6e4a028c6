"""Small charts as inline SVG: lines over optimiser steps, with a band, a reference line, and shares of a bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from replug_client.pages.markup import Markup, join, tag

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 24
_MOST_POINTS = 240
_MOST_DOTS = 30


@dataclass(frozen=True, slots=True)
class Line:
    """One figure over the steps.

    Attributes:
        name: As the legend says it.
        points: ``(step, value)``, finite, steps ascending.
        band: ``(step, low, high)`` of an interval around it.
    """

    name: str
    points: Points
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """Lines with one axis.

    Attributes:
        title: What is shown.
        note: How to read it: unit, and which way is better.
        lines: At most four.
        reference: A level to compare with, and its name.
        limits: Values that the axis holds in any case.
    """

    title: str
    note: str
    lines: Sequence[Line]
    reference: tuple[str, float] | None = None
    limits: Sequence[float] = ()


def number(value: float) -> str:
    """Four significant digits, as short as that gets."""
    return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round values that lie within ``[low, high]``."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    found = [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]
    return [0.0 if abs(value) < step * 1e-9 else value for value in found]


def tick_labels(values: Sequence[float]) -> list[str]:
    """The values with as many decimals as tell them apart, and no more."""
    if max(map(abs, values), default=0.0) < 1e-4:
        return [number(value) for value in values]
    for decimals in range(8):
        labels = [f"{value:,.{decimals}f}" for value in values]
        if all(
            math.isclose(float(label.replace(",", "")), value, rel_tol=1e-9, abs_tol=1e-12)
            for label, value in zip(labels, values, strict=True)
        ):
            return labels
    return [number(value) for value in values]


def thinned(points: Sequence[tuple[float, ...]], most: int = _MOST_POINTS) -> list[tuple[float, ...]]:
    """At most about ``most`` of the points, evenly, with the first and the last: a page stays small."""
    if len(points) <= most:
        return list(points)
    stride = math.ceil((len(points) - 1) / (most - 1))
    return [*points[:-1:stride], points[-1]]


def chart(data: Chart, last_step: float) -> Markup:
    """A figure with its heading, legend and drawing; ``last_step`` is the right end of the axis."""
    lines = [line for line in data.lines if line.points]
    if not lines:
        return Markup("")
    legend = [
        tag("span", tag("i", class_=f"key s{place}"), f"{line.name} ", tag("b", number(line.points[-1][1])))
        for place, line in enumerate(lines, start=1)
    ]
    if data.reference is not None:
        name, level = data.reference
        legend.append(tag("span", tag("i", class_="key reference"), f"{name} ", tag("b", number(level))))
    return tag(
        "figure",
        tag("figcaption", tag("h3", data.title), tag("p", data.note)),
        tag("div", *legend, class_="legend"),
        _drawing(data, lines, max(last_step, 1.0)),
    )


class _Axes:
    """From values to places in the drawing."""

    def __init__(self, values: Sequence[float], last_step: float) -> None:
        low, high = min(values), max(values)
        margin = (high - low) * 0.06 or abs(high) * 0.05 or 0.5
        self.low, self.high, self.last_step = low - margin, high + margin, last_step

    def x(self, step: float) -> str:
        return f"{_LEFT + (WIDTH - _LEFT - _RIGHT) * step / self.last_step:.1f}"

    def y(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share:.1f}"

    def place(self, step: float, value: float) -> str:
        return f"{self.x(step)},{self.y(value)}"


def _drawing(data: Chart, lines: Sequence[Line], last_step: float) -> Markup:
    values = [value for line in lines for _, value in line.points]
    values += [value for line in lines for _, *ends in line.band for value in ends]
    values += [*data.limits, *([data.reference[1]] if data.reference else [])]
    axes = _Axes(values, last_step)
    parts = [_grid(axes)]
    if data.reference is not None:
        level = axes.y(data.reference[1])
        parts.append(tag("line", class_="reference", x1=_LEFT, x2=WIDTH - _RIGHT, y1=level, y2=level))
    for place, line in enumerate(lines, start=1):
        parts.append(_band(line, place, axes))
        parts.append(_curve(line, place, axes))
    said = ", ".join(f"{line.name} {number(line.points[-1][1])}" for line in lines)
    label = f"{data.title}: last {said}"
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)


def _grid(axes: _Axes) -> Markup:
    parts: list[Markup] = []
    levels = ticks(axes.low, axes.high)
    for value, label in zip(levels, tick_labels(levels), strict=True):
        level = axes.y(value)
        parts.append(tag("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=level, y2=level))
        parts.append(tag("text", label, x=_LEFT - 6, y=level, class_="tick y"))
    for step in ticks(0.0, axes.last_step):
        if step == int(step):
            text = tag("text", f"{step:,.0f}", x=axes.x(step), y=HEIGHT - 7, class_="tick x")
            parts.append(text)
    return join(parts)


def _band(line: Line, place: int, axes: _Axes) -> Markup:
    if len(line.band) < 2:
        return Markup("")
    band = thinned(line.band)
    upper = [axes.place(step, high) for step, _, high in band]
    lower = [axes.place(step, low) for step, low, _ in reversed(band)]
    return tag("polygon", class_=f"band s{place}", points=" ".join([*upper, *lower]))


def _curve(line: Line, place: int, axes: _Axes) -> Markup:
    points = thinned(line.points)
    parts = [
        tag("polyline", class_=f"line s{place}", points=" ".join(axes.place(step, v) for step, v in points))
    ]
    if len(points) <= _MOST_DOTS:
        ends = {step: f" [{number(low)}, {number(high)}]" for step, low, high in line.band}
        for step, value in points:
            said = f"step {step:,.0f}: {line.name} {number(value)}{ends.get(step, '')}"
            dot = tag("title", said)
            parts.append(
                tag("circle", dot, class_=f"dot s{place}", cx=axes.x(step), cy=axes.y(value), r="2.6")
            )
    return join(parts)


def shares(parts: Sequence[tuple[str, float, str]], label: str) -> Markup:
    """One bar cut into shares, with its legend: ``(name, amount, amount as it is said)``; amounts not negative."""
    total = sum(amount for _, amount, _ in parts)
    if total <= 0:
        return Markup("")
    rects, legend, left = [], [], 0.0
    for place, (name, amount, said) in enumerate(parts, start=1):
        width = 100 * amount / total
        share = f"{amount / total:.0%}"
        title = tag("title", f"{name}: {said}, {share}")
        rects.append(
            tag("rect", title, class_=f"s{place}", x=f"{left:.3f}", y=0, width=f"{width:.3f}", height=6)
        )
        key = tag("i", class_=f"key s{place}")
        legend.append(tag("span", key, f"{name} ", tag("b", said), f" {share}"))
        left += width
    drawing = tag(
        "svg",
        *rects,
        viewBox="0 0 100 6",
        preserveAspectRatio="none",
        class_="shares",
        role="img",
        aria_label=label,
    )
    return join([drawing, tag("div", *legend, class_="legend")])


def heat_table(labels: Sequence[str], counts: Sequence[Sequence[int]], corner: str) -> Markup:
    """Counts as a table whose cells are the darker the more they count; lines and columns have the same labels."""
    most = max((count for line in counts for count in line), default=0) or 1
    head = tag("tr", tag("th", corner), *(tag("th", label, scope="col") for label in labels))
    lines = []
    for label, line in zip(labels, counts, strict=True):
        cells = [
            tag("td", f"{count:,}" if count else "", style=f"--v:{100 * count / most:.0f}%") for count in line
        ]
        lines.append(tag("tr", tag("th", label, scope="row"), *cells))
    return tag("table", tag("thead", head), tag("tbody", *lines), class_="heat")

"""Values and differences of rows that compare: a dot a row on one scale, with its interval.

Each row is a line of the page with its own small drawing, so that labels break where the page is narrow and
nothing in it is stretched; places in a drawing are per cent of its width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from replug_client.pages.charts import tick_labels, ticks
from replug_client.pages.markup import Markup, tag

_MARGIN = 0.07  # of the scale, at either end
_HEIGHT = 22


@dataclass(frozen=True, slots=True)
class Dot:
    """One row.

    Attributes:
        label: Of the condition.
        note: Small, behind it: its n.
        value: Where the dot stands.
        said: The value as people read it, with its interval.
        low: Lower end of the interval; None where there is none.
        high: Upper end.
        emphasis: Shown strong.
        tone: ``good`` or ``bad``, where the interval says so.
    """

    label: str
    note: str
    value: float
    said: str
    low: float | None = None
    high: float | None = None
    emphasis: bool = False
    tone: str | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to per cent of a drawing's width."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> Scale:
        """One that holds all of them, with a margin; a single value stands in the middle.

        Raises:
            ValueError: no value.
        """
        low, high = min(values), max(values)
        margin = (high - low) * _MARGIN or abs(high) * 0.05 or 1.0
        return cls(low - margin, high + margin)

    def place(self, value: float) -> float:
        """Per cent from the left."""
        return 100 * (value - self.low) / (self.high - self.low)


def dot_plot(title: str, note: str, dots: Sequence[Dot], reference: float | None = None) -> Markup:
    """A figure with a line for each dot, and the scale below.

    Args:
        title: What is shown.
        note: How to read it: unit, and which way is better.
        dots: In order; without any there is no figure.
        reference: A value that is marked in every line: 0 of a difference, or the baseline's own.
    """
    if not dots:
        return Markup("")
    values = [value for dot in dots for value in (dot.value, dot.low, dot.high) if value is not None]
    scale = Scale.over([*values, *([reference] if reference is not None else [])])
    lines = [_line(dot, scale, reference) for dot in dots]
    axis = tag("div", tag("span"), _axis(scale), tag("span"), class_="row")
    return tag(
        "figure",
        tag("figcaption", tag("h4", title), tag("p", note)),
        tag("div", *lines, axis, class_="dots"),
        class_="dot-plot",
    )


def _line(dot: Dot, scale: Scale, reference: float | None) -> Markup:
    kind = " ".join(filter(None, ("dot", dot.tone, "strong" if dot.emphasis else None)))
    parts: list[Markup] = []
    if reference is not None:
        parts.append(_upright(scale.place(reference), "reference"))
    if dot.low is not None and dot.high is not None:
        ends = [f"{scale.place(end):.2f}%" for end in (dot.low, dot.high)]
        middle = _HEIGHT / 2
        parts.append(tag("line", class_=f"interval {kind}", x1=ends[0], x2=ends[1], y1=middle, y2=middle))
    parts.append(
        tag(
            "circle",
            class_=kind,
            cx=f"{scale.place(dot.value):.2f}%",
            cy=_HEIGHT / 2,
            r="5" if dot.emphasis else "4",
        )
    )
    drawing = tag(
        "svg", *parts, class_="track", height=_HEIGHT, role="img", aria_label=f"{dot.label}: {dot.said}"
    )
    strong = "strong" if dot.emphasis else None
    label = tag("span", dot.label, " ", tag("small", dot.note), class_=strong)
    said = tag("span", dot.said, class_=" ".join(filter(None, ("said", dot.tone, strong))))
    return tag("div", label, drawing, said, class_="row")


def _axis(scale: Scale) -> Markup:
    values = ticks(scale.low, scale.high)
    labels = zip(values, tick_labels(values), strict=True)
    texts = [
        tag("text", label.replace("-", "\u2212"), x=f"{scale.place(value):.2f}%", y=12, class_="tick x")
        for value, label in labels
    ]
    return tag("svg", *texts, class_="track axis", height=16, aria_hidden="true")


def _upright(place: float, kind: str) -> Markup:
    return tag("line", class_=kind, x1=f"{place:.2f}%", x2=f"{place:.2f}%", y1=0, y2=_HEIGHT)

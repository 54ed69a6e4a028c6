"""Anything that JSON can hold as nested lists of names and values, every text of it escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replug_client.pages.markup import Markup, clip, join, tag

_LONGEST = 2_000  # characters of a text
_MOST = 100  # items of a list; how many more there are is said
_DEEPEST = 8


def values(value: object, depth: int = 0) -> Markup:
    """``value`` as markup: mappings as definition lists, sequences numbered, texts cut where they are very long."""
    if depth > _DEEPEST:
        return tag("span", "\u2026")
    if isinstance(value, Mapping):
        if not value:
            return tag("span", "none", class_="soft")
        items = [join([tag("dt", name), tag("dd", values(item, depth + 1))]) for name, item in value.items()]
        return tag("dl", *items, class_="values")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _list(value, depth)
    return tag("span", _said(value))


def _list(value: Sequence[object], depth: int) -> Markup:
    if not value:
        return tag("span", "none", class_="soft")
    if not any(isinstance(item, Mapping | list | tuple) for item in value):
        shown = ", ".join(_said(item) for item in value[:_MOST])
        return tag("span", shown + _more(value))
    items = [tag("li", values(item, depth + 1)) for item in value[:_MOST]]
    return join([tag("ol", *items), _more(value)])


def _more(value: Sequence[object]) -> str:
    return f" \u2026 and {len(value) - _MOST:,} more" if len(value) > _MOST else ""


def _said(value: object) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return clip(str(value), _LONGEST)

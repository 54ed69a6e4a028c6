"""HTML from values that may be hostile: whatever is not made here is escaped here."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Control characters but tab and newline, lone surrogates, and the marks that turn the direction of text around.
_UNSHOWABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)
_VOID = frozenset({"meta", "link", "input", "line", "polyline", "polygon", "circle", "rect", "path", "br"})


class Markup(str):
    """Text that is HTML already; any other string is escaped where it is put into a page."""

    __slots__ = ()


def clean(text: str) -> str:
    """``text`` with every character that a page cannot show, or that shows another text, as U+FFFD."""
    return _UNSHOWABLE.sub("\ufffd", text.replace("\r\n", "\n"))


def escape(content: object) -> Markup:
    """Markup as it is; anything else as text, with ``& < > " '`` escaped."""
    if isinstance(content, Markup):
        return content
    return Markup(html.escape(clean(str(content)), quote=True))


def join(parts: Iterable[object], between: str = "") -> Markup:
    """The parts, escaped where they need it, one after another."""
    return Markup(escape(between).join(escape(part) for part in parts))


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """One element: ``tag("p", "a < b", class_="note")``.

    An attribute's underscores become hyphens, and a trailing one is dropped (``class_``); one that is None is
    left out. Names are the program's own; values and content may be anybody's.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not content:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(content)}</{name}>")


def clip(text: str, length: int, *, end: bool = False) -> str:
    """At most ``length`` characters of the text's beginning, or of its end, with a mark where it was cut."""
    text = text.strip("\r\n").rstrip()  # what a first line is indented by is a part of it
    if len(text) <= length:
        return text
    return "\u2026" + text[-length:] if end else text[:length] + "\u2026"

"""Wikipedia's markup taken off: prose stays; templates, tables, references, files and empty sections go."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from replug_client.errors import OptionError

_TAGS = frozenset(
    re.findall(
        r"\w+",
        "ref references gallery table math chem ce score timeline imagemap graph hiero inputbox categorytree "
        "templatedata syntaxhighlight source pre section mapframe maplink indicator style templatestyles",
    )
)
_NAMESPACES = frozenset({"file", "image", "media", "category"})
_INTERWIKI = re.compile(r"[a-z]{2,3}(-[a-z]+)*")
_SWITCH = re.compile(r"__[A-Z]{3,}__")
_SPACES = re.compile(r"[ \t\u00a0]+")
_BLANK_LINES = re.compile(r"\n\s*\n")
_BRACKETS = (re.compile(r"\{\{|\}\}"), re.compile(r"\[\[|\]\]"), re.compile(r"\{\||\|\}"))
# The parser reads on to the end of the page for each bracket that is never closed: about 20 million a second.
_MOST_WORK = 50_000_000
# What is left where a template stood: "( ; born 1950)", "()", and a space before a full stop.
_REMAINS = (
    (re.compile(r"\(\s*(?:[,;:]\s*)+"), "("),
    (re.compile(r"\s?\(\s*\)"), ""),
    (re.compile(r" +([,.;:)])"), r"\1"),
)


@dataclass(frozen=True, slots=True)
class Markup:
    """How one wiki's markup is taken off.

    Attributes:
        namespaces: Names of its own for files and categories, besides the English ones, in lower case.
        keep_headings: Section headings stay, as paragraphs of their own; those of empty sections never do.
    """

    namespaces: frozenset[str] = frozenset()
    keep_headings: bool = True

    def plain(self, text: str) -> str | None:
        """The prose of a page, its paragraphs apart by a blank line. None where it cannot be parsed."""
        try:
            import mwparserfromhell
        except ModuleNotFoundError as error:
            raise OptionError(f"wiki markup needs {error.name}: pip install 'replug[data]'") from error
        if _unclosed(text) * len(text) > _MOST_WORK:
            return None
        try:
            return "\n\n".join(self._paragraphs(mwparserfromhell.parse(text)))
        except (mwparserfromhell.parser.ParserError, RecursionError):
            return None

    def _paragraphs(self, code: Any) -> Iterator[str]:
        # Headings above the one whose text comes next, the outermost first; given out once there is text.
        waiting: list[tuple[int, str]] = []
        for level, heading, nodes in _sections(code):
            if level:
                waiting = [above for above in waiting if above[0] < level]
                waiting.append((level, _tidy(self._text(heading))))
            paragraphs = [_tidy(part) for part in _BLANK_LINES.split("".join(map(self._text_of, nodes)))]
            if any(paragraphs):
                yield from (title for _, title in waiting if title and self.keep_headings)
                waiting = []
                yield from filter(None, paragraphs)

    def _text(self, code: Any) -> str:
        return "" if code is None else "".join(map(self._text_of, code.nodes))

    def _text_of(self, node: Any) -> str:
        """The prose of one node and of what is in it. One walk: taking nodes out of a tree is quadratic."""
        match type(node).__name__:
            case "Text":
                return str(node.value)
            case "Wikilink":
                return "" if self._is_no_prose(str(node.title)) else self._text(node.text or node.title)
            case "ExternalLink":
                return self._text(node.title) if node.brackets else str(node.url)
            case "HTMLEntity":
                return str(node.normalize() or "")
            case "Heading":
                return f"\n\n{self._text(node.title)}\n\n"
            case "Tag":
                name = str(node.tag).strip().lower()
                if name in ("br", "hr"):
                    return "\n"
                return "" if name in _TAGS else self._text(node.contents)
            case _:  # templates, their arguments, comments
                return ""

    def _is_no_prose(self, title: str) -> bool:
        space, colon, _ = title.partition(":")
        name = space.strip().lower().replace("_", " ")
        if not colon or not name:
            return False  # [[:Category:X]] is a link that is shown
        return name in _NAMESPACES or name in self.namespaces or _INTERWIKI.fullmatch(name) is not None


def _sections(code: Any) -> Iterator[tuple[int, Any, list[Any]]]:
    """Level, heading and nodes of each section in order; level 0 for what stands before the first heading."""
    level, heading = 0, None
    nodes: list[Any] = []
    for node in code.nodes:
        if type(node).__name__ == "Heading":
            yield level, heading, nodes
            level, heading, nodes = int(node.level), node.title, []
        else:
            nodes.append(node)
    yield level, heading, nodes


def _unclosed(text: str) -> int:
    """How many brackets are opened and never closed."""
    unclosed = 0
    for brackets in _BRACKETS:
        depth = 0
        for match in brackets.finditer(text):
            depth = depth + 1 if match.group()[0] in "{[" else max(0, depth - 1)
        unclosed += depth
    return unclosed


def _tidy(text: str) -> str:
    text = _SPACES.sub(" ", _SWITCH.sub("", text))
    for pattern, replacement in _REMAINS:
        text = pattern.sub(replacement, text)
    return "\n".join(filter(None, (line.strip() for line in text.split("\n"))))

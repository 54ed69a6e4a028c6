r"""Two retrievers' lists side by side on a terminal, and nothing that a passage could do to it.

Text from a corpus is data. Escape sequences, other control characters, bidirectional overrides and
invisible characters are shown as escapes (``\x1b``, ``\u202e``) and never sent; rich's own markup is
not interpreted. Movement is said in words, so it can be read without colour.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from replug_client.corpus.records import Passage
from replug_client.evaluation.comparison import Comparison, Place, QueryComparison, Worth, movement

# Below this width two columns leave too little of a passage to read: the lists go under each other.
SIDE_BY_SIDE_WIDTH = 100
WIDEST = 200
PASSAGE_LINES = 3
QUERY_LINES = 6
CONTINUATION_LINES = 3
_TAB = 4
_ELLIPSIS = "…"
_INDENT = "    "
_HEADING = "bold"
_DIM = "dim"
_STYLES = {"new": "bold green", "dropped": "bold red", "up": "green", "down": "yellow", "same": "dim"}


def open_console() -> Console:
    """A console on stdout that interprets no markup and survives an encoding that lacks a character."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(markup=False, emoji=False, highlight=False)


def visible(text: str) -> str:
    """``text`` with every character that is not printable as a visible escape; newlines stay.

    Not printable (``str.isprintable``) are controls, format characters (bidirectional overrides,
    zero-width ones), surrogates, private and unassigned code points, and separators. Carriage
    returns at a line's end become newlines; tabs and Unicode's other spaces become plain ones.
    """
    text = re.sub(r"\r\n?", "\n", text).expandtabs(_TAB)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character == "\n" or character.isprintable():
        return character
    code = ord(character)
    if character.isspace() and code >= 0xA0 and character not in "\u2028\u2029":
        return " "
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def one_line(text: str, width: int) -> str:
    """``text`` on one line of at most ``width`` cells, runs of whitespace folded to one space."""
    return _cut(" ".join(visible(text).split()), width)


def excerpt(text: str, width: int, lines: int, *, end: bool = False, dense: bool = False) -> list[str]:
    """At most ``lines`` lines of at most ``width`` cells, with an ellipsis where something is left out.

    Lines stay lines, as code needs: blank ones go, and so does common indentation. A text of fewer
    lines than there is room for (prose) is wrapped. ``end`` keeps the last lines rather than the
    first: of a query, what stands right before the continuation says most. ``dense`` also leaves out
    lines without a letter or digit, where others have some: a bracket says nothing of a passage.
    """
    every = [line.rstrip() for line in visible(text).split("\n") if line.strip()]
    if dense:
        every = [line for line in every if any(map(str.isalnum, line))] or every
    if len(every) < lines:
        # No piece has more than 4 * width characters, so more of a line than this is never shown.
        enough = 4 * width * (lines + 1)
        every = [
            piece for line in every for piece in _wrapped(line[-enough:] if end else line[:enough], width)
        ]
    kept = _outdented(every[-lines:] if end else every[:lines])
    if len(every) > lines and end:
        kept[0] = f"{_ELLIPSIS} {kept[0]}"
    elif len(every) > lines:
        kept[-1] = f"{kept[-1]} {_ELLIPSIS}"
    return [_cut(line, width) for line in kept]


def _outdented(lines: Sequence[str]) -> list[str]:
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    margin = min(indents, default=0)
    # A piece of code often starts in the middle of a line, so its first line seems not indented
    # at all; the others are then brought to one step from it, not left far to the right.
    deeper = min((indent - margin for indent in indents[1:]), default=0)
    extra = max(0, deeper - _TAB)
    kept = [line[margin + (extra if place else 0) :] for place, line in enumerate(lines)]
    # A continuation line aligned under a bracket far to the right would leave no room for itself.
    return [line[max(0, len(line) - len(line.lstrip(" ")) - 2 * _TAB) :] for line in kept]


def _fitting(line: str, width: int) -> str:
    """The longest beginning of ``line`` that fits ``width`` cells; bounded, whatever has no width."""
    pieces = chop_cells(line[: 4 * width], width)
    return pieces[0] if pieces else ""


def _cut(line: str, width: int) -> str:
    if len(line) <= 4 * width and cell_len(line) <= width:
        return line
    return _fitting(line, width - 1).rstrip() + _ELLIPSIS


def _wrapped(line: str, width: int) -> Iterator[str]:
    while cell_len(line) > width:
        head = _fitting(line, width) or line[0]
        space = head.rfind(" ")
        at = space if space > len(head) // 2 else len(head)
        yield line[:at].rstrip()
        line = line[at:].lstrip()
    if line:
        yield line


def render_query(
    comparison: QueryComparison,
    passages: Mapping[int, Passage],
    *,
    width: int,
    title: str = "query",
    names: tuple[str, str] = ("base", "tuned"),
) -> RenderableType:
    """One query: its text, both lists, and the figures below.

    Args:
        comparison: What :func:`~replug_client.evaluation.comparison.compare_query` gives.
        passages: The passage of each row in either list.
        width: The terminal's, in cells.
        title: Heads the query.
        names: The two retrievers, as the columns are headed.
    """
    width = min(width, WIDEST)
    parts: list[RenderableType] = [
        Rule(Text(one_line(title, width - 8)), align="left", style=_DIM),
        *_lines(excerpt(comparison.query, width, QUERY_LINES, end=True)),
    ]
    if comparison.continuation is not None:
        parts.append(Text("what really follows:", style=_DIM))
        parts.extend(_lines(excerpt(comparison.continuation, width, CONTINUATION_LINES)))
    parts.append(Text())
    lists = [("base", names[0], comparison.base), ("tuned", names[1], comparison.tuned)]
    if width >= SIDE_BY_SIDE_WIDTH:
        parts.append(_side_by_side(lists, passages, comparison.depth, width, comparison.worth))
    else:
        parts.extend(_stacked(lists, passages, comparison.depth, width, comparison.worth))
    parts += [Text(), _figures(comparison), Text()]
    return Group(*parts)


def _lines(lines: Sequence[str]) -> list[RenderableType]:
    return [Text(_INDENT[:2] + line, no_wrap=True, overflow="ellipsis") for line in lines]


_Lists = Sequence[tuple[str, str, tuple[Place, ...]]]


def _side_by_side(
    lists: _Lists, passages: Mapping[int, Passage], depth: int, width: int, worth: Worth | None
) -> Table:
    cell = (width - 3) // 2
    table = Table(box=box.MINIMAL, show_edge=False, pad_edge=False, padding=(0, 1))
    for side, name, _ in lists:
        heading = Text(one_line(f"{side}: {name}", cell), style=_HEADING)
        table.add_column(heading, width=cell, no_wrap=True, overflow="ellipsis")
    columns = [
        [_place(side, place, passages[place.row], depth, cell, worth) for place in places]
        for side, _, places in lists
    ]
    for rank in range(max(len(column) for column in columns)):
        table.add_row(*(column[rank] if rank < len(column) else Text() for column in columns))
    return table


def _stacked(
    lists: _Lists, passages: Mapping[int, Passage], depth: int, width: int, worth: Worth | None
) -> Iterator[RenderableType]:
    for number, (side, name, places) in enumerate(lists):
        if number:
            yield Text()
        yield Text(one_line(f"{side}: {name}", width), style=_HEADING)
        for place in places:
            yield _place(side, place, passages[place.row], depth, width, worth)


def _place(side: str, place: Place, passage: Passage, depth: int, width: int, worth: Worth | None) -> Text:
    """Rank, similarity, movement and, where it was scored, its gain; then the passage's name; then its text."""
    kind, words = movement(side, place, depth)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{place.rank:>2}  ", style=_HEADING)
    text.append(f"{place.similarity:.3f}  ")
    text.append(words, style=_STYLES[kind])
    if worth is not None:
        text.append(f"  LM {worth.gain(place.row):+z.2f}")
    named = [passage.id, *([passage.title] if passage.title else [])]
    named += [f"{column}={value}" for column, value in passage.extra.items()]
    inner = max(width - len(_INDENT), 8)
    text.append(f"\n{_INDENT}{one_line(' · '.join(named), inner)}", style=_DIM)
    for line in excerpt(passage.text, inner, PASSAGE_LINES, dense=True):
        text.append(f"\n{_INDENT}{line}")
    return text


def _figures(comparison: QueryComparison) -> Text:
    first = "same first passage" if comparison.first_kept else "another first passage"
    text = Text(
        f"overlap@{comparison.k} {comparison.overlap:.2f} · RBO {comparison.rbo:.2f} · "
        f"Kendall's tau {comparison.kendall_tau:+.2f} · {first}",
        style=_HEADING,
    )
    if comparison.worth is not None:
        text.append(f"\n{_scored(comparison.worth)}", style=_DIM)
    if comparison.unscored is not None:
        text.append(f"\nnot scored by the LM: {visible(comparison.unscored)}", style=_DIM)
    return text


def _scored(worth: Worth) -> str:
    return (
        f"LM: nats that a passage adds to the log-likelihood of the {worth.of} "
        f"({worth.num_tokens} tokens, {worth.no_passage:.2f} without a passage)"
    )


def render_comparison(comparison: Comparison, *, width: int) -> RenderableType:
    """All that is shown, one query after the other, and the means at the end."""
    total = len(comparison.shown)
    parts = []
    for number, item in enumerate(comparison.shown, start=1):
        title = f"query {number} of {total}"
        if item.document_id is not None:
            title += f", from {item.document_id}"
        names = (comparison.base, comparison.tuned)
        parts.append(render_query(item, comparison.passages, width=width, title=title, names=names))
    return Group(*parts, _means(comparison))


def _means(comparison: Comparison) -> Text:
    value = comparison.agreement
    what = ("held-out " if comparison.held_out else "") + ("query" if value.n == 1 else "queries")
    return Text(
        f"mean over {value.n} {what}: overlap@{value.k} {value.overlap:.2f} · "
        f"RBO {value.rbo:.2f} · Kendall's tau {value.kendall_tau:+.2f} · "
        f"same first passage {value.first_kept:.0%}{_mean_gain(comparison)}",
        style=_HEADING,
    )


def _mean_gain(comparison: Comparison) -> str:
    gains = comparison.first_gains
    if not gains:
        return ""
    left = len(comparison.shown) - len(gains)
    return (
        f"\nLM ({visible(comparison.supervisor or '')}): the tuned retriever's first passage gives "
        f"{fmean(gains):+z.2f} nats more than the base's, mean over the {len(gains)} scored of those shown"
        + (f"; {left} not scored" if left else "")
    )

"""What reaches the terminal: readable at every width, and never a character that could act on it."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType

from replug_client.corpus.records import Passage
from replug_client.evaluation.comparison import Comparison, Place, agreement, compare_query, movement
from replug_client.evaluation.terminal import (
    SIDE_BY_SIDE_WIDTH,
    excerpt,
    one_line,
    render_comparison,
    render_query,
    visible,
)

HOSTILE = (
    "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202egnp.exe\u202c \u2066x\u2069 z\u200bw "
    "\x00 \x7f \ufeff \ud800 \u2028"
)
OWN_STYLE = re.compile(r"\x1b\[[0-9;]*m")
texts = st.text(st.characters(exclude_categories=()), max_size=200)  # surrogates too


def unsafe(text: str) -> list[str]:
    """Characters that act on a terminal or cannot be seen, line breaks aside."""
    bad = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return [c for c in text if c != "\n" and unicodedata.category(c) in bad]


def printed(item: RenderableType, width: int, *, colour: bool = False) -> str:
    stream = io.StringIO()
    Console(
        file=stream,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        legacy_windows=False,
    ).print(item)
    return stream.getvalue()


def comparison_of(text: str) -> tuple[RenderableType, dict[int, Passage]]:
    passages = {0: Passage(text, text, title=text, extra={text: text}), 1: Passage("1", "plain")}
    result = compare_query(text, ([0, 1], [0.9, 0.8]), ([1, 0], [0.7, 0.6]), k=2, continuation=text)
    return render_query(result, passages, width=120, title=text, names=(text, text)), passages


@given(texts)
@example(HOSTILE)
@example("\r\x85\x1c\u2029\U000e0001")
def test_nothing_unsafe_is_left_visible(text: str) -> None:
    shown = visible(text)
    assert unsafe(shown) == []
    shown.encode("utf-8")


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=50))
def test_printable_text_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_what_is_hidden_is_shown_as_an_escape() -> None:
    assert visible("a\x1b[2Jb\u202ec\x9bd\U000e0001\0") == r"a\x1b[2Jb\u202ec\x9bd\U000e0001\x00"
    assert visible("a\r\nb\rc\td\xa0e") == "a\nb\nc   d e"


@settings(deadline=None, max_examples=60)
@given(texts, st.sampled_from([40, 80, 99, 100, 120, 200]))
@example(HOSTILE, 80)
@example(HOSTILE, 120)
def test_no_passage_query_id_title_column_or_name_can_act_on_the_terminal(text: str, width: int) -> None:
    passages = {0: Passage(text, text, title=text, extra={text: text}), 1: Passage("1", "plain")}
    result = compare_query(text, ([0, 1], [0.9, 0.8]), ([1, 0], [0.7, 0.6]), k=2, continuation=text)
    item = render_query(result, passages, width=width, title=text, names=(text, text))
    plain = printed(item, width)
    assert unsafe(plain) == []
    coloured = printed(item, width, colour=True)
    assert unsafe(OWN_STYLE.sub("", coloured)) == []
    assert OWN_STYLE.sub("", coloured) == plain


def test_the_check_itself_sees_a_hostile_string() -> None:
    found = set(unsafe(HOSTILE))
    assert {"\x1b", "\x07", "\x9b", "\u202e", "\u200b", "\0", "\x7f", "\ud800", "\u2028"} <= found


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=400), st.integers(10, 60), st.integers(1, 5), st.booleans())
@example("検索" * 100, 11, 2, False)
@example("a" + "\u0301" * 5000, 20, 2, False)
def test_an_excerpt_keeps_to_its_lines_and_cells(text: str, width: int, lines: int, end: bool) -> None:
    result = excerpt(text, width, lines, end=end)
    assert len(result) <= lines
    assert all(cell_len(line) <= width for line in result)
    assert all(len(line) <= 4 * width for line in result)


def test_code_keeps_its_lines_and_loses_common_indentation_and_blank_lines() -> None:
    code = "        def f(x):\n\n            return x\n        y = 1\n        z = 2\n"
    assert excerpt(code, 40, 3) == ["def f(x):", "    return x", "y = 1 …"]
    assert excerpt(code, 40, 9) == ["def f(x):", "    return x", "y = 1", "z = 2"]


def test_a_piece_cut_in_the_middle_of_a_line_is_not_pushed_to_the_right() -> None:
    assert excerpt("rn x\n            y = 1\n            z = 2", 40, 3) == ["rn x", "    y = 1", "    z = 2"]
    assert excerpt("                    b)\n    x = 1", 40, 2) == ["        b)", "x = 1"]


def test_prose_is_wrapped_at_words() -> None:
    assert excerpt("one two three four five six", 14, 2) == ["one two three", "four five six"]
    assert excerpt("one two three four five six seven", 14, 2) == ["one two three", "four five six…"]


def test_of_a_query_the_end_is_shown() -> None:
    assert excerpt("a = 1\nb = 2\nc = 3", 40, 2, end=True) == ["… b = 2", "c = 3"]


def test_brackets_alone_are_left_out_where_asked_unless_there_is_nothing_else() -> None:
    code = ",\n    )\n    x = 1\n    }\n    y = 2"
    assert excerpt(code, 40, 3, dense=True) == ["x = 1", "y = 2"]
    assert excerpt(code, 40, 3) == [",", "    )", "    x = 1 …"]
    assert excerpt("(\n)", 40, 3, dense=True) == ["(", ")"]


def test_a_long_text_is_cut_quickly() -> None:
    assert len(excerpt("word " * 200_000, 80, 2)) == 2


def test_one_line_folds_whitespace() -> None:
    assert one_line("a\n b\t\tc", 40) == "a b c"
    assert one_line("abcdefgh", 5) == "abcd…"


def place(rank: int, other_rank: int | None, status: str) -> Place:
    return Place(0, rank, 0.5, other_rank, status)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("side", "item", "expected"),
    [
        ("tuned", place(1, 5, "kept"), ("up", "up 4 (was 5th)")),
        ("base", place(5, 1, "kept"), ("up", "up 4 (now 1st)")),
        ("tuned", place(3, 1, "kept"), ("down", "down 2 (was 1st)")),
        ("base", place(1, 3, "kept"), ("down", "down 2 (now 3rd)")),
        ("tuned", place(2, 2, "kept"), ("same", "same place")),
        ("tuned", place(2, 12, "new"), ("new", "new (was 12th)")),
        ("tuned", place(2, None, "new"), ("new", "new (was beyond 100th)")),
        ("base", place(2, 22, "dropped"), ("dropped", "dropped (now 22nd)")),
        ("base", place(2, None, "dropped"), ("dropped", "dropped (now beyond 100th)")),
    ],
)
def test_movement_in_words(side: str, item: Place, expected: tuple[str, str]) -> None:
    assert movement(side, item, 100) == expected


@pytest.mark.parametrize("width", [80, SIDE_BY_SIDE_WIDTH - 1, SIDE_BY_SIDE_WIDTH, 120, 200])
def test_every_line_fits_and_all_that_is_promised_is_there(width: int) -> None:
    passages = {i: Passage(f"file.py#{i}", f"def f{i}():\n    return {i}") for i in range(4)}
    result = compare_query("x = f", ([0, 1, 2], [0.9, 0.8, 0.7]), ([1, 3, 0], [0.6, 0.5, 0.4]), k=2)
    out = printed(render_query(result, passages, width=width, names=("mini", "mine")), width)
    lines = out.splitlines()
    assert max(cell_len(line) for line in lines) <= width
    for expected in ("x = f", "base: mini", "tuned: mine", "0.900", "0.600", "def f1():", "return 3"):
        assert expected in out
    for expected in ("up 1 (was 2nd)", "new (was beyond 3rd)", "dropped (now 3rd)", "overlap@2 0.50"):
        assert expected in out
    beside = any("base: mini" in line and "tuned: mine" in line for line in lines)
    assert beside == (width >= SIDE_BY_SIDE_WIDTH)


def test_markup_in_a_passage_is_text() -> None:
    item, _ = comparison_of("[bold red]x[/] :smile: [link=http://x]y[/link]")
    assert "[bold red]x[/] :smile: [link=http://x]y[/link]" in printed(item, 120, colour=True)


def test_the_whole_comparison_numbers_its_queries_and_ends_with_the_means() -> None:
    one = compare_query("first", ([0], [0.9]), ([0], [0.8]), k=1, document_id="os.py")
    two = compare_query("second", ([0], [0.9]), ([0], [0.8]), k=1)
    passages = {0: Passage("0", "text")}
    whole = Comparison("b", "t", (one, two), passages, agreement([one, two, two]), held_out=True)
    lines = printed(render_comparison(whole, width=120), 120).splitlines()
    assert lines[0].startswith("query 1 of 2, from os.py ")
    assert any(line.startswith("query 2 of 2 ") for line in lines)
    assert lines[-1].startswith("mean over 3 held-out queries: overlap@1 1.00")
    assert lines[-1].endswith("same first passage 100%")

"""What the comparison's page draws: lines between the lists, texts in pieces, figures of the LM."""

from __future__ import annotations

from dataclasses import replace

import pytest

from replug_client.corpus.records import Passage
from replug_client.evaluation.comparison import Worth, compare_query
from replug_client.evaluation.comparison_view import Join, joins, looks_like_code, query_data

TENTHS = [0.9, 0.8, 0.7, 0.6]


def test_a_line_for_each_passage_in_both_lists() -> None:
    item = compare_query("q", ([10, 11, 12, 13], TENTHS), ([10, 12, 14, 11], TENTHS), 4)
    assert joins(item) == [Join(0, 0, "same"), Join(1, 3, "down"), Join(2, 1, "up")]


def test_a_passage_beyond_those_shown_has_no_line() -> None:
    item = compare_query("q", ([1, 2, 3], TENTHS[:3]), ([2, 3, 1], TENTHS[:3]), 2)
    assert joins(item) == [Join(1, 0, "up")]


def test_a_passage_in_both_lists_is_said_once() -> None:
    worth = Worth("continuation", -10.0, {1: -8.0, 2: -11.0, 3: -9.5}, 4, 20)
    item = replace(
        compare_query("the date", ([1, 2], [0.5, 0.4]), ([3, 1], [0.6, 0.3]), 2, continuation="of birth"),
        worth=worth,
    )
    passages = {row: Passage(f"p{row}", f"date of \x1b {row}") for row in (1, 2, 3)}
    value = query_data(item, passages)
    assert [passage["id"] for passage in value["passages"]] == ["p1", "p2", "p3"]
    assert [(place["passage"], place["kind"]) for place in value["tuned"]] == [(2, "new"), (0, "down")]
    assert [passage["gain"] for passage in value["passages"]] == [2.0, -1.0, 0.5]
    assert value["scored"]["gain"] == -1.5  # tuned's first 0.5, base's first 2.0
    assert value["passages"][0]["text"] == [
        ["query", "date"],
        ["", " "],
        ["continuation", "of"],
        ["", " \ufffd 1"],
    ]
    assert value["joins"] == [[0, 1, "down"]]


def test_what_was_not_scored_says_why() -> None:
    item = replace(compare_query("q", ([1], [0.5]), ([1], [0.5]), 1), unscored="too long")
    value = query_data(item, {1: Passage("p1", "text")})
    assert value["scored"] is None and value["unscored"] == "too long"
    assert value["passages"][0]["gain"] is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("def f(x):\n    return x[0] + 1\n", True),
        ("The cat sat on the mat (a red one), and slept.", False),
        ("", False),
    ],
)
def test_code_is_told_from_prose(text: str, code: bool) -> None:
    assert looks_like_code(text) is code

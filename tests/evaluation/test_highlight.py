"""Marked words: what a passage shares with the query and with what follows it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from replug_client.evaluation.highlight import Segment, common_words, segments


def test_words_of_the_query_and_of_the_continuation_are_marked_apart() -> None:
    assert segments("Parse the date, then print", "parse a file", "print the date") == [
        Segment("query", "Parse"),
        Segment("", " "),
        Segment("continuation", "the"),
        Segment("", " "),
        Segment("continuation", "date"),
        Segment("", ", then "),
        Segment("continuation", "print"),
    ]


def test_an_identifier_is_marked_whole_or_by_its_parts() -> None:
    assert segments("x = getDate(parse_date)", "parse_date date") == [
        Segment("", "x = get"),
        Segment("query", "Date"),
        Segment("", "("),
        Segment("query", "parse_date"),
        Segment("", ")"),
    ]


def test_what_both_have_is_the_query_s_and_single_characters_are_nobody_s() -> None:
    assert segments("a date x", "x date a", "date") == [
        Segment("", "a "),
        Segment("query", "date"),
        Segment("", " x"),
    ]


def test_common_words_are_not_marked() -> None:
    texts = ["self one", "self two", "self three", "self four", "one two"]
    assert common_words(texts) == {"self"}
    assert segments("self one", "self one", common=common_words(texts)) == [
        Segment("", "self "),
        Segment("query", "one"),
    ]


def test_in_a_corpus_of_a_few_passages_nothing_is_common() -> None:
    assert common_words(["the cat", "the dog", "the end"]) == frozenset()


@given(st.text(), st.text(), st.text())
def test_the_segments_together_are_the_text(text: str, query: str, continuation: str) -> None:
    found = segments(text, query, continuation)
    assert "".join(segment.text for segment in found) == text
    assert all(segment.text for segment in found)

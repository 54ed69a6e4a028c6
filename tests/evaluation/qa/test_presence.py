"""Whether a passage holds an answer, as DPR decides it."""

from __future__ import annotations

import pytest

from replug_client.evaluation.qa.presence import holds_answer, rank_of_answer, words_of


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("Born in Ulm, Einstein moved.", ["einstein"], True),
        ("an art gallery", ["artgallery", "gall"], False),  # whole words, in a row
        ("the U.S. Navy", ["U.S."], True),
        ("the US Navy", ["U.S."], False),
        ("in 1,000 years", ["1,000"], True),
        ("in 11,000 years", ["1,000"], False),
        ("Wilhelm R\u00f6ntgen won", ["Wilhelm Ro\u0308ntgen"], True),  # composed and decomposed are one
        ("snake_case", ["snake"], True),  # an underscore is a token of its own
        ("two\nlines here", ["two lines"], True),
        ("anything", ["", "  "], False),
        ("東京 は 日本", ["東京"], True),
    ],
)
def test_answers_are_found_as_tokens_in_a_row(text: str, answers: list[str], expected: bool) -> None:
    assert holds_answer(text, answers) is expected


def test_both_ways_of_reading_give_the_same_tokens() -> None:
    text = "It's 3.5% of f(x_1)\t& more\x00!"
    # What is not ASCII goes character by character; a letter of its own at the end makes it so.
    assert words_of(text + " \u00e9") == words_of(text) + "e\u0301 "


def test_the_rank_is_of_the_first_passage_that_holds_one() -> None:
    read = []

    def passages() -> list[str]:
        return [words_of(text) for text in ("nothing", "the Answer!", "answer")]

    def lazily():  # type: ignore[no-untyped-def]
        for words in passages():
            read.append(words)
            yield words

    assert rank_of_answer(lazily(), ["other", "answer"]) == 2
    assert len(read) == 2
    assert rank_of_answer(passages(), ["missing"]) is None
    assert rank_of_answer([], ["answer"]) is None

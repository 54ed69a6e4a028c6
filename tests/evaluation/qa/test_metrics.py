"""Metrics of free answers, against values worked out by hand."""

from __future__ import annotations

import pytest

from replug_client.evaluation.qa.metrics import (
    corpus_bleu,
    exact_match,
    normalise,
    rouge_l,
    score_answer,
    sentence_bleu,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Eiffel  Tower!", "eiffel tower"),
        ("a an the", ""),
        ("an-other U.S.A.", "another usa"),  # punctuation goes first: "an-other" is one word when articles go
        ("theatre\tin\nAthens", "theatre in athens"),
        ("L'État, c’est moi", "létat c’est moi"),  # only ASCII punctuation goes, as in the official script
        ("", ""),
    ],
)
def test_normalisation_is_squads(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_match_takes_the_best_of_several_answers() -> None:
    assert exact_match("the Beatles.", ["Rolling Stones", "Beatles"]) == 1.0
    assert exact_match("Beatles band", ["Rolling Stones", "Beatles"]) == 0.0


def test_f1_counts_repeated_words_once_for_each_pair() -> None:
    # prediction: "new york city" (3), answer "york york" (2): one in common; P = 1/3, R = 1/2, F1 = 2/5
    assert token_f1("New York City", ["York York"]) == pytest.approx(2 / 5)
    # P = 2/2, R = 2/3: F1 = 4/5; the other answer shares nothing
    assert token_f1("red car", ["nothing like it", "a fast red car"]) == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"), [("", "x", 0.0), ("the", "", 1.0), ("x", "a", 0.0)]
)
def test_f1_without_words_is_squad_twos(prediction: str, answer: str, expected: float) -> None:
    assert token_f1(prediction, [answer]) == expected


def test_rouge_l_is_the_longest_common_subsequence() -> None:
    # "police killed the gunman" / "police kill the gunman": LCS 3 of 4 and 4, so F = 3/4 (Lin 2004)
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("the gunman kill police", ["zzz", "the gunman kill police"]) == 1.0


def test_sentence_bleu_of_short_answers_is_not_zero() -> None:
    assert sentence_bleu("New York", ["New York"]) == pytest.approx(100.0)
    # one word of the two: brevity penalty exp(1 - 2/1), unigram precision 1
    assert sentence_bleu("New", ["New York"]) == pytest.approx(36.787944, abs=1e-4)
    assert sentence_bleu("New York", ["London", "New York"]) == pytest.approx(100.0)


def test_corpus_bleu_sums_counts_over_answers_with_unequal_references() -> None:
    # Five words each; "f" is wrong in the second. Unigrams 9/10, bigrams 7/8, trigrams 5/6, 4-grams 3/4; no brevity.
    value = corpus_bleu(["a b c d e", "a b c d f"], [["z", "a b c d e"], ["a b c d e"]])
    assert value == pytest.approx(100 * (9 / 10 * 7 / 8 * 5 / 6 * 3 / 4) ** 0.25, abs=1e-6)


def test_all_figures_of_one_answer() -> None:
    scores = score_answer("The cat sat", ["cat sat down", "dog"])
    assert scores.exact_match == 0.0
    assert scores.f1 == pytest.approx(2 * 2 / (2 + 3))
    assert scores.rouge_l == pytest.approx(2 / 3)
    assert 0 < scores.bleu < 100


def test_nothing_to_hold_against_is_an_error() -> None:
    for metric in (exact_match, token_f1, rouge_l, sentence_bleu):
        with pytest.raises(ValueError, match="no answer"):
            metric("x", [])
    with pytest.raises(ValueError, match="references"):
        corpus_bleu(["x"], [[]])
    with pytest.raises(ValueError, match="references"):
        corpus_bleu([], [])

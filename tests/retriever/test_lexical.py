"""BM25 by words and parts of identifiers, held against the formula."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from replug_client.errors import CorpusError, OptionError
from replug_client.retriever.lexical import NO_PASSAGE, LexicalIndex, tokenize


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A bird sings.", ["a", "bird", "sings"]),
        ("getHTTPResponse", ["gethttpresponse", "get", "http", "response"]),
        ("snake_case_2", ["snake_case_2", "snake", "case", "2"]),
        ("__init__", ["__init__"]),
        ("x1=Y", ["x1", "x", "1", "y"]),
        ("naïve École", ["naïve", "école"]),
        ("don't", ["don", "t"]),
        ("+-*/ \n", []),
        ("ключ_値", ["ключ_値", "ключ", "値"]),
    ],
)
def test_words_and_parts(text: str, words: list[str]) -> None:
    assert list(tokenize(text)) == words


def by_formula(query: str, texts: list[str]) -> list[float]:
    """Robertson's BM25 with idf = ln(1 + (N - df + 0.5) / (df + 0.5)), k1 = 1.5, b = 0.75."""
    passages = [Counter(tokenize(text)) for text in texts]
    lengths = [sum(passage.values()) for passage in passages]
    mean = sum(lengths) / len(lengths)
    scores = []
    for passage, length in zip(passages, lengths, strict=True):
        score = 0.0
        for word in tokenize(query):
            frequency = passage[word]
            holding = sum(word in other for other in passages)
            idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
            score += idf * frequency / (frequency + 1.5 * (1 - 0.75 + 0.75 * length / mean))
        scores.append(score)
    return scores


TEXTS = [
    "def read_file(path): return open(path).read()",
    "class FileReader: pass",
    "the cat sat on the mat, the cat slept",
    "file file file",
    "nothing of the kind",
    "readFile readFile parse",
]


@pytest.mark.parametrize(
    "query", ["readFile", "the cat", "file reader path", "the the the mat", "path zebra"]
)
def test_passages_come_in_the_order_of_the_formula(query: str) -> None:
    scores = by_formula(query, TEXTS)
    expected = [row for row in sorted(range(len(TEXTS)), key=lambda row: -scores[row]) if scores[row] > 0]
    found = LexicalIndex(iter(TEXTS)).search([query], len(TEXTS))[0]
    assert found[found != NO_PASSAGE].tolist() == expected
    assert (found[len(expected) :] == NO_PASSAGE).all()


def test_parts_of_identifiers_find_each_other() -> None:
    index = LexicalIndex(["x = HTTPServer()", "y = 3", "def http_server(): ..."])
    assert set(index.search(["httpServer"], 2)[0].tolist()) == {0, 2}


def test_the_best_of_many_equal_ones_are_the_first() -> None:
    index = LexicalIndex(["same words"] * 50 + ["same words same words"])
    assert index.search(["words"], 3).tolist() == [[50, 0, 1]]


def test_k_beyond_the_corpus_and_a_query_without_a_known_word() -> None:
    index = LexicalIndex(["one", "two"])
    rows = index.search(["two", "zebra", ""], 10)
    assert rows.dtype == np.int64 and rows.shape == (3, 2)
    assert rows.tolist() == [[1, NO_PASSAGE], [NO_PASSAGE, NO_PASSAGE], [NO_PASSAGE, NO_PASSAGE]]
    assert index.search([], 2).shape == (0, 2)


def test_passages_without_words_are_never_found() -> None:
    assert LexicalIndex(["...", "==="]).search(["a"], 1).tolist() == [[NO_PASSAGE]]
    assert LexicalIndex(["...", "a", ""]).search(["a"], 3).tolist() == [[1, NO_PASSAGE, NO_PASSAGE]]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(CorpusError, match="at least one passage"):
        LexicalIndex([])
    with pytest.raises(OptionError, match="k = 0"):
        LexicalIndex(["a"]).search(["a"], 0)

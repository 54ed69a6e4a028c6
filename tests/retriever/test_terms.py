"""How well words match, held against the formula."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replug_client.errors import CorpusError
from replug_client.retriever.terms import TermMatches, terms

TEXTS = [
    "def readFile(path): return open(path).read()",
    "class FileReader: pass",
    "the cat sat on the mat, the cat slept",
    "file file file",
    "nothing of the kind",
    "read file, parse_date read file",
]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A bird sings.", ["a", "bird", "sings"]),
        ("getHTTPResponse(x1)", ["get", "http", "response", "x", "1"]),
        ("__init__ self.snake_case", ["__init__", "self", "snake", "case"]),
        ("+-* \n", []),
    ],
)
def test_terms_are_words_or_their_parts(text: str, expected: list[str]) -> None:
    assert list(terms(text)) == expected


def by_formula(query: str, texts: list[str], *, pairs: bool) -> list[float]:
    def of(text: str) -> list[object]:
        found = list(terms(text))
        return list(pairwise(found)) if pairs else list(found)

    passages = [Counter(of(text)) for text in texts]
    lengths = [passage.total() for passage in passages]
    mean = max(sum(lengths) / len(lengths), 1)

    def idf(term: object) -> float:
        holding = sum(term in passage for passage in passages)
        return math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))

    known = [term for term in set(of(query)) if any(term in passage for passage in passages)]
    norm = math.sqrt(sum(map(idf, known))) or 1.0
    return [
        sum(
            idf(term) * passage[term] / (passage[term] + 0.25 * (0.25 + 0.75 * length / mean))
            for term in known
            if term in passage
        )
        / norm
        for passage, length in zip(passages, lengths, strict=True)
    ]


@pytest.mark.parametrize(
    "query", ["read the file", "readFile read file", "the cat the cat", "unheard of", "", "mat", "date read"]
)
def test_a_match_is_the_formulas(query: str) -> None:
    matches = TermMatches(TEXTS)
    found = matches.of_all(matches.queries([query, "file"]))
    assert found.shape == (2, len(TEXTS), 2) and found.dtype == np.float32
    for group, pairs in enumerate((False, True)):
        np.testing.assert_allclose(found[0, :, group], by_formula(query, TEXTS, pairs=pairs), atol=1e-6)
        np.testing.assert_allclose(found[1, :, group], by_formula("file", TEXTS, pairs=pairs), atol=1e-6)


@given(
    texts=st.lists(st.text(alphabet="aB_ 1é.", max_size=12), min_size=1, max_size=6),
    queries=st.lists(st.text(alphabet="aB_ 1é.", max_size=12), max_size=4),
)
def test_every_way_of_asking_gives_the_same(texts: list[str], queries: list[str]) -> None:
    matches = TermMatches(texts)
    assert len(matches) == len(texts)
    asked = matches.queries(queries)
    everything = matches.of_all(asked)
    assert everything.shape == (len(queries), len(texts), 2)
    for query, line in zip(queries, everything, strict=True):
        for group, pairs in enumerate((False, True)):
            np.testing.assert_allclose(line[:, group], by_formula(query, texts, pairs=pairs), atol=1e-5)
    places = np.arange(len(texts))[::-1]
    np.testing.assert_allclose(matches.of(asked, places), everything[:, places], atol=1e-6)
    own = np.tile(places, (len(queries), 1))
    np.testing.assert_allclose(matches.of_own(asked, own), everything[:, places], atol=1e-6)


def test_a_pair_is_of_neighbours_that_the_corpus_has_as_such() -> None:
    matches = TermMatches(["a b", "b a", "a c b"])
    pairs = matches.of_all(matches.queries(["a b", "a unknown b"]))[..., 1]
    assert (pairs[0] > 0).tolist() == [True, False, False]
    assert not pairs[1].any(), "words that an unknown one parts are no neighbours"


def test_no_passage_is_an_error() -> None:
    with pytest.raises(CorpusError, match="at least one passage"):
        TermMatches([])

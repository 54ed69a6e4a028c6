"""The guard against trivial retrieval."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replug_client.corpus import overlap
from replug_client.corpus.overlap import find_overlap, ngram_overlap
from replug_client.corpus.readers import MemorySource
from replug_client.corpus.records import Document, Example, Passage
from replug_client.corpus.store import PassageStore, write_store


@pytest.fixture
def store(tmp_path: Path) -> PassageStore:
    rows = [Passage("1", "def f():\n    pass\n"), Passage("007", "import os"), Passage("3", "import os")]
    write_store([MemorySource(rows)], tmp_path / "store")
    return PassageStore(tmp_path / "store")


def test_documents_with_a_passages_id_or_text_are_reported(store: PassageStore) -> None:
    documents = [
        Document("7", "nothing of this"),
        Document("007", "an id that stands in the corpus"),
        Document("a", "def f():\r\n    pass"),
        Document("3", "import os"),
        Document("b", "import os, sys"),
    ]
    report = find_overlap(documents, store)
    assert report.same_id == {"007": 1, "3": 2}
    assert report.same_text == {"a": 0, "3": 1}
    assert report.document_ids == {"007", "a", "3"}
    assert report.num_documents == 5
    assert str(report) == (
        "3 of 5 documents also stand in the corpus, trivial retrieval (same id: 2, same text: 2, both: 1)"
    )


def test_equal_hashes_of_different_texts_do_not_overlap(
    store: PassageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "hash64", lambda _: 1)
    documents = [Document("a", "other"), Document("b", "import os")]
    assert find_overlap(documents, store).same_text == {"b": 1}


def test_no_document_no_overlap(store: PassageStore) -> None:
    assert find_overlap([], store).document_ids == frozenset()


def example(*ids: int, query: int = 2) -> Example:
    return Example("d", "q", "c", ids[:query], ids[query:], 1)


def test_a_run_of_n_ids_anywhere_in_a_passage_counts() -> None:
    examples = [example(1, 2, 3, 4, 5), example(1, 2, 9, 4, 5), example(7, 8), example(5, 6, 7)]
    passages = [[0, 2, 3, 4, 0], [], [8], [6, 7], [5, 6]]
    assert ngram_overlap(examples, passages, 3).tolist() == [True, False, False, False]
    assert ngram_overlap(examples, passages, 2).tolist() == [True, False, False, True]
    assert ngram_overlap(examples, passages, 1).tolist() == [True, True, True, True]
    assert ngram_overlap(examples, [], 1).tolist() == [False] * 4
    assert ngram_overlap([], passages, 1).tolist() == []


def test_runs_do_not_span_two_passages_or_two_examples() -> None:
    assert not ngram_overlap([example(1, 2, 3, 4)], [[1, 2], [3, 4]], 3).any()
    assert not ngram_overlap([example(1, 2), example(3, 4)], [[1, 2, 3, 4]], 3).any()


def test_a_length_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        ngram_overlap([], [], 0)


Ids = st.lists(st.integers(0, 2), max_size=14)


def _contains(ids: list[int], run: list[int]) -> bool:
    return any(ids[at : at + len(run)] == run for at in range(len(ids) - len(run) + 1))


@given(st.lists(Ids, max_size=6), st.lists(Ids, max_size=6), st.integers(1, 6), st.booleans())
def test_it_agrees_with_comparing_every_run(
    examples: list[list[int]], passages: list[list[int]], n: int, collide: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_CHUNK_TOKENS", 9)
        if collide:  # every run has the same hash: only the comparison of ids tells them apart
            patch.setattr(
                overlap, "_rolling_hashes", lambda ids, n: np.zeros(max(0, len(ids) - n + 1), dtype=np.uint64)
            )
        found = ngram_overlap([example(*ids) for ids in examples], passages, n)
    expected = [
        any(_contains(passage, ids[at : at + n]) for passage in passages for at in range(len(ids) - n + 1))
        for ids in examples
    ]
    assert found.tolist() == expected

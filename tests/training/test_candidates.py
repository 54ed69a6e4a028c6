"""The mixture of candidates: as many of each kind as asked for, distinct, and the same in any batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from replug_client.errors import OptionError
from replug_client.retriever.index import ArrayIndex
from replug_client.retriever.lexical import LexicalIndex
from replug_client.training.candidates import NO_PASSAGE, CandidateMiner, CandidateOptions, Rows

CORPUS = 40
VECTORS = np.random.default_rng(0).normal(size=(CORPUS, 6)).astype(np.float32)
# Passage n has the words w0 ... wn, so that a short query's best passages by BM25 are the shortest.
TEXTS = [" ".join(f"w{number}" for number in range(row + 1)) for row in range(CORPUS)]
QUERIES = ["w0", "w39", "w20 w30", "unknown"]
QUERY_VECTORS = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
NUMBERS = np.array([5, 6, 7, 8])


def miner(options: CandidateOptions, *, seed: int = 0, rows: Rows | None = None) -> CandidateMiner:
    held = np.arange(CORPUS) if rows is None else rows
    index = ArrayIndex(VECTORS[held], held)
    return CandidateMiner(index, LexicalIndex(TEXTS[row] for row in held), held, options, seed)


def mined(options: CandidateOptions, **keywords: object) -> Rows:
    return miner(options, **keywords).mine(QUERY_VECTORS, QUERIES, NUMBERS)  # type: ignore[arg-type]


def best(vectors: npt.NDArray[np.float32], k: int) -> Rows:
    return np.argsort(-(vectors @ VECTORS.T), axis=1)[:, :k]


def test_the_mixture_has_as_many_of_each_kind_as_asked_for() -> None:
    rows = mined(CandidateOptions(5, 3, 4))
    assert rows.shape == (4, 12) and rows.dtype == np.int64
    np.testing.assert_array_equal(rows[:, :5], best(QUERY_VECTORS, 5))
    lexical = LexicalIndex(TEXTS).search(QUERIES, CORPUS)
    for own, ranked in zip(rows, lexical, strict=True):
        new = [row for row in ranked.tolist() if row != NO_PASSAGE and row not in own[:5]][:3]
        assert own[5 : 5 + len(new)].tolist() == new
    # "w39" stands in one passage only and "unknown" in none: random ones make up for BM25.
    assert (rows >= 0).all() and (rows < CORPUS).all()


def test_candidates_are_distinct() -> None:
    for seed in range(20):
        for own in mined(CandidateOptions(10, 10, 15), seed=seed):
            assert len(set(own.tolist())) == 35


def test_without_random_ones_missing_bm25_hits_leave_gaps_at_the_end() -> None:
    rows = mined(CandidateOptions(2, 5, 0))
    unknown = rows[3]
    np.testing.assert_array_equal(unknown[:2], best(QUERY_VECTORS, 2)[3])
    assert unknown[2:].tolist() == [NO_PASSAGE] * 5
    assert NO_PASSAGE not in rows[0]


def test_a_small_corpus_is_used_up_and_the_rest_is_padding() -> None:
    held = np.array([3, 11, 30])
    rows = mined(CandidateOptions(10, 4, 2), rows=held)
    assert rows.shape == (4, 16)
    for own in rows:
        assert sorted(own[:3].tolist()) == [3, 11, 30]
        assert (own[3:] == NO_PASSAGE).all()


def test_an_index_of_a_part_of_the_corpus_gives_corpus_rows() -> None:
    held = np.arange(20, 40, 2)
    rows = mined(CandidateOptions(2, 3, 3), rows=held)
    assert set(rows.ravel().tolist()) <= set(held.tolist())
    # BM25's first for "w20 w30" is the shortest passage with both words, row 30 (not place 30).
    lexical_only = CandidateMiner(
        ArrayIndex(VECTORS[held], held),
        LexicalIndex(TEXTS[row] for row in held),
        held,
        CandidateOptions(0, 2, 0),
        0,
    )
    assert lexical_only.mine(QUERY_VECTORS[2:3], QUERIES[2:3], NUMBERS[2:3])[0, 0] == 30


def test_an_example_gets_the_same_candidates_in_any_batch() -> None:
    options = CandidateOptions(3, 2, 6)
    together = mined(options)
    again = miner(options)
    order = [2, 0, 3, 1]
    alone = [
        again.mine(QUERY_VECTORS[[at]], [QUERIES[at]], NUMBERS[[at]])[0]
        for at in order  # other order, too
    ]
    np.testing.assert_array_equal(np.array(alone), together[order])


def test_random_candidates_differ_by_example_and_by_seed() -> None:
    options = CandidateOptions(0, 0, 8)
    first, other = mined(options), mined(options, seed=1)
    assert len({tuple(own) for own in first.tolist()}) == 4
    assert not np.array_equal(first, other)


def test_random_candidates_reach_the_whole_corpus() -> None:
    numbers = np.arange(200)
    drawn = miner(CandidateOptions(0, 0, 2)).mine(np.zeros((200, 6), np.float32), [""] * 200, numbers)
    assert set(drawn.ravel().tolist()) == set(range(CORPUS))


@pytest.mark.parametrize("counts", [(1, 0, 0), (0, 0, 0), (-1, 4, 4), (4, -1, 4), (4, 4, -1)])
def test_counts_that_leave_nothing_to_compare_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(OptionError, match="--n_docs"):
        CandidateOptions(*counts)


def test_bm25_candidates_need_a_lexical_index() -> None:
    with pytest.raises(OptionError, match="--bm25_docs 2"):
        CandidateMiner(ArrayIndex(VECTORS), None, np.arange(CORPUS), CandidateOptions(2, 2, 0), 0)

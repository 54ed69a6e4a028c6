"""Comparing two ranked lists, against hand-worked values and SciPy."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau  # type: ignore[import-untyped]

from replug_client.corpus.records import Passage
from replug_client.evaluation.comparison import (
    Comparison,
    agreement,
    compare_query,
    kendall_tau,
    overlap,
    rank_biased_overlap,
)

lists = st.integers(1, 8).flatmap(
    lambda k: st.tuples(*[st.permutations(range(12)).map(lambda rows: rows[:k])] * 2)
)


def test_overlap_counts_common_passages_whatever_their_order() -> None:
    assert overlap([1, 2, 3, 4], [4, 9, 1, 8]) == 0.5
    assert overlap([1], [1]) == 1.0
    assert overlap([1], [2]) == 0.0


def test_rank_biased_overlap_by_hand() -> None:
    # A_1 = 0, A_2 = 2/2: 1 * p^2 + (1-p)/p * (0 * p + 1 * p^2) = p^2 + (1-p) p = p
    assert rank_biased_overlap([1, 2], [2, 1], persistence=0.9) == pytest.approx(0.9)
    # A_1 = 1, A_2 = 1/2: 0.5 * 0.25 + 1 * (0.5 + 0.5 * 0.25)
    assert rank_biased_overlap([1, 2], [1, 3], persistence=0.5) == pytest.approx(0.75)


@given(lists)
def test_rank_biased_overlap_lies_between_disjoint_and_equal(pair: tuple[list[int], list[int]]) -> None:
    base, tuned = pair
    assert -1e-12 <= rank_biased_overlap(base, tuned) <= 1 + 1e-12
    assert rank_biased_overlap(base, base) == pytest.approx(1.0)
    assert rank_biased_overlap(base, [row + 100 for row in tuned]) == 0.0


def test_kendall_tau_by_hand() -> None:
    assert kendall_tau([1, 2, 3], [1, 2, 3]) == pytest.approx(1.0)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    assert kendall_tau([1, 2, 3], [2, 1, 3]) == pytest.approx(1 / 3)  # 2 pairs agree, 1 does not
    assert kendall_tau([1], [2]) == pytest.approx(-1.0)
    assert kendall_tau([1], [1]) == 1.0
    # union 1, 2, 4: base 1st, 2nd, missing; tuned missing, 1st, 2nd: one pair of three agrees
    assert kendall_tau([1, 2], [2, 4]) == pytest.approx(-1 / 3)
    # union 1, 2, 3, 4, two lists of two: 4 pairs disagree, 2 are tied in one list each: -4 / 5
    assert kendall_tau([1, 2], [3, 4]) == pytest.approx(-4 / 5)


@given(lists)
def test_kendall_tau_is_scipys_over_the_union(pair: tuple[list[int], list[int]]) -> None:
    base, tuned = pair
    union = sorted({*base, *tuned})
    if len(union) < 2:
        return
    ranks = [[rows.index(r) if r in rows else 99 for r in union] for rows in (base, tuned)]
    assert kendall_tau(base, tuned) == pytest.approx(kendalltau(*ranks).statistic)


def test_each_passage_says_where_it_stands_with_the_other_retriever() -> None:
    result = compare_query(
        "q",
        ([5, 6, 7, 8, 9], [0.9, 0.8, 0.7, 0.6, 0.5]),
        ([6, 8, 5, 1, 2], [0.99, 0.98, 0.97, 0.96, 0.95]),
        k=3,
    )
    assert [(p.row, p.rank, p.other_rank, p.status) for p in result.base] == [
        (5, 1, 3, "kept"),
        (6, 2, 1, "kept"),
        (7, 3, None, "dropped"),
    ]
    assert [(p.row, p.rank, p.other_rank, p.status) for p in result.tuned] == [
        (6, 1, 2, "kept"),
        (8, 2, 4, "new"),
        (5, 3, 1, "kept"),
    ]
    assert [p.similarity for p in result.tuned] == [0.99, 0.98, 0.97]
    assert (result.k, result.depth, result.first_kept) == (3, 5, False)
    assert result.overlap == pytest.approx(2 / 3)


def test_a_corpus_smaller_than_k_compares_what_there_is() -> None:
    result = compare_query("q", ([0], [0.5]), ([0], [0.4]), k=10)
    assert (result.k, result.overlap, result.kendall_tau) == (1, 1.0, 1.0)
    assert result.rbo == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("rows", "similarities", "k"), [([], [], 1), ([1], [0.5], 0), ([1, 2], [0.5], 1), ([1, 1], [0.5, 0.5], 2)]
)
def test_lists_that_cannot_be_compared_are_refused(
    rows: list[int], similarities: list[float], k: int
) -> None:
    with pytest.raises(ValueError, match="base"):
        compare_query("q", (rows, similarities), ([1], [0.5]), k=k)


def test_agreement_is_the_mean_over_queries_with_their_number() -> None:
    same = compare_query("a", ([1, 2], [1.0, 0.5]), ([1, 2], [1.0, 0.5]), k=2)
    disjoint = compare_query("b", ([1, 2], [1.0, 0.5]), ([3, 4], [1.0, 0.5]), k=2)
    result = agreement([same, disjoint, disjoint, disjoint])
    assert (result.n, result.k, result.first_kept, result.overlap) == (4, 2, 0.25, 0.25)
    assert result.rbo == pytest.approx(0.25)
    with pytest.raises(ValueError, match="no query"):
        agreement([])


def test_json_has_the_whole_text_and_both_ranks() -> None:
    passages = {1: Passage("007", "x" * 500, title="T", extra={"file": "a.py"}), 2: Passage("2", "y")}
    result = compare_query("q", ([1, 2], [1.0, 0.5]), ([2, 1], [0.9, 0.8]), k=1, continuation="next")
    whole = Comparison("b", "t", (result,), passages, agreement([result]), held_out=True)
    value = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    assert value["agreement"]["n"] == 1
    (value,) = value["queries"]
    assert value["continuation"] == "next"
    assert value["base"] == [
        {
            "rank": 1,
            "id": "007",
            "similarity": 1.0,
            "tuned_rank": 2,
            "status": "dropped",
            "text": "x" * 500,
            "title": "T",
            "extra": {"file": "a.py"},
        }
    ]
    assert value["tuned"][0] == {
        "rank": 1,
        "id": "2",
        "similarity": 0.9,
        "base_rank": 2,
        "status": "new",
        "text": "y",
    }

"""Which passages stand before an example, and how they are combined: against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from replug_client.errors import OptionError
from replug_client.evaluation.conditions import (
    BASE,
    BM25,
    RANDOM,
    TUNED,
    Combination,
    Condition,
    Reading,
    Retrieved,
    parse_conditions,
    passages_needed,
    random_rows,
    read_with,
)
from replug_client.mixtures import log_weights

FOUND = {
    BASE: Retrieved(np.array([[3, 1, 2], [0, 2, 1]]), np.array([[0.9, 0.5, 0.1], [0.3, 0.2, 0.1]])),
    BM25: Retrieved(np.array([[2, -1, -1], [-1, -1, -1]])),
    RANDOM: Retrieved(np.array([[0, 1, 2], [3, 2, 1]])),
}


def reading(name: str, number: int = 0, temperature: float = 0.1) -> Reading:
    retrieval, _, combination = name.partition(".")
    condition = Condition(retrieval, Combination.parse(combination or "first"))
    return read_with(condition, FOUND, number, k=2, temperature=temperature)


def test_each_retrieval_goes_with_each_combination_but_none_and_the_ceiling_stand_alone() -> None:
    conditions = parse_conditions(
        ["none", "random bm25", "base,tuned", "ceiling"], ["first concat-3", "ensemble-5"]
    )
    assert [condition.name for condition in conditions] == [
        "none",
        *(
            f"{name}{how}"
            for name in ("random", "bm25", "base", "tuned")
            for how in ("", ".concat-3", ".ensemble-5")
        ),
        "ceiling",
    ]
    assert conditions[-2].label == "tuned, ensemble of 5"
    assert len({condition.label for condition in conditions}) == len(conditions)


def test_a_name_typed_twice_counts_once_and_defaults_to_the_first_passage() -> None:
    assert [c.name for c in parse_conditions(["base", "base none"])] == ["base", "none"]


@pytest.mark.parametrize(
    ("retrievals", "combinations", "message"),
    [
        (["nobody"], ["first"], "'nobody' is unknown; expected none, random, bm25"),
        (["base"], ["concat-0"], "'concat-0' is unknown"),
        (["base"], ["ensemble"], "'ensemble' is unknown"),
        (["base"], ["first-2"], "'first-2' is unknown"),
        ([], ["first"], "at least one"),
        (["base"], [" "], "at least one"),
    ],
)
def test_unknown_names_are_refused(retrievals: list[str], combinations: list[str], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_conditions(retrievals, combinations)


def test_each_retrieval_finds_as_many_as_its_largest_combination_and_the_base_the_ceiling_s_k() -> None:
    conditions = parse_conditions(["none", "base", "tuned", "ceiling"], ["first", "concat-3", "ensemble-5"])
    assert passages_needed(conditions, k=10) == {BASE: 10, TUNED: 5}
    assert passages_needed(conditions[:-1], k=10) == {BASE: 5, TUNED: 5}
    assert passages_needed(parse_conditions(["ceiling"]), k=4) == {BASE: 4}


def test_the_first_is_one_prompt_and_a_concatenation_has_the_most_relevant_last() -> None:
    assert reading("base").contexts == ((3,),)
    assert reading("base.concat-3").contexts == ((2, 1, 3),)
    assert reading("none").contexts == ((),)
    assert reading("random.concat-2", 1).contexts == ((2, 3),)


def test_an_ensemble_weighs_by_similarity_over_gamma_and_alike_where_there_is_none() -> None:
    mixed = reading("base.ensemble-2", temperature=0.2)
    assert mixed.contexts == ((3,), (1,))
    assert mixed.log_weights is not None
    # exp(0.9 / 0.2) to exp(0.5 / 0.2): e^2 to 1.
    assert np.exp(mixed.log_weights) == pytest.approx([math.e**2 / (1 + math.e**2), 1 / (1 + math.e**2)])
    alike = reading("random.ensemble-3").log_weights
    assert alike is not None
    assert np.exp(alike) == pytest.approx([1 / 3] * 3)


def test_passages_that_were_not_found_are_left_out_and_none_at_all_is_no_passage() -> None:
    assert reading("bm25.ensemble-3").contexts == ((2,),)
    assert reading("bm25.concat-3").contexts == ((2,),)
    for name in ("bm25", "bm25.concat-3", "bm25.ensemble-3"):
        assert reading(name, 1).contexts == ((),)


def test_the_ceiling_reads_each_of_the_base_s_k_alone_and_the_best_counts() -> None:
    ceiling = reading("ceiling")
    assert ceiling.contexts == ((3,), (1,))
    assert ceiling.token_log_probs([np.array([-1.0, -3.0]), np.array([-2.0, -1.5])]).tolist() == [-2.0, -1.5]


def test_one_passage_in_an_ensemble_is_that_passage_s_own_score_to_the_last_bit() -> None:
    own = np.array([-1.2345678, -0.5, -7.0], dtype=np.float32)
    for name in ("base", "base.concat-3", "base.ensemble-1", "none"):
        assert reading(name).token_log_probs([own]).tolist() == own.astype(np.float64).tolist()


def test_equal_passages_in_an_ensemble_are_one_and_any_ensemble_is_at_least_the_weighted_mean() -> None:
    rng = np.random.default_rng(0)
    own = np.log(rng.uniform(0.01, 1, 6))
    mixed = reading("base.ensemble-3")
    assert mixed.token_log_probs([own] * 3) == pytest.approx(own, abs=1e-12)
    assert mixed.log_weights is not None
    for _ in range(50):
        values = np.log(rng.uniform(1e-6, 1, (3, 6)))
        weights = log_weights(rng.normal(size=3), 0.5)
        total = Reading(mixed.contexts, weights).token_log_probs(list(values)).sum()
        assert total >= np.exp(weights) @ values.sum(axis=1) - 1e-12


def test_random_passages_are_distinct_even_and_follow_the_seed() -> None:
    rows = random_rows(4000, 4, 3, seed=1)
    assert rows.shape == (4000, 3)
    assert all(len(set(line)) == 3 for line in rows.tolist())
    for place in range(3):
        assert np.bincount(rows[:, place], minlength=4).min() > 880  # 1000 each, and 4 standard deviations
    assert (rows == random_rows(4000, 4, 3, seed=1)).all()
    assert (rows != random_rows(4000, 4, 3, seed=2)).any()


def test_the_first_random_passage_is_the_same_however_many_there_are() -> None:
    assert (random_rows(50, 9, 1, seed=3) == random_rows(50, 9, 6, seed=3)[:, :1]).all()
    assert sorted(random_rows(1, 5, 9, seed=0)[0].tolist()) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="of 0 passages"):
        random_rows(1, 0, seed=1)


def test_rows_and_similarities_must_fit() -> None:
    with pytest.raises(ValueError, match="similarities"):
        Retrieved(np.zeros((2, 3), np.int64), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"\(n, k\)"):
        Retrieved(np.zeros(3, np.int64))
    assert FOUND[BASE].first(2).rows.tolist() == [[3, 1], [0, 2]]

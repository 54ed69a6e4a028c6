"""The paired bootstrap, against values worked out by hand and by full enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replug_client.statistics import paired_bootstrap

finite = st.floats(-100, 100, allow_nan=False)


def test_mean_is_the_ratio_of_sums_and_not_the_mean_of_ratios() -> None:
    result = paired_bootstrap([3.0, 1.0], [1.0, 1.0], [1.0, 3.0])
    assert result.mean == pytest.approx((2.0 + 0.0) / 4.0)  # the mean of ratios would be 1.0
    assert (result.n, result.clusters, result.confidence) == (2, 2, 0.95)


def test_interval_agrees_with_every_possible_resample_of_four_items() -> None:
    above = np.array([1.0, 2.0, 4.0, 8.0])
    below = np.array([1.0, 1.0, 2.0, 3.0])
    every = [above[list(d)].sum() / below[list(d)].sum() for d in itertools.product(range(4), repeat=4)]
    low, high = np.quantile(every, [0.1, 0.9])
    result = paired_bootstrap(above, np.zeros(4), below, confidence=0.8, resamples=40_000)
    assert result.low == pytest.approx(low, abs=0.02)
    assert result.high == pytest.approx(high, abs=0.02)


def test_interval_of_normal_differences_has_the_width_theory_gives() -> None:
    differences = np.random.default_rng(1).normal(0.3, 2.0, size=400)
    result = paired_bootstrap(differences, np.zeros(400), np.ones(400))
    half = 1.96 * differences.std() / np.sqrt(400)
    assert result.low == pytest.approx(differences.mean() - half, rel=0.1)
    assert result.high == pytest.approx(differences.mean() + half, rel=0.1)


def test_pairs_are_drawn_together_so_a_constant_gain_has_no_width() -> None:
    base = np.random.default_rng(2).normal(0.0, 50.0, size=100)
    result = paired_bootstrap(base + 0.5, base, np.ones(100))
    assert result.low == pytest.approx(0.5)
    assert result.high == pytest.approx(0.5)
    assert result.excludes_zero


def test_clusters_widen_the_interval_where_documents_agree_within_themselves() -> None:
    effects = np.random.default_rng(3).normal(size=20)
    differences = np.repeat(effects, 25)
    names = [str(i // 25) for i in range(500)]
    zeros, ones = np.zeros(500), np.ones(500)
    single = paired_bootstrap(differences, zeros, ones)
    clustered = paired_bootstrap(differences, zeros, ones, clusters=names)
    assert clustered.mean == pytest.approx(single.mean)
    assert (clustered.n, clustered.clusters) == (500, 20)
    assert None not in (clustered.low, clustered.high, single.low, single.high)
    widths = [(r.high or 0.0) - (r.low or 0.0) for r in (single, clustered)]
    assert widths[1] / widths[0] == pytest.approx(5.0, rel=0.1)  # sqrt(25) windows a document


def test_every_item_its_own_cluster_is_the_plain_bootstrap() -> None:
    first = np.random.default_rng(4).normal(size=30)
    plain = paired_bootstrap(first, np.zeros(30), np.ones(30))
    named = paired_bootstrap(first, np.zeros(30), np.ones(30), clusters=[str(i) for i in range(30)])
    assert named == plain


def test_one_cluster_has_a_mean_but_no_interval() -> None:
    result = paired_bootstrap([1.0, 3.0], [0.0, 0.0], [1.0, 1.0], clusters=["a", "a"])
    assert (result.mean, result.low, result.high) == (2.0, None, None)
    assert not result.excludes_zero


def test_names_that_differ_by_a_trailing_nul_stay_apart() -> None:
    result = paired_bootstrap([1.0, 3.0], [0.0, 0.0], [1.0, 1.0], clusters=["a", "a\0"])
    assert result.clusters == 2


@given(st.lists(st.tuples(finite, finite, st.floats(0.1, 10)), min_size=2, max_size=12))
def test_swapping_the_sides_mirrors_the_interval(items: list[tuple[float, float, float]]) -> None:
    first, second, weights = (list(column) for column in zip(*items, strict=True))
    one = paired_bootstrap(first, second, weights, resamples=50, seed=5)
    two = paired_bootstrap(second, first, weights, resamples=50, seed=5)
    assert one.mean == pytest.approx(-two.mean)
    assert one.low is not None
    assert two.high is not None
    assert one.low == pytest.approx(-two.high)


def test_the_seed_decides_the_interval() -> None:
    first = np.random.default_rng(6).normal(size=50)
    runs = [paired_bootstrap(first, np.zeros(50), np.ones(50), resamples=200, seed=s) for s in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    first = np.random.default_rng(7).normal(size=10)
    whole = paired_bootstrap(first, np.zeros(10), np.ones(10), resamples=101)
    monkeypatch.setattr("replug_client.statistics._UNITS_PER_BLOCK", 70)
    assert paired_bootstrap(first, np.zeros(10), np.ones(10), resamples=101) == whole


@pytest.mark.parametrize(
    ("first", "second", "weights", "options", "message"),
    [
        ([1.0], [1.0, 2.0], [1.0], {}, "one length"),
        ([], [], [], {}, "found none"),
        ([float("nan")], [1.0], [1.0], {}, "finite"),
        ([1.0], [1.0], [0.0], {}, "positive"),
        ([1.0], [1.0], [1.0], {"confidence": 1.0}, "confidence"),
        ([1.0], [1.0], [1.0], {"resamples": 0}, "resamples"),
        ([1.0], [1.0], [1.0], {"clusters": []}, "expected 1 cluster names, found 0"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    first: list[float],
    second: list[float],
    weights: list[float],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(first, second, weights, **options)

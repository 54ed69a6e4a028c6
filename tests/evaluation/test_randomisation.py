from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import permutation_test

from replug_client.statistics import holm, paired_randomisation


def scipys(first: np.ndarray, second: np.ndarray) -> float:
    found = permutation_test(
        (first, second),
        lambda a, b, axis: np.sum(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
        rng=np.random.default_rng(1),
    )
    return float(found.pvalue)


def test_few_pairs_are_tested_exactly_by_hand() -> None:
    # Differences 3, 1, 1: of 8 ways to swap, the sums 5 and -5 are as far out as the one observed.
    assert paired_randomisation([3, 1, 1], [0, 0, 0], [1, 1, 1]) == 2 / 8
    # 2, -1: sums 1, 3, -3, -1: all at least 1 from 0.
    assert paired_randomisation([2, 0], [0, 1], [1, 1]) == 1.0


def test_few_pairs_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        first, second = rng.random(11), rng.random(11)
        assert paired_randomisation(first, second, np.ones(11)) == pytest.approx(
            scipys(first, second), abs=1e-12
        )


def test_many_pairs_agree_with_scipy_as_far_as_chance_allows() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(200)
    second = first + rng.normal(0.03, 0.2, 200)
    found = paired_randomisation(first, second, np.ones(200))
    assert found == pytest.approx(scipys(first, second), abs=0.02)
    assert found == paired_randomisation(first, second, np.ones(200))  # the seed decides


def test_equal_sides_give_one_and_far_ones_the_least_that_can_be_told() -> None:
    assert paired_randomisation([1.0] * 50, [1.0] * 50, [1.0] * 50) == 1.0
    assert paired_randomisation([1.0] * 50, [0.0] * 50, [1.0] * 50, resamples=999) == 1 / 1000


def test_pairs_of_a_cluster_are_swapped_together() -> None:
    # Four pairs in two clusters: only 4 ways to swap, of which 2 are as far out.
    assert paired_randomisation([1] * 4, [0] * 4, [1] * 4, clusters=list("aabb")) == 0.5


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        paired_randomisation([1], [1, 2], [1])
    with pytest.raises(ValueError, match="resamples"):
        paired_randomisation([1], [0], [1], resamples=0)


def test_holm_by_hand() -> None:
    # Sorted: 0.01*4, 0.02*3, 0.03*2 (raised to 0.06), 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []

"""Easy examples first: what easy means, by hand, and what it does to the order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from replug_client.training.curriculum import ease, levels_of
from replug_client.training.options import Easy
from replug_client.training.schedule import LEVELS, Schedule

SIMILARITY = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.7], [0.6, 0.0, 9.0]], dtype=torch.float64)
SCORES = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, -4.0], [-2.0, 9.0, 9.0]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, True, True], [True, False, False]])


def test_the_margin_is_the_bases_similarity_to_the_lms_best_less_the_best_other() -> None:
    found = ease(SIMILARITY, SCORES, MASK, Easy.MARGIN)
    assert found.tolist() == pytest.approx([0.9 - 0.5, 0.2 - 0.8, 0.0])


def test_the_spread_is_the_standard_deviation_of_the_scores() -> None:
    found = ease(SIMILARITY, SCORES, MASK, Easy.SPREAD)
    assert found.tolist() == pytest.approx([np.std([-1, -2, -3]), np.std([-1, -1, -4]), 0.0])


@pytest.mark.parametrize("by", list(Easy))
def test_what_is_masked_out_says_nothing(by: Easy) -> None:
    other = torch.where(MASK, SCORES, 77.0)
    assert torch.equal(ease(SIMILARITY, SCORES, MASK, by), ease(SIMILARITY, other, MASK, by))


def test_levels_go_from_the_easiest_to_the_hardest_and_are_equally_full() -> None:
    values = np.random.default_rng(0).normal(size=40)
    found = levels_of(values)
    assert np.bincount(found).tolist() == [40 // LEVELS] * LEVELS
    for level in range(LEVELS - 1):
        assert values[found == level].min() >= values[found == level + 1].max()


def test_the_first_epoch_goes_by_the_levels_and_later_ones_do_not() -> None:
    levels = levels_of(np.random.default_rng(0).normal(size=23))
    plain, sorted_ = Schedule(23, 3, 5), Schedule(23, 3, 5, levels=levels)
    first = sorted_.epoch(0)
    assert (np.diff(levels[first.reshape(-1)]) >= 0).all()
    assert sorted(first.reshape(-1).tolist()) == sorted(plain.epoch(0).reshape(-1).tolist())
    assert (np.diff(levels[plain.epoch(0).reshape(-1)]) < 0).any()
    np.testing.assert_array_equal(sorted_.epoch(1), plain.epoch(1))
    np.testing.assert_array_equal(sorted_.batches(5, 9), np.concatenate([first[5:], plain.epoch(1)[:2]]))

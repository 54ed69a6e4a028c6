"""Ranks before and after: worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from replug_client.training.candidates import NO_PASSAGE
from replug_client.training.moves import Move, biggest_moves, churn, rank_table, ranks_in, reciprocal_ranks

LISTS = np.array([[7, 3, 5], [1, 2, 9]])


def test_ranks_begin_at_one_and_end_one_beyond_the_list() -> None:
    wanted = np.array([[5, 7], [4, 2]])
    np.testing.assert_array_equal(ranks_in(LISTS, wanted), [[3, 1], [4, 2]])


def test_reciprocal_ranks_beyond_the_depth_count_nothing() -> None:
    np.testing.assert_array_equal(reciprocal_ranks(np.array([1, 2, 4]), 3), [1.0, 0.5, 0.0])


def test_churn_counts_what_is_new_whatever_its_place() -> None:
    assert churn(LISTS, np.array([[5, 7, 3], [1, 2, 9]])) == 0.0
    assert churn(LISTS, np.array([[5, 7, 4], [1, 2, 8]])) == pytest.approx(2 / 6)
    assert churn(LISTS, LISTS + 100) == 1.0


def test_the_table_counts_by_groups_of_ranks() -> None:
    # Groups: 1, 2-3, 4-10, 11-30, 31-100, beyond.
    table = rank_table(np.array([1, 3, 10, 11, 101, 1]), np.array([1, 1, 4, 2, 100, 101]))
    expected = np.zeros((6, 6), dtype=int)
    expected[0, 0] = expected[1, 0] = expected[2, 2] = expected[3, 1] = expected[5, 4] = expected[0, 5] = 1
    np.testing.assert_array_equal(table, expected)


def test_the_biggest_moves_are_by_ratio_one_an_example_and_never_of_a_missing_passage() -> None:
    pool = np.array([[70, 71, 72], [80, 81, 82], [90, NO_PASSAGE, 92]])
    before = np.array([[20, 10, 1], [2, 2, 2], [4, 100, 5]])
    now = np.array([[2, 2, 1], [2, 1, 8], [3, 1, 6]])
    advantages = np.arange(9.0).reshape(3, 3)
    risen, fallen = biggest_moves(pool, before, now, advantages, 5)
    # 20 -> 2 is tenfold and 10 -> 2, of the same example, is left out; then 2 -> 1; then 4 -> 3.
    assert risen == [Move(0, 70, 20, 2, 0.0), Move(1, 81, 2, 1, 4.0), Move(2, 90, 4, 3, 6.0)]
    assert fallen == [Move(1, 82, 2, 8, 5.0), Move(2, 92, 5, 6, 8.0)]
    assert biggest_moves(pool, before, now, advantages, 1) == (risen[:1], fallen[:1])
    assert biggest_moves(pool, before, before, advantages, 5) == ([], [])

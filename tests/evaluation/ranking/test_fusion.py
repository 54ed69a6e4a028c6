from __future__ import annotations

import pytest

from replug_client.evaluation.ranking.fusion import fuse, minmax_fusion, reciprocal_rank_fusion

DENSE = [("a", 0.9), ("b", 0.7), ("c", 0.5)]
LEXICAL = [("c", 12.0), ("d", 2.0)]


def test_reciprocal_ranks_are_added_and_scores_do_not_count() -> None:
    fused = reciprocal_rank_fusion([DENSE, LEXICAL])
    assert fused == pytest.approx({"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62})
    assert [passage for passage, _ in fuse([DENSE, LEXICAL], "rrf", 2)] == ["c", "a"]


def test_scaled_scores_are_averaged() -> None:
    fused = minmax_fusion([DENSE, LEXICAL])
    assert fused == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.5, "d": 0.0})


def test_one_list_keeps_its_order_and_an_empty_one_changes_nothing() -> None:
    assert [passage for passage, _ in fuse([DENSE], "rrf", 10)] == ["a", "b", "c"]
    assert [passage for passage, _ in fuse([DENSE, []], "rrf", 10)] == ["a", "b", "c"]
    assert [passage for passage, _ in fuse([DENSE, []], "minmax", 10)] == ["a", "b", "c"]


def test_a_list_of_equal_scores_counts_one_throughout() -> None:
    assert minmax_fusion([[("a", 3.0), ("b", 3.0)]]) == {"a": 1.0, "b": 1.0}

"""The garbage collector is left as it was found."""

from __future__ import annotations

import gc

import pytest

from replug_client.training.heap import settled_heap


def test_what_is_there_is_frozen_within_the_block_and_no_longer() -> None:
    threshold = gc.get_threshold()

    def train() -> None:
        with settled_heap():
            assert gc.get_freeze_count() > 1000
            assert gc.get_threshold()[0] > threshold[0]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        train()
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == threshold


def test_what_the_caller_has_set_stays() -> None:
    threshold = gc.get_threshold()
    gc.freeze()
    try:
        gc.set_threshold(0, 5, 5)
        with settled_heap():
            assert gc.get_threshold() == (0, 5, 5)
        gc.set_threshold(80_000, 5, 5)
        with settled_heap():
            assert gc.get_threshold() == (80_000, 5, 5)
        assert gc.get_freeze_count() > 1000
    finally:
        gc.set_threshold(*threshold)
        gc.unfreeze()

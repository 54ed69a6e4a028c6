"""The order of the examples is known ahead of time, and is the one that the data loader gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replug_client.errors import OptionError
from replug_client.training.schedule import Schedule, ScheduleSampler


def test_the_seed_alone_decides_the_order() -> None:
    first, same, other = Schedule(20, 3, 1), Schedule(20, 3, 1), Schedule(20, 3, 2)
    assert np.array_equal(first.epoch(0), same.epoch(0))
    assert not np.array_equal(first.epoch(0), other.epoch(0))
    assert not np.array_equal(first.epoch(0), first.epoch(1))


def test_an_epoch_shows_no_example_twice_and_drops_a_short_last_batch() -> None:
    epoch = Schedule(20, 3, 1).epoch(4)
    assert epoch.shape == (6, 3)
    assert len(set(epoch.ravel().tolist())) == 18
    assert set(epoch.ravel().tolist()) <= set(range(20))


def test_fewer_examples_than_a_batch_make_one_short_batch() -> None:
    schedule = Schedule(2, 5, 1)
    assert schedule.batches_per_epoch == 1
    assert sorted(schedule.epoch(0).ravel().tolist()) == [0, 1]
    assert schedule.batches(0, 3).shape == (3, 2)


@given(
    examples=st.integers(1, 25),
    batch=st.integers(1, 6),
    start=st.integers(0, 40),
    length=st.integers(0, 30),
)
def test_batches_are_the_epochs_one_after_the_other(
    examples: int, batch: int, start: int, length: int
) -> None:
    schedule = Schedule(examples, batch, 7)
    number_of_epochs = (start + length) // schedule.batches_per_epoch + 1
    everything = np.concatenate([schedule.epoch(epoch) for epoch in range(number_of_epochs)])
    assert np.array_equal(schedule.batches(start, start + length), everything[start : start + length])


@given(examples=st.integers(4, 25), batch=st.integers(1, 4), total=st.integers(1, 60))
def test_the_sampler_gives_the_schedule_and_ends_with_the_run(examples: int, batch: int, total: int) -> None:
    schedule = Schedule(examples, batch, 7)
    sampler = ScheduleSampler(schedule, total)
    seen: list[list[int]] = []
    for epoch in range(total // schedule.batches_per_epoch + 2):
        sampler.set_epoch(epoch)
        assert len(sampler) == schedule.batches_per_epoch
        seen += list(sampler)
    assert seen == schedule.batches(0, total).tolist()


def test_an_epoch_is_made_of_whole_optimiser_steps() -> None:
    assert Schedule(23, 2, 1).batches_per_epoch == 11
    assert Schedule(23, 2, 1, accumulation=4).batches_per_epoch == 8


def test_what_cannot_be_scheduled_is_refused() -> None:
    for examples, batch in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least one"):
            Schedule(examples, batch, 0)
    with pytest.raises(OptionError, match=r"--gradient_accumulation_steps 4: 6 examples .* only 3 batches"):
        Schedule(6, 2, 0, accumulation=4)

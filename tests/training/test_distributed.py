"""One run in several processes: what each takes of it. What they give together: tests/cli/test_train_processes.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from replug_client.errors import OptionError
from replug_client.training.distributed import ALONE, Processes, of_all, own_part
from replug_client.training.schedule import Schedule, ScheduleSampler


def test_one_process_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Processes.join() == ALONE
    assert ALONE.is_first and ALONE.owns(np.arange(5)).all()
    assert ALONE.divide(3, lambda positions: positions * 2).tolist() == [0, 2, 4]
    assert (ALONE.same("a"), ALONE.each("a")) == ("a", ["a"])
    vectors = torch.ones(2, 3)
    assert of_all(vectors) is vectors


@given(examples=st.integers(8, 40), each=st.integers(1, 3), count=st.integers(1, 3), total=st.integers(1, 20))
def test_the_shares_of_all_processes_are_the_batch(examples: int, each: int, count: int, total: int) -> None:
    schedule = Schedule(max(examples, each * count), each * count, 7)
    seen = []
    for number in range(count):
        sampler = ScheduleSampler(schedule, total, Processes(count, number))
        batches: list[list[int]] = []
        for epoch in range(total // schedule.batches_per_epoch + 1):
            sampler.set_epoch(epoch)
            batches += list(sampler)
        seen.append(batches)
    assert np.concatenate(seen, axis=1).tolist() == schedule.batches(0, total).tolist()


@given(count=st.integers(1, 4), size=st.integers(1, 12))
def test_each_example_has_one_owner_and_each_passage_one_place(count: int, size: int) -> None:
    numbers = np.arange(100, 100 + size)
    parts = [own_part(numbers, Processes(count, number)) for number in range(count)]
    assert len({len(part) for part in parts}) == 1
    assert np.concatenate(parts)[:size].tolist() == numbers.tolist()
    owners = [Processes(count, number).owns(numbers) for number in range(count)]
    assert (np.sum(owners, axis=0) == 1).all()


def test_one_gpu_for_all_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match=r"--device cuda:1 with 2 processes: .*CUDA_VISIBLE_DEVICES"):
        Processes.join("cuda:1")

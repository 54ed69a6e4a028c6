"""In which order the examples are seen: known ahead of time, so that they can be scored ahead of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sentence_transformers.base.sampler import DefaultBatchSampler

from replug_client.errors import OptionError
from replug_client.training.distributed import ALONE, Processes

LEVELS = 10
"""Parts, from the easiest examples to the hardest, that a curriculum goes through in the first epoch."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The order of the examples over all epochs: of the seed, and in the first epoch of a curriculum.

    Attributes:
        num_examples: Number of training examples.
        batch_size: Examples a batch, of all processes together; the last batch of an epoch is dropped where it
            would be short, unless it is the only one.
        seed: Seed of the shuffle.
        accumulation: Batches an optimiser step; an epoch is made of whole steps, so that the number of a
            step tells the number of its batch.
        levels: ``(num_examples,)`` where there is a curriculum: the first epoch goes by them, from 0 upwards, at
            random within each. Later epochs are the same as without.
    """

    num_examples: int
    batch_size: int
    seed: int
    accumulation: int = 1
    levels: npt.NDArray[np.int64] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.num_examples < 1 or self.batch_size < 1:
            raise ValueError(
                f"{self.num_examples} examples in batches of {self.batch_size}; expected at least one of each"
            )
        if self._batches < self.accumulation:
            raise OptionError(
                f"--gradient_accumulation_steps {self.accumulation}: {self.num_examples} examples in batches of "
                f"{self.batch_size} are only {self._batches} batches. Lower it, or --per_gpu_batch_size."
            )

    @property
    def _batches(self) -> int:
        return max(1, self.num_examples // self.batch_size)

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in an epoch; 1 where there are fewer examples than one batch holds."""
        return self._batches // self.accumulation * self.accumulation

    def epoch(self, epoch: int) -> npt.NDArray[np.int64]:
        """``(batches_per_epoch, <= batch_size)`` example numbers of one epoch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_examples)
        size = min(self.batch_size, self.num_examples)
        # Cut before it is sorted: what no batch is full of is dropped at random, not because it is hard.
        order = order[: self.batches_per_epoch * size]
        if epoch == 0 and self.levels is not None:
            order = order[np.argsort(self.levels[order], kind="stable")]
        return order.reshape(self.batches_per_epoch, size)

    def batches(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """``(stop - start, batch)`` example numbers of the batches numbered ``start`` to ``stop`` - 1."""
        each = self.batches_per_epoch
        if stop <= start:
            return np.zeros((0, min(self.batch_size, self.num_examples)), dtype=np.int64)
        epochs = np.concatenate([self.epoch(epoch) for epoch in range(start // each, (stop - 1) // each + 1)])
        first = start // each * each
        return epochs[start - first : stop - first]


class ScheduleSampler(DefaultBatchSampler):
    """The schedule in the form that the trainer's data loader asks for.

    It gives this process's share of each batch, and ends with the run's last batch: data loaders fetch one batch
    ahead, which nobody would score.
    """

    def __init__(self, schedule: Schedule, total: int, processes: Processes = ALONE) -> None:
        size = schedule.batch_size // processes.count
        super().__init__(range(schedule.num_examples), batch_size=size, drop_last=True)
        self.schedule = schedule
        self._processes = processes
        self.epoch = 0
        self._total = total

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        left = self._total - self.epoch * self.schedule.batches_per_epoch
        for batch in self.schedule.epoch(self.epoch)[: max(0, left)]:
            yield self._processes.share(batch).tolist()

    def __len__(self) -> int:
        return self.schedule.batches_per_epoch

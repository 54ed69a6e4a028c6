"""The processes of one run, and what they do together: `torchrun` or `accelerate launch` start them.

A batch is cut into equal shares, one for each process, and DistributedDataParallel averages the gradients: the
step is that of one process with the whole batch. What is found once is found by one and told to all:
retrieval is divided by example; the pairs of an example are always scored by the same process (its number modulo the
number of processes), so no pair is asked for twice, whichever process trains on it in whichever epoch; passages
that a batch encodes are divided too. The first process alone writes files.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from replug_client.errors import OptionError

T = TypeVar("T")
Array = TypeVar("Array", bound=npt.NDArray[Any])
# Others wait while the first process validates, or while a server is away for as long as --server_wait allows.
_PATIENCE = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Processes:
    """How many processes run, and which of them this is; the default is a single one.

    Every method but :meth:`share` and :meth:`owns` is to be called by all processes, in the same order.

    Attributes:
        count: Number of processes.
        number: Of this one, from 0.
    """

    count: int = 1
    number: int = 0

    @classmethod
    def join(cls, device: str | None = None) -> Processes:
        """Meet the other processes that a launcher started; without a launcher this is the only one.

        Args:
            device: What ``--device`` says; each process takes a GPU of its own, unless it is ``cpu``.

        Raises:
            OptionError: ``device`` names one GPU for all processes.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if device not in (None, "cpu", "cuda"):
            raise OptionError(
                f"--device {device} with {count} processes: expected cpu, or nothing, so that each process takes a GPU "
                "of its own. CUDA_VISIBLE_DEVICES says which GPUs there are."
            )
        # Of what sentence-transformers asks accelerate to do with buffers; it is no matter of the user's.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        on_gpu = device != "cpu" and torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            # Arrays go by gloo from memory to memory, gradients by nccl from GPU to GPU.
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
            # Not at the end of a run: in one process, groups cannot be parted from and joined again.
            atexit.register(dist.destroy_process_group)
        return cls(dist.get_world_size(), dist.get_rank())

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.number == 0

    def share(self, batch: Array) -> Array:
        """This process's part of a batch: ``(count * n, ...)`` in, ``(n, ...)`` out."""
        size = len(batch) // self.count
        part: Array = batch[self.number * size : (self.number + 1) * size]  # type: ignore[assignment]
        return part

    def owns(self, examples: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the numbered examples are scored by this process."""
        mine: npt.NDArray[np.bool_] = examples % self.count == self.number
        return mine

    def wait(self) -> None:
        """Go on when all processes are here."""
        self.total(np.zeros(1))

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process runs the block alone, the others after it: they find the files that it left."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def same(self, value: T) -> T:
        """What the first process has, for all: floats of different processes may differ in their last bits."""
        if self.count == 1:
            return value
        held: list[Any] = [value]
        dist.broadcast_object_list(held, src=0)
        shared: T = held[0]
        return shared

    def each(self, value: T) -> list[T]:
        """What every process has, in the order of their numbers."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def total(self, array: Array) -> Array:
        """The sum over all processes, element by element; of one process, the array itself."""
        if self.count == 1:
            return array
        tensor = torch.from_numpy(np.array(array))
        dist.all_reduce(tensor)
        summed: Array = tensor.numpy()  # type: ignore[assignment]
        return summed

    def divide(self, count: int, work: Callable[[npt.NDArray[np.int64]], Array]) -> Array:
        """Do ``work`` on positions 0 to ``count`` - 1, each process on every so many of them.

        Args:
            count: Number of positions.
            work: ``(n,)`` positions in, ``(n, ...)`` out.

        Returns:
            ``(count, ...)``, in order; the same in every process.
        """
        everything = np.arange(count)
        if self.count == 1 or count < self.count:
            return self.same(work(everything))
        own = everything[self.number :: self.count]
        done = work(own)
        result = np.zeros((count, *done.shape[1:]), dtype=done.dtype)
        result[own] = done
        return self.total(result)  # type: ignore[return-value]


ALONE = Processes()


def own_part(rows: npt.NDArray[np.int64], processes: Processes) -> npt.NDArray[np.int64]:
    """The part of a batch's N passages that this process encodes: equally many each, the first filling up."""
    size = -(-len(rows) // processes.count)
    part = rows[processes.number * size : (processes.number + 1) * size]
    return np.concatenate([part, np.repeat(rows[:1], size - len(part))])


class _Gather(torch.autograd.Function):
    """Parts of all processes, end to end; a part's gradient is the sum of what each process has for it."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        ctx.size = len(part)
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank() * ctx.size :][: ctx.size]


def of_all(vectors: Tensor) -> Tensor:
    """The ``(count * n, D)`` vectors of all processes, with gradient; of one process, ``vectors`` themselves."""
    if not dist.is_initialized():
        return vectors
    gathered: Tensor = _Gather.apply(vectors)  # type: ignore[no-untyped-call]
    return gathered


def join_parts(vectors: Tensor, count: int) -> Tensor:
    """The batch's ``(count, D)`` vectors from the parts that the processes encoded, with gradient to each part.

    A part's gradient is the sum over all processes' losses; as DistributedDataParallel takes the mean over
    processes, the result is the gradient of the mean loss of the whole batch.
    """
    return of_all(vectors)[:count]

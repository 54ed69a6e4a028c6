"""Candidates and their scores, made ahead of the training steps that need them.

Training is cut into *generations* of a fixed number of batches. While generation g trains, the candidates
of generation g + 1, retrieved with the retriever as it was when g began, are being scored. So the supervisor
works while the trainer steps, what is retrieved depends on a known state of the weights, and a resumed run
finds the very same candidates: each generation's are written to disk before they are used.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from replug_client.artefacts import atomic_write
from replug_client.corpus.records import Example
from replug_client.errors import SupervisorError
from replug_client.supervisor.protocol import Prompt, Score, StreamingSupervisor
from replug_client.training.candidates import NO_PASSAGE, Rows
from replug_client.training.distributed import ALONE, Processes
from replug_client.training.schedule import Schedule
from replug_client.training.timings import BusyClock

BuildPrompt = Callable[[Example, int], Prompt]
Mine = Callable[[Rows], Rows]


@dataclass(frozen=True, slots=True)
class ScoredCandidates:
    """The candidates of one batch with their scores.

    Attributes:
        rows: ``(batch, K)`` int64 corpus rows, ``NO_PASSAGE`` where there is none.
        log_likelihoods: ``(batch, K)`` float64, nats, summed over the continuation; 0 where there is none.
        num_tokens: ``(batch,)`` int64.
        num_bytes: ``(batch,)`` int64.
        batch_examples: Example numbers of the whole batch, where other processes have a share of it.
        batch_rows: Their ``(count * batch, K)`` corpus rows.
    """

    rows: Rows
    log_likelihoods: npt.NDArray[np.float64]
    num_tokens: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]
    batch_examples: Rows | None = None
    batch_rows: Rows | None = None


@dataclass(slots=True)
class StreamTimings:
    """Seconds spent, for the run's record; ``scoring`` runs beside everything else."""

    retrieving: float = 0.0
    waiting_for_scores: float = 0.0
    scoring: BusyClock = field(default_factory=BusyClock)


@dataclass(slots=True)
class _Pending:
    """One batch on its way: who it is, what was retrieved, and the scores to come."""

    examples: Rows
    rows: Rows
    future: Future[list[Score]]


class CandidateStream:
    """Hands out scored candidates batch by batch, in the order of the schedule.

    Args:
        examples: The training examples.
        schedule: Their order.
        build_prompt: Makes the prompt of one example and one corpus row.
        supervisor: Scores them; its ``submit`` is asynchronous.
        generation: Batches a generation.
        total: Batches in the whole run.
        folder: Where each generation's candidates are kept.
        batches_per_submission: How many batches are handed to the supervisor at once.
        on_scored: Told how many more pairs have a score, as they get it.
        processes: Which share in the work: each retrieves for a part of the examples, scores those that it owns,
            and hands out its share of every batch.
        static: Whether ``mine`` finds the same at any time: candidates are then as old as the run.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        schedule: Schedule,
        build_prompt: BuildPrompt,
        supervisor: StreamingSupervisor,
        *,
        generation: int,
        total: int,
        folder: Path,
        batches_per_submission: int = 1,
        on_scored: Callable[[int], None] | None = None,
        processes: Processes = ALONE,
        static: bool = False,
    ) -> None:
        self._examples = examples
        self._schedule = schedule
        self._build_prompt = build_prompt
        self._supervisor = supervisor
        self._generation = generation
        self._total = total
        self._folder = folder
        self._group = batches_per_submission
        self._on_scored = on_scored
        self._processes = processes
        self._static = static
        self._pending: deque[_Pending] = deque()
        self._next_generation = 0
        self.timings = StreamTimings()
        # (n,) the first candidate of each distinct query of the generation that was retrieved last
        self.first_rows: Rows = np.zeros(0, dtype=np.int64)

    @property
    def generation(self) -> int:
        """Batches a generation."""
        return self._generation

    @property
    def total(self) -> int:
        """Batches in the whole run."""
        return self._total

    def retrieved_at(self, batch: int) -> int:
        """The batch before which the candidates of this one were retrieved: where the generation before it began."""
        return 0 if self._static else max(0, batch // self._generation - 1) * self._generation

    def start(self, batch: int, mine: Mine) -> None:
        """Begin at ``batch`` (0, or where a resumed run goes on): ready its generation and the next one.

        The first is retrieved in parts, so that the supervisor is at work on one while the next is retrieved.
        """
        current = batch // self._generation
        self._discard_from(current + 2)
        self._pending.clear()
        self._next_generation = current
        self._prepare(mine, skip=batch - current * self._generation, in_parts=True)
        self._prepare(mine)

    def advance(self, batch: int, mine: Mine) -> None:
        """At the first batch of a generation: retrieve for the one after it and send it off to be scored."""
        while self._next_generation <= batch // self._generation + 1:
            self._prepare(mine)

    def take(self, examples: Rows) -> ScoredCandidates:
        """Wait for the next batch's scores.

        Args:
            examples: ``(batch,)`` numbers; of several processes, this one's share of the batch.

        Raises:
            RuntimeError: the batch asked for is not the next of the schedule.
            SupervisorError: scoring failed for good.
        """
        if not self._pending:
            raise RuntimeError("no batch is on its way: the stream was not started or not advanced")
        pending = self._pending.popleft()
        numbers = self._processes.share(pending.examples)
        if not np.array_equal(numbers, examples):
            raise RuntimeError(
                f"examples {examples.tolist()[:4]}... were asked for, but the schedule's next are "
                f"{numbers.tolist()[:4]}..."
            )
        began = time.perf_counter()
        log_likelihoods = self._log_likelihoods(pending, pending.future.result())
        self.timings.waiting_for_scores += time.perf_counter() - began
        share, others = self._processes.share, self._processes.count > 1
        own = [self._examples[number] for number in numbers]
        return ScoredCandidates(
            rows=share(pending.rows),
            log_likelihoods=share(log_likelihoods),
            num_tokens=np.array([len(example.continuation_ids) for example in own]),
            num_bytes=np.array([example.num_bytes for example in own]),
            batch_examples=pending.examples if others else None,
            batch_rows=pending.rows if others else None,
        )

    def _log_likelihoods(self, pending: _Pending, scores: list[Score]) -> npt.NDArray[np.float64]:
        """Of the whole batch: what this process scored, and what the others did."""
        log_likelihoods = np.zeros(pending.rows.shape, dtype=np.float64)
        owned = (pending.rows != NO_PASSAGE) & self._processes.owns(pending.examples)[:, None]
        for line, score in zip(np.nonzero(owned)[0].tolist(), scores, strict=True):
            expected = len(self._examples[pending.examples[line]].continuation_ids)
            if score.num_tokens != expected:
                raise SupervisorError(
                    f"example {pending.examples[line]}: the supervisor gave {score.num_tokens} log-probs for a "
                    f"continuation of {expected} tokens; expected one a token, in order"
                )
        log_likelihoods[owned] = [score.log_likelihood for score in scores]
        return self._processes.total(log_likelihoods)

    def _prepare(self, mine: Mine, skip: int = 0, *, in_parts: bool = False) -> None:
        number = self._next_generation
        self._next_generation += 1
        first = number * self._generation
        batches = self._schedule.batches(first, min(first + self._generation, self._total))
        if len(batches) == 0:
            return
        rows = self._load(number, batches.shape)
        if rows is None:
            parts = []
            for part in self._parts(len(batches)) if in_parts else [slice(0, len(batches))]:
                parts.append(self._retrieve(batches[part], mine))
                left = max(0, skip - part.start)
                self._submit(batches[part][left:], parts[-1][left:])
            rows = np.concatenate(parts)
            self._store(number, rows)
        else:
            self._submit(batches[skip:], rows[skip:])
        self.first_rows = self._first_rows(batches, rows)

    def _parts(self, count: int) -> Iterator[slice]:
        """The first as small as it can be, for until then nothing is scored; each next one twice as large."""
        start, size = 0, self._group
        while start < count:
            yield slice(start, min(start + size, count))
            start, size = start + size, 2 * size

    def _retrieve(self, batches: Rows, mine: Mine) -> Rows:
        """``(n, batch)`` example numbers in, ``(n, batch, K)`` corpus rows out."""
        began = time.perf_counter()
        numbers = batches.reshape(-1)
        rows = self._processes.divide(len(numbers), lambda positions: mine(numbers[positions]))
        self.timings.retrieving += time.perf_counter() - began
        return rows.reshape(*batches.shape, -1)

    def _first_rows(self, batches: Rows, rows: Rows) -> Rows:
        # A generation may go through the examples several times, and several of them may have one query.
        queries = [self._examples[number].query for number in batches.ravel().tolist()]
        first = dict(zip(queries, rows[..., 0].ravel().tolist(), strict=True))
        return np.array(list(first.values()), dtype=np.int64)

    def _submit(self, batches: Rows, rows: Rows) -> None:
        for start in range(0, len(batches), self._group):
            group = slice(start, start + self._group)
            prompts: list[Prompt] = []
            lengths: list[int] = []
            for examples, candidates in zip(batches[group], rows[group], strict=True):
                before = len(prompts)
                owned = self._processes.owns(examples)
                for number, own in zip(examples[owned], candidates[owned], strict=True):
                    example = self._examples[number]
                    prompts += [self._build_prompt(example, int(row)) for row in own if row != NO_PASSAGE]
                lengths.append(len(prompts) - before)
            submission = self._supervisor.submit(prompts, self._count)
            self.timings.scoring.watch(submission)
            futures = _split(submission, lengths)
            for examples, candidates, future in zip(batches[group], rows[group], futures, strict=True):
                self._pending.append(_Pending(examples, candidates, future))

    def _count(self, positions: Sequence[int], _: Sequence[Score]) -> None:
        if self._on_scored is not None:
            self._on_scored(len(positions))

    def _path(self, number: int) -> Path:
        return self._folder / f"generation_{number:05d}.npy"

    def _store(self, number: int, rows: Rows) -> None:
        if not self._processes.is_first:
            return
        with atomic_write(self._path(number)) as stream:
            np.save(stream, rows, allow_pickle=False)

    def _load(self, number: int, shape: tuple[int, ...]) -> Rows | None:
        path = self._path(number)
        # The first process looks for all: a file that some find and others do not would part them.
        if not self._processes.same(path.exists()):
            return None
        rows: Rows = np.load(path, allow_pickle=False)
        return rows if rows.shape[:2] == shape else None

    def _discard_from(self, number: int) -> None:
        """Later generations were retrieved by weights that a resumed run has yet to reach."""
        while self._processes.is_first and (path := self._path(number)).exists():
            path.unlink()
            number += 1
        self._processes.wait()


def _split(future: Future[list[Score]], lengths: Sequence[int]) -> list[Future[list[Score]]]:
    """One future for each part of a submission, so that each batch is awaited by itself."""
    if len(lengths) == 1:
        return [future]
    parts: list[Future[list[Score]]] = [Future() for _ in lengths]

    def hand_out(done: Future[list[Score]]) -> None:
        error = done.exception()
        start = 0
        for part, length in zip(parts, lengths, strict=True):
            if error is not None:
                part.set_exception(error)
            else:
                part.set_result(done.result()[start : start + length])
            start += length

    future.add_done_callback(hand_out)
    return parts

"""What passages are worth to the supervisor: bits per byte of the continuation, condition by condition.

A condition names, for every example, the passages that may stand before it: none, a random one, the
first of the base retriever, the first of the tuned one, or the base's first K (the ceiling: the best
of the K, which only an oracle could pick).
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replug_client.errors import OptionError, PromptTooLongError
from replug_client.progress import progress
from replug_client.statistics import PairedDifference, bits_per_byte, paired_bootstrap

if TYPE_CHECKING:
    from replug_client.corpus.records import Example
    from replug_client.corpus.store import PassageStore
    from replug_client.supervisor.prompts import PromptBuilder
    from replug_client.supervisor.protocol import Prompt, Score, Supervisor

logger = logging.getLogger(__name__)

NONE, RANDOM, BASE, TUNED, CEILING = "none", "random", "base", "tuned", "ceiling"
TOO_LONG = "prompt too long for the supervisor"

Rows = npt.NDArray[np.int64]
# Submissions under way at a time: one being scored, one waiting, so that a server never runs dry.
_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True, eq=False)
class LikelihoodTable:
    """The same ``n`` examples under each condition.

    Attributes:
        nll: Condition to ``(n,)`` float64, negative summed log-likelihood in nats.
        num_bytes: ``(n,)`` int64, bytes of each continuation.
        num_tokens: ``(n,)`` int64, supervisor tokens of each continuation.
        document_ids: The document of each example.
        left_out: Reason to number of examples that stand in no condition.
    """

    nll: Mapping[str, npt.NDArray[np.float64]]
    num_bytes: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.int64]
    document_ids: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """Number of examples, the same in every condition."""
        return len(self.num_bytes)

    @property
    def documents(self) -> int:
        """Number of documents that the examples come from."""
        return len(set(self.document_ids))

    def bits_per_byte(self, condition: str) -> float:
        """Bits per byte of the continuation under ``condition``."""
        return bits_per_byte(self.nll[condition], self.num_bytes)

    def difference(
        self, first: str, second: str, *, by_document: bool = True, seed: int = 0
    ) -> PairedDifference:
        """Bits per byte under ``first`` minus ``second``, with its 95 % interval.

        Positive where ``second`` predicts better. ``by_document`` draws whole documents, whose
        windows are not independent; otherwise single examples.
        """
        return paired_bootstrap(
            self.nll[first] / math.log(2.0),
            self.nll[second] / math.log(2.0),
            self.num_bytes,
            clusters=self.document_ids if by_document else None,
            seed=seed,
        )

    def share_closed(self) -> float | None:
        """Part of the distance from base to ceiling that tuned covers; None where there is none.

        1 is the ceiling, 0 the base, negative worse than the base.
        """
        if not {BASE, TUNED, CEILING} <= set(self.nll):
            return None
        distance = self.bits_per_byte(BASE) - self.bits_per_byte(CEILING)
        if distance <= 0.0:
            return None
        return (self.bits_per_byte(BASE) - self.bits_per_byte(TUNED)) / distance

    def to_json(self) -> dict[str, Any]:
        """The form of ``results.json``; every figure in bits per byte.

        ``base_minus_tuned`` has the interval over documents in ``low`` and ``high``, and the
        narrower one over single examples in ``over_examples``.
        """
        value: dict[str, Any] = {
            "bits_per_byte": {name: self.bits_per_byte(name) for name in self.nll},
            "n": self.n,
            "documents": self.documents,
            "left_out": dict(self.left_out),
        }
        if {BASE, TUNED} <= set(self.nll):
            over_documents = self.difference(BASE, TUNED)
            over_examples = self.difference(BASE, TUNED, by_document=False)
            value["base_minus_tuned"] = {
                "mean": over_documents.mean,
                "low": over_documents.low,
                "high": over_documents.high,
                "confidence": over_documents.confidence,
                "resampled": "documents",
                "over_examples": {"low": over_examples.low, "high": over_examples.high},
            }
            value["share_of_ceiling_closed"] = self.share_closed()
        return value


def random_rows(num_examples: int, num_passages: int, *, seed: int) -> Rows:
    """``(num_examples, 1)`` passages drawn evenly from the whole corpus."""
    if num_passages < 1:
        raise ValueError(f"cannot draw from {num_passages} passages")
    return np.random.default_rng(seed).integers(num_passages, size=(num_examples, 1))


def standard_conditions(
    base: Rows, tuned: Rows, *, num_passages: int, seed: int = 0
) -> dict[str, Rows | None]:
    """The five conditions of the experiment's table.

    Args:
        base: ``(n, K)`` rows that the base retriever returns over its own index, best first.
        tuned: ``(n, >=1)`` rows that the tuned retriever returns over its own.
        num_passages: Size of the corpus, from which the random passage is drawn.
        seed: Of the random passages.
    """
    return {
        NONE: None,
        RANDOM: random_rows(len(base), num_passages, seed=seed),
        BASE: base[:, :1],
        TUNED: tuned[:, :1],
        CEILING: base,
    }


def evaluate_conditions(
    examples: Sequence[Example],
    conditions: Mapping[str, Rows | None],
    store: PassageStore,
    builder: PromptBuilder,
    supervisor: Supervisor,
    *,
    examples_per_call: int = 64,
    description: str = "held-out likelihood",
) -> LikelihoodTable:
    """Score every example under every condition.

    An example's figure under a condition is that of the best of its passages there: with one
    passage a row, that passage's own. A passage that stands in several conditions of one example
    is scored once. An example that has a prompt too long for the supervisor is left out of all
    conditions, and counted, so that the conditions stay paired.

    Args:
        examples: ``n`` of them.
        conditions: Name to ``(n, k)`` corpus rows, or None for no passage.
        store: The corpus that the rows point into.
        builder: Makes the prompts; ``""`` means no passage.
        supervisor: Scores them.
        examples_per_call: Examples whose prompts go into one submission.
        description: What the progress bar says.

    Raises:
        OptionError: no example is left.
        ValueError: no conditions, rows of another shape, or a row outside the corpus.
        SupervisorError: the supervisor could not give a score.
    """
    _check_conditions(conditions, len(examples), len(store))
    work = _Work(examples, conditions, store, builder)
    nll: dict[str, list[float]] = {name: [] for name in conditions}
    kept: list[Example] = []
    calls = work.submitted(supervisor, examples_per_call)
    with progress(description, len(examples), "examples") as advance, contextlib.closing(calls):
        for asked, scores, done in calls:
            _add_scores(asked, scores, nll)
            kept.extend(examples[item.number] for item in asked)
            advance(done)
    if work.left_out:
        logger.warning("left out of the %d examples: %s", len(examples), dict(work.left_out))
    if not kept:
        raise OptionError(
            f"none of {len(examples)} examples is left to evaluate; left out: {dict(work.left_out)}"
        )
    return LikelihoodTable(
        nll={name: np.array(values, dtype=np.float64) for name, values in nll.items()},
        num_bytes=np.array([example.num_bytes for example in kept], dtype=np.int64),
        num_tokens=np.array([len(example.continuation_ids) for example in kept], dtype=np.int64),
        document_ids=tuple(example.document_id for example in kept),
        left_out=dict(work.left_out),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """One example's prompts, one for each passage that any condition names."""

    number: int
    passages: dict[int | None, int]
    rows: dict[str, list[int | None]]
    prompts: list[Prompt]


@dataclass(frozen=True, slots=True)
class _Work:
    examples: Sequence[Example]
    conditions: Mapping[str, Rows | None]
    store: PassageStore
    builder: PromptBuilder
    left_out: Counter[str] = field(default_factory=Counter)

    def submitted(
        self, supervisor: Supervisor, size: int
    ) -> Generator[tuple[list[_Asked], list[Score], int], None, None]:
        """Prompts, their scores and the number of examples dealt with, a block at a time.

        While one block's scores are awaited the next is already with the supervisor.
        """
        calls: deque[tuple[list[_Asked], Future[list[Score]], int]] = deque()
        try:
            for start in range(0, len(self.examples), size):
                numbers = range(start, min(start + size, len(self.examples)))
                asked = [item for number in numbers if (item := self._ask(number)) is not None]
                prompts = [prompt for item in asked for prompt in item.prompts]
                calls.append((asked, supervisor.submit(prompts), len(numbers)))
                if len(calls) >= _IN_FLIGHT:
                    yield _finished(calls)
            while calls:
                yield _finished(calls)
        finally:
            for _, future, _ in calls:
                future.cancel()

    def _ask(self, number: int) -> _Asked | None:
        rows: dict[str, list[int | None]] = {
            name: [None] if table is None else [int(row) for row in table[number]]
            for name, table in self.conditions.items()
        }
        every = dict.fromkeys(row for listed in rows.values() for row in listed)
        try:
            prompts = [self._prompt(number, row) for row in every]
        except PromptTooLongError as error:
            logger.debug("left out: %s", error)
            self.left_out[TOO_LONG] += 1
            return None
        return _Asked(number, {row: place for place, row in enumerate(every)}, rows, prompts)

    def _prompt(self, number: int, row: int | None) -> Prompt:
        example = self.examples[number]
        passage = None if row is None else self.store[row]
        name = "no passage" if passage is None else f"passage {passage.id!r}"
        return self.builder.build(
            "" if passage is None else passage.text,
            example.query_ids,
            example.continuation_ids,
            f"example {number} of document {example.document_id!r}, {name}",
        )


def _finished(
    calls: deque[tuple[list[_Asked], Future[list[Score]], int]],
) -> tuple[list[_Asked], list[Score], int]:
    asked, future, done = calls.popleft()
    return asked, future.result(), done


def _add_scores(
    asked: Sequence[_Asked],
    scores: Sequence[Score],
    nll: dict[str, list[float]],
) -> None:
    start = 0
    for item in asked:
        own = [-score.log_likelihood for score in scores[start : start + len(item.prompts)]]
        start += len(item.prompts)
        for name, rows in item.rows.items():
            nll[name].append(min(own[item.passages[row]] for row in rows))


def _check_conditions(conditions: Mapping[str, Rows | None], n: int, num_passages: int) -> None:
    if not conditions:
        raise ValueError("no condition to evaluate")
    for name, rows in conditions.items():
        if rows is None:
            continue
        if rows.ndim != 2 or len(rows) != n or rows.shape[1] < 1:
            raise ValueError(f"condition {name!r}: expected rows of shape ({n}, k), found {rows.shape}")
        if n and (rows.min() < 0 or rows.max() >= num_passages):
            raise ValueError(
                f"condition {name!r}: rows must lie in 0..{num_passages - 1}, "
                f"found {rows.min()}..{rows.max()}"
            )

"""What passages are worth to the supervisor: the likelihood of held-out continuations, condition by condition.

A condition names, for every example, the passages that stand before it and how they are combined; see
:mod:`replug_client.evaluation.conditions`.
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
from replug_client.evaluation.conditions import (
    BASE,
    CEILING,
    NONE,
    TUNED,
    Condition,
    Reading,
    Retrieved,
    read_with,
)
from replug_client.progress import progress
from replug_client.statistics import PairedDifference, bits_per_byte, paired_bootstrap

if TYPE_CHECKING:
    from replug_client.corpus.records import Example
    from replug_client.corpus.store import PassageStore
    from replug_client.supervisor.prompts import PromptBuilder
    from replug_client.supervisor.protocol import Prompt, Score, Supervisor

logger = logging.getLogger(__name__)

TOO_LONG = "examples with a prompt too long for the supervisor"

# Submissions under way at a time: one being scored, one waiting, so that a server never runs dry.
_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True, eq=False)
class LikelihoodTable:
    """The same ``n`` examples under each condition.

    Attributes:
        nll: Condition's name to ``(n,)`` float64, negative summed log-likelihood in nats.
        num_bytes: ``(n,)`` int64, bytes of each continuation.
        num_tokens: ``(n,)`` int64, supervisor tokens of each continuation.
        document_ids: The document of each example.
        left_out: Reason to number of what stands in no condition.
        fewer: Condition's name to the number of examples for which fewer passages were found than it combines;
            with none at all, the example was scored without a passage.
    """

    nll: Mapping[str, npt.NDArray[np.float64]]
    num_bytes: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.int64]
    document_ids: tuple[str, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    fewer: Mapping[str, int] = field(default_factory=dict)

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

    def perplexity(self, condition: str) -> float:
        """Perplexity per supervisor token: ``exp(sum(nll) / sum(tokens))``; infinite beyond what a float holds."""
        try:
            return math.exp(float(self.nll[condition].sum()) / int(self.num_tokens.sum()))
        except OverflowError:
            return math.inf

    def log_likelihood(self, condition: str) -> float:
        """Mean log-likelihood of a continuation, in nats."""
        return -float(self.nll[condition].mean())

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

    def share_closed(self, base: str = BASE, tuned: str = TUNED) -> float | None:
        """Part of the distance from ``base`` to the ceiling that ``tuned`` covers; None where there is none.

        1 is the ceiling, 0 the base, negative worse than the base.
        """
        if not {base, tuned, CEILING} <= set(self.nll):
            return None
        distance = self.bits_per_byte(base) - self.bits_per_byte(CEILING)
        if distance <= 0.0:
            return None
        return (self.bits_per_byte(base) - self.bits_per_byte(tuned)) / distance

    def to_json(self) -> dict[str, Any]:
        """A summary; every figure in bits per byte.

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


def evaluate_conditions(
    examples: Sequence[Example],
    conditions: Sequence[Condition],
    found: Mapping[str, Retrieved],
    store: PassageStore,
    builder: PromptBuilder,
    supervisor: Supervisor,
    *,
    k: int = 10,
    temperature: float = 1.0,
    examples_per_call: int = 64,
    description: str = "held-out likelihood",
) -> LikelihoodTable:
    """Score every example under every condition.

    A prompt that stands in several conditions of one example is scored once. An example that has a prompt too
    long for the supervisor is left out of all conditions, and counted, so that the conditions stay paired.

    Args:
        examples: ``n`` of them.
        conditions: What to compare.
        found: Retrieval to the passages found for each example; see
            :func:`~replug_client.evaluation.conditions.passages_needed`.
        store: The corpus that the rows point into.
        builder: Makes the prompts.
        supervisor: Scores them.
        k: Of the ceiling.
        temperature: γ of an ensemble's weights.
        examples_per_call: Examples whose prompts go into one submission.
        description: What the progress bar says.

    Raises:
        OptionError: no example is left.
        ValueError: no conditions, rows of another shape, or a row outside the corpus.
        SupervisorError: the supervisor could not give a score.
    """
    _check(conditions, found, len(examples), len(store))
    work = _Work(examples, conditions, found, store, builder, k, temperature)
    nll: dict[str, list[float]] = {condition.name: [] for condition in conditions}
    kept: list[Example] = []
    calls = work.submitted(supervisor, examples_per_call)
    with progress(description, len(examples), "examples") as advance, contextlib.closing(calls):
        for asked, scores, done in calls:
            _add_scores(asked, scores, nll)
            kept.extend(examples[item.number] for item in asked)
            advance(done)
    if work.left_out:
        logger.info("left out of the %d examples: %s", len(examples), dict(work.left_out))
    if not kept:
        raise OptionError(
            f"none of {len(examples)} examples is left to evaluate; left out: {dict(work.left_out)}. Lower"
            " --retrieved_max_length, the n of --combinations, or --context_len."
        )
    return LikelihoodTable(
        nll={name: np.array(values, dtype=np.float64) for name, values in nll.items()},
        num_bytes=np.array([example.num_bytes for example in kept], dtype=np.int64),
        num_tokens=np.array([len(example.continuation_ids) for example in kept], dtype=np.int64),
        document_ids=tuple(example.document_id for example in kept),
        left_out=dict(work.left_out),
        fewer={name: count for name, count in work.fewer.items() if count},
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """One example's prompts, one for each context that any condition reads."""

    number: int
    places: dict[tuple[int, ...], int]
    readings: dict[str, Reading]
    prompts: list[Prompt]


@dataclass(frozen=True, slots=True)
class _Work:
    examples: Sequence[Example]
    conditions: Sequence[Condition]
    found: Mapping[str, Retrieved]
    store: PassageStore
    builder: PromptBuilder
    k: int
    temperature: float
    left_out: Counter[str] = field(default_factory=Counter)
    fewer: Counter[str] = field(default_factory=Counter)

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
        readings = {
            condition.name: read_with(condition, self.found, number, k=self.k, temperature=self.temperature)
            for condition in self.conditions
        }
        every = dict.fromkeys(context for reading in readings.values() for context in reading.contexts)
        try:
            prompts = [self._prompt(number, context) for context in every]
        except PromptTooLongError as error:
            logger.debug("left out: %s", error)
            self.left_out[TOO_LONG] += 1
            return None
        for condition in self.conditions:
            if condition.retrieval != NONE:
                read = sum(map(len, readings[condition.name].contexts))
                self.fewer[condition.name] += read < (
                    self.k if condition.retrieval == CEILING else condition.combination.n
                )
        return _Asked(number, {context: place for place, context in enumerate(every)}, readings, prompts)

    def _prompt(self, number: int, context: tuple[int, ...]) -> Prompt:
        example = self.examples[number]
        names = ", ".join(repr(name) for name in self.store.ids(context)) if context else ""
        which = f"passage{'s' * (len(context) > 1)} {names}" if context else "no passage"
        return self.builder.build(
            self.store.texts(context) if context else "",
            example.query_ids,
            example.continuation_ids,
            f"example {number} of document {example.document_id!r}, {which}",
        )


def _finished(
    calls: deque[tuple[list[_Asked], Future[list[Score]], int]],
) -> tuple[list[_Asked], list[Score], int]:
    asked, future, done = calls.popleft()
    return asked, future.result(), done


def _add_scores(asked: Sequence[_Asked], scores: Sequence[Score], nll: dict[str, list[float]]) -> None:
    start = 0
    for item in asked:
        own = [score.token_log_probs for score in scores[start : start + len(item.prompts)]]
        start += len(item.prompts)
        for name, reading in item.readings.items():
            of_contexts = [own[item.places[context]] for context in reading.contexts]
            nll[name].append(-float(reading.token_log_probs(of_contexts).sum()))


def _check(
    conditions: Sequence[Condition], found: Mapping[str, Retrieved], n: int, num_passages: int
) -> None:
    if not conditions:
        raise ValueError("no condition to evaluate")
    for name, retrieved in found.items():
        rows = retrieved.rows
        if len(rows) != n:
            raise ValueError(f"{name!r}: expected rows for {n} examples, found {len(rows)}")
        if n and (rows.min() < -1 or rows.max() >= num_passages):
            raise ValueError(
                f"{name!r}: rows must lie in 0..{num_passages - 1}, or be -1 for none; "
                f"found {rows.min()}..{rows.max()}"
            )

"""Choices by likelihood: one score of each choice, read in four ways, and the supervisor that gives it."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt

from replug_client.errors import OptionError, PromptTooLongError
from replug_client.evaluation.qa.questions import Question
from replug_client.evaluation.qa.templates import ChoiceTemplate
from replug_client.progress import progress

if TYPE_CHECKING:
    from replug_client.corpus.store import PassageStore
    from replug_client.evaluation.conditions import Reading
    from replug_client.supervisor.prompts import PromptBuilder
    from replug_client.supervisor.protocol import Prompt, Score, Supervisor
    from replug_client.supervisor.tokenizer import SupervisorTokenizer

Floats = npt.NDArray[np.float64]
Scoring = Literal["sum", "mean", "byte", "no_context"]
SCORINGS: tuple[Scoring, ...] = get_args(Scoring)

# Submissions under way at a time: one being scored, one waiting, so that a server never runs dry.
_IN_FLIGHT = 2
_PROMPTS_A_CALL = 1024


@dataclass(frozen=True, slots=True, eq=False)
class ChoiceLikelihoods:
    """One question's choices under one condition.

    Attributes:
        log_likelihood: ``(C,)`` nats, summed: log p(choice | passages, question).
        no_context: ``(C,)`` nats: log p(choice | "Answer:"), the same under every condition.
        num_tokens: ``(C,)`` of what is scored, in the supervisor's tokens.
        num_bytes: ``(C,)`` UTF-8 bytes of what is scored, without the blanks before it.
    """

    log_likelihood: Floats
    no_context: Floats
    num_tokens: npt.NDArray[np.int64]
    num_bytes: npt.NDArray[np.int64]

    def scores(self, scoring: Scoring) -> Floats:
        """``(C,)``: what the choices are ranked by.

        ``sum``: the log-likelihood; ``mean``: per token; ``byte``: per byte (as lm-evaluation-harness normalises,
        there by characters); ``no_context``: less that without question and passages, so that what is likely anyway
        has no head start (Brown et al. 2020, section 2.4; Holtzman et al. 2021, PMI_DC).

        Raises:
            OptionError: an unknown scoring.
        """
        if scoring == "sum":
            return self.log_likelihood
        if scoring == "mean":
            return np.asarray(self.log_likelihood / self.num_tokens, dtype=np.float64)
        if scoring == "byte":
            return np.asarray(self.log_likelihood / self.num_bytes, dtype=np.float64)
        if scoring == "no_context":
            return np.asarray(self.log_likelihood - self.no_context, dtype=np.float64)
        raise OptionError(f"--choice_scoring {scoring}: expected one of {', '.join(SCORINGS)}")

    def picked(self, scoring: Scoring) -> int:
        """Position of the best choice; of equal ones the first."""
        return int(np.argmax(self.scores(scoring)))


Readings = Mapping[str, "Reading"]
"""Condition to what the LM reads under it."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """One question's prompts: those without context, then for each context one a choice."""

    number: int
    places: Mapping[tuple[int, ...], int]
    prompts: Sequence[Prompt]


@dataclass(frozen=True, slots=True)
class ChoiceScorer:
    """Scores the choices of many questions in few submissions.

    Attributes:
        supervisor: What scores.
        tokenizer: The supervisor's.
        builder: Puts the passages before the question.
        store: The corpus that the readings' rows point into.
        template: The prompt.
    """

    supervisor: Supervisor
    tokenizer: SupervisorTokenizer
    builder: PromptBuilder
    store: PassageStore
    template: ChoiceTemplate

    def score(
        self,
        questions: Sequence[Question],
        readings: Sequence[Readings],
        left_out: Counter[str],
        too_long: str,
        *,
        description: str = "Scoring choices",
    ) -> list[dict[str, ChoiceLikelihoods] | None]:
        """Every question's choices under every condition.

        A context that stands under several conditions is scored once. A question with a prompt that the supervisor
        cannot take is left out of every condition, so that they stay paired.

        Args:
            questions: With choices.
            readings: For each, condition to reading.
            left_out: Counts what was left out.
            too_long: Under which reason.
            description: For the progress bar.

        Returns:
            For each question, condition to likelihoods; None where it was left out.

        Raises:
            SupervisorError: no score, or a wrong one.
        """
        found: list[dict[str, ChoiceLikelihoods] | None] = [None] * len(questions)
        calls = self._submitted(questions, readings, left_out, too_long)
        with progress(description, len(questions), "questions") as advance, contextlib.closing(calls):
            for asked, scores, done in calls:
                start = 0
                for item in asked:
                    own = scores[start : start + len(item.prompts)]
                    start += len(item.prompts)
                    found[item.number] = self._likelihoods(
                        item, own, questions[item.number], readings[item.number]
                    )
                advance(done)
        return found

    def _submitted(
        self,
        questions: Sequence[Question],
        readings: Sequence[Readings],
        left_out: Counter[str],
        too_long: str,
    ) -> Generator[tuple[list[_Asked], list[Score], int], None, None]:
        """Prompts, their scores and the number of questions dealt with; the next call is made before one is awaited."""
        calls: deque[tuple[list[_Asked], Future[list[Score]], int]] = deque()
        asked: list[_Asked] = []
        since = 0
        try:
            for number, (question, own) in enumerate(zip(questions, readings, strict=True)):
                try:
                    asked.append(self._ask(number, question, own))
                except PromptTooLongError:
                    left_out[too_long] += 1
                since += 1
                full = sum(len(item.prompts) for item in asked) >= _PROMPTS_A_CALL
                if full or number == len(questions) - 1:
                    prompts = [prompt for item in asked for prompt in item.prompts]
                    calls.append((asked, self.supervisor.submit(prompts), since))
                    asked, since = [], 0
                if len(calls) >= _IN_FLIGHT:
                    yield _finished(calls)
            while calls:
                yield _finished(calls)
        finally:
            for _, future, _ in calls:
                future.cancel()

    def _ask(self, number: int, question: Question, readings: Readings) -> _Asked:
        before, scored = self.template.prompt(question), self.template.scored(question)
        contexts = list(
            dict.fromkeys(context for reading in readings.values() for context in reading.contexts)
        )
        prompts = [
            self._prompt((), self.template.domain, text, f"question {question.id!r}, without context")
            for text in scored
        ]
        for context in contexts:
            label = f"question {question.id!r}, {len(context)} passages"
            prompts.extend(self._prompt(context, before, text, label) for text in scored)
        return _Asked(number, {context: place for place, context in enumerate(contexts, 1)}, prompts)

    def _prompt(self, rows: Sequence[int], before: str, scored: str, label: str) -> Prompt:
        query, continuation = split(self.tokenizer, before, scored)
        return self.builder.build(self.store.texts(list(rows)) if rows else (), query, continuation, label)

    def _likelihoods(
        self, item: _Asked, scores: Sequence[Score], question: Question, readings: Readings
    ) -> dict[str, ChoiceLikelihoods]:
        choices = len(question.choices)
        alone = scores[:choices]
        num_bytes = [len(text.strip().encode()) for text in self.template.scored(question)]

        def summed(reading: Reading, choice: int) -> float:
            tokens = [
                scores[item.places[context] * choices + choice].token_log_probs
                for context in reading.contexts
            ]
            return float(reading.token_log_probs(tokens).sum())

        return {
            name: ChoiceLikelihoods(
                log_likelihood=np.array([summed(reading, choice) for choice in range(choices)]),
                no_context=np.array([score.log_likelihood for score in alone]),
                num_tokens=np.array([score.num_tokens for score in scores[choices : 2 * choices]]),
                num_bytes=np.array(num_bytes),
            )
            for name, reading in readings.items()
        }


def split(tokenizer: SupervisorTokenizer, before: str, scored: str) -> tuple[list[int], list[int]]:
    """Both texts encoded as one, and cut where the second begins: the ids that the LM knows for this text.

    A token across the boundary belongs to what is scored.
    """
    ids, offsets = tokenizer.encode_with_offsets(before + scored)
    first = next((place for place, (_, end) in enumerate(offsets) if end > len(before)), len(ids))
    return ids[:first], ids[first:]


def _finished(
    calls: deque[tuple[list[_Asked], Future[list[Score]], int]],
) -> tuple[list[_Asked], list[Score], int]:
    asked, future, done = calls.popleft()
    return asked, future.result(), done

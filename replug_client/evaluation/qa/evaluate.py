"""Questions under every condition: retrieve, let the LM answer or choose, and hold it against the right answers."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from replug_client.errors import OptionError
from replug_client.evaluation.conditions import BASE, CEILING, Condition, Reading, Retrieved, read_with
from replug_client.evaluation.qa.analysis import Outcome, outcome
from replug_client.evaluation.qa.answering import Ask, answer_questions, asked_under
from replug_client.evaluation.qa.ceiling import best_passages
from replug_client.evaluation.qa.choices import SCORINGS, ChoiceLikelihoods, ChoiceScorer
from replug_client.evaluation.qa.findings import Findings, Part, QaOptions, Result
from replug_client.evaluation.qa.metrics import score_answer
from replug_client.evaluation.qa.presence import holds_answer, rank_of_answer, words_of
from replug_client.evaluation.qa.questions import Question
from replug_client.evaluation.retrieved import retrieve

if TYPE_CHECKING:
    from replug_client.corpus.store import PassageStore
    from replug_client.inference.answerer import Answer
    from replug_client.retriever.search import Retriever
    from replug_client.supervisor.prompts import PromptBuilder
    from replug_client.supervisor.protocol import Supervisor
    from replug_client.supervisor.tokenizer import SupervisorTokenizer

logger = logging.getLogger(__name__)

NO_ANSWER = "without a known answer"
TOO_LONG = "with a prompt too long for the supervisor"
_CACHED_PASSAGES = 65_536


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """What reads: scores of choices from ``supervisor``, free answers from ``ask``."""

    supervisor: Supervisor
    tokenizer: SupervisorTokenizer
    builder: PromptBuilder
    ask: Ask


def evaluate_questions(
    questions: Sequence[Question],
    store: PassageStore,
    retrievers: Mapping[str, Retriever],
    lm: LanguageModel,
    options: QaOptions,
) -> Findings:
    """Evaluate every question under every condition.

    A question without a known answer, or with a prompt that the LM cannot take under some condition, is left out of
    all of them, and counted.

    Raises:
        OptionError: no question is left, or a retriever is needed that is not there.
        SupervisorError: the LM gave no answer.
    """
    known = tuple(question for question in questions if question.answers)
    left_out = Counter({NO_ANSWER: len(questions) - len(known)})
    _refuse_none(known, questions, left_out)
    found = retrieve(
        options.needed, [question.text for question in known], store, retrievers, seed=options.seed
    )
    ranks = _ranks(known, store, found)
    scorer = ChoiceScorer(lm.supervisor, lm.tokenizer, lm.builder, store, options.choice_template)
    too_long: frozenset[int] = frozenset()
    own = dict(ranks)
    if any(condition.retrieval == CEILING for condition in options.conditions):
        ceiling = best_passages(
            known,
            found[BASE],
            options.k,
            scorer,
            options.template,
            options.choice_scoring,
            free_answers=options.free_answers,
        )
        found, too_long = found | {CEILING: ceiling.found}, ceiling.too_long
        left_out[TOO_LONG] += len(too_long)
        own |= _ranks(known, store, {CEILING: ceiling.found})
    work = _Work(known, store, lm, scorer, options, found, own, too_long, left_out)
    parts = tuple(part for part in (work.free(), work.choices()) if part.numbers)
    _refuse_none(parts, questions, left_out)
    return Findings(
        questions=known,
        parts=parts,
        ranks=ranks,
        passages=max(options.hit_at),
        left_out={reason: count for reason, count in left_out.items() if count},
        options=options,
    )


def _refuse_none(kept: Sequence[object], questions: Sequence[Question], left_out: Counter[str]) -> None:
    if not kept:
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        raise OptionError(f"none of {len(questions)} questions is left to evaluate: {counts}")


def _ranks(
    questions: Sequence[Question], store: PassageStore, found: Mapping[str, Retrieved]
) -> dict[str, list[int | None]]:
    @lru_cache(maxsize=_CACHED_PASSAGES)
    def words(row: int) -> str:
        return words_of(store[row].text)

    return {
        name: [
            rank_of_answer((words(int(row)) for row in rows if row >= 0), question.answers)
            for question, rows in zip(questions, retrieved.rows, strict=True)
        ]
        for name, retrieved in found.items()
    }


@dataclass(frozen=True, slots=True)
class _Work:
    questions: tuple[Question, ...]
    store: PassageStore
    lm: LanguageModel
    scorer: ChoiceScorer
    options: QaOptions
    found: Mapping[str, Retrieved]
    ranks: Mapping[str, Sequence[int | None]]
    too_long: frozenset[int]
    left_out: Counter[str]

    def free(self) -> Part:
        """Answer the questions without choices (or all)."""
        numbers = [
            number
            for number, question in enumerate(self.questions)
            if (self.options.free_answers or not question.choices) and number not in self.too_long
        ]
        asked = [
            {condition.name: asked_under(condition, self.found, number) for condition in self._conditions}
            for number in numbers
        ]
        answers = answer_questions(
            [self.options.template.prompt(self.questions[number]) for number in numbers],
            asked,
            self.store,
            self.lm.ask,
            self.left_out,
            too_long=TOO_LONG,
            at_once=self.options.at_once,
        )
        kept = [
            (number, own, of)
            for number, own, of in zip(numbers, answers, asked, strict=True)
            if own is not None
        ]
        results = {
            condition.name: [
                self._answered(condition, number, own[condition.name], of[condition.name].rows)
                for number, own, of in kept
            ]
            for condition in self._conditions
        }
        return Part(True, tuple(number for number, _, _ in kept), results)

    def choices(self) -> Part:
        """Score the choices of the questions that have some."""
        numbers = [
            number
            for number, question in enumerate(self.questions)
            if question.choices and not self.options.free_answers and number not in self.too_long
        ]
        readings = [
            {condition.name: self._reading(condition, number) for condition in self._conditions}
            for number in numbers
        ]
        scored = self.scorer.score(
            [self.questions[number] for number in numbers], readings, self.left_out, TOO_LONG
        )
        kept = [
            (number, own, of)
            for number, own, of in zip(numbers, scored, readings, strict=True)
            if own is not None
        ]
        results = {
            condition.name: [
                self._chosen(condition, number, own[condition.name], of[condition.name])
                for number, own, of in kept
            ]
            for condition in self._conditions
        }
        return Part(False, tuple(number for number, _, _ in kept), results)

    @property
    def _conditions(self) -> tuple[Condition, ...]:
        return self.options.conditions

    def _reading(self, condition: Condition, number: int) -> Reading:
        if condition.retrieval == CEILING:  # chosen already, by what it does for the right choice
            row = int(self.found[CEILING].rows[number, 0])
            return Reading(((row,),) if row >= 0 else ((),))
        return read_with(condition, self.found, number, k=1, temperature=self.options.temperature_score)

    def _answered(self, condition: Condition, number: int, answer: Answer, rows: tuple[int, ...]) -> Result:
        question, text = self.questions[number], answer.text.strip()
        scores = score_answer(text, question.answers)
        result = Result(
            given=text,
            values=asdict(scores),
            outcome=Outcome.CORRECT,
            passages=rows,
            weights=tuple(weight.prior for weight in answer.weights),
            dropped_mass=answer.dropped_mass,
            uncertain=answer.certain.count(False),
        )
        return self._judged(result, condition, number, correct=scores.exact_match == 1, prediction=text)

    def _chosen(
        self, condition: Condition, number: int, found: ChoiceLikelihoods, reading: Reading
    ) -> Result:
        question = self.questions[number]
        rows = tuple(dict.fromkeys(row for context in reading.contexts for row in context))
        concatenated = any(len(context) > 1 for context in reading.contexts)
        weights = () if reading.log_weights is None else tuple(map(math.exp, reading.log_weights))
        picked = {scoring: found.picked(scoring) for scoring in SCORINGS}
        result = Result(
            given=question.choices[picked[self.options.choice_scoring]],
            values={f"accuracy_{name}": float(own == question.gold) for name, own in picked.items()},
            outcome=Outcome.CORRECT,
            passages=rows[::-1] if concatenated else rows,
            weights=weights if len(weights) > 1 else (),
            scores={
                "score": tuple(map(float, found.scores(self.options.choice_scoring))),
                "log_likelihood": tuple(map(float, found.log_likelihood)),
                "log_likelihood_no_context": tuple(map(float, found.no_context)),
            },
        )
        correct = picked[self.options.choice_scoring] == question.gold
        return self._judged(result, condition, number, correct=correct, prediction=None)

    def _judged(
        self, result: Result, condition: Condition, number: int, *, correct: bool, prediction: str | None
    ) -> Result:
        answers = self.questions[number].answers
        ranks = self.ranks.get(condition.retrieval)
        builder = self.lm.builder

        def read() -> bool:
            cut = (
                self.lm.tokenizer.decode(self.lm.tokenizer.encode(text)[: builder.retrieved_max_length])
                for text in self.store.texts(list(result.passages))
            )
            return any(holds_answer(text, answers) for text in cut)

        return replace(
            result,
            outcome=outcome(
                correct=correct,
                prediction=prediction,
                answers=answers,
                rank=None if ranks is None else ranks[number],
                given=len(result.passages),
                read=read,
            ),
        )

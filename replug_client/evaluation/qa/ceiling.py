"""The ceiling of questions: of the base's first K passages the one that serves best, chosen by who knows the answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from replug_client.evaluation.conditions import NO_PASSAGE, Reading, Retrieved
from replug_client.evaluation.qa.choices import ChoiceLikelihoods, ChoiceScorer, Scoring
from replug_client.evaluation.qa.questions import LETTERS, Question
from replug_client.evaluation.qa.templates import AnswerTemplate, ChoiceTemplate

if TYPE_CHECKING:
    from replug_client.retriever.index import Rows

_DESCRIPTION = "Looking for each question's best passage"


@dataclass(frozen=True, slots=True, eq=False)
class Ceiling:
    """What an oracle chooses.

    Attributes:
        found: ``(n, 1)`` rows, the chosen passage of each question; -1 where the base found none.
        too_long: Numbers of the questions with a prompt that the supervisor cannot take; nothing is chosen there.
    """

    found: Retrieved
    too_long: frozenset[int]


def best_passages(
    questions: Sequence[Question],
    base: Retrieved,
    k: int,
    scorer: ChoiceScorer,
    template: AnswerTemplate,
    scoring: Scoring,
    *,
    free_answers: bool,
) -> Ceiling:
    """Of each question's first ``k`` passages the one behind which the right answer stands best.

    Of a question with choices: where the right one leads the others by most, in the terms of ``scoring``; so it is
    chosen right if it is behind any of the k. Of a free answer: where a right one (of the first 26) is likeliest,
    log p(answer | passage, question) summed over its tokens; nearly, but not surely, where the LM answers best.

    Args:
        questions: n of them, each with an answer.
        base: ``(n, at least k)`` rows of the base retriever, or the whole corpus.
        k: How many are looked at.
        scorer: Of the choices.
        template: Of free answers.
        scoring: By which the LM chooses.
        free_answers: Whether questions with choices are answered freely, too.

    Raises:
        SupervisorError: no score, or a wrong one.
    """
    rows = np.full((len(questions), 1), NO_PASSAGE, dtype=np.int64)
    too_long: set[int] = set()
    free = ChoiceTemplate(template.text.rstrip(" \t") + " {choice}")
    for freely in (False, True):
        numbers = [
            number
            for number, question in enumerate(questions)
            if freely == (free_answers or not question.choices) and (base.rows[number, :k] >= 0).any()
        ]
        asked = [_with_answers_as_choices(questions[n]) if freely else questions[n] for n in numbers]
        own = replace(scorer, template=free) if freely else scorer
        scored = own.score(
            asked, [_readings(base.rows[n, :k]) for n in numbers], Counter(), "", description=_DESCRIPTION
        )
        for number, question, found in zip(numbers, asked, scored, strict=True):
            if found is None:
                too_long.add(number)
                continue
            worth = {
                row: float(likelihoods.log_likelihood.max())
                if freely
                else _lead(likelihoods, question, scoring)
                for row, likelihoods in found.items()
            }
            rows[number] = int(max(worth, key=worth.__getitem__))  # of equal ones the base's better
    return Ceiling(Retrieved(rows), frozenset(too_long))


def _with_answers_as_choices(question: Question) -> Question:
    return replace(question, choices=question.answers[: len(LETTERS)], gold=0)


def _readings(rows: Rows) -> dict[str, Reading]:
    return {str(row): Reading(((int(row),),)) for row in rows if row >= 0}


def _lead(likelihoods: ChoiceLikelihoods, question: Question, scoring: Scoring) -> float:
    """How far the right choice is before the best of the others; negative where it is behind."""
    assert question.gold is not None
    scores = likelihoods.scores(scoring)
    return float(scores[question.gold] - np.delete(scores, question.gold).max(initial=-np.inf))

"""What is asked about questions, and what was found: plain records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from replug_client.errors import OptionError
from replug_client.evaluation.conditions import BASE, TUNED, Condition, passages_needed
from replug_client.evaluation.qa.analysis import Outcome
from replug_client.evaluation.qa.choices import SCORINGS, Scoring
from replug_client.evaluation.qa.questions import Question
from replug_client.evaluation.qa.templates import AnswerTemplate, ChoiceTemplate


@dataclass(frozen=True, slots=True)
class QaOptions:
    """How questions are put, and what is looked at.

    Attributes:
        conditions: Each retrieval with each combination.
        template: Of free answers.
        choice_template: Of choices.
        choice_scoring: The reading of the scores that counts as the LM's choice in the analysis.
        free_answers: Whether questions with choices are answered freely, too, without being shown them.
        temperature_score: γ of the ensemble's weights.
        hit_at: The k of Hit@k; the largest is how deep the answer is looked for.
        at_once: Questions being answered freely at a time.
        seed: Of the random passages.
        k: The ceiling is the best of the base's first k.
    """

    conditions: tuple[Condition, ...]
    template: AnswerTemplate = field(default_factory=AnswerTemplate)
    choice_template: ChoiceTemplate = field(default_factory=ChoiceTemplate)
    choice_scoring: Scoring = "sum"
    free_answers: bool = False
    temperature_score: float = 1.0
    hit_at: tuple[int, ...] = (1, 5, 20)
    at_once: int = 32
    seed: int = 0
    k: int = 10

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.k < 1:
            raise OptionError(f"--k {self.k}: expected at least 1")
        if not self.hit_at or min(self.hit_at) < 1:
            raise OptionError(f"--hit_at {self.hit_at}: expected numbers of at least 1")
        if self.at_once < 1:
            raise OptionError(f"--questions_at_once {self.at_once}: expected at least 1")
        if self.choice_scoring not in SCORINGS:
            raise OptionError(
                f"--choice_scoring {self.choice_scoring}: expected one of {', '.join(SCORINGS)}"
            )

    @property
    def needed(self) -> dict[str, int]:
        """How many passages each retrieval has to find."""
        depth = max(self.hit_at)
        return {name: max(k, depth) for name, k in passages_needed(self.conditions, self.k).items()}


@dataclass(frozen=True, slots=True)
class Result:
    """One question under one condition.

    Attributes:
        given: What the LM answered, or the text of the choice it finds most likely.
        values: Metric name to value.
        outcome: Right, or where it went wrong.
        passages: Corpus rows that it was given, best first.
        weights: Of the passages, λ; empty where there is no mixture.
        scores: Of choices, one figure a choice: ``score``, which they are ranked by, ``log_likelihood`` and
            ``log_likelihood_no_context``.
        dropped_mass: Of a free answer, one a token: the mixture's mass that the server's top log-probs leave out.
        uncertain: How many of those tokens the whole vocabulary might have given otherwise.
    """

    given: str
    values: Mapping[str, float]
    outcome: Outcome
    passages: tuple[int, ...]
    weights: tuple[float, ...] = ()
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    dropped_mass: tuple[float, ...] = ()
    uncertain: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """The questions of one kind, each with a result under every condition.

    Attributes:
        free: Free answers; otherwise choices.
        numbers: Which of the questions.
        results: Condition name to results, in the order of ``numbers``.
    """

    free: bool
    numbers: tuple[int, ...]
    results: Mapping[str, Sequence[Result]]

    @property
    def name(self) -> str:
        """``answers`` or ``choices``."""
        return "answers" if self.free else "choices"


@dataclass(frozen=True, slots=True)
class Findings:
    """All that an evaluation found.

    Attributes:
        questions: Those with a known answer.
        parts: Free answers, choices, or both; each holds questions that were not left out.
        ranks: Retrieval to the rank, from 1, of the first passage with the answer, a question each; None: not found.
        passages: Passages searched, at most.
        left_out: Reason to number.
        options: What was asked.
    """

    questions: tuple[Question, ...]
    parts: tuple[Part, ...]
    ranks: Mapping[str, Sequence[int | None]]
    passages: int
    left_out: Mapping[str, int]
    options: QaOptions

    def main_metric(self, part: Part) -> str:
        """The metric by which a question counts as right."""
        return "exact_match" if part.free else f"accuracy_{self.options.choice_scoring}"

    @property
    def looked_at(self) -> Condition:
        """The condition that is analysed: the tuned retriever's first one, else the base's, else the last."""
        conditions = self.options.conditions
        of = (item for name in (TUNED, BASE) for item in conditions if item.retrieval == name)
        return next(of, conditions[-1])

    @property
    def its_base(self) -> Condition:
        """The base retriever with the combination that is analysed; where there is none, the same as ``looked_at``."""
        looked_at = self.looked_at
        return next(
            (
                item
                for item in self.options.conditions
                if item.retrieval == BASE and item.combination == looked_at.combination
            ),
            looked_at,
        )

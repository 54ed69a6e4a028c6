"""What the flags of an evaluation of questions say; what they leave open comes from a run's record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from replug_client.errors import OptionError
from replug_client.evaluation.conditions import BASE, BM25, NONE, RANDOM, TUNED, parse_conditions
from replug_client.evaluation.lm_asked import encoders
from replug_client.evaluation.qa.choices import Scoring
from replug_client.evaluation.qa.findings import QaOptions
from replug_client.evaluation.qa.run import QaRunOptions
from replug_client.evaluation.qa.templates import AnswerTemplate, ChoiceTemplate
from replug_client.evaluation.run_settings import RunSettings
from replug_client.inference.generation import GenerationOptions
from replug_client.supervisor.open import SupervisorOptions


@dataclass(frozen=True, slots=True)
class QaAsked:
    """Flags as they were given; None and ``()`` leave it to the run.

    The fields are those of :class:`~replug_client.evaluation.qa.run.QaRunOptions` and of what it holds.
    """

    questions: tuple[Path, ...]
    supervisor: SupervisorOptions
    cache_dir: Path
    passages: tuple[Path, ...] = ()
    shards: tuple[str, ...] = ()
    base: str | None = None
    tuned: str | None = None
    device: str | None = None
    conditions: tuple[str, ...] = ()
    combinations: tuple[str, ...] = ("first",)
    temperature_score: float | None = None
    seed: int = 0
    k: int = 10
    template: AnswerTemplate = field(default_factory=AnswerTemplate)
    choice_template: ChoiceTemplate = field(default_factory=ChoiceTemplate)
    choice_scoring: str = "sum"
    free_answers: bool = False
    hit_at: tuple[int, ...] = (1, 5, 20)
    at_once: int = 32
    generation: GenerationOptions = field(default_factory=lambda: GenerationOptions(stop=("\n",)))
    max_questions: int | None = None
    worst: int = 5
    retrieved_max_length: int | None = None
    separator: str | None = None


def resolve(asked: QaAsked, settings: RunSettings | None) -> QaRunOptions:
    """Take each thing from its flag, and what no flag gives from the run's record.

    Raises:
        OptionError: without a run, no corpus; or options that cannot work.
    """
    passages = asked.passages or (settings.run.passages if settings else ())
    if not passages:
        raise OptionError("no corpus: name its files with --passages, or a run with --run")
    base, tuned = encoders(asked.base, asked.tuned, asked.device, settings)
    known = (BASE,) * (base is not None) + (TUNED,) * (tuned is not None)
    gamma, length, separator = asked.temperature_score, asked.retrieved_max_length, asked.separator
    if settings is not None:
        gamma = settings.temperature if gamma is None else gamma
        length = settings.retrieved_max_length if length is None else length
        separator = settings.separator if separator is None else separator
    return QaRunOptions(
        questions=asked.questions,
        passages=passages,
        supervisor=asked.supervisor,
        cache_dir=asked.cache_dir,
        qa=QaOptions(
            conditions=tuple(
                parse_conditions(asked.conditions or (NONE, RANDOM, BM25, *known), asked.combinations)
            ),
            template=asked.template,
            choice_template=asked.choice_template,
            choice_scoring=cast(Scoring, asked.choice_scoring),  # which checks it
            free_answers=asked.free_answers,
            temperature_score=1.0 if gamma is None else gamma,
            hit_at=asked.hit_at,
            at_once=asked.at_once,
            seed=asked.seed,
            k=asked.k,
        ),
        generation=asked.generation,
        base=base,
        tuned=tuned,
        shards=asked.shards or (settings.run.shards if settings else ()),
        retrieved_max_length=128 if length is None else length,
        separator="\n" if separator is None else separator,
        max_questions=asked.max_questions,
        worst=asked.worst,
    )

"""The evaluation of questions, whole: from files, retrievers and a supervisor to tables with intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from replug_client.artefacts import plain, sha256_file
from replug_client.corpus.store import PassageStore
from replug_client.errors import OptionError
from replug_client.evaluation.conditions import BASE, TUNED
from replug_client.evaluation.qa.answering import Ask
from replug_client.evaluation.qa.evaluate import LanguageModel, evaluate_questions
from replug_client.evaluation.qa.findings import Findings, QaOptions
from replug_client.evaluation.qa.questions import Question
from replug_client.evaluation.qa.readers import question_files, read_questions
from replug_client.evaluation.qa.report import result_of
from replug_client.evaluation.results import EvaluationResult
from replug_client.evaluation.retrieval import spread
from replug_client.evaluation.retrieved import open_needed
from replug_client.inference.answerer import Answer, Answerer, AnswererOptions, Combination
from replug_client.inference.generation import GenerationOptions
from replug_client.retriever.encoder import EncoderOptions
from replug_client.retriever.fingerprint import identity
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.tokenizer import SupervisorTokenizer

BEYOND = "beyond --max_questions"


@dataclass(frozen=True, slots=True)
class QaRunOptions:
    """What is evaluated, and on what.

    Attributes:
        questions: Files and folders of questions.
        passages: Corpus files.
        supervisor: Which LM, where, and where its scores are kept.
        cache_dir: Converted corpora, and passage vectors that had to be made.
        qa: How questions are put, and under which conditions.
        generation: How tokens of free answers are chosen.
        base: The base encoder; None where no condition needs it.
        tuned: The tuned one; None likewise.
        shards: Passage vectors that may serve: shards or globs.
        retrieved_max_length: A passage keeps this many of its first supervisor tokens.
        separator: Behind each passage.
        max_questions: At most so many, spread evenly over the files; None: all.
        worst: How many of the worst answers are shown.
    """

    questions: tuple[Path, ...]
    passages: tuple[Path, ...]
    supervisor: SupervisorOptions
    cache_dir: Path
    qa: QaOptions
    generation: GenerationOptions = field(default_factory=lambda: GenerationOptions(stop=("\n",)))
    base: EncoderOptions | None = None
    tuned: EncoderOptions | None = None
    shards: tuple[str, ...] = ()
    retrieved_max_length: int = 128
    separator: str = "\n"
    max_questions: int | None = None
    worst: int = 5

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        gamma = self.qa.temperature_score
        if not (math.isfinite(gamma) and gamma > 0):
            raise OptionError(f"--temperature_score {gamma}: expected a positive number")
        for name, encoder in ((BASE, self.base), (TUNED, self.tuned)):
            if name in self.qa.needed and encoder is None:
                raise OptionError(
                    f"--conditions asks for the {name} retriever, and none was given: name it with --{name}, or a run"
                    " with --run"
                )


@dataclass(frozen=True, slots=True)
class QaEvaluation:
    """What was found.

    Attributes:
        result: For people, reports and papers.
        findings: Every question under every condition.
        store: The corpus that the findings' rows point into.
    """

    result: EvaluationResult
    findings: Findings
    store: PassageStore


def run_qa(options: QaRunOptions) -> QaEvaluation:
    """Put the questions to the LM under every condition.

    Raises:
        CorpusError: a file cannot be read, or holds something else.
        OptionError: an encoder or a model that cannot be loaded, or no question is left.
        ArtefactError: passage vectors cannot be made.
        SupervisorError: no server, or one that cannot answer.
    """
    every = read_questions(options.questions)
    questions = every if options.max_questions is None else _spread(every, options.max_questions)
    store = PassageStore.open(options.passages, options.cache_dir)
    supervisor, tokenizer = open_supervisor(options.supervisor)
    with closing(supervisor):
        began = time.perf_counter()
        retrievers = open_needed(
            options.qa.needed,
            options.base,
            options.tuned,
            store,
            shards=options.shards,
            cache_dir=options.cache_dir,
        )
        lm = _language_model(supervisor, tokenizer, options)
        findings = evaluate_questions(questions, store, retrievers, lm, options.qa)
        inputs = {
            "corpus": store.sha256,
            "supervisor": supervisor.fingerprint,
            **{
                f"{name} {side}": identity(retriever.model, side)
                for name, retriever in retrievers.items()
                for side in ("query", "document")
            },
            **{str(path): sha256_file(path) for path in question_files(options.questions)},
        }
        stats = supervisor.stats
    beyond = len(every) - len(questions)
    result = result_of(
        findings,
        worst=options.worst,
        asked=plain(options) | {"conditions": [condition.name for condition in options.qa.conditions]},
        inputs=inputs,
        left_out={BEYOND: beyond} if beyond else {},
        details={
            "supervisor": supervisor.name,
            "passages": len(store),
            "seconds": round(time.perf_counter() - began, 2),
            "scores": {
                "asked": stats.misses,
                "from_the_cache": stats.hits,
                "same_as_another": stats.shared,
            },
        },
    )
    return QaEvaluation(result, findings, store)


def _spread(questions: Sequence[Question], most: int) -> list[Question]:
    return [questions[place] for place in spread(len(questions), most)]


def _language_model(
    supervisor: CachedSupervisor, tokenizer: SupervisorTokenizer, options: QaRunOptions
) -> LanguageModel:
    builder = PromptBuilder(
        tokenizer,
        retrieved_max_length=options.retrieved_max_length,
        max_prompt_tokens=supervisor.max_prompt_tokens,
        separator=options.separator,
    )
    return LanguageModel(supervisor, tokenizer, builder, _asking(supervisor, tokenizer, options))


def _asking(supervisor: CachedSupervisor, tokenizer: SupervisorTokenizer, options: QaRunOptions) -> Ask:
    answerer = Answerer(
        supervisor,
        tokenizer,
        AnswererOptions(
            temperature_score=options.qa.temperature_score,
            retrieved_max_length=options.retrieved_max_length,
            separator=options.separator,
            posterior=False,  # one more request an answer, of which nothing is shown
        ),
    )

    def ask(
        prompt: str,
        passages: Sequence[str],
        similarities: Sequence[float] | None,
        combination: Combination,
    ) -> Answer:
        return answerer.answer(prompt, passages, similarities, combination, options.generation)

    return ask

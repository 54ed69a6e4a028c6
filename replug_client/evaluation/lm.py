"""The evaluation on the LM's side: from files, retrievers and a supervisor to tables with intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from replug_client.artefacts import plain, sha256_file
from replug_client.corpus.records import Example
from replug_client.corpus.store import PassageStore
from replug_client.errors import OptionError
from replug_client.evaluation.conditions import (
    BASE,
    TUNED,
    Condition,
    Retrieved,
    parse_conditions,
    passages_needed,
)
from replug_client.evaluation.held_out import ExampleOptions, held_out_examples
from replug_client.evaluation.likelihood import LikelihoodTable, evaluate_conditions
from replug_client.evaluation.lm_result import lm_tables
from replug_client.evaluation.results import EvaluationResult
from replug_client.evaluation.retrieved import open_needed, retrieve
from replug_client.retriever.encoder import EncoderOptions
from replug_client.retriever.fingerprint import identity
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.tokenizer import SupervisorTokenizer

# In process, the larger a submission, the more prompts share a prefix that is run once.
EXAMPLES_PER_CALL = {"server": 64, "local": 4096}


@dataclass(frozen=True, slots=True)
class LMOptions:
    """What is evaluated, and how.

    Attributes:
        passages: Corpus files.
        supervisor: Which LM, where, and where its scores are kept.
        cache_dir: Converted corpora, and passage vectors that had to be made.
        examples: On what.
        conditions: What is compared.
        base: The base encoder; None where no condition needs it.
        tuned: The tuned one; None likewise.
        shards: Passage vectors that may serve: shards or globs.
        k: Of the ceiling, the best of the base's first k.
        temperature: γ of the ensemble's λ.
        retrieved_max_length: A passage keeps this many of its first supervisor tokens.
        separator: Behind each passage.
        seed: Of random passages and of the bootstrap.
        notes: Shown below the table.
    """

    passages: tuple[Path, ...]
    supervisor: SupervisorOptions
    cache_dir: Path
    examples: ExampleOptions
    conditions: tuple[Condition, ...] = field(
        default_factory=lambda: tuple(parse_conditions(["none", "base"]))
    )
    base: EncoderOptions | None = None
    tuned: EncoderOptions | None = None
    shards: tuple[str, ...] = ()
    k: int = 10
    temperature: float = 1.0
    retrieved_max_length: int = 128
    separator: str = "\n"
    seed: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.k < 1:
            raise OptionError(f"--k {self.k}: expected at least 1 passage")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise OptionError(f"--temperature_score {self.temperature}: expected a positive number")
        needed = passages_needed(self.conditions, self.k)
        for name, encoder in ((BASE, self.base), (TUNED, self.tuned)):
            if name in needed and encoder is None:
                raise OptionError(
                    f"--conditions asks for the {name} retriever, and none was given: name it with --{name}, or a run "
                    "with --run"
                )


@dataclass(frozen=True, slots=True)
class LMEvaluation:
    """What was found.

    Attributes:
        result: For people, reports and papers.
        table: Every example's figures under every condition.
    """

    result: EvaluationResult
    table: LikelihoodTable


def evaluate_lm(options: LMOptions) -> LMEvaluation:
    """Score held-out continuations under every condition.

    Raises:
        CorpusError: a file cannot be read, or no example is left.
        OptionError: an encoder or a model that cannot be loaded, or no example whose prompts fit.
        ArtefactError: passage vectors cannot be made.
        SupervisorError: no server, or one that cannot score.
    """
    store = PassageStore.open(options.passages, options.cache_dir)
    supervisor, tokenizer = open_supervisor(options.supervisor)
    with closing(supervisor):
        held_out = held_out_examples(options.examples, store, tokenizer)
        found, encoders, retrieving = _retrieve(options, store, held_out.examples)
        began = time.perf_counter()
        table = _score(options, store, held_out.examples, found, supervisor, tokenizer)
        scoring = time.perf_counter() - began
        table = replace(table, left_out={**held_out.left_out, **table.left_out})
        shown = lm_tables(table, options.conditions, seed=options.seed, notes=options.notes)
        stats = supervisor.stats
        inputs = {
            "corpus": store.sha256,
            "supervisor": supervisor.fingerprint,
            **encoders,
            **_hashes(options.examples),
        }
    details = {
        **shown.details,
        "supervisor": supervisor.name,
        "passages": len(store),
        "k": options.k,
        "seconds_retrieving": round(retrieving, 2),
        "seconds_scoring": round(scoring, 2),
        "scores": {"asked": stats.misses, "from_the_cache": stats.hits, "same_as_another": stats.shared},
    }
    result = EvaluationResult(
        "lm",
        shown.tables,
        options=plain(options) | {"conditions": [condition.name for condition in options.conditions]},
        inputs=inputs,
        left_out=table.left_out,
        verdict=shown.verdict,
        details=details,
    )
    return LMEvaluation(result, table)


def _retrieve(
    options: LMOptions, store: PassageStore, examples: Sequence[Example]
) -> tuple[dict[str, Retrieved], dict[str, str], float]:
    began = time.perf_counter()
    needed = passages_needed(options.conditions, options.k)
    retrievers = open_needed(
        needed, options.base, options.tuned, store, shards=options.shards, cache_dir=options.cache_dir
    )
    queries = [example.query for example in examples]
    found = retrieve(needed, queries, store, retrievers, seed=options.seed)
    encoders = {
        f"{name} {side}": identity(retriever.model, side)
        for name, retriever in retrievers.items()
        for side in ("query", "document")
    }
    return found, encoders, time.perf_counter() - began


def _score(
    options: LMOptions,
    store: PassageStore,
    examples: Sequence[Example],
    found: dict[str, Retrieved],
    supervisor: CachedSupervisor,
    tokenizer: SupervisorTokenizer,
) -> LikelihoodTable:
    builder = PromptBuilder(
        tokenizer,
        retrieved_max_length=options.retrieved_max_length,
        max_prompt_tokens=supervisor.max_prompt_tokens,
        separator=options.separator,
    )
    return evaluate_conditions(
        examples,
        options.conditions,
        found,
        store,
        builder,
        supervisor,
        k=options.k,
        temperature=options.temperature,
        examples_per_call=EXAMPLES_PER_CALL[options.supervisor.kind],
    )


def _hashes(options: ExampleOptions) -> dict[str, str]:
    files = options.data or ((options.held_out,) if options.held_out is not None else ())
    return {str(path): sha256_file(path) for path in files}

"""What watches a run: validation, alarms, early stopping and the report, as the run's options ask for them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator, SequentialEvaluator
from transformers import TrainerCallback

from replug_client.artefacts import plain, read_json
from replug_client.errors import OptionError
from replug_client.retriever.encoder import encode_queries
from replug_client.retriever.index import PassageIndex
from replug_client.training.alarms import Freshness
from replug_client.training.callbacks import EarlyStopping, KeptValidation, LogWithAdvice, is_exhausted
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.options import TrainOptions
from replug_client.training.prepare import Prepared
from replug_client.training.report.writer import ReportSources, ReportWriter
from replug_client.training.stream import StreamTimings
from replug_client.training.validation import DEPTH, HeldOutLikelihood, ValidationSet, own_candidates

logger = logging.getLogger(__name__)


def open_evaluator(
    options: TrainOptions,
    prepared: Prepared,
    objective: ObjectiveOptions,
    index_of: Callable[[SentenceTransformer], PassageIndex],
) -> BaseEvaluator | None:
    """Validation on the held-out examples; None where there are none.

    The passages among which the LM's own best is looked for are candidates as training has them, of every
    source: among the base's own alone, no retriever could find it better than the base.

    Raises:
        OptionError: early stopping without validation examples.
    """
    examples = prepared.sets.validation
    if not examples:
        if options.watch.early_stopping:
            raise OptionError(
                f"--early_stopping {options.watch.early_stopping} needs validation examples, and there are none: give "
                "--validation_data, or a --validation_fraction and --max_validation above 0"
            )
        logger.warning("no validation examples: the last weights are kept, whether they help or not")
        return None
    if not prepared.processes.is_first:
        return SequentialEvaluator([])  # never called: the first process validates
    queries = [example.query for example in examples]
    vectors = encode_queries(prepared.base, queries)
    lists = prepared.index.search(vectors, DEPTH).rows
    miner = copy(prepared.miner)
    miner.index = prepared.index  # the run's own miner may be over a head's vectors by now
    data = ValidationSet(
        examples,
        own_candidates(lists, options.candidates.n_docs),
        prepared.store,
        prepared.builder,
        prepared.supervisor,
        objective,
        pool_rows=miner.mine(vectors, queries, np.arange(len(queries))),
        base_lists=lists,
        best_metric=options.watch.best_metric,
    )
    return HeldOutLikelihood(data, index_of, matches=prepared.matches if options.modes.lexical else None)


def watchers(
    options: TrainOptions,
    prepared: Prepared,
    evaluator: BaseEvaluator | None,
    timings: StreamTimings,
    reembedding: Callable[[], float],
) -> list[TrainerCallback]:
    """The callbacks that watch; they come before the one that marks checkpoints as whole."""
    watch, folder = options.watch, options.place.output_dir
    validation = evaluator if isinstance(evaluator, HeldOutLikelihood) else None
    report = ReportWriter(
        folder,
        ReportSources(
            title=f"{folder.name}: {options.encoder.model_name_or_path}, --train {options.steps.train}",
            timings=timings,
            scores=lambda: asdict(prepared.supervisor.stats),
            evaluator=validation,
            freshness=freshness(options),
            settings=settings(options),
            reembedding=reembedding,
        ),
    )
    stopping = [EarlyStopping(watch.early_stopping)] if watch.early_stopping else []
    return [LogWithAdvice(freshness(options)), *stopping, KeptValidation(validation), report]


def freshness(options: TrainOptions) -> Freshness:
    """How the run keeps up with its weights, and when it is to be warned that it does not."""
    return Freshness(options.watch.stale_after, options.steps.refresh_every, options.modes)


def settings(options: TrainOptions) -> dict[str, object]:
    """The options of a run, flat: ``steps.learning_rate`` and the like."""
    flat: dict[str, object] = {}

    def add(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(item, f"{name}.{key}" if name else key)
        else:
            flat[name] = ", ".join(map(str, value)) if isinstance(value, list) else value

    add(plain(options), "")
    return flat


def stopped_at(checkpoint: Path | None, patience: int) -> int | None:
    """The step at which the run of ``checkpoint`` had stopped early; None where it had not.

    Such a run was cut short between its last step and its record: it has no step left to do.
    """
    if checkpoint is None:
        return None
    state = read_json(checkpoint / "trainer_state.json", mend="Begin anew with --overwrite.")
    return int(state["global_step"]) if is_exhausted(state["log_history"], patience) else None

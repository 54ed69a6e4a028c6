"""A whole training run: from files and a supervisor to a tuned retriever with its record."""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import PrinterCallback, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback

from replug_client.artefacts import plain
from replug_client.corpus.store import PassageStore
from replug_client.progress import mute, progress
from replug_client.retriever.lexical_weights import (
    GROUPS,
    LEXICAL_NAME,
    PARAMETER,
    lexical_weights,
    save_lexical,
)
from replug_client.retriever.projection import PROJECTION
from replug_client.supervisor.open import open_supervisor
from replug_client.training import record
from replug_client.training.alarms import alarms_of
from replug_client.training.callbacks import CompleteCheckpoints, StepProgress
from replug_client.training.collator import LSRDataCollator
from replug_client.training.curriculum import levels
from replug_client.training.device import stay_on
from replug_client.training.distributed import Processes
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from replug_client.training.options import Curriculum, Keep, Train, TrainOptions
from replug_client.training.output import FILES_KEY, HELD_OUT_NAME, held, save
from replug_client.training.prepare import Prepared, prepare
from replug_client.training.refresh import Refresher
from replug_client.training.stream import CandidateStream
from replug_client.training.targets import calibrate, index_negatives
from replug_client.training.trainable import tuned_encoder
from replug_client.training.trainer import LSRTrainer, StreamHooks
from replug_client.training.validation import PRIMARY_METRIC, SELECTION
from replug_client.training.watching import freshness, open_evaluator, stopped_at, watchers

logger = logging.getLogger(__name__)

_VALIDATIONS = 4
# Steps scored ahead where candidates never change. A server is kept busy by one batch at a time; in process,
# where scoring and training share the processor, the larger a submission, the more passages are run only once.
_STATIC_GENERATION = 100
_LOCAL_GENERATION = 1000


def train_retriever(options: TrainOptions) -> Path:
    """Train, and write the tuned retriever with ``run.json`` beside it.

    Returns:
        ``output_dir``, which plain ``SentenceTransformer(output_dir)`` loads.

    Raises:
        ReplugError: bad options or files, a stale index, a supervisor that cannot score.
    """
    processes = Processes.join(options.encoder.device)
    if not processes.is_first:
        mute()
    options = replace(options, steps=replace(options.steps, processes=processes.count))
    folder = _train(options, processes)
    processes.wait()
    return folder


def _train(options: TrainOptions, processes: Processes) -> Path:
    began = time.time()
    set_seed(options.steps.seed)
    with processes.first_before_others():
        store = PassageStore.open(options.data.passages, options.place.cache_dir)
    hashes = record.data_hashes(options, store.sha256)
    folder = options.place.output_dir
    if record.check_finished(options, hashes):
        logger.info("%s is finished already; nothing to resume", folder)
        return folder
    checkpoint = record.starting_point(options, hashes)
    with processes.first_before_others():
        supervisor, tokenizer = open_supervisor(options.supervisor)
    with closing(supervisor), ExitStack() as open_things:
        if checkpoint is not None:
            record.check_supervisor(folder, supervisor.identity)
        prepared = prepare(options, store, supervisor, tokenizer, processes)
        objective = processes.same(calibrate(options, prepared))
        if processes.is_first:
            open_things.enter_context(held(folder))
            record.begin(options, hashes)
            if checkpoint is None:
                record.keep_supervisor(folder, supervisor.identity)
        processes.wait()
        scored_bar = open_things.enter_context(ExitStack())
        scored = scored_bar.enter_context(progress("scoring", None, "pairs"))
        ends_at = stopped_at(checkpoint, options.watch.early_stopping)
        trainer, stream = build_trainer(
            options, prepared, objective, scored, begins=checkpoint is None, ends_at=ends_at
        )
        logger.info(
            "%s", f"resuming from {checkpoint.name}" if checkpoint else "training from the base encoder"
        )
        try:
            trained = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt:
            if processes.is_first and (last := record.last_checkpoint(folder)) is not None:
                instead = " in place of --overwrite" if options.place.overwrite else ""
                logger.warning(
                    "interrupted; the same command goes on from %s with --resume%s", last.name, instead
                )
            raise
        scored_bar.close()
        scores = Counter[str]()
        for stats in processes.each(asdict(supervisor.stats)):
            scores.update(stats)
        if not processes.is_first:
            return folder
        weights = lexical_weights(prepared.model)
        files = save_tuned(options.steps.train, prepared, folder)
        history = trainer.state.log_history
        figures = {
            "seconds": round(time.time() - began, 1),
            # From the first step to the last of this start, validations and whatever was waited for included.
            "seconds_training": round(trained.metrics["train_runtime"], 1),
            "seconds_validating": round(getattr(trainer.evaluator, "seconds", 0.0), 1),
            "seconds_retrieving": round(stream.timings.retrieving, 1),
            "seconds_waiting_for_scores": round(stream.timings.waiting_for_scores, 1),
            "seconds_scoring": round(stream.timings.scoring.seconds, 1),
            "steps": trainer.state.global_step,
            "best_step": _best_step(trainer)
            if options.steps.keep is Keep.BEST
            else trainer.state.global_step,
            "validation": _history(trainer),
            "alarms": [asdict(alarm) for alarm in alarms_of(history, freshness(options))],
            "log": [entry for entry in history if "loss" in entry],
            "scores": dict(scores),
            "examples": prepared.sets.counts,
            **({} if weights is None else {"lexical_weights": dict(zip(GROUPS, weights, strict=True))}),
        }
        record.finish(
            folder,
            _record(options, prepared, objective, hashes, figures) | {FILES_KEY: files},
            prepared.sets.validation,
        )
    _report(figures, folder)
    return folder


def build_trainer(
    options: TrainOptions,
    prepared: Prepared,
    objective: ObjectiveOptions,
    on_scored: Callable[[int], None],
    *,
    begins: bool = True,
    ends_at: int | None = None,
) -> tuple[LSRTrainer, CandidateStream]:
    """The trainer with its stream, collator, loss and validation.

    ``begins`` is false where a run goes on, and ``ends_at`` the step where that had stopped early already.
    """
    steps = options.steps
    by_level = steps.curriculum is Curriculum.EASY_FIRST
    schedule = prepared.schedule(steps, levels(options, prepared) if by_level else None)
    total_steps = (
        ends_at or steps.max_steps or schedule.batches_per_epoch // steps.accumulation * steps.epochs
    )
    batches = total_steps * steps.accumulation
    refresher = Refresher(options, prepared, lambda: np.unique(schedule.batches(0, batches)))
    local = options.supervisor.kind == "local"
    static = _LOCAL_GENERATION if local else _STATIC_GENERATION
    generation = (options.modes.retrieve_every or steps.refresh_every or static) * steps.accumulation
    stream = CandidateStream(
        prepared.sets.train,
        schedule,
        prepared.prompt,
        prepared.supervisor,
        generation=generation,
        total=batches,
        folder=options.place.output_dir / "candidates",
        batches_per_submission=generation if local else 1,
        on_scored=on_scored,
        processes=prepared.processes,
        static=steps.refresh_every == 0,
    )
    hooks = StreamHooks(
        stream,
        refresher.mine,
        None,
        steps.accumulation,
        prepared.processes,
        refresher.prepare_validation,
        keep_up=refresher.keep_up if refresher.moves else None,
        index_age=refresher.index_age if steps.train is not Train.QUERY else None,
        close=refresher.close,
        first_is_own=options.candidates.n_docs > 0,
        passages=len(prepared.store),
    )
    frozen = steps.train is not Train.BOTH
    collator = LSRDataCollator(
        prepared.model,
        prepared.sets.train,
        stream.take,
        passage_texts=None if frozen else prepared.store.texts,
        frozen=prepared.index if frozen else None,
        base_queries=refresher.base_queries,
        negatives=index_negatives(options, prepared),
        matches=prepared.word_matches if options.modes.lexical else None,
        processes=prepared.processes,
    )
    evaluator = open_evaluator(options, prepared, objective, refresher.current_index)
    trainer = LSRTrainer(
        prepared.model,
        _arguments(
            options,
            total_steps,
            validates=evaluator is not None,
            begins=begins,
            device=prepared.model.device,
        ),
        LSRLoss(
            prepared.model,
            objective,
            grad_cache_chunk=options.modes.grad_cache_chunk,
            isotropy_weight=options.modes.isotropy_weight,
        ),
        collator,
        schedule,
        hooks,
        evaluator=evaluator,
        callbacks=[
            *watchers(options, prepared, evaluator, stream.timings, lambda: refresher.seconds),
            CompleteCheckpoints(prepared.processes),
            StepProgress(),
            _tensorboard(options),
        ],
    )
    # transformers' own printer says the same as LogWithAdvice, as raw dictionaries.
    trainer.remove_callback(PrinterCallback)
    return trainer, stream


def _arguments(
    options: TrainOptions, total_steps: int, *, validates: bool, begins: bool, device: torch.device
) -> SentenceTransformerTrainingArguments:
    steps = options.steps
    folder = options.place.output_dir
    best = validates and steps.keep is Keep.BEST
    every = min(total_steps, steps.eval_every or -(-total_steps // _VALIDATIONS))
    args = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=steps.batch_size,
        gradient_accumulation_steps=steps.accumulation,
        learning_rate=steps.learning_rate,
        learning_rate_mapping=_learning_rates(options),
        weight_decay=steps.weight_decay,
        max_grad_norm=steps.max_grad_norm,
        # Of a single step, the first of a warm-up would have no rate at all.
        warmup_steps=min(math.ceil(steps.warmup_ratio * total_steps), total_steps - 1),
        lr_scheduler_type="linear",
        num_train_epochs=steps.epochs,
        max_steps=total_steps,
        bf16=steps.bf16,
        use_cpu=device.type == "cpu",
        seed=steps.seed,
        data_seed=steps.seed,
        eval_strategy="steps" if validates else "no",
        eval_steps=every,
        eval_on_start=validates and begins,
        save_strategy="steps",
        save_steps=every,
        # The best, the one being written, and the one before it, should a kill cut the writing short.
        save_total_limit=3,
        load_best_model_at_end=best,
        metric_for_best_model=f"eval_{SELECTION}" if best else None,
        greater_is_better=False if best else None,
        logging_steps=max(1, min(20, total_steps // 20)),
        logging_first_step=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        # The schedule has no short batch; this only says so.
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    stay_on(args, device)
    return args


def _learning_rates(options: TrainOptions) -> dict[str, float]:
    """Learning rates of their own, by a regular expression of the parameters' names."""
    modes, rates = options.modes, {}
    if options.steps.train is Train.HEAD:
        rates[rf"\b{PROJECTION}\."] = modes.head_learning_rate
    if modes.lexical:
        rates[rf"\b{PARAMETER}$"] = modes.lexical_learning_rate
    return rates


def _tensorboard(options: TrainOptions) -> TensorBoardCallback:
    """TensorBoard's files beside the model, unless ``TENSORBOARD_LOGGING_DIR`` says otherwise."""
    callback = TensorBoardCallback()  # type: ignore[no-untyped-call]
    callback.logging_dir = callback.logging_dir or str(options.place.output_dir / "tensorboard")
    return callback


def save_tuned(train: Train, prepared: Prepared, folder: Path) -> list[str]:
    """Save what plain ``SentenceTransformer(folder)`` loads; ``query`` keeps the base's passage encoder.

    Of a hybrid retriever, the weights of its word matches come beside it.

    Returns:
        The names of its files and folders.
    """
    weights = lexical_weights(prepared.model)
    (folder / LEXICAL_NAME).unlink(missing_ok=True)
    files = [*save(tuned_encoder(train, prepared.model, prepared.base), folder)]
    if weights is not None:
        files.append(LEXICAL_NAME)
        save_lexical(folder, weights)
        named = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(GROUPS, weights, strict=True))
        logger.info("weights of matching words beside the vectors' similarity: %s", named)
    return files


def _best_step(trainer: LSRTrainer) -> int | None:
    best = trainer.state.best_model_checkpoint
    return int(best.rsplit("-", 1)[1]) if best else None


def _history(trainer: LSRTrainer) -> list[dict[str, float]]:
    return [
        {
            "step": entry["step"],
            **{
                key[5:]: value
                for key, value in entry.items()
                if key.startswith("eval_") and not key.endswith("_per_second")
            },
        }
        for entry in trainer.state.log_history
        if f"eval_{PRIMARY_METRIC}" in entry
    ]


def _record(
    options: TrainOptions,
    prepared: Prepared,
    objective: ObjectiveOptions,
    hashes: dict[str, str],
    figures: dict[str, Any],
) -> dict[str, Any]:
    asked, base = plain(options), options.encoder.model_name_or_path
    if Path(base).is_dir():  # as the other paths: a run is looked at from anywhere
        base = str(Path(base).absolute())
    return {
        "replug_version": record.versions()["replug"],
        "status": "complete",
        "base_model": base,
        "encoder": asked["encoder"] | {"model_name_or_path": base},
        "passages": [str(path.absolute()) for path in options.data.passages],
        "passages_embeddings": [str(Path(item).absolute()) for item in options.data.passages_embeddings],
        "train": options.steps.train.value,
        "n_docs": options.candidates.n_docs,
        "held_out": HELD_OUT_NAME,
        "supervisor": {"name": prepared.supervisor.name, "fingerprint": prepared.supervisor.fingerprint},
        "objective": plain(objective),
        "options": asked,
        "versions": record.versions(),
        "hashes": hashes,
        "figures": plain(figures),
    }


def _report(figures: dict[str, Any], folder: Path) -> None:
    validation = figures["validation"]
    if validation:
        first = validation[0]
        best = next((entry for entry in validation if entry["step"] == figures["best_step"]), validation[-1])
        logger.info(
            "held-out bits per byte of the first passage: %.4f of the base, %.4f at the kept step %s",
            first[PRIMARY_METRIC] + first["base_minus_current"],
            best[PRIMARY_METRIC],
            figures["best_step"],
        )
    query = "" if validation else " --query '...'"
    logger.info(
        "the tuned retriever is in %s; see what it does: replug compare --run %s%s",
        folder,
        shlex.quote(str(folder)),
        query,
    )

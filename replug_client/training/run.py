"""A whole training run: from files and a supervisor to a tuned retriever with its record."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator, SequentialEvaluator
from transformers import PrinterCallback, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback

from replug_client.corpus.store import PassageStore
from replug_client.progress import mute, progress
from replug_client.retriever.asymmetric import combine
from replug_client.retriever.encoder import ComputeDtype, encode_passages, encode_queries
from replug_client.retriever.index import ArrayIndex, PassageIndex
from replug_client.supervisor.open import open_supervisor
from replug_client.training import record
from replug_client.training.callbacks import CompleteCheckpoints, LogWithAdvice, StepProgress
from replug_client.training.candidates import Rows
from replug_client.training.collator import IndexNegatives, LSRDataCollator
from replug_client.training.distributed import Processes
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from replug_client.training.options import Keep, Train, TrainOptions
from replug_client.training.prepare import Prepared, prepare
from replug_client.training.stream import CandidateStream
from replug_client.training.targets import calibrate
from replug_client.training.trainer import LSRTrainer, StreamHooks, set_dropout
from replug_client.training.validation import (
    PRIMARY_METRIC,
    SELECTION,
    HeldOutLikelihood,
    ValidationSet,
)

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
    processes.leave()
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
    with closing(supervisor), ExitStack() as bars:
        if checkpoint is not None:
            record.check_supervisor(folder, supervisor.identity)
        prepared = prepare(options, store, supervisor, tokenizer, processes)
        objective = processes.same(calibrate(options, prepared))
        if processes.is_first:
            record.begin(options, hashes)
            if checkpoint is None:
                record.keep_supervisor(folder, supervisor.identity)
        processes.wait()
        scored = bars.enter_context(progress("scoring", None, "pairs"))
        trainer, stream = build_trainer(options, prepared, objective, scored, begins=checkpoint is None)
        logger.info(
            "%s", f"resuming from {checkpoint.name}" if checkpoint else "training from the base encoder"
        )
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        bars.close()
        scores = Counter[str]()
        for stats in processes.each(asdict(supervisor.stats)):
            scores.update(stats)
        if not processes.is_first:
            return folder
        save_tuned(options.steps.train, prepared, folder)
        figures = {
            "seconds": round(time.time() - began, 1),
            "seconds_retrieving": round(stream.timings.retrieving, 1),
            "seconds_waiting_for_scores": round(stream.timings.waiting_for_scores, 1),
            "steps": trainer.state.global_step,
            "best_step": _best_step(trainer)
            if options.steps.keep is Keep.BEST
            else trainer.state.global_step,
            "validation": _history(trainer),
            "log": [entry for entry in trainer.state.log_history if "loss" in entry],
            "scores": dict(scores),
            "examples": prepared.sets.counts,
        }
        record.finish(
            folder, _record(options, prepared, objective, hashes, figures), prepared.sets.validation
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
) -> tuple[LSRTrainer, CandidateStream]:
    """The trainer with its stream, collator, loss and validation; ``begins`` is false where a run goes on."""
    steps = options.steps
    schedule = prepared.schedule(options.steps)
    total_steps = steps.max_steps or schedule.batches_per_epoch // steps.accumulation * steps.epochs
    refresher = _Refresher(options, prepared)
    local = options.supervisor.kind == "local"
    static = _LOCAL_GENERATION if local else _STATIC_GENERATION
    generation = (steps.refresh_every or static) * steps.accumulation
    stream = CandidateStream(
        prepared.sets.train,
        schedule,
        prepared.prompt,
        prepared.supervisor,
        generation=generation,
        total=total_steps * steps.accumulation,
        folder=options.place.output_dir / "candidates",
        batches_per_submission=generation if local else 1,
        on_scored=on_scored,
        processes=prepared.processes,
    )
    hooks = StreamHooks(
        stream,
        refresher.mine,
        refresher.refresh,
        steps.accumulation,
        prepared.processes,
        refresher.prepare_validation,
    )
    frozen = steps.train is Train.QUERY
    collator = LSRDataCollator(
        prepared.model,
        prepared.sets.train,
        stream.take,
        passage_texts=None if frozen else prepared.store.texts,
        frozen=prepared.index if frozen else None,
        negatives=IndexNegatives(prepared.indexed, options.target.index_negatives, steps.seed)
        if options.target.index_negatives
        else None,
        processes=prepared.processes,
    )
    evaluator = _evaluator(options, prepared, objective, refresher)
    trainer = LSRTrainer(
        prepared.model,
        _arguments(
            options,
            total_steps,
            validates=evaluator is not None,
            begins=begins,
            on_cpu=prepared.model.device.type == "cpu",
        ),
        LSRLoss(prepared.model, objective, grad_cache_chunk=options.modes.grad_cache_chunk),
        collator,
        schedule,
        hooks,
        evaluator=evaluator,
        callbacks=[
            LogWithAdvice(),
            CompleteCheckpoints(prepared.processes),
            StepProgress(),
            _tensorboard(options),
        ],
    )
    # transformers' own printer says the same as LogWithAdvice, as raw dictionaries.
    trainer.remove_callback(PrinterCallback)
    return trainer, stream


class _Refresher:
    """Keeps candidates, and where passages are trained too their index, up with the weights."""

    def __init__(self, options: TrainOptions, prepared: Prepared) -> None:
        self._options = options
        self._prepared = prepared
        self._miner = prepared.miner
        self._dtype: ComputeDtype = "bfloat16" if options.steps.bf16 else "float32"
        self._static = options.steps.refresh_every == 0
        moves = options.steps.train is Train.BOTH and not self._static
        self.refresh: Callable[[], None] | None = self._reindex if moves else None
        self._index: PassageIndex = prepared.index

    def mine(self, numbers: Rows) -> Rows:
        """Candidates of the numbered examples under the retriever as it is now (static: as the base was)."""
        prepared = self._prepared
        encoder = prepared.base if self._static else prepared.model
        queries = [prepared.sets.train[number].query for number in numbers]
        return self._miner.mine(
            encode_queries(encoder, queries, dtype=self._dtype, description="retrieving"), queries, numbers
        )

    def current_index(self, _: SentenceTransformer) -> PassageIndex:
        """What :meth:`prepare_validation` made ready."""
        return self._index

    def prepare_validation(self) -> None:
        """Ready the index for the model as it is: the base's where passages are frozen, else one of its own."""
        if self._options.steps.train is not Train.QUERY:
            self._index = self._embed_anew()

    def _embed_anew(self) -> PassageIndex:
        indexed, store = self._prepared.indexed, self._prepared.store
        vectors = self._prepared.processes.divide(
            len(indexed),
            lambda positions: encode_passages(
                self._prepared.model,
                store.texts(indexed[positions]),
                dtype=self._dtype,
                description="re-embedding the passages",
            ),
        )
        return ArrayIndex(vectors, indexed)

    def _reindex(self) -> None:
        began = time.perf_counter()
        self._miner.index = self._embed_anew()
        logger.info("re-embedded %d passages in %.1f s", len(self._miner.index), time.perf_counter() - began)


def _evaluator(
    options: TrainOptions, prepared: Prepared, objective: ObjectiveOptions, refresher: _Refresher
) -> BaseEvaluator | None:
    examples = prepared.sets.validation
    if not examples:
        logger.warning("no validation examples: the last weights are kept, whether they help or not")
        return None
    if not prepared.processes.is_first:
        return SequentialEvaluator([])  # never called: the first process validates
    vectors = encode_queries(prepared.base, [example.query for example in examples])
    base_rows = prepared.index.search(vectors, max(1, options.candidates.n_docs)).rows
    data = ValidationSet(
        examples, base_rows, prepared.store, prepared.builder, prepared.supervisor, objective
    )
    return HeldOutLikelihood(data, refresher.current_index)


def _arguments(
    options: TrainOptions, total_steps: int, *, validates: bool, begins: bool, on_cpu: bool
) -> SentenceTransformerTrainingArguments:
    steps = options.steps
    folder = options.place.output_dir
    best = validates and steps.keep is Keep.BEST
    every = min(total_steps, steps.eval_every or max(1, total_steps // _VALIDATIONS))
    return SentenceTransformerTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=steps.batch_size,
        gradient_accumulation_steps=steps.accumulation,
        learning_rate=steps.learning_rate,
        weight_decay=steps.weight_decay,
        max_grad_norm=steps.max_grad_norm,
        warmup_steps=steps.warmup_ratio,
        lr_scheduler_type="linear",
        num_train_epochs=steps.epochs,
        max_steps=total_steps,
        bf16=steps.bf16,
        use_cpu=on_cpu,
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
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _tensorboard(options: TrainOptions) -> TensorBoardCallback:
    """TensorBoard's files beside the model, unless ``TENSORBOARD_LOGGING_DIR`` says otherwise."""
    callback = TensorBoardCallback()  # type: ignore[no-untyped-call]
    callback.logging_dir = callback.logging_dir or str(options.place.output_dir / "tensorboard")
    return callback


def save_tuned(train: Train, prepared: Prepared, folder: Path) -> None:
    """Save what plain ``SentenceTransformer(folder)`` loads; ``query`` keeps the base's passage encoder."""
    set_dropout(prepared.model, 0.0)
    model = combine(prepared.model, prepared.base) if train is Train.QUERY else prepared.model
    model.save_pretrained(str(folder))


def _best_step(trainer: LSRTrainer) -> int | None:
    best = trainer.state.best_model_checkpoint
    return int(best.rsplit("-", 1)[1]) if best else None


def _history(trainer: LSRTrainer) -> list[dict[str, float]]:
    return [
        {"step": entry["step"], **{key[5:]: value for key, value in entry.items() if key.startswith("eval_")}}
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
    asked = record.plain(options)
    return {
        "replug_version": record.versions()["replug"],
        "status": "complete",
        "base_model": options.encoder.model_name_or_path,
        "encoder": asked["encoder"],
        "passages": [str(path.absolute()) for path in options.data.passages],
        "passages_embeddings": [str(Path(item).absolute()) for item in options.data.passages_embeddings],
        "train": options.steps.train.value,
        "n_docs": options.candidates.n_docs,
        "held_out": record.HELD_OUT_NAME,
        "supervisor": {"name": prepared.supervisor.name, "fingerprint": prepared.supervisor.fingerprint},
        "objective": record.plain(objective),
        "options": asked,
        "versions": record.versions(),
        "hashes": hashes,
        "figures": record.plain(figures),
    }


def _report(figures: dict[str, Any], folder: Path) -> None:
    validation = figures["validation"]
    if validation:
        first = validation[0]
        best = next((entry for entry in validation if entry["step"] == figures["best_step"]), validation[-1])
        logger.info(
            "held-out bits per byte of the first passage: %.4f before, %.4f at the kept step %s",
            first[PRIMARY_METRIC],
            best[PRIMARY_METRIC],
            figures["best_step"],
        )
    logger.info("the tuned retriever is in %s; see what it does: replug compare --run %s", folder, folder)

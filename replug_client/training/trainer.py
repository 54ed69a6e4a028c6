"""sentence-transformers' own trainer, with the candidate stream, frozen parts and a diagnosis in its log."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import prepare_data_loader  # type: ignore[import-untyped]
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from replug_client.errors import TrainingDivergedError
from replug_client.retriever.lexical_weights import GROUPS, lexical_weights
from replug_client.training.candidates import Rows
from replug_client.training.collator import EXAMPLE_COLUMN, LSRDataCollator
from replug_client.training.diagnostics import RunningMeans, batch_diagnostics, unique_share
from replug_client.training.distributed import ALONE, Processes
from replug_client.training.heap import settled_heap
from replug_client.training.lora import has_lora, load_updates, save_updates
from replug_client.training.loss import LSRLoss
from replug_client.training.schedule import Schedule, ScheduleSampler
from replug_client.training.stream import CandidateStream


@dataclass(frozen=True, slots=True)
class StreamHooks:
    """What the trainer calls so that candidates keep up with the weights.

    Attributes:
        stream: The candidate stream.
        mine: Retrieves candidates for a block of example numbers with the retriever as it is now.
        refresh: Re-embeds the passages with the retriever as it is now; None where they are frozen.
        accumulation: Batches an optimiser step.
        processes: Which share the batches.
        before_validation: Called by every process, with the optimiser step, before the first one validates.
        keep_up: Instead of ``refresh``, for what is not done at each retrieval: sees to the passages' index before
            the one at this optimiser step, and before the first one of a run that goes on there.
        index_age: Optimiser steps, at this one, since the weights that the passages' index is of; None where
            passages are frozen.
        close: Called when the training ends, however it does.
        first_is_own: Whether an example's first candidate is the retriever's own first passage.
        passages: Size of the corpus, for the share of passages that are found first; None where unknown.
    """

    stream: CandidateStream
    mine: Callable[[Rows], Rows]
    refresh: Callable[[], None] | None
    accumulation: int
    processes: Processes = ALONE
    before_validation: Callable[[int], None] | None = None
    keep_up: Callable[[int], None] | None = None
    index_age: Callable[[int], int] | None = None
    close: Callable[[], None] | None = None
    first_is_own: bool = True
    passages: int | None = None


class LSRTrainer(SentenceTransformerTrainer):
    """Trains a retriever on a candidate stream; everything else is its parent's.

    Mixed precision, accumulation, schedules, checkpoints, TensorBoard, model cards and ``--resume`` are
    sentence-transformers' and transformers' own.

    Args:
        model: The encoder to train.
        args: sentence-transformers' training arguments.
        loss: The LSR loss over the same model.
        collator: Makes the batches.
        schedule: The order of the examples.
        hooks: Keep the candidates up with the weights.
        keywords: Passed on to the parent (``evaluator``, ``callbacks``, ...).

    :class:`~replug_client.training.text_trainer.TrainerForLSR` puts all of it together from texts.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from sentence_transformers import SentenceTransformerTrainingArguments
        >>> from transformers import PrinterCallback
        >>> from replug_client.training import (
        ...     ArrayIndex, LSRDataCollator, LSRLoss, LSRTrainer, ObjectiveOptions)
        >>> from replug_client.training.schedule import Schedule
        >>> from replug_client.training.stream import CandidateStream
        >>> from replug_client.training.texts import TextCorpus, TextScorer
        >>> from replug_client.training.toy import toy
        >>> from replug_client.training.trainer import StreamHooks
        >>> passages, folder = ["paris lies in france", "cats chase mice"], Path(tempfile.mkdtemp())
        >>> model, supervisor, tokenizer = toy([*passages, "capital"])
        >>> scorer = TextScorer(TextCorpus(passages), supervisor, tokenizer)
        >>> examples = scorer.examples([{"query": "capital", "continuation": "paris"}])
        >>> schedule = Schedule(num_examples=1, batch_size=1, seed=0)
        >>> stream = CandidateStream(
        ...     examples, schedule, scorer.prompt, supervisor, generation=2, total=4, folder=folder)
        >>> index = ArrayIndex(model.encode_document(passages))
        >>> everything = StreamHooks(stream, lambda numbers: np.tile([0, 1], (len(numbers), 1)), None, 1)
        >>> trainer = LSRTrainer(
        ...     model,
        ...     SentenceTransformerTrainingArguments(
        ...         str(folder), max_steps=4, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True),
        ...     LSRLoss(model, ObjectiveOptions()),
        ...     LSRDataCollator(model, examples, stream.take, frozen=index), schedule, everything)
        >>> trainer.remove_callback(PrinterCallback)
        >>> trainer.train().global_step
        4
        >>> supervisor.close()
    """

    def __init__(
        self,
        model: SentenceTransformer,
        args: SentenceTransformerTrainingArguments,
        loss: LSRLoss,
        collator: LSRDataCollator,
        schedule: Schedule,
        hooks: StreamHooks,
        **keywords: Any,
    ) -> None:
        self._schedule = schedule
        self._means = RunningMeans()
        self._hooks = hooks
        dataset = Dataset.from_dict({EXAMPLE_COLUMN: list(range(schedule.num_examples))})
        super().__init__(
            model=model,
            args=args,
            train_dataset=dataset,
            loss=loss,
            data_collator=cast(Any, collator),
            **keywords,
        )
        self.add_callback(_StreamCallback(hooks))
        self.add_callback(_LogCheckpoints())

    def train(self, *arguments: Any, **keywords: Any) -> Any:
        """The parent's; what runs beside it ends with it."""
        try:
            with settled_heap():
                return super().train(*arguments, **keywords)
        finally:
            if self._hooks.close is not None:
                self._hooks.close()

    def get_batch_sampler(self, *_: Any, **__: Any) -> DefaultBatchSampler:
        """The schedule's own order, which the candidate stream knows too."""
        return ScheduleSampler(self._schedule, self._hooks.stream.total, self._hooks.processes)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The parent's, but that accelerate does not cut what the schedule has cut among the processes.

        Through accelerate's cut, a run that goes on within an epoch would not learn which epoch it is.
        """
        loader = DataLoader(
            cast(Any, self.train_dataset),
            batch_sampler=self.get_batch_sampler(),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, self.args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def evaluation_loop(self, *arguments: Any, **keywords: Any) -> Any:
        """The parent's, in which the first process validates alone; what all are needed for comes before it."""
        if self._hooks.before_validation is not None:
            self._hooks.before_validation(self.state.global_step)
        return super().evaluation_loop(*arguments, **keywords)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The parent's loss; the batch's diagnosis is kept for the log.

        Raises:
            TrainingDivergedError: the loss is not finite.
        """
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = result[0] if isinstance(result, tuple) else result
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"step {self.state.global_step + 1}: the loss is {value}, so the weights are of no use any more. Lower "
                f"the learning rate ({self.args.learning_rate:g}), or raise a temperature that is near 0"
            )
        if isinstance(self.loss, LSRLoss) and self.loss.last:
            self._means.add(batch_diagnostics(self.loss.last))
        return result

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Training logs carry the diagnosis of the steps since the last one."""
        if "loss" in logs:
            logs |= self._means.flush(self._hooks.processes)
            if self._hooks.first_is_own:
                logs["unique_first_passages"] = unique_share(
                    self._hooks.stream.first_rows, self._hooks.passages
                )
            if (weights := lexical_weights(self.model)) is not None:
                logs |= {f"lexical_{name}": weight for name, weight in zip(GROUPS, weights, strict=True)}
            logs["staleness_steps"] = float(self._staleness())
            if self._hooks.index_age is not None:
                logs["index_age_steps"] = float(self._hooks.index_age(self.state.global_step))
        super().log(logs, start_time)

    def _get_learning_rate(self) -> float:
        """Of the first group of weights that holds any: the parent's may be empty, as the encoder's is of a head."""
        groups = [] if self.optimizer is None else self.optimizer.param_groups
        if self.is_deepspeed_enabled or not any(group["params"] for group in groups):
            return float(super()._get_learning_rate())
        return float(next(group["lr"] for group in groups if group["params"]))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The parent's, a whole model; of low-rank updates, these alone."""
        if not has_lora(self.model):
            super()._save(output_dir, state_dict)
            return
        save_updates(self.model, Path(output_dir or str(self.args.output_dir)))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not has_lora(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint)
            return
        load_updates(self.model, Path(resume_from_checkpoint))

    def _staleness(self) -> int:
        """Optimiser steps since the candidates of the last one were retrieved."""
        step, accumulation = self.state.global_step, self._hooks.accumulation
        return step - self._hooks.stream.retrieved_at(step * accumulation - 1) // accumulation


class _LogCheckpoints(TrainerCallback):
    """Logs where a checkpoint is written: it does not hold means that an entry is yet to be made of."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if control.should_save and args.logging_strategy == IntervalStrategy.STEPS:
            control.should_log = True

    on_epoch_end = on_step_end


class _StreamCallback(TrainerCallback):
    """Before the first step of each generation, retrieves for the one after it."""

    def __init__(self, hooks: StreamHooks) -> None:
        self._hooks = hooks
        self._steps = max(1, hooks.stream.generation // hooks.accumulation)
        self._refreshed = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._refreshed = 0  # a run of its own, in a trainer that may have had one
        self._refresh(state.global_step)
        self._hooks.stream.start(state.global_step * self._hooks.accumulation, self._hooks.mine)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        # Not at the step's begin: its batches are fetched before that, and the data loader is one ahead of it.
        if state.global_step < state.max_steps and state.global_step % self._steps == 0:
            self._refresh(state.global_step)
            self._hooks.stream.advance(state.global_step * self._hooks.accumulation, self._hooks.mine)

    def _refresh(self, step: int) -> None:
        """Re-embed at the start of each generation but the first, whose index is the base's own."""
        if self._hooks.keep_up is not None:
            self._hooks.keep_up(step)
        elif self._hooks.refresh is not None and step and step % self._steps == 0 and step != self._refreshed:
            self._hooks.refresh()
            self._refreshed = step


def freeze_word_embeddings(model: SentenceTransformer) -> int:
    """Leave the input word embeddings as they are: in small encoders they are half of all parameters.

    Returns:
        The number of parameters that will not be trained.
    """
    frozen = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings > 1000:
            module.weight.requires_grad_(False)
            frozen += module.weight.numel()
    return frozen


def set_dropout(model: SentenceTransformer, probability: float) -> None:
    """Set every dropout of the encoder; 0 makes a frozen index and the queries see the same function."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = probability

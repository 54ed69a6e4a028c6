"""Small hooks into the trainer: complete checkpoints, alarms in the log, early stopping."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from replug_client.artefacts import read_json, write_json
from replug_client.progress import progress
from replug_client.training.alarms import Freshness, Watch
from replug_client.training.distributed import ALONE, Processes
from replug_client.training.record import COMPLETE_NAME
from replug_client.training.validation import SELECTION, HeldOutLikelihood, ValidationState

logger = logging.getLogger(__name__)

VALIDATION_NAME = "validation.json"


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole once everything in it is on disk; only such a one is resumed from.

    Args:
        processes: Each writes its random state into the checkpoint; the first marks it when all have.
    """

    def __init__(self, processes: Processes = ALONE) -> None:
        self._processes = processes

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Sync every file of the checkpoint, then mark it."""
        self._processes.wait()
        if not self._processes.is_first:
            return
        folder = _checkpoint(args, state)
        for path in folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        (folder / COMPLETE_NAME).touch()


class KeptValidation(TrainerCallback):
    """Keeps with each checkpoint what the next validation, and the report, need of the last one.

    Stands before the callback that marks a checkpoint as whole.

    Args:
        evaluator: Validation; None where there is none.
    """

    def __init__(self, evaluator: HeldOutLikelihood | None) -> None:
        self._evaluator = evaluator

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A run that goes on knows what its last validation found."""
        kept = _checkpoint(args, state) / VALIDATION_NAME
        if self._evaluator is not None and state.global_step and kept.exists():
            value = read_json(kept, mend="Begin anew with --overwrite.")
            self._evaluator.state = ValidationState.from_json(value)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Write it beside the checkpoint's weights."""
        if self._evaluator is not None and state.is_world_process_zero:
            write_json(_checkpoint(args, state) / VALIDATION_NAME, self._evaluator.state.to_json())


class LogWithAdvice(TrainerCallback):
    """One readable line for each log entry, and each alarm with its advice once.

    Args:
        freshness: How the run keeps up with its weights.
    """

    def __init__(self, freshness: Freshness | None = None) -> None:
        self._watch = Watch(freshness or Freshness())

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A run that goes on knows what was found before."""
        for entry in state.log_history:
            self._watch.observe(int(entry.get("step", 0)), entry)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Print the figures that matter, and new advice."""
        if not logs:
            return
        shown = {name: value for name, value in logs.items() if name in _SHOWN}
        if shown:
            line = "  ".join(f"{_SHOWN[name]} {value:.4g}" for name, value in shown.items())
            logger.info("step %d/%d  %s", state.global_step, state.max_steps, line)
        for alarm in self._watch.observe(state.global_step, logs):
            logger.warning("%s", alarm.message)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"


class EarlyStopping(TrainerCallback):
    """Stops once validation has not had a new best for a while.

    transformers' own keeps its count beside the trainer's state and begins anew at 0 in a resumed run; this
    one reads the log, so that a resumed run stops where the uninterrupted one does.

    Args:
        patience: Validations in a row without a new best.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Ask the trainer to stop after this step."""
        if is_exhausted(state.log_history, self._patience):
            logger.info(
                "stopping early: the last %d validations had no new best (--early_stopping)", self._patience
            )
            control.should_training_stop = True


def is_exhausted(history: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether the last ``patience`` validations all failed to be the best; the base itself does not count.

    Args:
        history: Log entries as the trainer keeps them.
        patience: At least 1; 0 is never exhausted.
    """
    key = f"eval_{SELECTION}"
    values = [entry[key] for entry in history if key in entry and entry["step"] > 0]
    return bool(patience and values) and len(values) - 1 - values.index(min(values)) >= patience


class StepProgress(TrainerCallback):
    """A bar over the optimiser steps, with their rate and the time left."""

    def __init__(self) -> None:
        self._bar = ExitStack()
        self._advance: Callable[[int], None] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show the bar from where the run goes on."""
        self._advance = self._bar.enter_context(
            progress("training", state.max_steps, "steps", state.global_step)
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """One step further."""
        if self._advance is not None:
            self._advance(1)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Take the bar away."""
        self._bar.close()


_SHOWN = {
    "loss": "loss",
    "contrastive_loss": "InfoNCE",
    "p_entropy": "entropy P",
    "q_entropy": "Q",
    "rank_correlation": "rank correlation",
    "lexical_terms": "weight of terms",
    "lexical_pairs": "of pairs",
    "unique_first_passages": "unique first",
    "learning_rate": "lr",
    "eval_bits_per_byte": "held-out bits per byte",
    "eval_base_minus_current": "base - current",
    "eval_recall_at_10": "recall@10",
    "eval_mrr": "MRR",
    "eval_expected_score": "expected score",
    "eval_kl": "held-out KL",
    "eval_changed": "first passage changed",
}

"""Small hooks into the trainer: complete checkpoints, and advice in the log."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from replug_client.progress import progress
from replug_client.training.diagnostics import advice
from replug_client.training.record import COMPLETE_NAME

logger = logging.getLogger(__name__)


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole once everything in it is on disk; only such a one is resumed from."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Sync every file of the checkpoint, then mark it."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        for path in folder.rglob("*"):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
        (folder / COMPLETE_NAME).touch()


class LogWithAdvice(TrainerCallback):
    """One readable line for each log entry, and each piece of advice once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

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
        for figure, piece in advice(logs).items():
            if figure not in self._given:
                self._given.add(figure)
                logger.warning("%s", piece)


class StepProgress(TrainerCallback):
    """A bar over the optimiser steps, with their rate and the time left."""

    def __init__(self) -> None:
        self._bar = ExitStack()
        self._advance: Callable[[int], None] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Show the bar from where the run goes on."""
        self._advance = self._bar.enter_context(progress("training", state.max_steps, "steps"))
        self._advance(state.global_step)

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
    "p_entropy": "entropy P",
    "q_entropy": "Q",
    "rank_correlation": "rank correlation",
    "unique_first_passages": "unique first",
    "learning_rate": "lr",
    "eval_bits_per_byte": "held-out bits per byte",
    "eval_base_minus_current": "base - current",
    "eval_kl": "held-out KL",
    "eval_changed": "first passage changed",
}

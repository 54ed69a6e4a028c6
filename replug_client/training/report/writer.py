"""Writes the report as the run goes: at each log entry and validation, whole or not at all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from replug_client.artefacts import atomic_write
from replug_client.training.alarms import Freshness, alarms_of
from replug_client.training.moves import Move
from replug_client.training.report.page import Pair, Report, Validated, render
from replug_client.training.stream import StreamTimings
from replug_client.training.validation import SELECTION, HeldOutLikelihood

logger = logging.getLogger(__name__)

REPORT_NAME = "report.html"


@dataclass(frozen=True, slots=True)
class ReportSources:
    """Where the report's figures come from, beside the trainer's log.

    Attributes:
        title: The run's name.
        timings: The candidate stream's.
        scores: Gives the counts of scores by source.
        evaluator: Validation; None where there is none.
        freshness: How the run keeps up with its weights.
        settings: What the run was asked for.
        reembedding: Gives the seconds spent on re-embedding the passages.
    """

    title: str
    timings: StreamTimings
    scores: Callable[[], Mapping[str, int]]
    evaluator: HeldOutLikelihood | None
    freshness: Freshness = field(default_factory=Freshness)
    settings: Mapping[str, object] = field(default_factory=dict)
    reembedding: Callable[[], float] = lambda: 0.0


class ReportWriter(TrainerCallback):
    """Keeps ``report.html`` up with the run.

    Stands behind the callback that reads what the last validation found. A report that cannot be written is warned of
    once and stops nothing.

    Args:
        folder: Where the page goes.
        sources: What it is made of.
    """

    def __init__(self, folder: Path, sources: ReportSources) -> None:
        self.path = folder / REPORT_NAME
        self._sources = sources
        self._began = time.perf_counter()
        self._step_began: float | None = None
        self._stepping = 0.0
        self._warned = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A page is there from the start."""
        self.write(state, "running")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The batches are there: from here on it is the step's own time."""
        self._step_began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Before the candidates of the next generation are retrieved, which has a stage of its own."""
        if self._step_began is not None:
            self._stepping += time.perf_counter() - self._step_began
            self._step_began = None

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Training and validation both log."""
        self.write(state, "running")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The last page; a run that was killed keeps the one that says it is running."""
        self.write(state, "finished" if state.global_step >= state.max_steps else "stopped early")

    def write(self, state: TrainerState, status: str) -> None:
        """Write the page anew.

        Args:
            state: The trainer's.
            status: ``running``, ``finished`` or ``stopped early``.
        """
        if not state.is_world_process_zero:
            return
        try:
            with atomic_write(self.path, "w") as stream:
                stream.write(render(self._report(state, status)))
        except OSError as error:
            if not self._warned:
                logger.warning("%s cannot be written (%s); the run goes on without it", self.path, error)
            self._warned = True

    def _report(self, state: TrainerState, status: str) -> Report:
        sources = self._sources
        return Report(
            title=sources.title,
            status=status,
            step=state.global_step,
            max_steps=state.max_steps,
            best_step=best_step(state.log_history),
            history=state.log_history,
            alarms=alarms_of(state.log_history, sources.freshness),
            seconds=self.seconds(),
            scoring_seconds=sources.timings.scoring.seconds,
            scores=sources.scores(),
            validated=None if sources.evaluator is None else validated(sources.evaluator),
            settings=sources.settings,
        )

    def seconds(self) -> dict[str, float]:
        """Seconds of this process by stage, which together are all that passed since the trainer was made."""
        sources = self._sources
        known = {
            "steps": self._stepping,
            "waiting for scores": sources.timings.waiting_for_scores,
            "retrieving": sources.timings.retrieving,
            "validating": 0.0 if sources.evaluator is None else sources.evaluator.seconds,
            "re-embedding": sources.reembedding(),
        }
        other = time.perf_counter() - self._began - sum(known.values())
        return known | {"checkpoints and the rest": max(0.0, other)}


def best_step(history: list[dict[str, float]]) -> int | None:
    """The step of the best validation after the first step; None before there is one."""
    key = f"eval_{SELECTION}"
    found = [entry for entry in history if key in entry and entry["step"] > 0]
    return int(min(found, key=lambda entry: entry[key])["step"]) if found else None


def validated(evaluator: HeldOutLikelihood) -> Validated | None:
    """The last validation's moves with their texts; None before the first."""
    state = evaluator.state
    if state.step < 0:
        return None

    def rank(value: int) -> str:
        return str(value) if value <= state.depth else f"beyond {state.depth}"

    def pair(move: Move) -> Pair:
        example, passage = evaluator.data.examples[move.example], evaluator.data.store[move.row]
        return Pair(
            example.query,
            example.continuation,
            passage.text,
            passage.id,
            rank(move.base_rank),
            rank(move.rank),
            move.advantage,
        )

    return Validated(state.step, state.best_ranks, [*map(pair, state.risen)], [*map(pair, state.fallen)])

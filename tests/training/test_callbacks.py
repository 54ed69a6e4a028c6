"""What the trainer's hooks keep with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from transformers import TrainerControl, TrainerState, TrainingArguments

from replug_client.training.callbacks import KeptValidation
from replug_client.training.moves import Move
from replug_client.training.validation import ValidationState


class _Evaluator:
    def __init__(self, state: ValidationState) -> None:
        self.state = state


def event(name: str, folder: Path, evaluator: Any, *, first: bool = True, step: int = 4) -> None:
    arguments = TrainingArguments(output_dir=str(folder), use_cpu=True)
    state = TrainerState(global_step=step, max_steps=8, is_world_process_zero=first)
    getattr(KeptValidation(cast(Any, evaluator)), name)(arguments, state, TrainerControl())


def test_a_checkpoint_keeps_what_the_next_validation_needs(tmp_path: Path) -> None:
    state = ValidationState(4, [[3, 1]], 100, [[1] * 6] * 6, [Move(0, 3, 9, 1, 0.5)], [])
    event("on_save", tmp_path, _Evaluator(state))
    kept = tmp_path / "checkpoint-4" / "validation.json"
    assert json.loads(kept.read_text())["step"] == 4
    resumed = _Evaluator(ValidationState())
    event("on_train_begin", tmp_path, resumed)
    assert resumed.state == state


def test_a_run_that_begins_knows_of_no_checkpoint(tmp_path: Path) -> None:
    event("on_save", tmp_path, _Evaluator(ValidationState(step=0)), step=0)
    begun = _Evaluator(ValidationState(step=7))
    event("on_train_begin", tmp_path, begun, step=0)
    assert begun.state.step == 7


def test_the_first_process_writes(tmp_path: Path) -> None:
    event("on_save", tmp_path, _Evaluator(ValidationState()), first=False)
    event("on_save", tmp_path, None)
    assert list(tmp_path.iterdir()) == []

"""Under every objective the retriever learns what the LM prefers: planted passages rise from last to first."""

from __future__ import annotations

from pathlib import Path

import pytest

from replug_client.training.choices import Objective
from replug_client.training.loss import ObjectiveOptions
from tests.training.planted import base_model, plant, recall_at_1, trainer_for


# REPLUG LSR in both directions, and with it Atlas' perplexity distillation, are in test_trainer.py.
@pytest.mark.parametrize(
    "options",
    [
        ObjectiveOptions(0.1, 0.5, objective=Objective.MARGINAL),
        ObjectiveOptions(0.1, 0.1, objective=Objective.LOOP),
    ],
    ids=lambda options: options.objective.value,
)
def test_what_the_lm_prefers_rises_from_last_to_first(options: ObjectiveOptions, tmp_path: Path) -> None:
    model = base_model(tmp_path)
    task = plant(model)
    assert recall_at_1(model, task, reencode=False) == 0.0
    trainer_for(model, task, tmp_path, options, train_passages=False, steps=80).train()
    assert recall_at_1(model, task, reencode=False) >= 0.9

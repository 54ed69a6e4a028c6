"""Gradients reach the retriever: planted preferences rise, weights move, and the sign matters."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from benchmarks import step
from replug_client.training import loss as loss_module
from replug_client.training import objectives
from replug_client.training import trainer as trainer_module
from replug_client.training.choices import Denominator, Direction
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.trainer import LSRTrainer
from tests.training.planted import QUERIES, base_model, plant, recall_at_1, trainer_for

P_Q = ObjectiveOptions(0.1, 0.5, kl=Direction.P_Q)
Q_P = ObjectiveOptions(0.1, 0.5, kl=Direction.Q_P)
BATCH = ObjectiveOptions(0.1, 0.5, kl=Direction.Q_P, denominator=Denominator.BATCH)


@pytest.mark.parametrize("objective", [P_Q, Q_P, BATCH], ids=["p-q", "q-p", "q-p over the batch"])
@pytest.mark.parametrize("train_passages", [False, True], ids=["query", "both"])
def test_what_the_lm_prefers_rises_from_last_to_first(
    objective: ObjectiveOptions, train_passages: bool, tmp_path: Path
) -> None:
    model = base_model(tmp_path)
    task = plant(model)
    assert len(set(task.preferred.tolist())) == len(QUERIES)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    assert recall_at_1(model, task, reencode=train_passages) == 0.0
    trainer = trainer_for(model, task, tmp_path, objective, train_passages=train_passages)
    trainer.train()
    assert recall_at_1(model, task, reencode=train_passages) >= 0.9
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert any("word_embeddings" in name for name in moved)
    assert any("layer.0.attention" in name for name in moved)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[-1]["loss"] < 0.5 * logged[0]["loss"]
    assert {"p_entropy", "q_entropy", "rank_correlation", "unique_first_passages", "staleness_steps"} <= set(
        logged[0]
    )


def test_with_the_sign_flipped_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flipped(log_p: Tensor, log_q: Tensor, direction: Direction) -> Tensor:
        return -objectives.lsr_loss(log_p, log_q, direction)

    monkeypatch.setattr(loss_module, "lsr_loss", flipped)
    model = base_model(tmp_path)
    task = plant(model)
    trainer_for(model, task, tmp_path, Q_P, train_passages=False).train()
    assert recall_at_1(model, task, reencode=False) <= 0.1


def test_the_benchmark_of_a_step_times_what_the_trainer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "encoder", lambda: base_model(tmp_path))
    diagnosed: list[int] = []
    diagnose = trainer_module.batch_diagnostics
    monkeypatch.setattr(
        trainer_module,
        "batch_diagnostics",
        lambda last: (diagnosed.append(len(last["mask"])), diagnose(last))[1],
    )
    columns, scores = step.make_batch(3, 2)
    one = step.lsr_side(columns, scores, str(tmp_path / "lsr"))
    other = step.distill_side(columns, scores, str(tmp_path / "distill"))
    first = one()
    assert first * step._GAMMA**2 == pytest.approx(other(), rel=1e-4)
    one()
    assert diagnosed == [3, 3], "the diagnosis is part of each of the two steps"


@pytest.mark.parametrize(
    ("stop", "options"),
    [
        (10, {"refresh_every": 10}),  # at a boundary of generations
        (15, {"refresh_every": 10}),  # within a generation, and within an epoch of two batches
        (5, {"batch_size": 3, "accumulation": 2, "refresh_every": 3}),  # three batches are no whole steps
    ],
    ids=["boundary", "within", "accumulation"],
)
def test_a_run_that_was_stopped_ends_with_the_same_weights(
    stop: int, options: dict[str, int], tmp_path: Path
) -> None:
    def trainer_in(folder: Path) -> LSRTrainer:
        model = base_model(tmp_path)
        return trainer_for(
            model, plant(model), folder, Q_P, train_passages=False, steps=2 * stop, save_every=5, **options
        )

    whole = trainer_in(tmp_path / "whole")
    whole.train()
    interrupted = trainer_in(tmp_path / "cut")
    interrupted.add_callback(_StopAt(stop))
    interrupted.train()
    assert interrupted.state.global_step == stop
    resumed = trainer_in(tmp_path / "cut")
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoints" / f"checkpoint-{stop}"))
    assert resumed.state.global_step == 2 * stop
    assert_same_weights(whole, resumed)
    # Entries come every 10 steps; checkpoints, every 5, have one too.
    first, second = (
        [entry for entry in trainer.state.log_history if "loss" in entry] for trainer in (whole, resumed)
    )
    assert [entry["step"] for entry in first] == list(range(5, 2 * stop + 1, 5))
    assert second == first


@pytest.mark.parametrize("accumulation", [1, 2])
def test_candidates_can_be_retrieved_anew_for_every_step(accumulation: int, tmp_path: Path) -> None:
    """The data loader fetches a batch ahead: with one step a generation it runs into the next one."""
    model = base_model(tmp_path)
    trainer = trainer_for(
        model,
        plant(model),
        tmp_path,
        Q_P,
        train_passages=False,
        steps=5,
        refresh_every=1,
        accumulation=accumulation,
    )
    trainer.train()
    assert trainer.state.global_step == 5


def test_the_log_says_how_old_candidates_are(tmp_path: Path) -> None:
    model = base_model(tmp_path)
    task = plant(model)
    trainer = trainer_for(
        model, task, tmp_path, Q_P, train_passages=False, steps=8, refresh_every=3, accumulation=2
    )
    trainer.args.logging_steps = 1
    trainer.train()
    ages = [entry["staleness_steps"] for entry in trainer.state.log_history if "loss" in entry]
    # Those of steps 4 to 6 were retrieved before the first step too, those of steps 7 and 8 after the third.
    assert ages == [1, 2, 3, 4, 5, 6, 4, 5]


def test_what_is_there_at_the_start_is_out_of_the_collector_while_it_trains(tmp_path: Path) -> None:
    class Look(TrainerCallback):
        frozen = 0

        def on_step_end(self, *_: object, **__: object) -> None:
            self.frozen = gc.get_freeze_count()

    model, look = base_model(tmp_path), Look()
    trainer = trainer_for(model, plant(model), tmp_path, Q_P, train_passages=False, steps=1)
    trainer.add_callback(look)
    trainer.train()
    assert look.frozen > 10_000
    assert gc.get_freeze_count() == 0


def assert_same_weights(first: LSRTrainer, second: LSRTrainer) -> None:
    expected, found = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args, state, control, **_):  # type: ignore[no-untyped-def]
        if state.global_step == self.step:
            control.should_training_stop = True

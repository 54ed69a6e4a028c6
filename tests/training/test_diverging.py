"""Runs that go wrong by their rate: one that diverges, and one of a single step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from replug_client.errors import TrainingDivergedError
from replug_client.training import LSRLoss, ObjectiveOptions
from replug_client.training.objectives import entropy, kl_divergence, log_distribution, spread_to_batch
from replug_client.training.toy import toy
from tests.cli.test_train import basic, place, read_run, replug, tuned  # noqa: F401
from tests.training.test_text_trainer import PASSAGES, QUERIES, trainer_of


def test_the_loss_of_a_broken_encoder_is_not_a_number(tmp_path: Path) -> None:
    parts = toy([*PASSAGES, *QUERIES])
    trainer = trainer_of(parts, tmp_path)
    with torch.no_grad():
        next(parts.model.parameters()).fill_(math.nan)
    trainer._mine = lambda numbers: trainer_of(toy([*PASSAGES, *QUERIES]), tmp_path)._mine(numbers)  # type: ignore[method-assign]
    object.__setattr__(trainer._hooks, "mine", trainer._mine)
    with pytest.raises(
        TrainingDivergedError, match=r"step 1: the loss is nan.*Lower the learning rate \(0\.05\)"
    ):
        trainer.train()


@pytest.mark.parametrize("kl", ["p-q", "q-p"])
def test_nan_similarities_give_a_loss_that_is_nan(kl: str) -> None:
    parts = toy([*PASSAGES, *QUERIES])
    rows = [[-2.0, 1, 5, 0], [-5.0, 1, 5, 1], [0, 1, 5, -1]]  # with a candidate that is missing
    labels = torch.tensor([rows] * 2, dtype=torch.float64)
    similarity = torch.tensor([[math.nan, 0.5], [0.1, 0.2]])
    loss = LSRLoss(parts.model, ObjectiveOptions(kl=kl))  # type: ignore[arg-type]
    assert loss.from_similarity(similarity, labels).isnan()
    assert loss.from_similarity(similarity[1:], labels[1:]).isfinite()


def test_nan_is_no_probability_of_0() -> None:
    broken, whole = torch.tensor([[math.nan, math.nan]]), log_distribution(torch.tensor([[1.0, 2.0]]), 1.0)
    assert kl_divergence(broken, whole).isnan() and kl_divergence(whole, broken).isnan()
    assert entropy(broken).isnan()
    assert spread_to_batch(broken, torch.tensor([[0, 2]]), 3).isnan().tolist() == [[True, False, True]]
    masked = torch.tensor([[0.0, -math.inf]])
    assert kl_divergence(masked, masked).item() == 0 and entropy(masked).item() == 0


def test_a_first_candidate_without_counts_spoils_nothing() -> None:
    parts = toy([*PASSAGES, *QUERIES])
    whole = [[-5.0, 2, 5, 1], [-3.0, 2, 5, 2]]
    similarity = torch.tensor([[0.3, 0.5, 0.1]])
    for kl in ("p-q", "q-p"):
        for missing in ([0.0, 0, 0, -1], [math.nan, math.nan, math.nan, 0]):
            loss = LSRLoss(parts.model, ObjectiveOptions(kl=kl))  # type: ignore[arg-type]
            values = [
                loss.from_similarity(similarity, torch.tensor([rows], dtype=torch.float64)).item()
                for rows in ([missing, *whole], whole)
            ]
            assert values[0] == pytest.approx(values[1])


@pytest.mark.slow
def test_a_run_that_diverges_ends_and_is_no_retriever(
    place: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert replug(*basic(place, "diverged"), "--max_validation", "0", "--learning_rate", "1e10") == 1
    said = capsys.readouterr().err
    assert "the loss is nan" in said and "Lower the learning rate (1e+10)" in said and "Traceback" not in said
    assert not (place / "diverged" / "run.json").exists()


def test_a_single_step_trains(place: Path) -> None:  # noqa: F811
    assert replug(*basic(place, "single"), "--max_steps", "1") == 0
    query = ["what is a stack"]
    moved = abs(
        tuned(place / "single").encode_query(query) - tuned(place / "encoder").encode_query(query)
    ).max()
    assert moved > 1e-4


def test_the_rate_in_the_log_is_that_of_what_is_trained(place: Path) -> None:  # noqa: F811
    flags = basic(place, "head")
    at = flags.index("--learning_rate")
    head = ["--train", "head", "--head_learning_rate", "0.05", "--max_steps", "4"]
    assert replug(*flags[:at], *flags[at + 2 :], *head) == 0
    rates = [entry["learning_rate"] for entry in read_run(place / "head")["figures"]["log"]]
    # One step of warm-up, and then down in a line: the rate that the step was made with.
    assert rates == pytest.approx([0.0, 0.05, 0.05 * 2 / 3, 0.05 / 3])

"""Calibrated temperatures give the entropy that was asked for."""

from __future__ import annotations

import math

import pytest
import torch

from replug_client.errors import OptionError
from replug_client.training.calibration import normalised_entropy, temperature_for_entropy
from replug_client.training.objectives import log_distribution

SCORES = torch.randn(200, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.05 - 2.3


@pytest.mark.parametrize("target", [0.2, 0.5, 0.9])
def test_the_median_entropy_is_what_was_asked_for(target: float) -> None:
    chosen = temperature_for_entropy(SCORES, target)
    reached = normalised_entropy(log_distribution(SCORES, chosen.temperature)).median().item()
    assert reached == pytest.approx(target, abs=1e-3)
    assert chosen.entropy == pytest.approx(reached)
    assert chosen.examples == 200


def test_two_candidates_by_hand() -> None:
    # Binary entropy of 0.8 is 0.7219 bits, so logits ln 4 apart; scores 1 apart need t = 1 / ln 4.
    chosen = temperature_for_entropy(torch.tensor([[0.0, 1.0]]), 0.721928)
    assert chosen.temperature == pytest.approx(1 / math.log(4), rel=1e-3)


def test_scaling_the_scores_scales_the_temperature() -> None:
    small, large = temperature_for_entropy(SCORES, 0.5), temperature_for_entropy(SCORES * 100, 0.5)
    assert large.temperature == pytest.approx(100 * small.temperature, rel=1e-6)


def test_masked_candidates_do_not_count() -> None:
    mask = torch.ones(200, 14, dtype=torch.bool)
    mask[:, 12:] = False
    padded = torch.cat([SCORES, torch.full((200, 2), 50.0)], dim=1)
    assert temperature_for_entropy(padded, 0.5, mask).temperature == pytest.approx(
        temperature_for_entropy(SCORES, 0.5).temperature, rel=1e-9
    )


def test_it_says_on_what_it_chose() -> None:
    chosen = temperature_for_entropy(SCORES, 0.5)
    found = normalised_entropy(log_distribution(SCORES, chosen.temperature))
    assert chosen.spread == pytest.approx(SCORES.std(dim=-1, correction=0).median().item())
    assert chosen.quartiles == pytest.approx((found.quantile(0.25).item(), found.quantile(0.75).item()))


def test_an_only_candidate_says_nothing_about_the_temperature() -> None:
    lines = torch.cat([SCORES, SCORES[:150]])
    mask = torch.ones_like(lines, dtype=torch.bool)
    mask[200:, 1:] = False
    chosen, alone = temperature_for_entropy(lines, 0.5, mask), temperature_for_entropy(SCORES, 0.5)
    assert chosen == alone


def test_the_number_of_candidates_may_vary() -> None:
    mask = torch.ones_like(SCORES, dtype=torch.bool)
    mask[::2, 5:] = False
    chosen = temperature_for_entropy(SCORES.masked_fill(~mask, math.nan), 0.4, mask)
    entropies = [
        float(torch.distributions.Categorical(logits=line[own] / chosen.temperature).entropy())
        / math.log(own.sum())
        for line, own in zip(SCORES, mask, strict=True)
    ]
    assert sorted(entropies)[99] == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize("missing", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
def test_what_is_not_finite_is_no_candidate(missing: float, masked: bool) -> None:
    failed = torch.zeros_like(SCORES, dtype=torch.bool)
    failed[::3, 2] = failed[5, :11] = True  # line 5 has one left, which says nothing
    found = temperature_for_entropy(
        SCORES.masked_fill(failed, missing), 0.4, torch.ones_like(failed) if masked else None
    )
    assert found == temperature_for_entropy(SCORES, 0.4, ~failed)
    assert found.examples == 199 and math.isfinite(found.spread)


def test_without_two_candidates_anywhere_it_says_what_to_do() -> None:
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[:, 1] = True
    with pytest.raises(OptionError, match=r"none of 3 examples .* --n_docs"):
        temperature_for_entropy(torch.zeros(3, 4), 0.5, mask)


def test_equal_scores_cannot_be_calibrated() -> None:
    with pytest.raises(ValueError, match="temperature_gold"):
        temperature_for_entropy(torch.zeros(10, 4), 0.5)


@pytest.mark.parametrize("target", [0.0, 1.0, -0.5, 2.0])
def test_a_target_outside_zero_and_one_is_refused(target: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        temperature_for_entropy(SCORES, target)

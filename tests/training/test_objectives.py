"""The objective, held against hand-computed values and against torch's own distributions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from replug_client.training import objectives
from replug_client.training.choices import Aggregation, Direction

GENERATOR = torch.Generator().manual_seed(7)


def random_log_distribution(*shape: int) -> torch.Tensor:
    return torch.log_softmax(torch.randn(*shape, generator=GENERATOR, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize("direction", list(Direction))
def test_both_directions_equal_torch_distributions(direction: Direction) -> None:
    log_p, log_q = random_log_distribution(6, 9), random_log_distribution(6, 9)
    p, q = Categorical(logits=log_p), Categorical(logits=log_q)
    expected = kl_divergence(p, q) if direction is Direction.P_Q else kl_divergence(q, p)
    assert objectives.lsr_loss(log_p, log_q, direction).item() == pytest.approx(
        expected.mean().item(), abs=1e-12
    )


def test_the_loss_is_not_divided_by_the_number_of_candidates() -> None:
    log_p = torch.tensor([[0.25, 0.75]]).log()
    log_q = torch.tensor([[0.5, 0.5]]).log()
    by_hand = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert objectives.lsr_loss(log_p, log_q, Direction.P_Q).item() == pytest.approx(by_hand, abs=1e-7)
    by_hand = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert objectives.lsr_loss(log_p, log_q, Direction.Q_P).item() == pytest.approx(by_hand, abs=1e-7)


@pytest.mark.parametrize("direction", list(Direction))
def test_equal_distributions_have_no_loss_and_no_gradient(direction: Direction) -> None:
    similarity = torch.randn(3, 5, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    log_p = objectives.log_distribution(similarity, 0.1)
    loss = objectives.lsr_loss(log_p, log_p.detach(), direction)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert similarity.grad is not None
    assert similarity.grad.abs().max().item() < 1e-12


@pytest.mark.parametrize("direction", list(Direction))
def test_a_step_down_the_gradient_raises_what_the_lm_prefers(direction: Direction) -> None:
    similarity = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    log_q = objectives.log_distribution(torch.tensor([[0.0, 0.0, 3.0, 0.0]], dtype=torch.float64), 1.0)
    objectives.lsr_loss(objectives.log_distribution(similarity, 0.5), log_q, direction).backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 2] < 0
    assert (similarity.grad[0, [0, 1, 3]] > 0).all()


@pytest.mark.parametrize("direction", list(Direction))
def test_gradient_matches_finite_differences(direction: Direction) -> None:
    similarity = torch.randn(2, 4, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    log_q = random_log_distribution(2, 4)
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    log_q = objectives.log_distribution(log_q, 1.0, mask)
    torch.autograd.gradcheck(
        lambda values: objectives.lsr_loss(objectives.log_distribution(values, 0.3, mask), log_q, direction),
        similarity,
    )


@pytest.mark.parametrize("direction", list(Direction))
def test_a_masked_candidate_counts_in_neither_distribution(direction: Direction) -> None:
    similarity = torch.randn(2, 4, generator=GENERATOR, dtype=torch.float64)
    scores = torch.randn(2, 4, generator=GENERATOR, dtype=torch.float64)
    padded = [
        torch.cat([values, torch.full((2, 2), 1e3, dtype=torch.float64)], dim=1)
        for values in (similarity, scores)
    ]
    padded[0].requires_grad_()
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    loss = objectives.lsr_loss(
        objectives.log_distribution(padded[0], 0.2, mask),
        objectives.log_distribution(padded[1], 0.3, mask),
        direction,
    )
    plain = objectives.lsr_loss(
        objectives.log_distribution(similarity, 0.2), objectives.log_distribution(scores, 0.3), direction
    )
    loss.backward()
    assert loss.item() == pytest.approx(plain.item(), abs=1e-12)
    assert padded[0].grad is not None
    assert padded[0].grad.isfinite().all()
    assert (padded[0].grad[:, 4:] == 0).all()


def test_aggregations_by_hand() -> None:
    log_likelihood = torch.tensor([[-300.0, -290.0]], dtype=torch.float64)
    tokens, size = torch.tensor([128]), torch.tensor([500])

    def values(how: Aggregation) -> list[float]:
        return objectives.aggregate(log_likelihood, tokens, size, how)[0].tolist()

    assert values(Aggregation.SUM) == [-300.0, -290.0]
    assert values(Aggregation.MEAN) == pytest.approx([-2.34375, -2.265625])
    assert values(Aggregation.BYTE) == pytest.approx([-0.6, -0.58])
    assert values(Aggregation.PROBABILITY) == pytest.approx([math.exp(-300), math.exp(-290)])


def test_the_papers_own_formula_is_uniform_on_long_continuations_and_the_mean_is_not() -> None:
    log_likelihood = torch.tensor([[-300.0, -305.0, -310.0, -290.0]], dtype=torch.float64)
    tokens = torch.tensor([128])

    def target(how: Aggregation) -> list[float]:
        scores = objectives.aggregate(log_likelihood, tokens, tokens, how)
        return objectives.log_distribution(scores, 0.1).exp()[0].tolist()

    assert target(Aggregation.PROBABILITY) == pytest.approx([0.25] * 4, abs=1e-6)
    assert target(Aggregation.SUM) == pytest.approx([0, 0, 0, 1], abs=1e-6)
    assert target(Aggregation.MEAN) == pytest.approx([0.2318, 0.1569, 0.1061, 0.5052], abs=1e-3)


def test_entropy_of_uniform_and_one_hot() -> None:
    assert objectives.entropy(torch.full((1, 8), math.log(1 / 8))).item() == pytest.approx(math.log(8))
    one_hot = torch.tensor([[0.0, -math.inf, -math.inf]])
    assert objectives.entropy(one_hot).item() == 0.0


def test_spreading_to_the_batch_keeps_mass_and_leaves_others_at_zero() -> None:
    log_q = torch.tensor([[0.7, 0.3], [1.0, 0.0]], dtype=torch.float64).log()
    columns = torch.tensor([[2, 0], [1, -1]])
    spread = objectives.spread_to_batch(log_q, columns, 4).exp()
    assert spread.tolist() == [[pytest.approx(0.3), 0.0, pytest.approx(0.7), 0.0], [0.0, 1.0, 0.0, 0.0]]


def test_the_batch_as_denominator_pushes_other_queries_passages_down() -> None:
    similarity = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    log_q = objectives.spread_to_batch(
        torch.tensor([[0.5, 0.5]], dtype=torch.float64).log(), torch.tensor([[0, 1]]), 3
    )
    objectives.lsr_loss(objectives.log_distribution(similarity, 1.0), log_q, Direction.Q_P).backward()
    assert similarity.grad is not None
    assert similarity.grad[0, 2] > 0
    assert (similarity.grad[0, :2] < 0).all()


def test_an_infinite_divergence_is_refused() -> None:
    log_p = torch.tensor([[0.5, 0.5]]).log()
    log_q = torch.tensor([[1.0, 0.0]]).log()
    with pytest.raises(ValueError, match="q-p"):
        objectives.lsr_loss(log_p, log_q, Direction.P_Q)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_a_temperature_must_be_positive_and_finite(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        objectives.log_distribution(torch.zeros(1, 2), temperature)


def test_a_row_without_candidates_is_refused() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        objectives.log_distribution(torch.zeros(1, 2), 1.0, torch.zeros(1, 2, dtype=torch.bool))

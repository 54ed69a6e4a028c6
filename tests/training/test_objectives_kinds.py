"""Marginal, leave-one-out and InfoNCE: by hand, by an independent computation, and by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from replug_client.errors import OptionError
from replug_client.training import choices, objectives
from replug_client.training.choices import Aggregation, Denominator, Direction, Objective

GENERATOR = torch.Generator().manual_seed(11)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def test_the_marginal_by_hand() -> None:
    p = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    likelihood = torch.tensor([[0.5, 0.1], [0.3, 0.9]], dtype=torch.float64)
    expected = -(math.log(0.25 * 0.5 + 0.75 * 0.1) + math.log(0.3)) / 2
    assert objectives.marginal_loss(p.log(), likelihood.log()).item() == pytest.approx(expected, rel=1e-12)


def test_the_marginals_gradient_is_the_prior_minus_the_posterior() -> None:
    similarity = random(3, 5).requires_grad_()
    log_likelihood = random(3, 5)
    objectives.marginal_loss(objectives.log_distribution(similarity, 0.4), log_likelihood).backward()
    prior = torch.softmax(similarity.detach() / 0.4, -1)
    posterior = prior * log_likelihood.exp()
    posterior /= posterior.sum(-1, keepdim=True)
    assert similarity.grad is not None
    torch.testing.assert_close(similarity.grad, (prior - posterior) / 0.4 / 3)


def test_the_marginal_is_the_same_up_to_a_constant_under_likelihoods_and_under_q() -> None:
    similarity, log_likelihood = random(4, 6).requires_grad_(), 9 * random(4, 6) - 100
    log_q = objectives.log_distribution(log_likelihood, 1.0)
    log_p = objectives.log_distribution(similarity, 0.3)
    plain, of_q = (objectives.marginal_loss(log_p, weights) for weights in (log_likelihood, log_q))
    assert (plain - of_q).item() == pytest.approx(-log_likelihood.logsumexp(-1).mean().item())
    assert of_q.item() > 0
    first, second = (torch.autograd.grad(loss, similarity, retain_graph=True)[0] for loss in (plain, of_q))
    torch.testing.assert_close(first, second)


def test_the_marginals_gradient_matches_finite_differences_around_masked_candidates() -> None:
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    log_q = objectives.log_distribution(random(2, 4), 0.5, mask)
    torch.autograd.gradcheck(
        lambda values: objectives.marginal_loss(objectives.log_distribution(values, 0.3, mask), log_q),
        random(2, 4).requires_grad_(),
    )


def test_leaving_one_out_by_hand() -> None:
    likelihood = torch.tensor([[0.2, 0.3, 0.5, 7.0], [0.4, 7.0, 7.0, 0.1]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [True, False, False, True]])
    found = objectives.leave_one_out(likelihood.log(), mask)
    assert found[0].tolist() == pytest.approx([math.log(0.4), math.log(0.35), math.log(0.25), 0.0])
    assert found[1].tolist() == pytest.approx([math.log(0.1), 0.0, 0.0, math.log(0.4)])


def test_leaving_one_out_of_likelihoods_far_apart_keeps_the_small_ones() -> None:
    found = objectives.leave_one_out(torch.tensor([[-10.0, -500.0, -502.0]], dtype=torch.float64))
    second_and_third = -500 + math.log1p(math.exp(-2)) - math.log(2)
    assert found[0].tolist() == pytest.approx([second_and_third, -10 - math.log(2), -10 - math.log(2)])


def test_an_only_candidate_leaves_a_finite_score_behind() -> None:
    mask = torch.tensor([[False, True, False]])
    values = torch.tensor([[math.nan, -3.0, math.nan]], dtype=torch.float64)
    scores = objectives.target_scores(
        values, torch.tensor([4]), torch.tensor([9]), Aggregation.MEAN, Objective.LOOP, mask
    )
    assert scores[0, 1].item() == 0.0
    assert objectives.log_distribution(scores, 0.1, mask).exp().tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("how", "length"), [(Aggregation.SUM, 1), (Aggregation.MEAN, 4), (Aggregation.BYTE, 9)]
)
def test_a_loop_score_is_what_the_absence_costs(how: Aggregation, length: int) -> None:
    likelihood = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    scores = objectives.target_scores(
        likelihood.log(), torch.tensor([4]), torch.tensor([9]), how, Objective.LOOP
    )
    expected = [-math.log(left) / length for left in (0.4, 0.35, 0.25)]
    assert scores[0].tolist() == pytest.approx(expected)


# Two queries over five passages. The second's third candidate is missing; passages 1 and 3 are candidates of both.
COLUMNS = torch.tensor([[0, 1, 3], [3, 1, -1]])
BEST = torch.tensor([1, 0])


def test_info_nce_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.4, 0.1, 0.8, 0.3], [0.2, 0.7, 0.5, 0.6, 0.0]], dtype=torch.float64)
    tau = 0.2
    # Against the best stand only passages that are no candidates of the query: 2 and 4, then 0, 2 and 4.
    losses = [
        -0.4 / tau + math.log(sum(math.exp(value / tau) for value in (0.4, 0.1, 0.3))),
        -0.6 / tau + math.log(sum(math.exp(value / tau) for value in (0.6, 0.2, 0.5, 0.0))),
    ]
    found = objectives.info_nce(similarity, COLUMNS, BEST, tau)
    assert found.item() == pytest.approx(sum(losses) / 2, rel=1e-12)


def test_a_query_own_candidates_are_no_negatives() -> None:
    similarity = random(2, 5).requires_grad_()
    objectives.info_nce(similarity, COLUMNS, BEST, 0.2).backward()
    assert similarity.grad is not None
    signs = similarity.grad.sign().tolist()
    assert signs == [[0, -1, 1, 0, 1], [1, 0, 1, -1, 1]]


def test_info_nce_gradient_matches_finite_differences() -> None:
    torch.autograd.gradcheck(
        lambda values: objectives.info_nce(values, COLUMNS, BEST, 0.3), random(2, 5).requires_grad_()
    )


def test_a_batch_without_other_passages_has_no_negatives_and_no_gradient() -> None:
    similarity = random(1, 3).requires_grad_()
    loss = objectives.info_nce(similarity, torch.tensor([[2, 0, 1]]), torch.tensor([0]), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert similarity.grad is not None and (similarity.grad == 0).all()


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (Objective.LSR, Direction.P_Q),
        (Objective.PDIST, Direction.Q_P),
        (Objective.MARGINAL, Direction.Q_P),
        (Objective.LOOP, Direction.Q_P),
    ],
)
def test_each_objective_has_its_sources_direction(objective: Objective, expected: Direction) -> None:
    assert choices.direction_of(objective, None) is expected


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"objective": Objective.PDIST, "kl": Direction.P_Q}, "--objective pdist.*leave --kl out"),
        ({"objective": Objective.MARGINAL, "kl": Direction.P_Q}, "--objective marginal.*leave --kl out"),
        ({"objective": Objective.MARGINAL, "score": Aggregation.PROBABILITY}, "--score mean"),
        ({"objective": Objective.LOOP, "score": Aggregation.PROBABILITY}, "--score mean"),
        ({"denominator": Denominator.BATCH}, "--kl q-p"),
        ({"objective": Objective.LOOP, "kl": Direction.P_Q, "denominator": Denominator.BATCH}, "--kl q-p"),
        ({"contrastive": -0.5}, "--contrastive_weight -0.5"),
        ({"contrastive": math.inf}, "--contrastive_weight inf"),
        ({"contrastive": math.nan}, "--contrastive_weight nan"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, object], found: str) -> None:
    options: dict[str, object] = {
        "objective": Objective.LSR,
        "score": Aggregation.MEAN,
        "kl": None,
        "denominator": Denominator.CANDIDATES,
        "contrastive": 0.0,
    }
    with pytest.raises(OptionError, match=found):
        choices.check_objective(**(options | given))  # type: ignore[arg-type]

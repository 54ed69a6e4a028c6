"""Every objective through the loss, from labels: held against plain Python, and against finite differences."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from replug_client.errors import OptionError
from replug_client.training.choices import Aggregation, Denominator, Direction, Objective
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from tests.training.test_loss import (
    BETA,
    COLUMNS,
    GAMMA,
    LABELS,
    LOG_LIKELIHOODS,
    SIMILARITY,
    TOKENS,
    softmax,
)

WEIGHT = 0.7
Kind = tuple[Objective, Direction | None, Denominator]
KINDS: list[Kind] = [
    (Objective.LSR, Direction.P_Q, Denominator.CANDIDATES),
    (Objective.LSR, Direction.Q_P, Denominator.BATCH),
    (Objective.PDIST, None, Denominator.CANDIDATES),
    (Objective.PDIST, None, Denominator.BATCH),
    (Objective.MARGINAL, None, Denominator.CANDIDATES),
    (Objective.MARGINAL, None, Denominator.BATCH),
    (Objective.LOOP, None, Denominator.CANDIDATES),
    (Objective.LOOP, Direction.P_Q, Denominator.CANDIDATES),
    (Objective.LOOP, None, Denominator.BATCH),
]
CASES = list(itertools.product(KINDS, [0.0, WEIGHT]))


def loss_of(kind: Kind, contrastive: float = 0.0) -> LSRLoss:
    objective, direction, denominator = kind
    options = ObjectiveOptions(
        GAMMA, BETA, Aggregation.MEAN, direction, denominator, objective, contrastive_weight=contrastive
    )
    return LSRLoss(torch.nn.Identity(), options)  # type: ignore[arg-type]


def by_hand(kind: Kind, contrastive: float) -> float:
    objective, direction, denominator = kind
    total = 0.0
    for line, (columns, values) in enumerate(zip(COLUMNS, LOG_LIKELIHOODS, strict=True)):
        own = {column: value for column, value in zip(columns, values, strict=True) if column >= 0}
        scores = {column: value / TOKENS[line] for column, value in own.items()}
        if objective is Objective.LOOP:
            for left_out in own:
                others = [math.exp(value) for column, value in own.items() if column != left_out]
                cost = -math.log(sum(others) / len(others)) if others else 0.0
                scores[left_out] = cost / TOKENS[line]
        q = softmax(scores, BETA)
        shared = range(5) if denominator is Denominator.BATCH else own
        p = softmax({column: SIMILARITY[line][column] for column in shared}, GAMMA)
        if objective is Objective.MARGINAL:
            total -= math.log(sum(p[column] * q[column] for column in q))
        elif direction is Direction.P_Q:
            total += sum(p[column] * math.log(p[column] / q[column]) for column in p)
        else:
            total += sum(q[column] * math.log(q[column] / p[column]) for column in q)
        best = max(own, key=lambda column: own[column])
        against = [column for column in range(5) if column == best or column not in own]
        total -= contrastive * math.log(softmax({c: SIMILARITY[line][c] for c in against}, GAMMA)[best])
    return total / len(COLUMNS)


@pytest.mark.parametrize(("kind", "contrastive"), CASES)
def test_the_loss_is_what_plain_python_computes(kind: Kind, contrastive: float) -> None:
    similarity = torch.tensor(SIMILARITY, dtype=torch.float64)
    found = loss_of(kind, contrastive).from_similarity(similarity, LABELS)
    assert found.item() == pytest.approx(by_hand(kind, contrastive), rel=1e-9)


@pytest.mark.parametrize(("kind", "contrastive"), CASES)
def test_the_gradient_matches_finite_differences(kind: Kind, contrastive: float) -> None:
    loss = loss_of(kind, contrastive)
    similarity = torch.tensor(SIMILARITY, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda values: loss.from_similarity(values, LABELS), similarity)


@pytest.mark.parametrize(("kind", "contrastive"), CASES)
@pytest.mark.parametrize("failure", [math.nan, -math.inf])
def test_a_candidate_whose_scoring_failed_is_left_out_of_p_and_q_alike(
    kind: Kind, contrastive: float, failure: float
) -> None:
    failed, absent = LABELS.clone(), LABELS.clone()
    failed[1, 0, 0] = failure  # the second query's passage 4, which no other query has
    absent[1, 0, 3] = -1
    # Where it is only absent, passage 4 is one of the batch's others: so take it out of the batch as well.
    seen = torch.ones(3, 5, dtype=torch.bool)
    seen[1, 4] = False
    similarity = torch.tensor(SIMILARITY, dtype=torch.float64)
    gone = similarity.masked_fill(~seen, -1e9).requires_grad_()
    expected = loss_of(kind, contrastive).from_similarity(gone, absent)
    similarity.requires_grad_()
    loss = loss_of(kind, contrastive)
    found = loss.from_similarity(similarity, failed)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    found.backward()
    expected.backward()
    assert similarity.grad is not None and gone.grad is not None
    torch.testing.assert_close(similarity.grad, gone.grad)
    assert similarity.grad[1, 4] == 0
    assert loss.last["mask"][1].tolist() == [False, True, True]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_down_the_gradient_bring_p_towards_what_the_lm_prefers(kind: Kind) -> None:
    similarity = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    loss = loss_of(kind)

    def expected_score() -> float:
        p, scores = (
            loss.last["log_p"].exp()[:2],
            loss.last["scores"][:2].masked_fill(~loss.last["mask"][:2], 0),
        )
        return float((p * scores).sum())

    values: list[Tensor] = [loss.from_similarity(similarity, LABELS)]
    before = expected_score()
    for _ in range(20):
        gradient = torch.autograd.grad(values[-1], similarity)[0]
        similarity = (similarity - 0.02 * gradient).detach().requires_grad_()
        values.append(loss.from_similarity(similarity, LABELS))
    assert values[-1] < values[0]
    assert expected_score() > before


def test_the_contrastive_part_is_kept_for_the_log() -> None:
    similarity = torch.tensor(SIMILARITY, dtype=torch.float64)
    plain, both = loss_of(KINDS[0]), loss_of(KINDS[0], WEIGHT)
    alone = plain.from_similarity(similarity, LABELS)
    together = both.from_similarity(similarity, LABELS)
    assert "contrastive" not in plain.last
    assert (together - alone).item() == pytest.approx(WEIGHT * both.last["contrastive"].item())


@pytest.mark.parametrize("objective", list(Objective))
def test_the_citation_names_the_method_and_the_objectives_source(objective: Objective) -> None:
    citation = loss_of((objective, None, Denominator.CANDIDATES)).citation
    assert "shi2023replug" in citation
    assert ("izacard2022atlas" in citation) == (objective in (Objective.PDIST, Objective.LOOP))
    assert ("sachan2021endtoend" in citation) == (objective is Objective.MARGINAL)


def test_the_direction_is_the_objectives_own_where_none_is_given() -> None:
    assert ObjectiveOptions().kl is Direction.P_Q
    assert ObjectiveOptions(objective=Objective.LOOP).kl is Direction.Q_P
    with pytest.raises(OptionError, match="leave --kl out"):
        ObjectiveOptions(objective=Objective.PDIST, kl=Direction.P_Q)

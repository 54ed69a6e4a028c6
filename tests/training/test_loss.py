"""The loss from labels, held against a computation in plain Python that shares no code with it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from replug_client.retriever.encoder import EncoderOptions, load_encoder
from replug_client.training.choices import Aggregation, Denominator, Direction
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from tests.retriever.tiny import saved_encoder

# Three queries over five passages; candidates by column, -1 where there is none.
COLUMNS = [[0, 3, -1], [4, 1, 2], [2, -1, -1]]
LOG_LIKELIHOODS = [[-3.0, -5.0, 99.0], [-2.0, -2.5, -6.0], [-4.0, 99.0, 99.0]]
TOKENS, BYTES = [4, 2, 8], [10, 7, 30]
SIMILARITY = [
    [0.9, 0.1, 0.3, 0.5, -0.2],
    [0.2, 0.4, 0.8, 0.1, 0.6],
    [0.7, 0.3, 0.5, 0.2, 0.1],
]
LABELS = torch.tensor(
    [
        [[value, tokens, size, column] for value, column in zip(values, columns, strict=True)]
        for values, tokens, size, columns in zip(LOG_LIKELIHOODS, TOKENS, BYTES, COLUMNS, strict=True)
    ],
    dtype=torch.float64,
)
GAMMA, BETA = 0.3, 0.7


def softmax(values: dict[int, float], temperature: float) -> dict[int, float]:
    powers = {key: math.exp(value / temperature) for key, value in values.items()}
    total = sum(powers.values())
    return {key: power / total for key, power in powers.items()}


def by_hand(how: Aggregation, direction: Direction, denominator: Denominator) -> float:
    losses = []
    for line, columns in enumerate(COLUMNS):
        scores = {}
        for place, column in enumerate(columns):
            if column >= 0:
                log_likelihood = LOG_LIKELIHOODS[line][place]
                scores[column] = {
                    Aggregation.MEAN: log_likelihood / TOKENS[line],
                    Aggregation.SUM: log_likelihood,
                    Aggregation.BYTE: log_likelihood / BYTES[line],
                    Aggregation.PROBABILITY: math.exp(log_likelihood),
                }[how]
        q = softmax(scores, BETA)
        shared = range(5) if denominator is Denominator.BATCH else scores
        p = softmax({column: SIMILARITY[line][column] for column in shared}, GAMMA)
        if direction is Direction.P_Q:
            losses.append(sum(p[column] * math.log(p[column] / q[column]) for column in p))
        else:
            losses.append(sum(q[column] * math.log(q[column] / p[column]) for column in q))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("how", list(Aggregation))
@pytest.mark.parametrize(
    ("direction", "denominator"),
    [
        (Direction.P_Q, Denominator.CANDIDATES),
        (Direction.Q_P, Denominator.CANDIDATES),
        (Direction.Q_P, Denominator.BATCH),
    ],
)
def test_the_loss_is_what_plain_python_computes(
    how: Aggregation, direction: Direction, denominator: Denominator
) -> None:
    options = ObjectiveOptions(GAMMA, BETA, how, direction, denominator)
    loss = LSRLoss(torch.nn.Identity(), options)  # type: ignore[arg-type]
    similarity = torch.tensor(SIMILARITY, dtype=torch.float64, requires_grad=True)
    value = loss.from_similarity(similarity, LABELS)
    assert value.item() == pytest.approx(by_hand(how, direction, denominator), rel=1e-9)
    value.backward()
    assert similarity.grad is not None and similarity.grad.isfinite().all()
    touched = similarity.grad != 0
    if denominator is Denominator.BATCH:
        assert touched.all()
    else:
        expected = [[column in own for column in range(5)] for own in COLUMNS[:2]]
        assert touched[:2].tolist() == expected
        assert not touched[2].any(), "a single candidate teaches nothing"


def test_what_the_diagnosis_reads_is_masked_alike() -> None:
    loss = LSRLoss(torch.nn.Identity(), ObjectiveOptions(GAMMA, BETA))  # type: ignore[arg-type]
    loss.from_similarity(torch.tensor(SIMILARITY), LABELS)
    mask = torch.tensor(COLUMNS) >= 0
    assert torch.equal(loss.last["mask"], mask)
    for name in ("log_p", "log_q"):
        assert (loss.last[name].exp()[~mask] == 0).all()
        torch.testing.assert_close(loss.last[name].exp().sum(-1), torch.ones(3))
        assert not loss.last[name].requires_grad


@pytest.mark.parametrize("frozen", [True, False])
def test_from_features_it_is_the_dot_product_of_the_models_vectors(frozen: bool, tmp_path: Path) -> None:
    model = load_encoder(EncoderOptions(str(saved_encoder(tmp_path / "encoder")), device="cpu"))
    texts = [f"word{number} word{number + 9}" for number in range(5)]
    queries = ["word1", "word2 word3", "word4"]
    vectors = torch.from_numpy(model.encode_document(texts))
    passages = {"sentence_embedding": vectors} if frozen else dict(model.preprocess(texts))
    loss = LSRLoss(model, ObjectiveOptions(GAMMA, BETA))
    value = loss([dict(model.preprocess(queries)), passages], LABELS)
    similarity = np.asarray(model.encode_query(queries)) @ vectors.numpy().T
    other = LSRLoss(model, ObjectiveOptions(GAMMA, BETA)).from_similarity(torch.tensor(similarity), LABELS)
    assert value.item() == pytest.approx(other.item(), abs=1e-5)
    value.backward()
    assert any(
        parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters()
    )


def test_p_over_the_batch_needs_the_direction_q_p() -> None:
    with pytest.raises(ValueError, match="q-p"):
        ObjectiveOptions(denominator=Denominator.BATCH)

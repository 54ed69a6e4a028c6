"""The temperatures of P and Q for a run: as given, or calibrated on the first candidates."""

from __future__ import annotations

import logging

import numpy as np
import torch

from replug_client.retriever.encoder import encode_queries
from replug_client.training.calibration import comparable, normalised_entropy, temperature_for_entropy
from replug_client.training.candidates import NO_PASSAGE, Rows
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.objectives import Aggregation, log_distribution, target_scores
from replug_client.training.options import TrainOptions
from replug_client.training.prepare import Prepared

logger = logging.getLogger(__name__)

_CALIBRATION_EXAMPLES = 128
_UNITS = {
    Aggregation.MEAN: "nats per token",
    Aggregation.SUM: "nats",
    Aggregation.BYTE: "nats per byte",
    Aggregation.PROBABILITY: "of probability",
}


def calibrate(options: TrainOptions, prepared: Prepared) -> ObjectiveOptions:
    """Fix the temperatures: as given, or (auto) from the scores of a sample of the first candidates.

    Beta comes first: it gives Q the entropy that was asked for. Then gamma: it gives P under the base the
    entropy of Q. What was chosen is logged with the figures that it was chosen by.
    """
    target = options.target
    gold, score = target.temperature_gold, target.temperature_score
    if gold is None or score is None:
        numbers = prepared.schedule(options.steps).epoch(0).reshape(-1)[:_CALIBRATION_EXAMPLES]
        similarity, values, mask = scored_candidates(options, prepared, numbers)
        if gold is None:
            chosen = temperature_for_entropy(values, target.gold_entropy, mask)
            gold = chosen.temperature
            logger.info(
                "temperature_gold = %.4g (auto): the scores of one query's candidates differ by %.3g %s (median "
                "standard deviation of %d examples), so Q's median entropy is %.2f of log K, as --gold_entropy %g "
                "asks; the middle half of the examples lies between %.2f and %.2f",
                *(gold, chosen.spread, _UNITS[target.score], chosen.examples),
                *(chosen.entropy, target.gold_entropy, *chosen.quartiles),
            )
        if score is None:
            score = _matching_temperature(similarity, values, gold, mask)
    return ObjectiveOptions(
        temperature_score=score,
        temperature_gold=gold,
        score=target.score,
        kl=target.kl,
        denominator=target.denominator,
        objective=target.objective,
        contrastive_weight=target.contrastive_weight,
    )


def _matching_temperature(
    similarity: torch.Tensor, values: torch.Tensor, gold: float, mask: torch.Tensor
) -> float:
    """Gamma at which P under the base is as flat as Q, so that the KL does not begin by flattening P."""
    compared, own = comparable(values, mask)
    q_entropy = float(normalised_entropy(log_distribution(compared, gold, own), own).median())
    chosen = temperature_for_entropy(similarity, min(max(q_entropy, 0.05), 0.95), mask)
    logger.info(
        "temperature_score = %.4g (auto): one query's similarities differ by %.3g (median standard deviation), so P's "
        "median entropy under the base is %.2f of log K; Q's is %.2f, and a P much sharper than Q would begin by "
        "unlearning its order",
        *(chosen.temperature, chosen.spread, chosen.entropy, q_entropy),
    )
    return chosen.temperature


def scored_candidates(
    options: TrainOptions, prepared: Prepared, numbers: Rows
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The base's candidates of the ``(n,)`` numbered training examples, scored.

    Returns:
        Similarities under the base, the scores that Q is made of, and where there is a candidate at all: each
        ``(n, K)``, the first two float64.
    """
    examples = [prepared.sets.train[number] for number in numbers]
    vectors = encode_queries(prepared.base, [example.query for example in examples])
    rows = prepared.miner.mine(vectors, [example.query for example in examples], numbers)
    rows = prepared.processes.same(rows)
    mask = rows != NO_PASSAGE
    log_likelihoods = prepared.log_likelihoods(numbers, rows)
    passages = prepared.index.vectors(np.where(mask, rows, prepared.indexed[0]))
    values = target_scores(
        torch.from_numpy(log_likelihoods),
        torch.tensor([len(example.continuation_ids) for example in examples]),
        torch.tensor([example.num_bytes for example in examples]),
        options.target.score,
        options.target.objective,
        torch.from_numpy(mask),
    )
    return (
        torch.from_numpy(np.einsum("nd,nkd->nk", vectors, passages)).double(),
        values,
        torch.from_numpy(mask),
    )

"""The temperatures of P and Q for a run: as given, or calibrated on the first candidates."""

from __future__ import annotations

import logging

import numpy as np
import torch

from replug_client.retriever.encoder import encode_queries
from replug_client.training.calibration import normalised_entropy, temperature_for_entropy
from replug_client.training.candidates import NO_PASSAGE
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.objectives import aggregate, log_distribution
from replug_client.training.options import TrainOptions
from replug_client.training.prepare import Prepared

logger = logging.getLogger(__name__)

_CALIBRATION_EXAMPLES = 128


def calibrate(options: TrainOptions, prepared: Prepared) -> ObjectiveOptions:
    """Fix the temperatures: as given, or from the scores of a sample of the first candidates."""
    target = options.target
    gold, score = target.temperature_gold, target.temperature_score
    if gold is None or score is None:
        similarity, values, mask = _sample_candidates(options, prepared)
        if gold is None:
            chosen = temperature_for_entropy(values, target.gold_entropy, mask)
            gold = chosen.temperature
            logger.info(
                "temperature_gold = %.4g: Q's median entropy is %.2f of log K on %d examples",
                gold,
                chosen.entropy,
                chosen.examples,
            )
        if score is None:
            score = _matching_temperature(similarity, values, gold, mask)
    return ObjectiveOptions(score, gold, target.score, target.kl, target.denominator)


def _matching_temperature(
    similarity: torch.Tensor, values: torch.Tensor, gold: float, mask: torch.Tensor
) -> float:
    """Gamma at which P under the base is as flat as Q, so that the KL does not begin by flattening P."""
    q_entropy = float(normalised_entropy(log_distribution(values, gold, mask), mask).median())
    chosen = temperature_for_entropy(similarity, min(max(q_entropy, 0.05), 0.95), mask)
    logger.info(
        "temperature_score = %.4g: P's median entropy under the base is %.2f of log K, as Q's is",
        chosen.temperature,
        chosen.entropy,
    )
    return chosen.temperature


def _sample_candidates(
    options: TrainOptions, prepared: Prepared
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Similarities, aggregated scores and mask, each ``(examples, K)``, of the first examples' candidates."""
    numbers = prepared.schedule(options.steps).epoch(0).reshape(-1)[:_CALIBRATION_EXAMPLES]
    examples = [prepared.sets.train[number] for number in numbers]
    vectors = encode_queries(prepared.base, [example.query for example in examples])
    rows = prepared.miner.mine(vectors, [example.query for example in examples], numbers)
    mask = rows != NO_PASSAGE
    log_likelihoods = prepared.log_likelihoods(numbers, rows)
    passages = prepared.index.vectors(np.where(mask, rows, prepared.indexed[0]))
    values = aggregate(
        torch.from_numpy(log_likelihoods),
        torch.tensor([len(example.continuation_ids) for example in examples]),
        torch.tensor([example.num_bytes for example in examples]),
        options.target.score,
    )
    return (
        torch.from_numpy(np.einsum("nd,nkd->nk", vectors, passages)).double(),
        values,
        torch.from_numpy(mask),
    )

"""What a training step says about itself: signal in Q, shape of P, agreement of the two."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import torch
from torch import Tensor

from replug_client.training.calibration import normalised_entropy
from replug_client.training.distributed import ALONE, Processes

UNIFORM_ABOVE = 0.99
ONE_HOT_ABOVE = 0.99


def batch_diagnostics(last: dict[str, Tensor]) -> dict[str, float]:
    """Figures of one batch, from what :class:`LSRLoss` leaves in ``last``.

    Returns:
        ``p_entropy``, ``q_entropy``: mean normalised entropy (1 is uniform, of log K);
        ``uniform_targets``, ``one_hot_targets``: shares of examples whose Q says nothing, or names one passage
        only; ``rank_correlation``: mean Spearman correlation of P's order with Q's (ties by average rank;
        examples without any order are left out); ``expected_score``: mean over examples of the score expected
        under P minus the candidates' mean score, in the score's own unit. All of it over the examples with at
        least two candidates; one alone has nothing to agree or disagree with. ``contrastive_loss`` and
        ``isotropy_loss``: the parts of the loss that were added to the objective, before their weight.
    """
    parts = {f"{name}_loss": float(last[name]) for name in ("contrastive", "isotropy") if name in last}
    compared = last["mask"].sum(-1) >= 2
    if not bool(compared.any()):
        return parts
    mask, log_p, log_q = (last[name][compared] for name in ("mask", "log_p", "log_q"))
    q_entropy = normalised_entropy(log_q, mask)
    correlations = rank_correlation(log_p, log_q, mask)
    defined = correlations.isfinite()
    scores = last["scores"][compared].masked_fill(~mask, 0.0)
    mean_score = scores.sum(-1) / mask.sum(-1)
    expected = (log_p.double().exp() * scores).sum(-1)
    figures = {
        "p_entropy": normalised_entropy(log_p, mask).mean(),
        "q_entropy": q_entropy.mean(),
        "uniform_targets": (q_entropy > UNIFORM_ABOVE).double().mean(),
        "one_hot_targets": (log_q.exp().amax(-1) > ONE_HOT_ABOVE).double().mean(),
        "expected_score": (expected - mean_score).mean(),
        "rank_correlation": correlations[defined].mean(),  # of none of them: not a number
    }
    # Together, since each number that is read by itself waits for the device.
    values = torch.stack([value.double() for value in figures.values()]).tolist()
    found = dict(zip(figures, values, strict=True))
    if math.isnan(found["rank_correlation"]):
        del found["rank_correlation"]
    return found | parts


def rank_correlation(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Spearman's rho of the rows of two ``(..., K)`` tensors, ties by average rank.

    Args:
        first: ``(..., K)``.
        second: ``(..., K)``.
        mask: ``(..., K)`` bool: what counts; None counts everything.

    Returns:
        ``(...)`` float64; not a number where one of the two is constant.
    """
    mask = torch.ones_like(first, dtype=torch.bool) if mask is None else mask
    count = mask.sum(-1, keepdim=True)
    a, b = (average_ranks(values, mask).masked_fill(~mask, 0.0) for values in (first, second))
    a, b = ((ranks - ranks.sum(-1, keepdim=True) / count).masked_fill(~mask, 0.0) for ranks in (a, b))
    norms: Tensor = a.square().sum(-1).sqrt() * b.square().sum(-1).sqrt()
    return (a * b).sum(-1) / norms


def average_ranks(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """``(..., K)`` float64 ranks from 0 within each row, equal values sharing the mean of their ranks.

    Only the values of the ``(..., K)`` mask are counted; what stands elsewhere means nothing.
    """
    counted = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    own, other, counted = values.unsqueeze(-1), values.unsqueeze(-2), counted.unsqueeze(-2)
    below, equal = (((other < own) & counted).sum(-1), ((other == own) & counted).sum(-1))
    return below.double() + (equal.double() - 1) / 2


class RunningMeans:
    """Means of figures since they were last read."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, figures: dict[str, float]) -> None:
        """Count one set of figures in."""
        for name, value in figures.items():
            self._sums[name] += value
            self._counts[name] += 1

    def flush(self, processes: Processes = ALONE) -> dict[str, float]:
        """The means over all processes, and a fresh start."""
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, int] = defaultdict(int)
        for other_sums, other_counts in processes.each((dict(self._sums), dict(self._counts))):
            for name, value in other_sums.items():
                sums[name] += value
                counts[name] += other_counts[name]
        means = {name: sums[name] / counts[name] for name in sums}
        self._sums.clear()
        self._counts.clear()
        return means


def unique_share(rows: np.ndarray, passages: int | None = None) -> float:
    """Share of distinct passages among the first passages of many queries: near 0 means collapse.

    Args:
        rows: Corpus rows of the first passages, of any shape.
        passages: Size of the corpus, where known: of more queries than that, no more can be distinct.
    """
    flat = rows.reshape(-1)
    most = len(flat) if passages is None else min(len(flat), passages)
    return float(len(np.unique(flat)) / max(1, most))

"""What a training step says about itself: signal in Q, shape of P, agreement of the two."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
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
    correlations = [
        rank_correlation(own_p[own], own_q[own]) for own_p, own_q, own in zip(log_p, log_q, mask, strict=True)
    ]
    defined = [value for value in correlations if value is not None]
    scores = last["scores"][compared].masked_fill(~mask, 0.0)
    mean_score = scores.sum(-1) / mask.sum(-1)
    expected = (log_p.double().exp() * scores).sum(-1)
    figures = {
        "p_entropy": float(normalised_entropy(log_p, mask).mean()),
        "q_entropy": float(q_entropy.mean()),
        "uniform_targets": float((q_entropy > UNIFORM_ABOVE).double().mean()),
        "one_hot_targets": float((log_q.exp().amax(-1) > ONE_HOT_ABOVE).double().mean()),
        "expected_score": float((expected - mean_score).mean()),
    }
    if defined:
        figures["rank_correlation"] = float(np.mean(defined))
    return figures | parts


def rank_correlation(first: Tensor, second: Tensor) -> float | None:
    """Spearman's rho of two ``(K,)`` tensors, ties by average rank; None where one of them is constant."""
    a, b = average_ranks(first), average_ranks(second)
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else None


def average_ranks(values: Tensor) -> Tensor:
    """``(K,)`` ranks from 0, equal values sharing the mean of their ranks."""
    below = (values.unsqueeze(0) < values.unsqueeze(1)).sum(1)
    equal = (values.unsqueeze(0) == values.unsqueeze(1)).sum(1)
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


def unique_share(rows: np.ndarray) -> float:
    """Share of distinct passages among the first passages of many queries: near 0 means collapse."""
    flat = rows.reshape(-1)
    return float(len(np.unique(flat)) / max(1, len(flat)))

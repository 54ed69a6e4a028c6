"""Choosing the temperatures from the scores themselves.

The REPLUG paper sets gamma = beta = 0.1. Whether that leaves Q uniform or makes it one-hot depends on the
aggregation, the LM and the length of the continuation; and when P is much sharper than Q, the first thing
that any KL does is to flatten P, which destroys the order over the whole index while the loss falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from replug_client.errors import OptionError
from replug_client.training.objectives import entropy, log_distribution

_LOWEST, _HIGHEST = 1e-6, 1e6
_STEPS = 80


@dataclass(frozen=True, slots=True)
class Calibration:
    """A chosen temperature, with the entropy that it gives on the sample.

    Attributes:
        temperature: The temperature.
        entropy: Median normalised entropy (0 to 1, of log K) that it gives on the sample.
        quartiles: Between these lies the entropy of the middle half of the examples.
        target: Normalised entropy that was asked for.
        spread: Median standard deviation of an example's values, in their own unit.
        examples: Number of examples that it was chosen on: those with at least two candidates.
    """

    temperature: float
    entropy: float
    quartiles: tuple[float, float]
    target: float
    spread: float
    examples: int


def normalised_entropy(log_probabilities: Tensor, mask: Tensor | None = None) -> Tensor:
    """Entropy of each row divided by the log of its number of candidates: 1 is uniform, 0 is one-hot.

    Args:
        log_probabilities: ``(batch, K)``.
        mask: ``(batch, K)`` bool; rows with a single candidate give 0.

    Returns:
        ``(batch,)``.
    """
    count = log_probabilities.shape[-1] if mask is None else mask.sum(dim=-1)
    count = torch.as_tensor(count, dtype=log_probabilities.dtype)
    return entropy(log_probabilities) / count.clamp(min=2).log()


def temperature_for_entropy(values: Tensor, target: float, mask: Tensor | None = None) -> Calibration:
    """Find the temperature at which softmax(values / t) has a median normalised entropy of ``target``.

    The entropy of a softmax rises with its temperature, so bisection (in the logarithm) finds it.

    Args:
        values: ``(examples, K)`` scores or similarities of a sample; those that are not finite are left out.
        target: Between 0 and 1, both excluded.
        mask: ``(examples, K)`` bool; the number of candidates may differ from line to line.

    Raises:
        ValueError: target outside (0, 1), or no examples.
        OptionError: values so equal that no temperature reaches it, or no example with two candidates.
    """
    if not 0 < target < 1:
        raise ValueError(
            f"target entropy is {target}; expected a fraction of log K between 0 and 1, both excluded"
        )
    if values.numel() == 0:
        raise ValueError("no scores to calibrate on; expected at least one example")
    values, mask = comparable(values.double(), mask)

    def entropies(temperature: float) -> Tensor:
        return normalised_entropy(log_distribution(values, temperature, mask), mask)

    temperature = _bisect(lambda tried: float(entropies(tried).median()), target)
    found = entropies(temperature)
    reached = float(found.median())
    if abs(reached - target) > 0.05:
        raise OptionError(
            f"no temperature gives an entropy of {target:.2f}; the nearest is {reached:.2f} at {temperature:.3g}. "
            "Most candidates have equal scores: set --temperature_gold and --temperature_score by hand, "
            "and look whether the supervisor sees the passages at all (replug score --with_tokens)."
        )
    low, high = (float(found.quantile(share)) for share in (0.25, 0.75))
    return Calibration(temperature, reached, (low, high), target, _median_spread(values, mask), len(values))


def comparable(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The lines with at least two candidates, and their mask: one alone has entropy 0 at any temperature.

    A value that is not finite (scoring failed) is no candidate, with a mask and without.

    Raises:
        OptionError: there is no such line.
    """
    mask = values.isfinite() if mask is None else mask & values.isfinite()
    kept = mask.sum(dim=-1) >= 2
    if not bool(kept.any()):
        raise OptionError(
            f"none of {len(values)} examples has two candidates to compare; raise --n_docs, --bm25_docs or "
            "--random_docs, or look whether the index holds all passages"
        )
    return values[kept], mask[kept]


def _median_spread(values: Tensor, mask: Tensor) -> float:
    """Median over the lines of the standard deviation of a line's values (those of the mask)."""
    count = mask.sum(dim=-1)
    mean = values.masked_fill(~mask, 0.0).sum(dim=-1) / count
    squares = (values - mean.unsqueeze(-1)).masked_fill(~mask, 0.0).square().sum(dim=-1)
    return float((squares / count).sqrt().median())


def _bisect(function: Callable[[float], float], target: float) -> float:
    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(math.exp(middle)) < target else (low, middle)
    return math.exp((low + high) / 2)

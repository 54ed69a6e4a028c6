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
        entropy: Normalised entropy (0 to 1, of log K) that it gives on the sample.
        target: Normalised entropy that was asked for.
        examples: Number of examples in the sample.
    """

    temperature: float
    entropy: float
    target: float
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
        values: ``(examples, K)`` scores or similarities of a sample.
        target: Between 0 and 1, both excluded.
        mask: ``(examples, K)`` bool.

    Raises:
        ValueError: target outside (0, 1), or no examples.
        OptionError: values so equal that no temperature reaches it.
    """
    if not 0 < target < 1:
        raise ValueError(
            f"target entropy is {target}; expected a fraction of log K between 0 and 1, both excluded"
        )
    if values.numel() == 0:
        raise ValueError("no scores to calibrate on; expected at least one example")
    values = values.double()

    def median_entropy(temperature: float) -> float:
        return float(normalised_entropy(log_distribution(values, temperature, mask), mask).median())

    temperature = _bisect(median_entropy, target)
    reached = median_entropy(temperature)
    if abs(reached - target) > 0.05:
        raise OptionError(
            f"no temperature gives an entropy of {target:.2f}; the nearest is {reached:.2f} at {temperature:.3g}. "
            "Most candidates have equal scores: set --temperature_gold and --temperature_score by hand, "
            "and look whether the supervisor sees the passages at all (replug score --with_tokens)."
        )
    return Calibration(temperature, reached, target, len(values))


def _bisect(function: Callable[[float], float], target: float) -> float:
    low, high = math.log(_LOWEST), math.log(_HIGHEST)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(math.exp(middle)) < target else (low, middle)
    return math.exp((low + high) / 2)

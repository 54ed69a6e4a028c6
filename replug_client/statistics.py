"""Bits per byte; how sure a paired difference is: bootstrap intervals, randomisation tests, several comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Resampled sums are made in blocks of at most this many drawn units, so that memory stays small.
_UNITS_PER_BLOCK = 1 << 22


def bits_per_byte(nll_nats: npt.ArrayLike, num_bytes: npt.ArrayLike) -> float:
    """Bits that the LM needs per byte of text: ``sum(nll) / (ln 2 * sum(bytes))``.

    A ratio of sums, so a long continuation counts for its length, and models with different
    tokenizers compare (Gao et al. 2020, The Pile, section 3.1).

    Args:
        nll_nats: ``(n,)`` negative summed log-likelihood of each continuation, in nats.
        num_bytes: ``(n,)`` its length in UTF-8 bytes.

    Raises:
        ValueError: unequal lengths, nothing to sum, a value that is not finite, or no bytes.
    """
    nll = np.asarray(nll_nats, dtype=np.float64)
    size = np.asarray(num_bytes, dtype=np.float64)
    if nll.ndim != 1 or nll.shape != size.shape or len(nll) == 0:
        raise ValueError(
            f"expected two vectors of one length of at least 1, found shapes {nll.shape} and {size.shape}"
        )
    if not np.isfinite(nll).all():
        raise ValueError("every log-likelihood must be finite, found NaN or infinity")
    if not (np.isfinite(size) & (size > 0)).all():
        raise ValueError("every continuation must have at least one byte")
    return float(nll.sum() / (math.log(2.0) * size.sum()))


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A difference of two ratios with one denominator, and its bootstrap interval.

    Attributes:
        mean: The difference over all items as they are (no resampling).
        low: Lower end of the interval; None where fewer than two units could be resampled.
        high: Upper end of the interval; None likewise.
        n: Number of items (examples).
        clusters: Number of units that were resampled: documents, or ``n`` without clusters.
        confidence: The interval's confidence, for example 0.95.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    confidence: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; False where there is no interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    clusters: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Percentile bootstrap of ``(sum(first) - sum(second)) / sum(weights)``.

    Both sides of a pair are always drawn together, so what an item's difficulty adds to both
    cancels (Efron & Tibshirani 1993, ch. 13). With ``clusters`` whole clusters are drawn: windows
    of one document are not independent, and an interval that treats them so is too narrow.

    Args:
        first: ``(n,)`` one figure per item, for example bits of the continuation under the base.
        second: ``(n,)`` the same items under the other condition.
        weights: ``(n,)`` the items' shares of the denominator, positive, for example bytes.
        clusters: ``n`` names; items of one name are drawn together. None draws single items.
        confidence: Between 0 and 1.
        resamples: Number of bootstrap samples.
        seed: The same seed gives the same interval.

    Raises:
        ValueError: unequal lengths, no items, a value that is not finite, a weight that is not
            positive, or ``confidence`` / ``resamples`` out of range.
    """
    above = _checked(first, second, weights)
    weight = np.asarray(weights, dtype=np.float64)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, found {confidence}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, found {resamples}")
    above, below = _sums_by_cluster(above, weight, clusters)
    mean = float(above.sum() / below.sum())
    low: float | None = None
    high: float | None = None
    if len(above) >= 2:
        drawn = _resampled_ratios(above, below, resamples, np.random.default_rng(seed))
        tail = (1.0 - confidence) / 2.0
        low, high = (float(value) for value in np.quantile(drawn, [tail, 1.0 - tail]))
    return PairedDifference(mean, low, high, len(weight), len(above), confidence)


def paired_randomisation(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    clusters: Sequence[str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of ``sum(first) - sum(second)`` under random swaps of a pair's two sides.

    Fisher's randomisation test, which for retrieval is to be preferred to Wilcoxon's and the sign test (Smucker,
    Allan & Carterette 2007, CIKM). With ``clusters`` the pairs of one cluster are swapped together. Where there are
    no more ways to swap than ``resamples``, all are taken and p is exact; else p is ``(count + 1) / (resamples + 1)``,
    which is never 0.

    Args:
        first: ``(n,)`` one figure per item, already multiplied by its weight, as for :func:`paired_bootstrap`.
        second: ``(n,)`` the same items under the other condition.
        weights: ``(n,)`` positive; they only pass the same checks.
        clusters: ``n`` names; None swaps single items.
        resamples: Number of random swaps.
        seed: The same seed gives the same p.

    Raises:
        ValueError: as :func:`paired_bootstrap`.
    """
    above = _checked(first, second, weights)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, found {resamples}")
    above, _ = _sums_by_cluster(above, np.asarray(weights, dtype=np.float64), clusters)
    above = above[above != 0]  # a swap of equals changes nothing
    # A sum in another order differs in its last bits; such sums are equal.
    observed = abs(above.sum()) - 1e-12 * np.abs(above).sum()
    units = len(above)
    if 2.0**units <= resamples:
        signs = 1 - 2 * ((np.arange(2**units)[:, None] >> np.arange(units)) & 1)
        return float(np.mean(np.abs(signs @ above) >= observed))
    rng = np.random.default_rng(seed)
    block = max(1, _UNITS_PER_BLOCK // units)
    count = 0
    for start in range(0, resamples, block):
        drawn = rng.integers(2, size=(min(block, resamples - start), units), dtype=np.int8)
        count += int((np.abs((1.0 - 2.0 * drawn) @ above) >= observed).sum())
    return (count + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979): one below 0.05 is among at most 5 % of families with an error.

    Returns:
        In the order given; each at least its own p-value, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for number, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - number) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def _checked(first: npt.ArrayLike, second: npt.ArrayLike, weights: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The paired differences, after every check on the three inputs."""
    one, two, weight = (np.asarray(a, dtype=np.float64) for a in (first, second, weights))
    if not (one.ndim == 1 and one.shape == two.shape == weight.shape):
        raise ValueError(
            "first, second and weights must be vectors of one length, "
            f"found shapes {one.shape}, {two.shape} and {weight.shape}"
        )
    if len(one) == 0:
        raise ValueError("a paired difference needs at least one item, found none")
    if not (np.isfinite(one).all() and np.isfinite(two).all() and np.isfinite(weight).all()):
        raise ValueError("every value must be finite, found NaN or infinity")
    if not (weight > 0).all():
        raise ValueError(f"every weight must be positive, found {weight.min()}")
    return one - two


def _sums_by_cluster(
    above: npt.NDArray[np.float64],
    below: npt.NDArray[np.float64],
    clusters: Sequence[str] | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if clusters is None:
        return above, below
    if len(clusters) != len(above):
        raise ValueError(f"expected {len(above)} cluster names, found {len(clusters)}")
    # A Python dictionary keeps names apart exactly; NumPy strings would drop trailing NULs.
    numbers: dict[str, int] = {}
    member = np.array([numbers.setdefault(name, len(numbers)) for name in clusters])
    sums = (np.bincount(member, weights=values).astype(np.float64) for values in (above, below))
    return next(sums), next(sums)


def _resampled_ratios(
    above: npt.NDArray[np.float64],
    below: npt.NDArray[np.float64],
    resamples: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    units = len(above)
    block = max(1, _UNITS_PER_BLOCK // units)
    ratios = np.empty(resamples)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        draws = rng.integers(units, size=(stop - start, units))
        ratios[start:stop] = above[draws].sum(axis=1) / below[draws].sum(axis=1)
    return ratios

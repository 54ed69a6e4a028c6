"""The ensemble of REPLUG: one distribution per passage, mixed at every token (Shi et al. 2023, section 3.2, eq. 2).

``p(y | x) = prod_t sum_d λ(d, x) p(y_t | d ∘ x, y_<t)`` with ``λ`` a softmax of similarities over the n passages,
the same at every token. Pure functions: arrays in, arrays out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def log_weights(similarities: npt.ArrayLike, temperature: float) -> Floats:
    """``log λ``: log-softmax of ``similarities / temperature`` over the last axis.

    Args:
        similarities: ``(..., n)``; ``-inf`` leaves a passage out (a padded place).
        temperature: γ; positive.

    Raises:
        ValueError: no passages, a value that is NaN or +inf, a row without any passage, or a temperature that is
            not positive.
    """
    values = np.asarray(similarities, dtype=np.float64)
    if values.ndim < 1 or values.shape[-1] == 0:
        raise ValueError(f"expected similarities of at least one passage, found shape {values.shape}")
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"a temperature must be positive, found {temperature}")
    if np.isnan(values).any() or np.isposinf(values).any():
        raise ValueError("a similarity is NaN or infinite")
    if np.isneginf(values).all(axis=-1).any():
        raise ValueError("every passage is left out of a mixture; at least one must stay")
    scaled = values / temperature
    return scaled - _logsumexp(scaled)[..., None]


def uniform_log_weights(n: int) -> Floats:
    """``log λ`` of ``n`` passages that count alike, ``(n,)``; for passages without similarities.

    Raises:
        ValueError: ``n`` below 1.
    """
    if n < 1:
        raise ValueError(f"expected at least one passage, found {n}")
    return np.full(n, -np.log(n))


def ensemble_log_probs(token_log_probs: npt.ArrayLike, log_weights: npt.ArrayLike) -> Floats:
    """Per token ``log sum_d λ_d p(y_t | d, x, y_<t)``, in nats (eq. 2, exact).

    With one passage, or equal passages, this is that passage's own; by Jensen's inequality its sum is at least the
    weighted mean of the passages' log-likelihoods.

    Args:
        token_log_probs: ``(n, T)`` nats: for each passage, the log-prob of each continuation token.
        log_weights: ``(n,)``, as from :func:`log_weights`; their exponentials sum to 1.

    Returns:
        ``(T,)`` float64.

    Raises:
        ValueError: shapes that do not fit, or weights that do not sum to 1.
    """
    values = np.asarray(token_log_probs, dtype=np.float64)
    weights = np.asarray(log_weights, dtype=np.float64)
    if values.ndim != 2 or weights.shape != values.shape[:1] or len(weights) == 0:
        raise ValueError(
            f"expected (n, T) log-probs and (n,) log-weights, found shapes {values.shape} and {weights.shape}"
        )
    total = float(np.exp(weights).sum())
    if not abs(total - 1.0) < 1e-6:
        raise ValueError(f"the weights of a mixture must sum to 1, found {total}")
    return _logsumexp((values + weights[:, None]).T)


def _logsumexp(values: Floats) -> Floats:
    """Over the last axis."""
    highest = np.max(values, axis=-1, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(values - highest).sum(axis=-1)) + highest[..., 0])

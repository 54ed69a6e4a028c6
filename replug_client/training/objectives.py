"""The objective of LM-supervised retrieval, as pure functions of tensors.

With candidates d of a query x, similarity s(d, x) and an LM that scores the continuation y:

    P(d|x)   = softmax(s(d, x) / gamma)            retrieval distribution   (REPLUG, eq. 2)
    Q(d|x,y) = softmax(score(y|d, x) / beta)       target distribution      (REPLUG, eq. 3)
    loss     = mean over queries of KL between them                          (REPLUG, eq. 4)

All divergences and entropies are in nats. A masked-out candidate has probability exactly 0 in P and in Q.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor


class Aggregation(StrEnum):
    """How a continuation's per-token log-probs become one score per candidate."""

    MEAN = "mean"  # log-likelihood per token (Atlas' perplexity distillation)
    SUM = "sum"  # summed log-likelihood
    BYTE = "byte"  # log-likelihood per byte
    PROBABILITY = "probability"  # exp(summed log-likelihood): REPLUG's formula to the letter


class Direction(StrEnum):
    """Which divergence is minimised, named by what it computes."""

    P_Q = "p-q"  # KL(P||Q): what the REPLUG paper writes
    Q_P = "q-p"  # KL(Q||P): what most public code runs


class Denominator(StrEnum):
    """Which passages share P's probability mass."""

    CANDIDATES = "candidates"  # the query's own candidates: the paper
    BATCH = "batch"  # every candidate of every query in the batch; Q is 0 on other queries' passages


def aggregate(log_likelihood: Tensor, num_tokens: Tensor, num_bytes: Tensor, how: Aggregation) -> Tensor:
    """Turn log-likelihoods into the scores that Q is made of.

    Args:
        log_likelihood: ``(batch, K)`` summed log-probs of the continuation, nats.
        num_tokens: ``(batch,)`` length of each continuation in supervisor tokens.
        num_bytes: ``(batch,)`` length of each continuation in UTF-8 bytes.
        how: The aggregation.

    Returns:
        ``(batch, K)`` scores: nats per token, nats, nats per byte, or a probability.
    """
    if how is Aggregation.SUM:
        return log_likelihood
    if how is Aggregation.PROBABILITY:
        return log_likelihood.exp()
    length = num_tokens if how is Aggregation.MEAN else num_bytes
    return log_likelihood / length.to(log_likelihood.dtype).unsqueeze(-1)


def log_distribution(values: Tensor, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Log of softmax(values / temperature) over the last dimension; masked-out entries are -inf.

    Args:
        values: ``(..., K)`` similarities or scores.
        temperature: Positive.
        mask: ``(..., K)`` bool, true where a candidate exists; every row needs at least one.

    Raises:
        ValueError: temperature not positive and finite, or a row without any candidate.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}; expected a positive, finite number")
    if mask is None:
        return torch.log_softmax(values / temperature, dim=-1)
    if not bool(mask.any(dim=-1).all()):
        raise ValueError("a query has no candidate left: every entry of its row is masked out")
    return torch.log_softmax((values / temperature).masked_fill(~mask, -math.inf), dim=-1)


def kl_divergence(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(A||B) = sum A (log A - log B) of each row, in nats; terms with A = 0 are 0 (also where B = 0).

    Args:
        log_a: ``(..., K)`` normalised log-probabilities; -inf stands for probability 0.
        log_b: ``(..., K)`` the same for B.

    Returns:
        ``(...)``; differentiable in both, with no NaN gradient at -inf.
    """
    inside = torch.isfinite(log_a)
    # The double `where` keeps -inf out of the graph: 0 * inf would turn the gradient into NaN.
    safe_a = torch.where(inside, log_a, torch.zeros_like(log_a))
    safe_b = torch.where(inside, log_b, torch.zeros_like(log_b))
    terms = torch.where(inside, safe_a.exp() * (safe_a - safe_b), torch.zeros_like(log_a))
    return terms.sum(dim=-1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy of each row in nats: ``(..., K)`` log-probabilities in, ``(...)`` out."""
    inside = torch.isfinite(log_probabilities)
    safe = torch.where(inside, log_probabilities, torch.zeros_like(log_probabilities))
    return -(safe.exp() * safe * inside).sum(dim=-1)


def lsr_loss(log_p: Tensor, log_q: Tensor, direction: Direction) -> Tensor:
    """Mean over the batch of KL(P||Q) or KL(Q||P), in nats (REPLUG, eq. 4; not divided by K).

    Args:
        log_p: ``(batch, N)`` retrieval log-distribution.
        log_q: ``(batch, N)`` target log-distribution over the same columns; no gradient is needed.
        direction: KL(P||Q) needs Q > 0 wherever P > 0.

    Raises:
        ValueError: KL(P||Q) asked for where Q is 0 and P is not (it would be infinite).
    """
    if direction is Direction.Q_P:
        return kl_divergence(log_q, log_p).mean()
    if bool((torch.isfinite(log_p) & ~torch.isfinite(log_q)).any()):
        raise ValueError(
            "KL(P||Q) is infinite: Q is 0 on passages that P gives mass to. "
            "Use the query's own candidates as denominator, or the direction q-p."
        )
    return kl_divergence(log_p, log_q).mean()


def spread_to_batch(log_q: Tensor, columns: Tensor, num_columns: int) -> Tensor:
    """Place each query's target distribution on the columns of the whole batch's passages.

    Args:
        log_q: ``(batch, K)`` log-probabilities over the query's own candidates (-inf where masked).
        columns: ``(batch, K)`` int64, the column of each candidate among the batch's distinct passages;
            ignored where ``log_q`` is -inf. A query's own candidates are distinct.
        num_columns: Number of distinct passages in the batch, N.

    Returns:
        ``(batch, N)`` log-probabilities; -inf on every passage that is not the query's own candidate.
    """
    spread = log_q.new_full((log_q.shape[0], num_columns + 1), -math.inf)
    safe = torch.where(torch.isfinite(log_q), columns, num_columns)
    return spread.scatter(1, safe, log_q)[:, :num_columns]

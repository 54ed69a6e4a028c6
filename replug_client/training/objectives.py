"""The objective of LM-supervised retrieval, as pure functions of tensors.

With candidates d of a query x, similarity s(d, x) and an LM that scores the continuation y:

    P(d|x)   = softmax(s(d, x) / gamma)            retrieval distribution   (REPLUG, section 4.1)
    Q(d|x,y) = softmax(score(y|d, x) / beta)       target distribution      (REPLUG, section 4.2)

the objectives are, as a mean over queries,

    lsr       KL(P||Q) or KL(Q||P)                                           (REPLUG LSR, section 4.3)
    pdist     KL(Q||P)                                                       (Atlas, perplexity distillation)
    marginal  -log sum_d P(d|x) p(y|d, x)^(1/beta)                           (EMDR^2; RAG-Sequence; LM frozen)
    loop      KL to the Q of score(d) = -log p(y|D without d, x)             (Atlas LOOP, of the mixture)

and to any of them an InfoNCE term over the batch's passages may be added. docs/objectives.md says which to
take when. All divergences and entropies are in nats. A masked-out candidate has probability exactly 0 in P
and in Q.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from replug_client.training.choices import Aggregation, Direction, Objective


def target_scores(
    log_likelihood: Tensor,
    num_tokens: Tensor,
    num_bytes: Tensor,
    how: Aggregation,
    objective: Objective = Objective.LSR,
    mask: Tensor | None = None,
) -> Tensor:
    """The scores whose softmax is Q: of :func:`aggregate`, or for ``loop`` what each candidate's absence costs.

    Args:
        log_likelihood: ``(batch, K)`` summed log-probs of the continuation, nats; ignored where masked out.
        num_tokens: ``(batch,)`` length of each continuation in supervisor tokens.
        num_bytes: ``(batch,)`` length of each continuation in UTF-8 bytes.
        how: The aggregation.
        objective: ``loop`` scores d by -log p(y | D without d), per token, byte or sequence as ``how`` says.
        mask: ``(batch, K)`` bool, true where a candidate exists.

    Returns:
        ``(batch, K)``; what stands where the mask is false means nothing.
    """
    if Objective(objective) is Objective.LOOP:
        log_likelihood = -leave_one_out(log_likelihood, mask)
    return aggregate(log_likelihood, num_tokens, num_bytes, how)


def leave_one_out(log_likelihood: Tensor, mask: Tensor | None = None) -> Tensor:
    """The log p(y | D without d, x) of the uniform mixture p(y|D) = 1/|D| sum_d p(y|d), for each d of D.

    Atlas' LOOP (Izacard et al. 2022, section 2.2) has its LM read the other K - 1 passages together, which
    takes K more passes over all of them. A mixture of the passages, one at a time, is what REPLUG's ensemble
    is, and of it the leave-one-out likelihood follows exactly from the K scores that are there already. The
    weights are uniform (Atlas' prior), not P: so Q says what the supervisor prefers, and does not move with
    the retriever that follows it.

    Args:
        log_likelihood: ``(batch, K)`` summed log-probs of the continuation, nats.
        mask: ``(batch, K)`` bool, true where a candidate exists.

    Returns:
        ``(batch, K)`` nats; 0 where masked out, and for a query's only candidate, which leaves nothing behind.
    """
    num_candidates = log_likelihood.shape[-1]
    present = torch.ones_like(log_likelihood, dtype=torch.bool) if mask is None else mask
    # (batch, K, K): the line of d holds every other candidate. Subtracting exp(score) from the sum would
    # cancel where one candidate is nearly all of it.
    own = torch.eye(num_candidates, dtype=torch.bool, device=log_likelihood.device)
    others = present.unsqueeze(-2) & ~own
    total = log_likelihood.unsqueeze(-2).masked_fill(~others, -math.inf).logsumexp(dim=-1)
    count = others.sum(dim=-1)
    return torch.where(present & (count > 0), total - count.clamp(min=1).to(total.dtype).log(), 0.0)


def aggregate(log_likelihood: Tensor, num_tokens: Tensor, num_bytes: Tensor, how: Aggregation) -> Tensor:
    """Turn log-likelihoods into the scores that Q is made of.

    Args:
        log_likelihood: ``(batch, K)`` summed log-probs of the continuation, nats.
        num_tokens: ``(batch,)`` length of each continuation in supervisor tokens.
        num_bytes: ``(batch,)`` length of each continuation in UTF-8 bytes.
        how: The aggregation.

    Returns:
        ``(batch, K)`` scores: nats per token, nats, nats per byte, or a probability.

    Raises:
        ValueError: no such aggregation.
    """
    how = Aggregation(how)
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
        ``(...)``; differentiable in both, with no NaN gradient at -inf. NaN where there is one in either.
    """
    inside = ~torch.isneginf(log_a)
    # The double `where` keeps -inf out of the graph: 0 * inf would turn the gradient into NaN.
    safe_a = torch.where(inside, log_a, torch.zeros_like(log_a))
    safe_b = torch.where(inside, log_b, torch.zeros_like(log_b))
    terms = torch.where(inside, safe_a.exp() * (safe_a - safe_b), torch.zeros_like(log_a))
    return terms.sum(dim=-1)


def entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy of each row in nats: ``(..., K)`` log-probabilities in, ``(...)`` out."""
    inside = ~torch.isneginf(log_probabilities)
    safe = torch.where(inside, log_probabilities, torch.zeros_like(log_probabilities))
    return -(safe.exp() * safe * inside).sum(dim=-1)


def lsr_loss(log_p: Tensor, log_q: Tensor, direction: Direction) -> Tensor:
    """Mean over the batch of KL(P||Q) or KL(Q||P), in nats (REPLUG, eq. 4; not divided by K).

    Args:
        log_p: ``(batch, N)`` retrieval log-distribution.
        log_q: ``(batch, N)`` target log-distribution over the same columns; no gradient is needed.
        direction: KL(P||Q) needs Q > 0 wherever P > 0.

    Raises:
        ValueError: KL(P||Q) asked for where Q is 0 and P is not (it would be infinite), or no such direction.
    """
    if Direction(direction) is Direction.Q_P:
        return kl_divergence(log_q, log_p).mean()
    if bool((torch.isfinite(log_p) & torch.isneginf(log_q)).any()):
        raise ValueError(
            "KL(P||Q) is infinite: Q is 0 on passages that P gives mass to. "
            "Use the query's own candidates as denominator, or the direction q-p."
        )
    return kl_divergence(log_p, log_q).mean()


def marginal_loss(log_p: Tensor, log_weights: Tensor) -> Tensor:
    """Mean over the batch of -log sum_d P(d) w(d), in nats, where w is the likelihood p(y|d, x).

    The log-marginal likelihood of EMDR^2 (Sachan et al. 2021: its term for the retriever) and of RAG-Sequence
    (Lewis et al. 2020, section 2.1), with the LM frozen. Its gradient by the similarities is
    (P - posterior) / gamma, with the posterior P w / sum P w. Least where P names the best passage alone.

    Args:
        log_p: ``(batch, N)`` retrieval log-distribution.
        log_weights: ``(batch, N)`` log-likelihoods; -inf where there is no candidate. A constant per query
            changes the value, not the gradient: with log Q for log w the value lies between 0 and infinity.
    """
    return -torch.logsumexp(log_p + log_weights, dim=-1).mean()


def info_nce(similarity: Tensor, columns: Tensor, best: Tensor, temperature: float) -> Tensor:
    """Mean over the batch of -log softmax(similarity / temperature) at the LM's best candidate, in nats.

    InfoNCE (van den Oord et al. 2018, eq. 4) with in-batch negatives. Negatives are the batch's passages
    that are none of the query's own candidates: whichever query brought a passage along, one that the
    supervisor judged for this query is no negative here; its place is the main objective's business.

    Args:
        similarity: ``(batch, N)`` similarities to the batch's distinct passages.
        columns: ``(batch, K)`` int64, the column of each candidate, -1 where there is none.
        best: ``(batch,)`` int64, which of the K candidates is the positive.
        temperature: Positive.
    """
    positive = columns.gather(1, best.unsqueeze(1))
    kept = all_but(columns, similarity.shape[1]).scatter(1, positive, True)
    return -log_distribution(similarity, temperature, kept).gather(1, positive).mean()


def all_but(columns: Tensor, num_columns: int) -> Tensor:
    """``(batch, N)`` bool: false at the ``(batch, K)`` columns of each query, -1 standing for none of them."""
    kept = torch.ones((len(columns), num_columns + 1), dtype=torch.bool, device=columns.device)
    return kept.scatter(1, torch.where(columns >= 0, columns, num_columns), False)[:, :num_columns]


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
    safe = torch.where(torch.isneginf(log_q), num_columns, columns)
    return spread.scatter(1, safe, log_q)[:, :num_columns]

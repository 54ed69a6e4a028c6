"""The choices that make an objective, by their names, and which of them go together.

They stand apart from the tensors of :mod:`replug_client.training.objectives`, so that a command can name them
without loading torch.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import TypeVar

from replug_client.errors import OptionError


class Objective(StrEnum):
    """What the retriever is trained to do with the supervisor's scores."""

    LSR = "lsr"  # REPLUG LSR (Shi et al. 2023): a KL in either direction
    PDIST = "pdist"  # Atlas' perplexity distillation (Izacard et al. 2022): KL(Q||P)
    MARGINAL = (
        "marginal"  # log-marginal likelihood: EMDR^2 (Sachan et al. 2021), RAG-Sequence (Lewis et al. 2020)
    )
    LOOP = "loop"  # leave-one-out: Atlas' LOOP, over the mixture of the candidates


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


_Choice = TypeVar("_Choice", bound=StrEnum)


def named(kind: type[_Choice], value: str, name: str) -> _Choice:
    """The choice that ``value`` is or names: ``Direction.Q_P``, or ``"q-p"``.

    Raises:
        OptionError: there is none of that name; says which there are.
    """
    try:
        return kind(value)
    except ValueError:
        raise OptionError(f"{name} is {value!r}; expected one of {', '.join(kind)}") from None


def direction_of(objective: Objective, kl: Direction | None) -> Direction:
    """``kl``, or where none is given the source's own.

    ``marginal`` minimises no divergence; KL(Q||P) is what is reported of it on held-out examples.
    """
    return kl or (Direction.P_Q if objective is Objective.LSR else Direction.Q_P)


def check_objective(
    objective: Objective,
    score: Aggregation,
    kl: Direction | None,
    denominator: Denominator,
    contrastive: float,
) -> None:
    """Refuse what cannot be computed together.

    Raises:
        OptionError: names the flags, and what mends it.
    """
    if objective in (Objective.PDIST, Objective.MARGINAL) and kl is Direction.P_Q:
        raise OptionError(
            f"--kl p-q: --objective {objective.value} knows no KL(P||Q); leave --kl out, or use --objective lsr"
        )
    if objective in (Objective.MARGINAL, Objective.LOOP) and score is Aggregation.PROBABILITY:
        raise OptionError(
            f"--objective {objective.value} with --score probability: it is made of log-likelihoods; "
            "use --score mean, sum or byte"
        )
    if denominator is Denominator.BATCH and direction_of(objective, kl) is Direction.P_Q:
        raise OptionError(
            "--denominator batch with --kl p-q: Q is 0 on other queries' passages, so KL(P||Q) is infinite. "
            "Use --kl q-p, or --denominator candidates."
        )
    if not 0 <= contrastive < math.inf:
        raise OptionError(f"--contrastive_weight {contrastive}: expected 0 or a positive, finite number")

"""Mixing the next-token distributions of several contexts, of which only the tops may be known. Pure functions.

``p(v) = sum_d λ_d p(v | d)`` (Shi et al. 2023, eq. 2). A server gives the N most probable tokens behind each context.
The candidates are the union of these tops; a token that is in one top but not in another has a probability there
that is not known, but bounded: by the least of that top, and by what that top leaves of the whole. So the mixture of
each candidate lies between two bounds, and whatever is no candidate lies below a third. They say which probabilities
have to be asked for before a token can be chosen, and whether the whole vocabulary would have given the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Tokens that may come next, with what is known of them behind each of K contexts.

    Attributes:
        ids: ``(C,)`` ascending, distinct.
        log_probs: ``(K, C)`` nats; NaN where it is not known behind that context.
        bounds: ``(K,)`` nats: no token that is not known behind a context is more probable there; ``-inf`` where
            every token of the vocabulary is known.
    """

    ids: Tokens
    log_probs: Floats
    bounds: Floats

    def with_known(self, ids: Tokens, log_probs: Floats) -> Candidates:
        """The same, knowing these candidates behind all contexts.

        Args:
            ids: ``(n,)`` of the candidates.
            log_probs: ``(K, n)`` nats.
        """
        filled = self.log_probs.copy()
        filled[:, np.searchsorted(self.ids, ids)] = log_probs
        return Candidates(self.ids, filled, self.bounds)


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """What is known of ``p(v)``.

    Attributes:
        ids: ``(C,)`` the candidates.
        probabilities: ``(C,)`` the least that ``p(v)`` can be; what it is where v is known behind all contexts.
        ceilings: ``(C,)`` the most that it can be.
        outside: The most that it can be for any token that is no candidate.
        dropped: The mass of the mixture that is not known: ``1 - probabilities.sum()``.
    """

    ids: Tokens
    probabilities: Floats
    ceilings: Floats
    outside: float
    dropped: float


class Choice(NamedTuple):
    """A chosen candidate: its place among them, and whether the whole vocabulary would have given it, too."""

    place: int
    certain: bool


def merge(tops: Sequence[tuple[Tokens, Floats]]) -> Candidates:
    """The union of the tops of K contexts.

    Args:
        tops: For each context, distinct tokens and their log-probs in nats: the most probable ones, in any order.
    """
    ids = np.unique(np.concatenate([own for own, _ in tops])).astype(np.int64)
    log_probs = np.full((len(tops), len(ids)), np.nan)
    for row, (own, values) in zip(log_probs, tops, strict=True):
        row[np.searchsorted(ids, own)] = values
    return Candidates(ids, log_probs, np.array([values.min() for _, values in tops], dtype=np.float64))


def mix(candidates: Candidates, log_weights: Floats) -> Mixture:
    """The mixture, with its bounds.

    Args:
        candidates: Of K contexts.
        log_weights: ``(K,)`` log λ; the weights sum to 1.
    """
    weights = np.exp(log_weights)
    known = ~np.isnan(candidates.log_probs)
    values = np.exp(np.where(known, candidates.log_probs, -np.inf))
    rest = np.where(np.isneginf(candidates.bounds), 0.0, np.clip(1.0 - values.sum(axis=1), 0.0, 1.0))
    most = weights * np.minimum(np.exp(candidates.bounds), rest)
    least = weights @ values
    return Mixture(candidates.ids, least, least + most @ ~known, float(most.sum()), float(weights @ rest))


def unsettled(candidates: Candidates, mixture: Mixture, *, greedy: bool) -> Tokens:
    """The candidates whose probability has to be known exactly before one can be chosen, ``(n,)``.

    Greedy, these are the ones that may be the most probable; else all that are not known behind some context.
    """
    unknown = np.isnan(candidates.log_probs).any(axis=0)
    if greedy:
        unknown &= mixture.ceilings >= mixture.probabilities.max()
    return candidates.ids[unknown]


def choose(mixture: Mixture, *, temperature: float, top_p: float, uniform: float) -> Choice:
    """Choose a candidate: the most probable one, or one drawn from ``p(v) ** (1 / temperature)``, its top part.

    The draw goes through the tokens by falling probability (equal ones by id) until their mass reaches the share
    ``uniform`` of the whole. The most probable ones are known, and so is the whole at temperature 1; so the token
    is mostly the one that the whole vocabulary would have given for the same ``uniform``.

    Args:
        mixture: Of candidates that are settled (:func:`unsettled`).
        temperature: 0 is greedy.
        top_p: In (0, 1].
        uniform: In [0, 1).
    """
    if temperature == 0:
        best = int(np.argmax(mixture.probabilities))
        return Choice(best, bool(mixture.probabilities[best] >= mixture.outside))
    order = np.argsort(-mixture.probabilities, kind="stable")
    ranked = mixture.probabilities[order]
    mass = np.cumsum((ranked / ranked[0]) ** (1 / temperature))
    draws = [_draw(mass, tail, top_p, uniform) for tail in _tails(mixture, float(ranked[0]), temperature)]
    least, most = draws
    if least is None or most is None or least[0] != most[0]:
        place, _ = _draw(mass, 0.0, top_p, uniform) or (0, 0)
        return Choice(int(order[place]), certain=False)
    last = most[1] if top_p < 1 else most[0]
    return Choice(
        int(order[least[0]]), bool(ranked[max(last, least[1] if top_p < 1 else 0)] >= mixture.outside)
    )


def _tails(mixture: Mixture, best: float, temperature: float) -> tuple[float, float]:
    """The least and the most that all tokens outside hold of ``(p / best) ** (1 / temperature)``."""
    dropped = mixture.dropped / best
    if dropped == 0 or temperature == 1:
        return dropped, dropped
    if temperature < 1:
        return 0.0, dropped * min(1.0, mixture.outside / best) ** (1 / temperature - 1)
    return dropped, np.inf  # they may be many


def _draw(mass: Floats, tail: float, top_p: float, uniform: float) -> tuple[int, int] | None:
    """The rank drawn, and that of the last token drawn from; None where it lies in the tail."""
    last, whole = len(mass) - 1, float(mass[-1]) + tail
    if top_p < 1:
        last = int(np.searchsorted(mass, top_p * whole))
        if last == len(mass):
            return None
        whole = float(mass[last])
    if not np.isfinite(whole):
        return None
    place = int(np.searchsorted(mass, uniform * whole, side="right"))
    return None if place > last else (place, last)

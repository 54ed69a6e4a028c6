"""Several retrievers' lists as one. Pure functions over ranked lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from replug_client.evaluation.ranking.measures import ranked

Fusion = Literal["rrf", "minmax"]
Found = Sequence[tuple[str, float]]
RRF_K = 60


def reciprocal_rank_fusion(lists: Sequence[Found], k: int = RRF_K) -> dict[str, float]:
    """``sum over lists of 1 / (k + rank)``, ranks from 1; a passage that a list lacks gets nothing from it.

    Cormack, Clarke & Büttcher 2009 (SIGIR), who set k = 60. Scores do not count, so lists of any scales mix.
    """
    fused: dict[str, float] = {}
    for found in lists:
        for rank, (passage, _) in enumerate(found, 1):
            fused[passage] = fused.get(passage, 0.0) + 1.0 / (k + rank)
    return fused


def minmax_fusion(lists: Sequence[Found]) -> dict[str, float]:
    """Mean of the scores, each list's scaled to 0..1 by its lowest and highest; 0 for what a list lacks.

    CombSUM (Fox & Shaw 1994) with min-max normalisation (Lee 1997). A list of equal scores counts 1 throughout.
    """
    fused: dict[str, float] = {}
    for found in lists:
        scores = [score for _, score in found]
        low, high = min(scores, default=0.0), max(scores, default=0.0)
        for passage, score in found:
            scaled = (score - low) / (high - low) if high > low else 1.0
            fused[passage] = fused.get(passage, 0.0) + scaled / len(lists)
    return fused


def fuse(lists: Sequence[Found], how: Fusion, k: int) -> list[tuple[str, float]]:
    """The first k of the fused list, best first."""
    fused = reciprocal_rank_fusion(lists) if how == "rrf" else minmax_fusion(lists)
    return ranked(fused, k)

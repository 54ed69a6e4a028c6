"""Easy examples first: which examples are easy, by the base retriever and the supervisor's scores.

Bengio et al. 2009 ("Curriculum Learning"): begin with the easy part of the training distribution, end with all of it.
What is easy is known before the first step and stays: the base's candidates of every training example are
retrieved and scored at the start of the run. Nothing is asked for twice, for the scores go through the cache: a run
with ``--refresh_every 0`` asks for the same pairs, only earlier; one that refreshes asks for those of its first
candidates earlier, and for the base's candidates of later examples beside them.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from replug_client.artefacts import atomic_write
from replug_client.progress import progress
from replug_client.training.options import Easy, TrainOptions
from replug_client.training.prepare import Prepared
from replug_client.training.schedule import LEVELS
from replug_client.training.targets import scored_sample

logger = logging.getLogger(__name__)

_EXAMPLES_AT_ONCE = 2048


def ease(similarity: Tensor, scores: Tensor, mask: Tensor, by: Easy) -> Tensor:
    """How easy each example is; more is easier.

    Args:
        similarity: ``(n, K)`` of the base.
        scores: ``(n, K)`` the scores that Q is made of.
        mask: ``(n, K)`` bool, true where a candidate exists.
        by: ``margin``: the base's similarity to the passage that the supervisor scores best, less its highest
            similarity to another one: above 0 the base has the right order already. ``spread``: the standard
            deviation of the scores: where they hardly differ, Q is mostly noise.

    Returns:
        ``(n,)``; 0 for an example with a single candidate.
    """
    if by is Easy.SPREAD:
        mean = scores.masked_fill(~mask, 0.0).sum(-1) / mask.sum(-1)
        squares = (scores - mean.unsqueeze(-1)).square().masked_fill(~mask, 0.0)
        return (squares.sum(-1) / mask.sum(-1)).sqrt()
    best = scores.masked_fill(~mask, -torch.inf).argmax(-1, keepdim=True)
    others = similarity.masked_fill(~mask, -torch.inf).scatter(1, best, -torch.inf).amax(-1)
    margin = similarity.gather(1, best).squeeze(-1) - others
    return torch.where(mask.sum(-1) > 1, margin, 0.0)


def levels(options: TrainOptions, prepared: Prepared) -> npt.NDArray[np.int64]:
    """The level of each training example, 0 for the easiest part of them; a run that goes on finds the same.

    Raises:
        SupervisorError: scoring failed for good.
    """
    path = options.place.output_dir / "candidates" / "levels.npy"
    if prepared.processes.same(path.exists()):
        kept: npt.NDArray[np.int64] = np.load(path, allow_pickle=False)
        return kept
    values = prepared.processes.same(_measure(options, prepared))
    found = levels_of(values)
    if prepared.processes.is_first:
        _keep(path, found)
    logger.info(
        "curriculum: %s of %d examples from %.3g (hardest) to %.3g (easiest), median %.3g",
        options.steps.curriculum_by.value,
        len(values),
        *np.quantile(values, [0.0, 1.0, 0.5]),
    )
    return found


def levels_of(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """``(n,)`` ease in, ``(n,)`` levels from 0 (easiest) to ``LEVELS`` - 1 out, equally many examples in each."""
    ranks = np.empty(len(values), dtype=np.int64)
    ranks[np.argsort(-values, kind="stable")] = np.arange(len(values))
    return ranks * LEVELS // len(values)


def _measure(options: TrainOptions, prepared: Prepared) -> npt.NDArray[np.float64]:
    count = len(prepared.sets.train)
    measured = []
    with progress("scoring for the curriculum", count, "examples") as advance:
        for start in range(0, count, _EXAMPLES_AT_ONCE):
            numbers = np.arange(start, min(start + _EXAMPLES_AT_ONCE, count))
            sample = scored_sample(options, prepared, numbers)
            measured.append(ease(sample.similarity, sample.scores, sample.mask, options.steps.curriculum_by))
            advance(len(numbers))
    return torch.cat(measured).numpy()


def _keep(path: Path, found: npt.NDArray[np.int64]) -> None:
    with atomic_write(path) as stream:
        np.save(stream, found, allow_pickle=False)

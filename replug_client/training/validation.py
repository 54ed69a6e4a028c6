"""The figures that count: on held-out examples, over the whole index, against the LM's own preferences."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import compress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from replug_client.corpus.records import Example
from replug_client.corpus.store import PassageStore
from replug_client.errors import SupervisorError
from replug_client.retriever.encoder import encode_queries
from replug_client.retriever.hybrid import HybridIndex
from replug_client.retriever.index import PassageIndex, Vectors, positions
from replug_client.retriever.lexical_weights import lexical_weights
from replug_client.retriever.terms import TermMatches
from replug_client.statistics import PairedDifference, bits_per_byte, paired_bootstrap
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Supervisor
from replug_client.training.candidates import NO_PASSAGE, Rows
from replug_client.training.choices import Direction
from replug_client.training.diagnostics import unique_share
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.moves import (
    Move,
    biggest_moves,
    churn,
    rank_table,
    ranks_in,
    reciprocal_ranks,
)
from replug_client.training.objectives import aggregate, kl_divergence, log_distribution, target_scores
from replug_client.training.options import BestMetric

Weights = Sequence[float] | None

PRIMARY_METRIC = "bits_per_byte"
SELECTION = "selection"
DEPTH = 100
"""How far down the index a passage's rank is looked for; beyond it, its reciprocal rank counts as 0."""
RECALL_DEPTH = 10
_LEAST_COMPARED = 2
_TIE_BREAK = 1e-6
_MOVES_SHOWN = 6


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """What validation works on; all of it is fixed for the run.

    Attributes:
        examples: Held-out examples, n of them.
        base_rows: ``(n, K)`` corpus rows that the base retriever returns over its own index.
        store: The corpus.
        builder: Makes prompts.
        supervisor: Scores them; through the cache a pair is scored once in the whole run.
        objective: Temperatures and direction, for the held-out divergence.
        pool_rows: ``(n, M)`` corpus rows, ``NO_PASSAGE`` where there is none, among which the LM's own best is
            looked for: candidates of every source that training has, or the base could not be improved on.
            None takes ``base_rows``.
        base_lists: ``(n, <= DEPTH)`` the base's list, deeper than ``base_rows``; None takes those.
        best_metric: Which figure is the best checkpoint's.
    """

    examples: Sequence[Example]
    base_rows: Rows
    store: PassageStore
    builder: PromptBuilder
    supervisor: Supervisor
    objective: ObjectiveOptions
    pool_rows: Rows | None = None
    base_lists: Rows | None = None
    best_metric: BestMetric = BestMetric.BITS_PER_BYTE

    @property
    def pool(self) -> Rows:
        """``(n, M)``."""
        return self.base_rows if self.pool_rows is None else self.pool_rows

    @property
    def lists(self) -> Rows:
        """``(n, depth)``."""
        return self.base_rows if self.base_lists is None else self.base_lists


@dataclass(slots=True)
class ValidationState:
    """What the next validation and the report need of the last one; kept with each checkpoint.

    Attributes:
        step: Optimiser step of the last validation; -1 before the first.
        first_rows: ``(n, <= 10)`` nested lists: what was found then.
        depth: How far down the lists were looked at.
        best_ranks: ``(6, 6)`` counts: ranks of the LM's best passages with the base (line) and then (column).
        risen: The pairs that rose most since the base, as :class:`~replug_client.training.moves.Move` says.
        fallen: Those that fell most.
    """

    step: int = -1
    first_rows: list[list[int]] = field(default_factory=list)
    depth: int = 0
    best_ranks: list[list[int]] = field(default_factory=list)
    risen: list[Move] = field(default_factory=list)
    fallen: list[Move] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ValidationState:
        """What :meth:`to_json` gave."""
        moves = {name: [Move(**move) for move in value[name]] for name in ("risen", "fallen")}
        return cls(**(value | moves))


def own_candidates(lists: Rows, n_docs: int) -> Rows:
    """Of the base's ``(n, depth)`` lists those that the divergence is over: ``n_docs``, but at least two.

    Training may have none of them (``--n_docs 0``), and over a single passage any two distributions are the same.
    """
    return lists[:, : max(_LEAST_COMPARED, n_docs)]


@contextmanager
def full_precision(model: SentenceTransformer) -> Iterator[None]:
    """``model`` as it will be loaded, without the autocast that accelerate wraps around its ``forward``.

    Else base and current model would be compared in different precisions, and differ before the first step.
    """
    wrapped = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if wrapped is not None:
            vars(model)["forward"] = wrapped


class HeldOutLikelihood(BaseEvaluator):
    """Validation as sentence-transformers calls it: before, during and after training.

    Of the current retriever over its index, with the base beside it:

    * ``bits_per_byte`` of the first passage (primary, lower is better); ``base_minus_current`` with ``_low``
      and ``_high``: the paired difference to the base and its 95 % bootstrap interval over documents. Examples
      whose score behind either first passage is not finite are left out.
    * ``recall_at_10`` and ``mrr``: whether and where the passage stands that the LM itself likes best of the
      example's pool (``mrr``: mean of 1 / rank, 0 beyond rank 100); ``mrr_minus_base`` with its interval.
    * ``expected_score``: mean over examples of the score expected under P over the pool, less the pool's mean:
      0 is choosing blindly. In the score's own unit.
    * ``kl``: the divergence of P and Q, on the base's own candidates (:func:`own_candidates`).
    * ``changed``: share of queries whose first passage is another one than the base's; ``churn``: share of the
      first ten that were not there at the last validation (absent at the first); ``unique``: distinct first
      passages, as a share of the queries or, where these are more, of the passages (near 0 means collapse).
    * ``selection``: what the best checkpoint has least of: the chosen figure, ties decided by ``kl``.

    Args:
        data: The validation set.
        index_of: Gives the index that a model is to be searched in: the frozen one, or one of its own.
        batch_size: Queries encoded at once.
        matches: Gives the terms of the indexed passages, for a model that has weights for them.
    """

    def __init__(
        self,
        data: ValidationSet,
        index_of: Callable[[SentenceTransformer], PassageIndex],
        batch_size: int = 64,
        matches: Callable[[], TermMatches] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.greater_is_better = False
        self.primary_metric = PRIMARY_METRIC
        self.history: list[dict[str, float]] = []
        self.state = ValidationState()
        self.seconds = 0.0
        self.data = data
        self._index_of = index_of
        self._batch_size = batch_size
        self._matches = matches

    def __call__(  # type: ignore[override]
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Evaluate ``model`` as it is now."""
        began = time.perf_counter()
        with full_precision(model):
            index = self._index_of(model)
            vectors = encode_queries(model, self._queries, batch_size=self._batch_size)
        weights = None if self._matches is None else lexical_weights(model)
        found = self._search(index, vectors, weights)
        figures = (
            self._likelihood(found[:, :1])
            | self._against_the_lms_best(found)
            | self._distributions(vectors, index, weights)
            | self._stability(found, len(index))
        )
        figures[SELECTION] = selection(figures, self.data.best_metric)
        self._keep(found, max(steps, 0))
        self.history.append({"step": float(max(steps, 0)), **figures})
        self.seconds += time.perf_counter() - began
        return dict(figures)

    def _search(self, index: PassageIndex, vectors: Vectors, weights: Weights) -> Rows:
        k = self.data.lists.shape[1]
        if self._matches is None:
            return index.search(vectors, k).rows
        return HybridIndex(index, self._matches).search(vectors, self._queries, k, weights).rows

    def _likelihood(self, rows: Rows) -> dict[str, float]:
        data = self.data
        base, current = -self._base_log_likelihoods[:, 0], -self._log_likelihoods(rows)[:, 0]
        num_bytes = np.array([example.num_bytes for example in data.examples])
        scored = np.isfinite(base) & np.isfinite(current)
        if not scored.any():
            raise SupervisorError(
                f"none of the {len(scored)} validation examples has a finite log-likelihood behind its first passages; "
                "the supervisor's scores are of no use"
            )
        base, current, num_bytes = base[scored], current[scored], num_bytes[scored]
        gain = paired_bootstrap(
            base / math.log(2),
            current / math.log(2),
            num_bytes,
            clusters=list(compress(self._documents, scored)),
        )
        return {
            PRIMARY_METRIC: bits_per_byte(current, num_bytes),
            **_with_interval("base_minus_current", gain),
        }

    def _against_the_lms_best(self, found: Rows) -> dict[str, float]:
        depth, best = found.shape[1], self._best_rows[:, None]
        judged: npt.NDArray[np.bool_] = np.asarray(self._scored.any(axis=1))
        now, before = (ranks_in(lists, best)[judged, 0] for lists in (found, self.data.lists))
        now_rr, before_rr = (reciprocal_ranks(ranks, depth) for ranks in (now, before))
        documents = list(compress(self._documents, judged))
        gain = paired_bootstrap(now_rr, before_rr, np.ones(len(now)), clusters=documents)
        return {
            f"recall_at_{RECALL_DEPTH}": float((now <= min(RECALL_DEPTH, depth)).mean()),
            "mrr": float(now_rr.mean()),
            **_with_interval("mrr_minus_base", gain),
        }

    def _distributions(self, vectors: Vectors, index: PassageIndex, weights: Weights) -> dict[str, float]:
        """Mean KL over the base's own candidates, and the score expected under P over the pool."""
        data, options = self.data, self.data.objective
        log_p = self._log_p(vectors, index, data.base_rows, weights)
        values = torch.from_numpy(self._base_log_likelihoods)
        # What has no finite score is left out of P and Q alike, and an example where that is everything, of the mean.
        mask = values.isfinite()
        kept = mask.any(dim=-1)
        values, mask, log_p = values[kept], mask[kept], log_p[kept]
        log_p = log_p.masked_fill(~mask, -math.inf).log_softmax(dim=-1)
        lengths = [length[kept] for length in self._lengths]
        scores = target_scores(values, lengths[0], lengths[1], options.score, options.objective, mask)
        log_q = log_distribution(scores, options.temperature_gold, mask)
        first, second = (log_p, log_q) if options.kl is Direction.P_Q else (log_q, log_p)
        expected = (self._log_p(vectors, index, data.pool, weights).exp() * self._advantages).sum(dim=-1)
        return {
            "kl": float(kl_divergence(first, second).mean()),
            "expected_score": float(expected.mean()),
        }

    def _log_p(self, vectors: Vectors, index: PassageIndex, rows: Rows, weights: Weights) -> torch.Tensor:
        mask = rows != NO_PASSAGE
        there = np.where(mask, rows, self.data.base_rows[:, :1])
        sums = np.einsum("nd,nkd->nk", vectors, index.vectors(there))
        if weights is not None and self._matches is not None:
            matches = self._matches()
            places = positions(index.rows, there.ravel()).reshape(there.shape)
            sums = sums + matches.of_own(matches.queries(self._queries), places) @ np.asarray(
                weights, np.float32
            )
        similarity = torch.from_numpy(sums).double()
        return log_distribution(similarity, self.data.objective.temperature_score, torch.from_numpy(mask))

    def _stability(self, found: Rows, passages: int) -> dict[str, float]:
        figures = {
            "changed": float((found[:, 0] != self.data.base_rows[:, 0]).mean()),
            "unique": unique_share(found[:, :1], passages),
        }
        if self.state.first_rows:
            figures["churn"] = churn(np.array(self.state.first_rows), found[:, :RECALL_DEPTH])
        return figures

    def _keep(self, found: Rows, step: int) -> None:
        data, best = self.data, self._best_rows[:, None]
        before, now = ranks_in(data.lists, data.pool), ranks_in(found, data.pool)
        risen, fallen = biggest_moves(data.pool, before, now, self._advantages.numpy(), _MOVES_SHOWN)
        self.state = ValidationState(
            step,
            found[:, :RECALL_DEPTH].tolist(),
            found.shape[1],
            rank_table(ranks_in(data.lists, best)[:, 0], ranks_in(found, best)[:, 0]).tolist(),
            risen,
            fallen,
        )

    @cached_property
    def _queries(self) -> list[str]:
        return [example.query for example in self.data.examples]

    @cached_property
    def _documents(self) -> list[str]:
        return [example.document_id for example in self.data.examples]

    @cached_property
    def _scored(self) -> npt.NDArray[np.bool_]:
        """``(n, M)``: which of the pool has a score that is finite."""
        scored: npt.NDArray[np.bool_] = (self.data.pool != NO_PASSAGE) & np.isfinite(
            self._pool_log_likelihoods
        )
        return scored

    @cached_property
    def _best_rows(self) -> Rows:
        """``(n,)`` the pool's passage behind which the LM finds the continuation likeliest."""
        pool = self.data.pool
        values = np.where(self._scored, self._pool_log_likelihoods, -np.inf)
        best: Rows = pool[np.arange(len(pool)), values.argmax(axis=1)]
        return best

    @cached_property
    def _advantages(self) -> torch.Tensor:
        """``(n, M)`` scores less the mean of their example's; 0 where there is no passage."""
        values = torch.from_numpy(self._pool_log_likelihoods)
        mask = torch.from_numpy(self.data.pool != NO_PASSAGE) & values.isfinite()
        scores = aggregate(values, *self._lengths, self.data.objective.score).masked_fill(~mask, 0.0)
        mean = scores.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
        return (scores - mean).masked_fill(~mask, 0.0)

    @cached_property
    def _base_log_likelihoods(self) -> npt.NDArray[np.float64]:
        return self._log_likelihoods(self.data.base_rows)

    @cached_property
    def _pool_log_likelihoods(self) -> npt.NDArray[np.float64]:
        return self._log_likelihoods(self.data.pool)

    @cached_property
    def _lengths(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``(n,)`` tokens and ``(n,)`` bytes of the continuations."""
        examples = self.data.examples
        return (
            torch.tensor([len(example.continuation_ids) for example in examples]),
            torch.tensor([example.num_bytes for example in examples]),
        )

    def _log_likelihoods(self, rows: Rows) -> npt.NDArray[np.float64]:
        """``(n, K)`` nats, of each example behind each of its rows; 0 where there is none."""
        data = self.data
        prompts = [
            data.builder.build(
                data.store[int(row)].text,
                example.query_ids,
                example.continuation_ids,
                f"validation example {number}, row {row}",
            )
            for number, (example, own) in enumerate(zip(data.examples, rows, strict=True))
            for row in own
            if row != NO_PASSAGE
        ]
        values = np.zeros(rows.shape, dtype=np.float64)
        values[rows != NO_PASSAGE] = [score.log_likelihood for score in data.supervisor.score(prompts)]
        return values

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        return {"examples": len(self.data.examples)}


def selection(figures: dict[str, float], metric: BestMetric) -> float:
    """The chosen figure so turned that less is better, ties decided by ``kl``."""
    sign = 1.0 if metric.lower_is_better else -1.0
    return sign * figures[metric.value] + _TIE_BREAK * figures["kl"]


def _with_interval(name: str, difference: PairedDifference) -> dict[str, float]:
    figures = {name: difference.mean}
    if difference.low is not None and difference.high is not None:
        figures |= {f"{name}_low": difference.low, f"{name}_high": difference.high}
    return figures

"""The figure that counts: held-out bits per byte of the first passage over the whole index."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator

from replug_client.corpus.records import Example
from replug_client.corpus.store import PassageStore
from replug_client.retriever.encoder import encode_queries
from replug_client.retriever.index import PassageIndex
from replug_client.statistics import bits_per_byte, paired_bootstrap
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Supervisor
from replug_client.training.candidates import Rows
from replug_client.training.diagnostics import unique_share
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.objectives import Direction, aggregate, kl_divergence, log_distribution

PRIMARY_METRIC = "bits_per_byte"
SELECTION = "selection"
_TIE_BREAK = 1e-6


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
    """

    examples: Sequence[Example]
    base_rows: Rows
    store: PassageStore
    builder: PromptBuilder
    supervisor: Supervisor
    objective: ObjectiveOptions


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

    Metrics: ``bits_per_byte`` of the first passage that the current retriever finds in its index (primary,
    lower is better); ``base_minus_current`` with ``low`` and ``high``, the paired difference to the base and
    its 95 % bootstrap interval over documents; ``kl``, the objective on the base's own candidates;
    ``changed``, the share of queries whose first passage is another one than the base's; ``unique``, the
    share of distinct first passages (near 0 means collapse); ``selection``, what the best checkpoint has least
    of: the bits per byte, ties decided by ``kl``.

    Args:
        data: The validation set.
        index_of: Gives the index that a model is to be searched in: the frozen one, or one of its own.
        batch_size: Queries encoded at once.
    """

    def __init__(
        self,
        data: ValidationSet,
        index_of: Callable[[SentenceTransformer], PassageIndex],
        batch_size: int = 64,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.greater_is_better = False
        self.primary_metric = PRIMARY_METRIC
        self.history: list[dict[str, float]] = []
        self._data = data
        self._index_of = index_of
        self._batch_size = batch_size

    def __call__(  # type: ignore[override]
        self, model: SentenceTransformer, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        """Evaluate ``model`` as it is now."""
        data = self._data
        index = self._index_of(model)
        with full_precision(model):
            vectors = encode_queries(
                model, [example.query for example in data.examples], batch_size=self._batch_size
            )
        rows = index.search(vectors, 1).rows
        base, current = (-self._log_likelihoods(found) for found in (data.base_rows[:, :1], rows))
        num_bytes = np.array([example.num_bytes for example in data.examples])
        difference = paired_bootstrap(
            base[:, 0] / math.log(2),
            current[:, 0] / math.log(2),
            num_bytes,
            clusters=[example.document_id for example in data.examples],
        )
        figures = {
            PRIMARY_METRIC: bits_per_byte(current[:, 0], num_bytes),
            "base_minus_current": difference.mean,
            "kl": self._divergence(vectors, index),
            "changed": float((rows[:, 0] != data.base_rows[:, 0]).mean()),
            "unique": unique_share(rows),
        }
        if difference.low is not None and difference.high is not None:
            figures |= {"base_minus_current_low": difference.low, "base_minus_current_high": difference.high}
        figures[SELECTION] = figures[PRIMARY_METRIC] + _TIE_BREAK * figures["kl"]
        self.history.append({"step": float(max(steps, 0)), **figures})
        return dict(figures)

    def _divergence(self, vectors: npt.NDArray[np.float32], index: PassageIndex) -> float:
        """Mean KL over the base's own candidates, in the objective's direction and temperatures."""
        data, options = self._data, self._data.objective
        passages = index.vectors(data.base_rows)
        similarity = torch.from_numpy(np.einsum("nd,nkd->nk", vectors, passages))
        log_p = log_distribution(similarity.double(), options.temperature_score)
        log_q = log_distribution(self._target_scores(), options.temperature_gold)
        first, second = (log_p, log_q) if options.kl is Direction.P_Q else (log_q, log_p)
        return float(kl_divergence(first, second).mean())

    def _target_scores(self) -> torch.Tensor:
        data = self._data
        return aggregate(
            torch.from_numpy(self._log_likelihoods(data.base_rows)),
            torch.tensor([len(example.continuation_ids) for example in data.examples]),
            torch.tensor([example.num_bytes for example in data.examples]),
            data.objective.score,
        )

    def _log_likelihoods(self, rows: Rows) -> npt.NDArray[np.float64]:
        """``(n, K)`` nats, of each example behind each of its rows."""
        data = self._data
        prompts = [
            data.builder.build(
                data.store[int(row)].text,
                example.query_ids,
                example.continuation_ids,
                f"validation example {number}, row {row}",
            )
            for number, (example, own) in enumerate(zip(data.examples, rows, strict=True))
            for row in own
        ]
        scores = data.supervisor.score(prompts)
        return np.array([score.log_likelihood for score in scores]).reshape(rows.shape)

    def get_config_dict(self) -> dict[str, Any]:
        """For the model card."""
        return {"examples": len(self._data.examples)}

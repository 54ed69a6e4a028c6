"""From example numbers to a batch: tokenised queries, candidate passages, and the supervisor's scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from replug_client.corpus.records import Example
from replug_client.retriever.asymmetric import is_asymmetric
from replug_client.training.candidates import NO_PASSAGE, Rows
from replug_client.training.distributed import ALONE, Processes, own_part
from replug_client.training.stream import ScoredCandidates

EXAMPLE_COLUMN = "example"


class FrozenPassages(Protocol):
    """Vectors of corpus rows, as a passage index gives them."""

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """``(n,)`` rows in, ``(n, D)`` float32 out."""
        ...


@dataclass(frozen=True, slots=True)
class IndexNegatives:
    """Passages of the index that join each batch's denominator; where passages are frozen they cost next to nothing.

    Attributes:
        rows: Corpus rows to draw from.
        count: How many a batch gets; all of them where there are no more.
        seed: What is drawn depends on it and on the batch's examples.
    """

    rows: Rows
    count: int
    seed: int

    def draw(self, numbers: Rows) -> Rows:
        """``(min(count, len(rows)),)`` distinct rows for the batch of these example numbers."""
        if self.count >= len(self.rows):
            return self.rows
        generator = np.random.default_rng([self.seed, *numbers.tolist()])
        return generator.choice(self.rows, size=self.count, replace=False)


@dataclass
class LSRDataCollator:
    """Turns ``[{"example": 3}, ...]`` into what :class:`~replug_client.training.loss.LSRLoss` takes.

    Attributes:
        model: The encoder whose tokeniser and prompts are used.
        examples: All training examples.
        take: Gives the scored candidates of a batch of example numbers (``CandidateStream.take``).
        passage_texts: Texts of corpus rows; used where passages are encoded in each step.
        frozen: Vectors of corpus rows; where given, passages are not encoded at all.
        base_queries: Vectors of example numbers; where given, queries are not encoded at all.
        negatives: Passages beside the candidates in P's denominator.
        matches: Query texts and ``(N,)`` corpus rows to ``(B, N, 2)`` matches of their words; where given, they join
            the batch as ``query_lexical``.
        processes: Which share each batch: its passages are those of all shares, encoded a part in each process.

    Example:
        >>> import numpy as np
        >>> from replug_client.corpus.records import Example
        >>> from replug_client.training import ArrayIndex, LSRDataCollator, LSRLoss, ObjectiveOptions, split_batch
        >>> from replug_client.training.stream import ScoredCandidates
        >>> from replug_client.training.toy import toy
        >>> passages = ["paris lies in france", "cats chase mice"]
        >>> model, supervisor, _ = toy([*passages, "capital"])
        >>> scored = ScoredCandidates(  # of one example with two candidates; a stream, a file... has them
        ...     rows=np.array([[0, 1]]), log_likelihoods=np.array([[-2.0, -5.0]]),
        ...     num_tokens=np.array([1]), num_bytes=np.array([5]))
        >>> collator = LSRDataCollator(
        ...     model, [Example("d", "capital", "paris", (4,), (1,), 5)], lambda numbers: scored,
        ...     frozen=ArrayIndex(model.encode_document(passages)))
        >>> batch = collator([{"example": 0}])
        >>> batch["passage_sentence_embedding"].shape, batch["label"].shape
        (torch.Size([2, 32]), torch.Size([1, 2, 4]))
        >>> LSRLoss(model, ObjectiveOptions())(*split_batch(batch)).backward()
        >>> supervisor.close()
    """

    model: SentenceTransformer
    examples: Sequence[Example]
    take: Callable[[Rows], ScoredCandidates]
    passage_texts: Callable[[Rows], list[str]] | None = None
    frozen: FrozenPassages | None = None
    base_queries: Callable[[Rows], npt.NDArray[np.float32]] | None = None
    negatives: IndexNegatives | None = None
    matches: Callable[[list[str], Rows], npt.NDArray[np.float32]] | None = None
    processes: Processes = ALONE
    valid_label_columns: list[str] = field(default_factory=lambda: ["label"])

    def __post_init__(self) -> None:
        if (self.frozen is None) == (self.passage_texts is None):
            raise ValueError("expected either frozen passage vectors or passage texts, found both or neither")

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch, in the form that sentence-transformers' trainer splits into features and labels."""
        numbers = np.array([feature[EXAMPLE_COLUMN] for feature in features], dtype=np.int64)
        scored = self.take(numbers)
        everyone = numbers if scored.batch_examples is None else scored.batch_examples
        passages, labels = label_tensor(scored, self.negatives.draw(everyone) if self.negatives else None)
        if self.base_queries is not None:
            batch: dict[str, Any] = {"query_sentence_embedding": torch.from_numpy(self.base_queries(numbers))}
        else:
            batch = self._tokenised("query", [self.examples[number].query for number in numbers])
        if self.matches is not None:
            texts = [self.examples[number].query for number in numbers]
            batch["query_lexical"] = torch.from_numpy(self.matches(texts, passages))
        if self.frozen is not None:
            batch["passage_sentence_embedding"] = torch.from_numpy(self.frozen.vectors(passages).copy())
        else:
            assert self.passage_texts is not None  # by __post_init__
            if self.processes.count > 1:
                batch["passage_columns"] = torch.tensor(len(passages))
                passages = own_part(passages, self.processes)
            batch |= self._tokenised("document", self.passage_texts(passages))
        return batch | {"label": labels}

    def _tokenised(self, task: str, texts: list[str]) -> dict[str, Any]:
        prompt = self.model.prompts.get(task) or None
        name = "query" if task == "query" else "passage"
        tokens = self.model.preprocess(texts, prompt=prompt, task=task)
        # The only number among the tensors; pooling that leaves the prompt out needs it (INSTRUCTOR).
        if isinstance(length := tokens.get("prompt_length"), int):
            tokens["prompt_length"] = torch.tensor([length])
        kept: dict[str, Any] = {key: value for key, value in tokens.items() if isinstance(value, Tensor)}
        if is_asymmetric(self.model):  # a Router takes its route from it, and else its default one
            kept["task"] = task
        return {f"{name}_{key}": value for key, value in kept.items()}


def label_tensor(scored: ScoredCandidates, negatives: Rows | None = None) -> tuple[Rows, Tensor]:
    """The distinct passages of a batch, and the labels that :class:`LSRLoss` describes.

    Args:
        scored: The batch's candidates.
        negatives: Further passages of the batch, which are no candidate's column unless they are one.

    Returns:
        ``(N,)`` distinct corpus rows in ascending order, and ``(batch, K, 4)`` float64 labels.
    """
    rows = scored.rows if scored.batch_rows is None else scored.batch_rows
    candidates = rows[rows != NO_PASSAGE]
    passages = np.unique(candidates if negatives is None else np.concatenate([candidates, negatives]))
    present = scored.rows != NO_PASSAGE
    columns = np.where(present, np.searchsorted(passages, scored.rows), -1)
    shape = scored.rows.shape
    labels = np.stack(
        [
            scored.log_likelihoods,
            np.broadcast_to(scored.num_tokens[:, None], shape),
            np.broadcast_to(scored.num_bytes[:, None], shape),
            columns,
        ],
        axis=-1,
    ).astype(np.float64)
    return passages, torch.from_numpy(labels)

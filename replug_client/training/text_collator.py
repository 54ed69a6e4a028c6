"""From rows of text to a batch: retrieves with the encoder as it is, and scores, as the batch is made."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.utils.data import get_worker_info

from replug_client.errors import OptionError
from replug_client.retriever.encoder import encode_passages, encode_queries
from replug_client.retriever.index import ArrayIndex, PassageIndex
from replug_client.retriever.lexical import LexicalIndex
from replug_client.supervisor.protocol import Supervisor
from replug_client.supervisor.tokenizer import SupervisorTokenizer
from replug_client.training.candidates import CandidateMiner, CandidateOptions
from replug_client.training.collator import EXAMPLE_COLUMN, LSRDataCollator
from replug_client.training.texts import TextCorpus, TextScorer

_PREFIXES = ("query_", "passage_")


@dataclass
class DataCollatorForLSR:
    """Turns ``[{"query": ..., "continuation": ...}, ...]`` into what :class:`LSRLoss` takes.

    For a loop of one's own, or any ``DataLoader`` (``num_workers=0``: it works with the encoder as it is). Every
    batch waits for its scores; :class:`~replug_client.training.text_trainer.TrainerForLSR` has them made ahead.

    Attributes:
        model: The encoder that is trained.
        passages: The corpus; a passage's row is its place here.
        supervisor: The LM that scores.
        tokenizer: The supervisor's (``open_supervisor`` gives both).
        index: Over the passages, row for row; None embeds them with ``model`` now.
        candidates: How many candidates a query gets, by source.
        train_passages: Whether candidates are encoded with gradient; else their vectors come from the index.
        retrieved_max_length: A passage keeps this many of its first tokens in a prompt.
        separator: Between passage and query in a prompt.
        seed: Of the random candidates.

    Raises:
        CorpusError: passages that are no texts.
        OptionError: parts that are no encoder, supervisor, tokenizer or index.

    Example:
        >>> import torch
        >>> from replug_client.training import DataCollatorForLSR, LSRLoss, ObjectiveOptions, split_batch
        >>> from replug_client.training.candidates import CandidateOptions
        >>> from replug_client.training.toy import toy
        >>> passages = ["paris lies in france", "rome lies in italy", "cats chase mice"]
        >>> rows = [{"query": "capital of france", "continuation": "paris"},
        ...         {"query": "capital of italy", "continuation": "rome"}]
        >>> model, supervisor, tokenizer = toy(passages + [row["query"] for row in rows])
        >>> collator = DataCollatorForLSR(
        ...     model, passages, supervisor, tokenizer, candidates=CandidateOptions(3, 0, 0))
        >>> loss = LSRLoss(model, ObjectiveOptions(temperature_score=0.1, temperature_gold=1.0))
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        >>> losses = []
        >>> for _ in range(20):
        ...     value = loss(*split_batch(collator(rows)))
        ...     value.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     losses.append(value.item())
        >>> losses[-1] < 0.1 * losses[0]
        True
        >>> supervisor.close()
    """

    model: SentenceTransformer
    passages: Sequence[str]
    supervisor: Supervisor
    tokenizer: SupervisorTokenizer
    index: PassageIndex | None = None
    candidates: CandidateOptions = field(default_factory=CandidateOptions)
    train_passages: bool = False
    retrieved_max_length: int = 128
    separator: str = "\n"
    seed: int = 0
    valid_label_columns: list[str] = field(default_factory=lambda: ["label"])

    def __post_init__(self) -> None:
        check_parts(self.model, self.supervisor, self.tokenizer, self.index)
        self._corpus = TextCorpus(self.passages)
        self._scorer = TextScorer(
            self._corpus,
            self.supervisor,
            self.tokenizer,
            retrieved_max_length=self.retrieved_max_length,
            separator=self.separator,
        )
        if self.index is None:
            self.refresh()
        assert self.index is not None  # by refresh
        self._miner = miner_of(self._corpus, self.passages, self.index, self.candidates, self.seed)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch, as :func:`split_batch` reads it: ``query_*``, ``passage_*`` and ``label`` tensors, and for a model
        with a ``Router`` the names of its routes.

        Raises:
            CorpusError: a row without query or continuation.
            SupervisorError: a pair cannot be scored.
            OptionError: called in a worker process.
        """
        if get_worker_info() is not None:
            raise OptionError(
                "DataCollatorForLSR was called in a DataLoader's worker, which has neither the encoder as it is nor "
                "the supervisor's connections; expected num_workers=0"
            )
        assert self.index is not None  # by __post_init__
        examples = self._scorer.examples(features)
        queries = [example.query for example in examples]
        # What is drawn at random depends on the query, not on its place in the batch.
        seeds = np.array([zlib.crc32(query.encode()) for query in queries], dtype=np.int64)
        self._miner.index = self.index
        rows = self._miner.mine(encode_queries(self.model, queries), queries, seeds)
        scored = self._scorer.score(examples, rows)
        numbered = LSRDataCollator(
            self.model,
            examples,
            lambda _: scored,
            passage_texts=self._corpus.texts if self.train_passages else None,
            frozen=None if self.train_passages else self.index,
        )
        return numbered([{EXAMPLE_COLUMN: number} for number in range(len(examples))])

    def refresh(self) -> None:
        """Embed all passages with the encoder as it is, and retrieve from these from now on."""
        self.index = ArrayIndex(encode_passages(self.model, list(self.passages)))


def check_parts(model: object, supervisor: object, tokenizer: object, index: object) -> None:
    """Refuse what is easily taken for a part of the training, and is another thing.

    Raises:
        OptionError: says what was found, and what makes the part.
    """
    for name, found, kind, mend in (
        ("model", model, SentenceTransformer, "a SentenceTransformer, which gives one vector a text"),
        (
            "supervisor",
            supervisor,
            Supervisor,
            "a Supervisor: open_supervisor(...) gives it and its tokenizer",
        ),
        ("tokenizer", tokenizer, SupervisorTokenizer, "the supervisor's: open_supervisor(...) gives both"),
        ("index", index, PassageIndex | None, "an index: ArrayIndex(vectors) makes one, or None"),
    ):
        if not isinstance(found, kind):
            raise OptionError(f"{name} is {type(found).__name__}; expected {mend}")


def miner_of(
    corpus: TextCorpus, texts: Sequence[str], index: PassageIndex, options: CandidateOptions, seed: int
) -> CandidateMiner:
    """The miner over a corpus of texts.

    Raises:
        ValueError: the index holds other rows than the corpus.
    """
    if not np.array_equal(index.rows, np.arange(len(corpus))):
        raise ValueError(
            f"the index holds {len(index)} rows, {index.rows[0]} to {index.rows[-1]}; expected 0 to {len(corpus) - 1}, "
            "one for each passage. Make it of the same passages, in the same order."
        )
    lexical = LexicalIndex(texts) if options.bm25_docs else None
    return CandidateMiner(index, lexical, index.rows, options, seed)


def split_batch(
    batch: Mapping[str, Any], device: str | torch.device | None = None
) -> tuple[list[dict[str, Any]], Tensor]:
    """What a collator gave, as a sentence-transformers loss takes it: ``loss(*split_batch(batch))``.

    Args:
        batch: Of :class:`DataCollatorForLSR` or :class:`LSRDataCollator`.
        device: Where the tensors go; None leaves them.

    Returns:
        ``[query features, passage features]`` and the labels.
    """
    moved = {
        name: value.to(device) if device is not None and isinstance(value, Tensor) else value
        for name, value in batch.items()
    }
    features = [
        {name.removeprefix(prefix): value for name, value in moved.items() if name.startswith(prefix)}
        for prefix in _PREFIXES
    ]
    return features, moved["label"]

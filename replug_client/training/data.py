"""From document files to training and validation examples, with a count of everything left out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replug_client.corpus.overlap import OverlapReport, find_overlap, ngram_overlap
from replug_client.corpus.readers import read_documents
from replug_client.corpus.records import Document, Example
from replug_client.corpus.store import PassageStore
from replug_client.corpus.windows import WindowCounts, WindowOptions, cut_examples
from replug_client.errors import CorpusError
from replug_client.supervisor.tokenizer import SupervisorTokenizer
from replug_client.training.options import DataOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExampleSets:
    """Examples to train and to validate on, and how they came about.

    Attributes:
        train: Training examples.
        validation: Held-out examples; no document has examples in both.
        counts: Per set: documents, windows, and what was dropped and why.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    counts: dict[str, Any]


def load_examples(
    options: DataOptions, store: PassageStore, tokenizer: SupervisorTokenizer, seed: int
) -> ExampleSets:
    """Read the documents, leave out those that stand in the corpus, split, and cut.

    Raises:
        CorpusError: a file cannot be read, or no training example is left.
    """
    cutter = _Cutter(options, store, tokenizer)
    if options.validation_data:
        held = frozenset(_text_key(document) for document in _documents(options.validation_data))
        train = cutter.cut("train", lambda: _others(options.data, held))
        validation = cutter.cut("validation", lambda: _documents(options.validation_data))
        cutter.counts["train"]["documents_in_validation"] = _count_shared(options.data, held)
    else:
        below = _threshold(options)
        train = cutter.cut("train", lambda: _share(options, below, held_out=False))
        validation = cutter.cut("validation", lambda: _share(options, below, held_out=True))
    train = sample(train, options.max_examples, seed)
    validation = sample(validation, options.max_validation, seed)
    cutter.counts["train"]["used"] = len(train)
    cutter.counts["validation"]["used"] = len(validation)
    if not train:
        raise CorpusError(
            f"no training example is left of {', '.join(map(str, options.data))}: {cutter.counts['train']}. "
            f"Expected documents of at least --context_len {options.context_len} + --min_pred_len "
            f"{options.min_pred_len} supervisor tokens that are not in the corpus themselves, by id or by text."
        )
    return ExampleSets(tuple(train), tuple(validation), cutter.counts)


def is_held_out(document_id: str, fraction: float) -> bool:
    """Whether a document is for validation: decided by its id alone, so that every run agrees."""
    return _place(document_id) < fraction


def sample(examples: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """At most ``limit`` examples drawn at random, in their first order."""
    if limit is None or len(examples) <= limit:
        return list(examples)
    chosen = np.random.default_rng(seed).choice(len(examples), size=limit, replace=False)
    return [examples[number] for number in np.sort(chosen)]


class _Cutter:
    def __init__(self, options: DataOptions, store: PassageStore, tokenizer: SupervisorTokenizer) -> None:
        self.counts: dict[str, Any] = {}
        self._options = options
        self._store = store
        self._tokenizer = tokenizer

    def cut(self, name: str, documents: Callable[[], Iterable[Document]]) -> list[Example]:
        """Examples of the documents, which are read twice: once to find what stands in the corpus."""
        options = self._options
        overlap = find_overlap(documents(), self._store)
        self._report(name, overlap)
        # Validation stays the same, whatever it is that training is given.
        stride, several = (options.stride, options.continuations) if name == "train" else (None, 1)
        windows = WindowOptions(options.context_len, options.pred_len, options.min_pred_len, stride, several)
        counts = WindowCounts()
        kept = (document for place, document in enumerate(documents()) if place not in overlap.places)
        examples = list(cut_examples(kept, self._tokenizer, windows, counts))
        fresh = self._without_shared_runs(examples)
        self.counts[name] = {
            **asdict(counts),
            "documents_in_corpus": len(overlap.places),
            "examples_sharing_a_run": len(examples) - len(fresh),
        }
        logger.info("%s: %d examples of %d documents", name, len(fresh), counts.documents)
        return fresh

    @staticmethod
    def _report(name: str, overlap: OverlapReport) -> None:
        if overlap.places:
            logger.warning("%s: %s; left out", name, overlap)

    def _without_shared_runs(self, examples: list[Example]) -> list[Example]:
        size = self._options.ngram_guard
        if not size or not examples:
            return examples
        passages = (self._tokenizer.encode(text) for text in self._store.iter_texts())
        shared = ngram_overlap(examples, passages, size)
        if shared.any():
            logger.info(
                "%d of %d examples share a run of %d tokens with a passage; left out",
                shared.sum(),
                len(examples),
                size,
            )
        return [example for example, drop in zip(examples, shared, strict=True) if not drop]


def _documents(paths: Sequence[Path]) -> Iterator[Document]:
    for path in paths:
        yield from read_documents(path)


def _text_key(document: Document) -> bytes:
    """Equal for equal texts, white space aside; ids of two files may be equal by chance (row numbers)."""
    return hashlib.blake2b(" ".join(document.text.split()).encode(), digest_size=16).digest()


def _others(paths: Sequence[Path], held: frozenset[bytes]) -> Iterator[Document]:
    return (document for document in _documents(paths) if _text_key(document) not in held)


def _count_shared(paths: Sequence[Path], held: frozenset[bytes]) -> int:
    shared = sum(_text_key(document) in held for document in _documents(paths))
    if shared:
        logger.warning("train: %d documents also stand in --validation_data; left out", shared)
    return shared


def _place(document_id: str) -> float:
    """A place in [0, 1), as good as random, that the id alone decides."""
    digest = hashlib.sha256(document_id.encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _threshold(options: DataOptions) -> float:
    """The validation fraction; a little more or less where, of few documents, it would hold out none or all."""
    fraction = options.validation_fraction
    if fraction == 0:
        return 0.0
    places = sorted(_place(document.id) for document in _documents(options.data))
    if places and places[-1] < fraction:
        return places[-1]
    if len(places) < 2 or places[0] < fraction:
        return fraction
    return (places[0] + places[1]) / 2


def _share(options: DataOptions, below: float, *, held_out: bool) -> Iterator[Document]:
    for document in _documents(options.data):
        if is_held_out(document.id, below) == held_out:
            yield document

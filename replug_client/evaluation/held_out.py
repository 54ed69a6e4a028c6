"""The examples of an evaluation: windows of held-out documents, or a run's own held-out examples."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from replug_client.corpus.overlap import find_overlap, ngram_overlap
from replug_client.corpus.readers import read_documents
from replug_client.corpus.records import Document, Example
from replug_client.corpus.store import PassageStore
from replug_client.corpus.windows import WindowCounts, WindowOptions, cut_examples
from replug_client.errors import CorpusError, OptionError
from replug_client.evaluation.retrieval import spread
from replug_client.evaluation.tuned_run import Query, read_queries
from replug_client.supervisor.tokenizer import SupervisorTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ExampleOptions:
    """Where the examples come from.

    Attributes:
        data: Documents that took no part in training; where there are none, ``held_out`` counts.
        held_out: A run's held-out examples (JSON lines of query, continuation, document_id).
        windows: How documents are cut.
        ngram_guard: Leave out examples that share a run of so many tokens with a passage, or with a document that
            was trained on; 0 leaves out none.
        max_examples: At most this many, spread evenly; None takes all.
        trained_on: What the run was given as training documents: none of them is evaluated on.
    """

    data: tuple[Path, ...] = ()
    held_out: Path | None = None
    windows: WindowOptions = field(default_factory=WindowOptions)
    ngram_guard: int = 0
    max_examples: int | None = None
    trained_on: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if not self.data and self.held_out is None:
            raise OptionError("no documents to evaluate on: name a file with --data, or a run with --run")
        if not self.data and self.windows.sliding:
            raise OptionError("--sliding needs whole documents (--data); a run keeps single windows only")
        if self.ngram_guard < 0 or (self.max_examples is not None and self.max_examples < 1):
            raise OptionError("--ngram_guard: expected 0 or more tokens; --max_examples: at least 1")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Examples, and what was left out on the way to them: reason to number."""

    examples: tuple[Example, ...]
    left_out: dict[str, int]


def held_out_examples(
    options: ExampleOptions, store: PassageStore, tokenizer: SupervisorTokenizer
) -> HeldOut:
    """Read and cut, and leave out what a retriever could find word for word in the corpus.

    Raises:
        CorpusError: a file cannot be read, or no example is left; says why.
    """
    left_out = Counter[str]()
    if options.data:
        examples = list(_windows(options, store, tokenizer, left_out))
    else:
        examples = [_retokenised(query, tokenizer) for query in _held_out(options)]
    trained = (document.text for path in _there(options.trained_on) for document in read_documents(path))
    others = {"a passage": store.iter_texts(), "a document that was trained on": trained}
    for whose, texts in others.items():
        if not options.ngram_guard or (not options.data and texts is trained):
            continue  # a run's own held-out documents stand in the file that it took its training documents from
        total = len(examples)
        examples = _without_shared_runs(examples, options.ngram_guard, texts, tokenizer)
        if total > len(examples):
            reason = f"examples that share a run of {options.ngram_guard} tokens with {whose}"
            left_out[reason] = total - len(examples)
    if options.max_examples is not None and len(examples) > options.max_examples:
        left_out[f"examples beyond --max_examples {options.max_examples}"] = (
            len(examples) - options.max_examples
        )
        examples = [examples[place] for place in spread(len(examples), options.max_examples)]
    if not examples:
        files = ", ".join(map(str, options.data or (options.held_out,)))
        raise CorpusError(
            f"{files}: no example is left; left out: {dict(left_out)}. Expected documents of at least --context_len "
            f"{options.windows.context_len} and --min_pred_len {options.windows.least_continuation} tokens that "
            "stand neither in the corpus nor in the training data."
        )
    return HeldOut(tuple(examples), dict(left_out))


def _windows(
    options: ExampleOptions, store: PassageStore, tokenizer: SupervisorTokenizer, left_out: Counter[str]
) -> Iterator[Example]:
    trained = _texts_of(options.trained_on)
    counts = WindowCounts()
    for path in options.data:
        in_corpus = find_overlap(read_documents(path), store).document_ids
        # Ids of two files may be equal by chance; as clusters of the bootstrap they must not be.
        prefix = f"{path.name}: " if len(options.data) > 1 else ""

        def kept(
            path: Path = path, in_corpus: frozenset[str] = in_corpus, prefix: str = prefix
        ) -> Iterator[Document]:
            for document in read_documents(path):
                if document.id in in_corpus:
                    left_out["documents that stand in the corpus themselves"] += 1
                elif text_key(document) in trained:
                    left_out["documents that the run trained or validated on"] += 1
                else:
                    yield replace(document, id=prefix + document.id)

        yield from cut_examples(kept(), tokenizer, options.windows, counts)
    reasons = {
        "documents too short for a window": counts.documents_without_example,
        "windows at a document's end with too short a continuation": counts.dropped_short,
        "windows of white space": counts.dropped_blank,
        "tokens at the start of documents, which have no or too short a context": counts.unscored_start,
    }
    left_out.update({reason: count for reason, count in reasons.items() if count})


def text_key(document: Document) -> bytes:
    """Equal for equal texts, white space aside."""
    return hashlib.blake2b(" ".join(document.text.split()).encode(), digest_size=16).digest()


def _texts_of(paths: Sequence[Path]) -> frozenset[bytes]:
    return frozenset(text_key(document) for path in _there(paths) for document in read_documents(path))


def _there(paths: Sequence[Path]) -> list[Path]:
    missing = [path for path in paths if not path.exists()]
    if missing:
        logger.warning(
            "%s: no such file, so that it cannot be said whether documents were trained on", missing[0]
        )
    return [path for path in paths if path not in missing]


def _held_out(options: ExampleOptions) -> list[Query]:
    path = options.held_out
    assert path is not None, "checked by the options"
    queries = [query for query in read_queries(path) if query.continuation]
    if not queries:
        raise CorpusError(f"{path}: no line has a continuation. Give documents with --data.")
    return queries


def _retokenised(query: Query, tokenizer: SupervisorTokenizer) -> Example:
    """The text in tokens, cut where the continuation begins.

    Where a token lies across that place, both sides are tokenised on their own.
    """
    continuation = query.continuation or ""
    ids, offsets = tokenizer.encode_with_offsets(query.text + continuation)
    place = next((n for n, (start, _) in enumerate(offsets) if start >= len(query.text)), len(ids))
    if 0 < place < len(ids) and offsets[place - 1][1] <= len(query.text):
        query_ids, continuation_ids = ids[:place], ids[place:]
    else:
        query_ids, continuation_ids = tokenizer.encode(query.text), tokenizer.encode(continuation)
    return Example(
        document_id=query.document_id or query.text,
        query=query.text,
        continuation=continuation,
        query_ids=tuple(query_ids),
        continuation_ids=tuple(continuation_ids),
        num_bytes=len(continuation.encode()),
    )


def _without_shared_runs(
    examples: list[Example], size: int, texts: Iterable[str], tokenizer: SupervisorTokenizer
) -> list[Example]:
    if not examples:
        return examples
    shared = ngram_overlap(examples, (tokenizer.encode(text) for text in texts), size)
    return [example for example, drop in zip(examples, shared, strict=True) if not drop]

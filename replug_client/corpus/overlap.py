"""The guard against trivial retrieval: an example must not find its own text in the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from replug_client.corpus.records import Document, Example
from replug_client.corpus.store import PassageStore
from replug_client.corpus.unique import HashIndex, hash64

_CHUNK_TOKENS = 1 << 18
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """Which documents also stand in the corpus.

    Attributes:
        num_documents: How many documents were looked at.
        same_id: Document id to the row of the passage with the same id.
        same_text: Document id to the row of the first passage with the same text (white space folded).
        places: Of the overlapping documents, in the order in which they came: ids of several files may be equal.
    """

    num_documents: int
    same_id: dict[str, int] = field(default_factory=dict)
    same_text: dict[str, int] = field(default_factory=dict)
    places: frozenset[int] = frozenset()

    @property
    def document_ids(self) -> frozenset[str]:
        """Ids of all overlapping documents: those to leave out."""
        return frozenset(self.same_id) | frozenset(self.same_text)

    def __str__(self) -> str:
        both = len(self.same_id.keys() & self.same_text.keys())
        said = (
            f"{len(self.places)} of {self.num_documents} documents also stand in the corpus, trivial "
            f"retrieval (same id: {len(self.same_id)}, same text: {len(self.same_text)}, both: {both})"
        )
        if self.same_id and not self.same_text:
            said += "; no text is the same, so where ids are mere row numbers, give documents others than passages"
        return said


def find_overlap(documents: Iterable[Document], store: PassageStore) -> OverlapReport:
    """Find the documents that are themselves passages: by id, or by text.

    Texts are compared with runs of white space folded to one space, since a change of line ends
    hides nothing. Hash hits are confirmed on the texts. Memory: 32 bytes a passage, and what overlaps.
    """
    by_text = HashIndex(hash64(_folded(text)) for text in store.iter_texts())
    same_id: dict[str, int] = {}
    same_text: dict[str, int] = {}
    places: set[int] = set()
    count = 0
    for place, document in enumerate(documents):
        count += 1
        row = store.row_of(document.id)
        if row is not None:
            same_id[document.id] = row
            places.add(place)
        folded = _folded(document.text)
        for candidate in by_text.rows(hash64(folded)):
            if _folded(store.texts([candidate])[0]) == folded:
                same_text[document.id] = candidate
                places.add(place)
                break
    return OverlapReport(count, same_id, same_text, frozenset(places))


def ngram_overlap(
    examples: Sequence[Example], passages_ids: Iterable[Sequence[int]], n: int = 20
) -> npt.NDArray[np.bool_]:
    """Say for each example whether any run of ``n`` of its token ids also stands in a passage.

    The run may lie in the query, in the continuation or across their boundary. Runs are compared
    by a rolling 64-bit hash and every hit is confirmed on the ids, so the answer is exact.

    Args:
        examples: What is checked; their n-grams are held in memory (16 bytes a token).
        passages_ids: Token ids of each passage, by the same tokenizer; streamed.
        n: Length of the run in tokens, at least 1.

    Returns:
        ``(len(examples),)`` bool.
    """
    if n < 1:
        raise ValueError(f"n is {n}; expected at least 1 token")
    sequences = [np.array(e.query_ids + e.continuation_ids, dtype=np.int64) for e in examples]
    hashes, owners, places = _ngrams(sequences, n)
    order = np.argsort(hashes, kind="stable")
    hashes, owners, places = hashes[order], owners[order], places[order]
    found = np.zeros(len(examples), dtype=bool)
    for passages in _chunks(passages_ids):
        theirs, rows, starts = _ngrams(passages, n)
        first, last = (np.searchsorted(hashes, theirs, side=side) for side in ("left", "right"))
        for hit in np.flatnonzero(first < last):
            run = passages[rows[hit]][starts[hit] : starts[hit] + n]
            # A licence header stands in thousands of files: only examples not found yet are compared.
            same = slice(first[hit], last[hit])
            for owner, place in (
                zip(owners[same], places[same], strict=True) if not found[owners[same]].all() else ()
            ):
                if not found[owner] and np.array_equal(sequences[owner][place : place + n], run):
                    found[owner] = True
    return found


def ngram_hashes(
    sequences: Sequence[npt.NDArray[np.int64]], n: int
) -> tuple[Words, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The runs of ``n`` ids in each sequence; a sequence shorter than that, but not empty, is one run of its own.

    A short run has the hash of another one only where both are whole sequences of the same length.

    Returns:
        64-bit hash, number of the sequence, and start in it, of each run: ``(runs,)`` each.
    """
    hashes, owners, places = _ngrams(sequences, n)
    lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
    parts = [(hashes, owners, places)]
    for length in np.unique(lengths[(lengths > 0) & (lengths < n)]).tolist():
        numbers = np.flatnonzero(lengths == length)
        short = _ngrams([sequences[number] for number in numbers], length)[0]
        parts.append((short ^ _mixed(np.array([~length])), numbers, np.zeros_like(numbers)))
    joined = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return next(joined), next(joined), next(joined)


def _folded(text: str) -> str:
    return " ".join(text.split())


def _chunks(passages_ids: Iterable[Sequence[int]]) -> Iterator[list[npt.NDArray[np.int64]]]:
    chunk: list[npt.NDArray[np.int64]] = []
    tokens = 0
    for ids in passages_ids:
        chunk.append(np.asarray(ids, dtype=np.int64))
        tokens += len(ids)
        if tokens >= _CHUNK_TOKENS:
            yield chunk
            chunk, tokens = [], 0
    if chunk:
        yield chunk


def _ngrams(
    sequences: Sequence[npt.NDArray[np.int64]], n: int
) -> tuple[Words, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hash, sequence number and start of each run of ``n`` ids; no run spans two sequences."""
    lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
    owners = np.repeat(np.arange(len(sequences)), lengths)
    places = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    count = max(0, len(owners) - n + 1)
    within = places[:count] + n <= lengths[owners[:count]]
    ids = np.concatenate([*sequences, np.empty(0, dtype=np.int64)])
    hashes = _rolling_hashes(ids, n)
    return hashes[within], owners[:count][within], places[:count][within]


def _rolling_hashes(ids: npt.NDArray[np.int64], n: int) -> Words:
    """Polynomial hashes modulo 2^64 of every run of ``n`` ids, after mixing each id's bits."""
    mixed = _mixed(ids)
    count = max(0, len(ids) - n + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(n):
        hashes = hashes * np.uint64(0x100000001B3) + mixed[offset : offset + count]
    return hashes


def _mixed(ids: npt.NDArray[np.int64]) -> Words:
    """Splitmix64's last step: near ids get bits that have nothing in common."""
    mixed = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)

"""Runs of words of a set of texts, as sorted hashes on the disk: what the overlap guard compares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from replug_client.corpus.overlap import Words, ngram_hashes
from replug_client.corpus.readers import read_documents
from replug_client.corpus.unique import HashSpool, hash64
from replug_client.corpus.windows import OffsetTokenizer
from replug_client.progress import progress

_WORD = re.compile(r"\w+")
_CHUNK_TOKENS = 1 << 18
_RUN_LENGTH = 1 << 21
Flags = npt.NDArray[np.bool_]


class PlainWords:
    """A text's words, in lower case; punctuation and white space do not count. Ids are 63-bit hashes."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Id and characters of each word."""
        ids, offsets = [], []
        for match in _WORD.finditer(text):
            ids.append(_word_id(match.group()))
            offsets.append(match.span())
        return ids, offsets


@lru_cache(maxsize=1 << 18)
def _word_id(word: str) -> int:
    return hash64(word.casefold()) >> 1


@dataclass(frozen=True, slots=True)
class TextSet:
    """One of the sets that are compared: its name, and its files in order."""

    name: str
    paths: tuple[Path, ...]
    text_column: str = "text"
    id_column: str = "id"

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Id and text of each item, streamed.

        Raises:
            CorpusError: as the files' reader.
        """
        total = sum(path.stat().st_size for path in self.paths if path.is_file())
        with progress(f"Reading {self.name}", total, "B") as advance:
            for path in self.paths:
                rows = read_documents(
                    path, text_column=self.text_column, id_column=self.id_column, advance=advance
                )
                yield from ((row.id, row.text) for row in rows)


@dataclass(frozen=True, slots=True)
class RunChunk:
    """Some items of a set, in order, and the runs in them.

    Attributes:
        ids: Of the items.
        texts: Of the items.
        hashes: Of each run, ``(runs,)``.
        owners: Which of the items each run is of, ``(runs,)``.
        places: Where in its item it begins, in words, ``(runs,)``.
    """

    ids: list[str]
    texts: list[str]
    hashes: Words
    owners: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]


def run_chunks(items: TextSet, tokenizer: OffsetTokenizer, n: int) -> Iterator[RunChunk]:
    """The items of a set with their runs of ``n`` words, some at a time: about 260,000 words, or one item."""
    ids: list[str] = []
    texts: list[str] = []
    sequences: list[npt.NDArray[np.int64]] = []
    size = 0
    for id_, text in items:
        ids.append(id_)
        texts.append(text)
        sequences.append(np.asarray(tokenizer.encode_with_offsets(text)[0], dtype=np.int64))
        size += len(sequences[-1]) + 1
        if size >= _CHUNK_TOKENS:
            yield RunChunk(ids, texts, *ngram_hashes(sequences, n))
            ids, texts, sequences, size = [], [], [], 0
    if ids:
        yield RunChunk(ids, texts, *ngram_hashes(sequences, n))


class SortedRuns:
    """The distinct run hashes of a set, sorted, and which of them other sets have, too; memory-mapped."""

    def __init__(self, chunks: Iterator[RunChunk], path: Path) -> None:
        """Spool the hashes of ``chunks`` into files that begin with ``path``."""
        with HashSpool(_RUN_LENGTH) as spool, path.with_suffix(".hashes").open("wb") as stream:
            for chunk in chunks:
                spool.extend(chunk.hashes)
            for piece in spool.sorted_slices():
                stream.write(np.unique(piece).tobytes())
        self._path = path
        self._marks: dict[int, Flags] = {}
        self._hashes: Words = np.empty(0, dtype=np.uint64)
        if path.with_suffix(".hashes").stat().st_size:
            self._hashes = np.memmap(path.with_suffix(".hashes"), np.uint64, "r")

    def mark(self, hashes: Words, other: int) -> Flags:
        """Which of ``hashes``, that stand in the set number ``other``, stand here; remembered for :meth:`marked`."""
        found, places = self._find(hashes)
        if found.any():
            if other not in self._marks:
                path = self._path.with_suffix(f".marks{other}")
                self._marks[other] = np.memmap(path, np.bool_, "w+", shape=self._hashes.shape)
            self._marks[other][places[found]] = True
        return found

    def marked(self, hashes: Words, other: int) -> Flags:
        """Which of ``hashes``, that stand here, were marked for the set number ``other``."""
        if other not in self._marks:
            return np.zeros(len(hashes), dtype=bool)
        found, places = self._find(hashes)
        return found & self._marks[other][places]

    def _find(self, hashes: Words) -> tuple[Flags, npt.NDArray[np.int64]]:
        if not len(self._hashes):
            return np.zeros(len(hashes), dtype=bool), np.zeros(len(hashes), dtype=np.int64)
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return self._hashes[places] == hashes, places

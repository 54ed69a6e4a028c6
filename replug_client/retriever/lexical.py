"""BM25 over the passages: finds by shared words what an encoder misses, above all identifiers in code."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import bm25s
import numpy as np
import numpy.typing as npt

from replug_client.errors import CorpusError, OptionError
from replug_client.progress import progress

# Importing bm25s sets its logger to DEBUG, past whatever level was asked for.
logging.getLogger("bm25s").setLevel(logging.WARNING)

NO_PASSAGE = -1

_WORD = re.compile(r"\w+")
_PART = re.compile(
    r"[A-Z]+(?=[A-Z][^\W\d_A-Z])"  # HTTP in HTTPServer
    r"|[A-Z]?[^\W\d_A-Z]+"  # Server; any letters but A to Z count as small ones
    r"|[A-Z]+"
    r"|\d+"
)


def tokenize(text: str) -> Iterator[str]:
    """Words, lower-cased; an identifier gives itself and then its parts.

    ``getHTTPResponse_v2`` gives ``gethttpresponse_v2 get http response v 2``; prose gives its words.
    """
    for word in token_spans(text):
        for start, end in word:
            yield text[start:end].lower()


def token_spans(text: str) -> Iterator[list[tuple[int, int]]]:
    """Where the words stand, ``(start, end)``: for each its own place, and then its parts' where it has several."""
    for word in _WORD.finditer(text):
        parts = [(part.start(), part.end()) for part in _PART.finditer(text, *word.span())]
        yield [word.span(), *(parts if len(parts) > 1 else ())]


class LexicalIndex:
    """BM25 (Robertson's with Lucene's idf, k1 = 1.5, b = 0.75) by ``bm25s``, with a tokenizer fit for code.

    Args:
        texts: The passages in corpus order; read once. Only their words' numbers are kept: 4 bytes a
            word while building, then 8 bytes for each distinct word of each passage.

    Raises:
        CorpusError: no passages.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._words: dict[str, int] = {}
        passages = self._read(texts)
        if not passages:
            raise CorpusError("BM25 needs at least one passage, found none.")
        self._length = len(passages)
        self._starts, self._passages, self._scores = _postings(passages, self._words)

    def __len__(self) -> int:
        return self._length

    def search(self, queries: Sequence[str], k: int) -> npt.NDArray[np.int64]:
        """The k passages with the highest BM25 score, for each query.

        Args:
            queries: B texts.
            k: At least 1.

        Returns:
            ``(B, min(k, len(self)))`` int64 corpus rows, best first; equal scores by row.
            A passage without any word of the query is never returned: ``NO_PASSAGE`` (-1) fills the line.

        Raises:
            OptionError: ``k`` below 1.
        """
        return self.search_scored(queries, k)[1]

    def search_scored(
        self, queries: Sequence[str], k: int
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """As :meth:`search`, with the scores: two ``(B, min(k, len(self)))``; 0 where there is no passage."""
        if k < 1:
            raise OptionError(f"k = {k} passages asked for: expected at least 1.")
        rows = np.full((len(queries), min(k, len(self))), NO_PASSAGE, dtype=np.int64)
        scores = np.zeros(rows.shape)
        with progress("Searching with BM25", len(queries), "queries") as advance:
            for query, line, values in zip(queries, rows, scores, strict=True):
                of_all = self._score(query)
                found = _best(of_all, len(line))
                line[: len(found)], values[: len(found)] = found, of_all[found]
                advance(1)
        return scores, rows

    def _read(self, texts: Iterable[str]) -> list[npt.NDArray[np.int32]]:
        words = self._words
        passages = []
        with progress("Reading passages for BM25", None, "passages") as advance:
            for text in texts:
                ids = [words.setdefault(word, len(words)) for word in tokenize(text)]
                passages.append(np.array(ids, dtype=np.int32))
                advance(1)
        return passages

    def _score(self, query: str) -> npt.NDArray[np.float64]:
        """BM25 of every passage, ``(n,)``: a word that the query repeats counts as often."""
        counts = Counter(self._words[word] for word in tokenize(query) if word in self._words)
        spans = [slice(self._starts[word], self._starts[word + 1]) for word in counts]
        if not spans:
            return np.zeros(len(self))
        passages = np.concatenate([self._passages[span] for span in spans])
        scores = np.concatenate(
            [self._scores[span] * count for span, count in zip(spans, counts.values(), strict=True)]
        )
        return np.bincount(passages, weights=scores, minlength=len(self)).astype(np.float64, copy=False)


def _best(scores: npt.NDArray[np.float64], k: int) -> npt.NDArray[np.int64]:
    """The k positions with the highest scores above 0, best first; equal scores by position."""
    candidates = np.flatnonzero(scores > 0)
    if len(candidates) > k:
        kth = np.partition(scores[candidates], -k)[-k]
        candidates = candidates[scores[candidates] >= kth]
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def _postings(
    passages: list[npt.NDArray[np.int32]], words: dict[str, int]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """For word w, ``passages[starts[w]:starts[w + 1]]`` hold it, with the BM25 it adds to each."""
    if not words:  # passages of punctuation only: an index that finds nothing, not an error
        return np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
    bm25 = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    # Ids, not words: the words of a large corpus would be held twice.
    bm25.index((passages, words), create_empty_token=False, show_progress=False)
    return bm25.scores["indptr"].astype(np.int64), bm25.scores["indices"], bm25.scores["data"]

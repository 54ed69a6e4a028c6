"""A retriever that adds how well the words match to how near the vectors lie, by weights that are learnt.

    s(q, d) = <E(q), E(d)> + w_terms * terms(q, d) + w_pairs * pairs(q, d)

with the matches of :mod:`replug_client.retriever.terms`. The weights begin at 0, where this is the encoder alone, and
are trained with it by the same loss (``replug train --lexical``): the language model's scores say how far words are
to be trusted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from replug_client.retriever.index import PassageIndex, SearchResult, blocks_of, check_search
from replug_client.retriever.terms import TermMatches

# Sums held at once while searching, 4 bytes each, some five times over.
_SUMS_AT_ONCE = 1 << 24

Floats = npt.NDArray[np.float32]


class LazyMatches:
    """The terms of a corpus, read when they are first asked for: a retriever without weights never does.

    Args:
        texts: Gives the passages' texts.
    """

    def __init__(self, texts: Callable[[], Iterable[str]]) -> None:
        self._texts = texts
        self._matches: TermMatches | None = None
        self._lock = threading.Lock()

    def __call__(self) -> TermMatches:
        """The terms; several threads that ask at once read them once."""
        with self._lock:
            if self._matches is None:
                self._matches = TermMatches(self._texts())
            return self._matches


class HybridIndex:
    """Passage vectors with the passages' terms: exact search by the sum of both.

    Args:
        dense: The vectors.
        matches: Gives the terms of the passages in ``dense.rows``, in their order.
    """

    def __init__(self, dense: PassageIndex, matches: Callable[[], TermMatches]) -> None:
        self.dense = dense
        self._matches = matches

    def search(
        self, vectors: Floats, texts: Sequence[str], k: int, weights: Sequence[float] | None
    ) -> SearchResult:
        """The k passages with the largest sums, for each query; equal sums by row.

        Every passage's sum is computed: no passage is missed because it is high in neither list.

        Args:
            vectors: ``(B, D)`` float32 of the queries.
            texts: The B queries.
            k: At least 1.
            weights: Of the matches; None (or none but 0) searches by vectors alone.

        Raises:
            OptionError: as :meth:`~replug_client.retriever.index.PassageIndex.search` says.
        """
        if weights is None or not any(weights):
            return self.dense.search(vectors, k)
        vectors, k = check_search(vectors, k, self.dense)
        factors = np.asarray(weights, dtype=np.float32)
        matches = self._matches()
        queries = matches.queries(texts)
        at_once = max(1, _SUMS_AT_ONCE // len(self.dense))
        found = [
            _best(self._sums(vectors[part], matches.of_all(queries[part]) @ factors), k)
            for start in range(0, len(vectors), at_once)
            if (part := slice(start, start + at_once))
        ]
        if not found:
            return self.dense.search(vectors, k)
        scores, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return SearchResult(scores, self.dense.rows[places])

    def _sums(self, vectors: Floats, matched: Floats) -> Floats:
        start = 0
        for block in blocks_of(self.dense):
            matched[:, start : start + len(block)] += vectors @ block.T
            start += len(block)
        return matched


def _best(sums: Floats, k: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """``(B, k)`` scores and places, best first; equal ones by place."""
    if k < sums.shape[1]:
        kth = np.partition(sums, -k, axis=1)[:, -k]
        lines = [np.flatnonzero(line >= least) for line, least in zip(sums, kth, strict=True)]
    else:
        lines = [np.arange(sums.shape[1])] * len(sums)
    places = np.stack(
        [own[np.argsort(-line[own], kind="stable")][:k] for line, own in zip(sums, lines, strict=True)]
    )
    return np.take_along_axis(sums, places, axis=1), places.astype(np.int64)

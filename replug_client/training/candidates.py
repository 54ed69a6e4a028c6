"""Which passages are scored for an example: the retriever's own, BM25's, and random ones.

Candidates from the base's own top K alone cannot teach it what it misses; random ones show what a useless
passage is worth. The mixture of one example depends on the seed and the example, not on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from replug_client.errors import OptionError
from replug_client.retriever.lexical import LexicalIndex

if TYPE_CHECKING:
    from replug_client.retriever.index import PassageIndex
    from replug_client.retriever.terms import TermMatches

Rows = npt.NDArray[np.int64]
NO_PASSAGE = -1


@dataclass(frozen=True, slots=True)
class CandidateOptions:
    """How many candidates an example gets, by source.

    Attributes:
        n_docs: The retriever's own top passages.
        bm25_docs: BM25's top passages that are not among them.
        random_docs: Passages drawn at random from the rest.
    """

    n_docs: int = 10
    bm25_docs: int = 4
    random_docs: int = 2

    def __post_init__(self) -> None:
        if min(self.n_docs, self.bm25_docs, self.random_docs) < 0 or self.total < 2:
            raise OptionError(
                f"--n_docs {self.n_docs}, --bm25_docs {self.bm25_docs}, --random_docs {self.random_docs}: "
                "expected none below 0 and at least two candidates in all, or there is nothing to compare"
            )

    @property
    def total(self) -> int:
        """K, the number of candidates of one example (fewer where the corpus is smaller)."""
        return self.n_docs + self.bm25_docs + self.random_docs


class CandidateMiner:
    """Finds the candidates of examples in the corpus.

    Args:
        index: The index of the retriever that is being trained.
        lexical: BM25 over the texts of ``rows``, in their order; may be None where ``bm25_docs`` is 0.
        rows: The corpus rows that are in the index, from which random ones are drawn.
        options: Counts.
        seed: Of the random candidates.
        matches: Gives the terms of the passages in ``rows``; may be None where no weights are ever given.
    """

    def __init__(
        self,
        index: PassageIndex,
        lexical: LexicalIndex | None,
        rows: Rows,
        options: CandidateOptions,
        seed: int,
        matches: Callable[[], TermMatches] | None = None,
    ) -> None:
        if options.bm25_docs and lexical is None:
            raise OptionError(f"--bm25_docs {options.bm25_docs} needs a lexical index")
        self.index = index
        self._lexical = lexical
        self._rows = rows
        self._options = options
        self._seed = seed
        self._matches = matches

    def mine(
        self,
        query_vectors: npt.NDArray[np.float32],
        queries: Sequence[str],
        examples: Rows,
        weights: Sequence[float] | None = None,
    ) -> Rows:
        """Candidates of a block of examples.

        Args:
            query_vectors: ``(n, D)`` float32.
            queries: The n query texts, for BM25.
            examples: ``(n,)`` example numbers, which seed the random candidates.
            weights: Of the words' matches in the retriever's own similarity; None: vectors alone.

        Returns:
            ``(n, K)`` int64 corpus rows, distinct within each example; ``NO_PASSAGE`` where the corpus ran out.
        """
        options = self._options
        own = self._own(query_vectors, queries, weights)
        lexical = self._bm25(queries)
        mined = np.full((len(examples), options.total), NO_PASSAGE, dtype=np.int64)
        for position, example in enumerate(examples):
            chosen = dict.fromkeys(own[position].tolist())
            self._extend(chosen, lexical[position].tolist(), options.bm25_docs)
            self._extend_randomly(chosen, int(example))
            mined[position, : len(chosen)] = list(chosen)
        return mined

    def _own(
        self, query_vectors: npt.NDArray[np.float32], queries: Sequence[str], weights: Sequence[float] | None
    ) -> Rows:
        k = self._options.n_docs
        if k == 0:
            return np.zeros((len(query_vectors), 0), dtype=np.int64)
        if weights is None or self._matches is None:
            return self.index.search(query_vectors, k).rows
        from replug_client.retriever.hybrid import HybridIndex  # and faiss, which --help does without

        return HybridIndex(self.index, self._matches).search(query_vectors, queries, k, weights).rows

    def _bm25(self, queries: Sequence[str]) -> Rows:
        if self._options.bm25_docs == 0 or self._lexical is None:
            return np.zeros((len(queries), 0), dtype=np.int64)
        # Twice and more of what is needed: some are among the retriever's own.
        found = self._lexical.search(queries, self._options.bm25_docs + self._options.n_docs)
        return np.where(found >= 0, self._rows[found], NO_PASSAGE)

    @staticmethod
    def _extend(chosen: dict[int, None], candidates: Sequence[int], count: int) -> None:
        for row in candidates:
            if count == 0:
                return
            if row >= 0 and row not in chosen:
                chosen[row] = None
                count -= 1

    def _extend_randomly(self, chosen: dict[int, None], example: int) -> None:
        """Fill up to K, so that an example short of BM25 hits still has K candidates."""
        wanted = min(self._options.total, len(self._rows))
        if self._options.random_docs == 0:
            return
        generator = np.random.default_rng([self._seed, example])
        while len(chosen) < wanted:
            draws = generator.integers(len(self._rows), size=2 * (wanted - len(chosen)))
            for row in self._rows[draws].tolist():
                if len(chosen) < wanted:
                    chosen.setdefault(row, None)

"""Over-retrieval: many from an index that has aged, the best of them by the encoder as it is now.

Izacard et al. 2022 ("Atlas", arXiv 2208.03299, section 2.4) retrieve more passages than they use, re-embed
these with the up-to-date encoder, and keep the top ones by the fresh scores: cheaper than re-embedding everything,
and good as long as what is best now was not far from the top when the index was made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from replug_client.retriever.index import PassageIndex, SearchResult, check_search
from replug_client.training.candidates import Rows

Vectors = npt.NDArray[np.float32]


class RerankedIndex:
    """A passage index that searches an older one for more, and orders what it finds by fresh vectors.

    Args:
        index: The older index.
        encode: ``(n,)`` corpus rows to their ``(n, D)`` vectors by the encoder as it is now.
        depth: How many are taken from the older index for each query.
    """

    def __init__(self, index: PassageIndex, encode: Callable[[Rows], Vectors], depth: int) -> None:
        self._index = index
        self._encode = encode
        self._depth = depth

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return self._index.dimension

    @property
    def rows(self) -> Rows:
        """``(n,)`` the corpus rows held, ascending."""
        return self._index.rows

    def __len__(self) -> int:
        return len(self._index)

    def search(self, queries: Vectors, k: int) -> SearchResult:
        """See :meth:`PassageIndex.search`; scores are those of the fresh vectors, equal ones ordered by row."""
        queries, k = check_search(queries, k, self)
        if len(queries) == 0:
            return self._index.search(queries, k)
        found = np.sort(self._index.search(queries, max(k, self._depth)).rows, axis=1)
        scores = np.einsum("qd,qmd->qm", queries, self.vectors(found))
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return SearchResult(np.take_along_axis(scores, best, axis=1), np.take_along_axis(found, best, axis=1))

    def vectors(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """The fresh vectors of these corpus rows: ``(...)`` integers to ``(..., D)``."""
        rows = np.asarray(rows)
        distinct, places = np.unique(rows, return_inverse=True)
        return self._encode(distinct)[places.ravel()].reshape(*rows.shape, self.dimension)

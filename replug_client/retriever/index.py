"""The passage-index seam: query vectors in, corpus rows out.

An index names a passage by its corpus row. It may hold a part of the corpus only (some shards of several).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from replug_client.errors import ArtefactError, OptionError

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class SearchResult(NamedTuple):
    """What a search found, best first.

    Attributes:
        scores: ``(B, k')`` float32 inner products, falling along each line.
        rows: ``(B, k')`` int64 corpus rows, distinct in each line; never -1.
    """

    scores: Vectors
    rows: Rows


@runtime_checkable
class PassageIndex(Protocol):
    """Exact or approximate search by inner product over passage vectors. Safe for several readers at once."""

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        ...

    @property
    def rows(self) -> Rows:
        """``(n,)`` int64: the corpus rows held, ascending."""
        ...

    def __len__(self) -> int:
        """How many passages it holds; at least 1."""
        ...

    def search(self, queries: Vectors, k: int) -> SearchResult:
        """The k passages with the largest inner product, for each query.

        Args:
            queries: ``(B, D)`` float32, finite; B may be 0.
            k: At least 1. Where the index holds fewer passages, all of them are returned:
                ``k' = min(k, len(self))``.

        Raises:
            OptionError: ``k`` below 1, queries of another shape, or not finite.
        """
        ...

    def vectors(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """The vectors of these corpus rows: ``(...)`` integers to ``(..., D)`` float32.

        Raises:
            IndexError: a row that is not in the index, a negative one included.
        """
        ...


class ArrayIndex:
    """All vectors in one numpy array, searched by one matrix product: exact, the reference for the others.

    Equal scores are ordered by row.

    Args:
        vectors: ``(n, D)``, n at least 1.
        rows: ``(n,)`` their corpus rows, ascending; None is ``0 .. n - 1``.

    Raises:
        ArtefactError: no vectors, or rows that do not fit them.
    """

    def __init__(self, vectors: npt.ArrayLike, rows: Rows | None = None) -> None:
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        check_vectors(self._vectors.shape)
        self._rows = np.arange(len(self._vectors)) if rows is None else np.asarray(rows, dtype=np.int64)
        if self._rows.shape != (len(self._vectors),) or (np.diff(self._rows) <= 0).any():
            raise ArtefactError(
                f"{len(self._vectors)} vectors need as many corpus rows, ascending; found {self._rows.shape}."
            )

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return int(self._vectors.shape[1])

    @property
    def rows(self) -> Rows:
        """``(n,)`` the corpus rows held, ascending."""
        return self._rows

    def __len__(self) -> int:
        return len(self._vectors)

    def search(self, queries: Vectors, k: int) -> SearchResult:
        """See :meth:`PassageIndex.search`."""
        queries, k = check_search(queries, k, self)
        scores = queries @ self._vectors.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return SearchResult(np.take_along_axis(scores, order, axis=1), self._rows[order])

    def vectors(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """See :meth:`PassageIndex.vectors`."""
        rows = np.asarray(rows)
        return self._vectors[positions(self._rows, rows.ravel())].reshape(*rows.shape, self.dimension)


def check_vectors(shape: tuple[int, ...]) -> None:
    """Refuse what no index can be made of.

    Raises:
        ArtefactError: not ``(n, D)`` with n and D at least 1.
    """
    if len(shape) != 2 or 0 in shape:
        raise ArtefactError(
            f"an index needs vectors of shape (n, D) with at least one passage, found {shape}. "
            "Embed at least one passage with `replug embed`."
        )


def check_search(queries: npt.ArrayLike, k: int, index: PassageIndex) -> tuple[Vectors, int]:
    """Queries as float32, and k cut to the number of passages.

    Raises:
        OptionError: as :meth:`PassageIndex.search` says.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != index.dimension:
        raise OptionError(
            f"queries of shape {queries.shape} for an index of dimension {index.dimension}: expected "
            f"(B, {index.dimension}). Queries and passages must come from one encoder."
        )
    if k < 1:
        raise OptionError(f"k = {k} passages asked for: expected at least 1.")
    if not np.isfinite(queries).all():
        raise OptionError("a query vector holds NaN or infinity; the encoder that made it is damaged.")
    return queries, min(k, len(index))


def positions(held: Rows, rows: npt.NDArray[np.int64]) -> Rows:
    """Where each of ``rows`` stands in ``held`` (ascending).

    Raises:
        IndexError: one of them does not.
    """
    if rows.size and rows.dtype.kind not in "iu":
        raise IndexError(f"rows are integers, found {rows.dtype}")
    found = np.minimum(np.searchsorted(held, rows), len(held) - 1)
    missing = rows[held[found] != rows] if rows.size else rows
    if missing.size:
        raise IndexError(
            f"row {int(missing[0])} is not in this index of {len(held)} passages ({held[0]} to {held[-1]})"
        )
    return found.astype(np.int64, copy=False)

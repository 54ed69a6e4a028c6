"""The passage-index seam: query vectors in, corpus rows out.

An index names a passage by its corpus row. It may hold a part of the corpus only (some shards of several).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import faiss
import numpy as np
import numpy.typing as npt

from replug_client import __version__
from replug_client.artefacts import atomic_write, read_json, sha256_file, write_json
from replug_client.errors import ArtefactError, OptionError
from replug_client.retriever.freshness import check_fresh
from replug_client.retriever.shards import Shard

__all__ = ["ArrayIndex", "FaissIndex", "PassageIndex", "SearchResult", "check_fresh"]

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

INDEX_NAME = "index.faiss"
INDEX_MANIFEST_NAME = "index.json"

_LOG = logging.getLogger(__name__)
_ROWS_AN_ADD = 1 << 16


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
        ArtefactError: no vectors, one that is not finite, or rows that do not fit them.

    Example:
        >>> from replug_client.training import ArrayIndex
        >>> index = ArrayIndex([[1.0, 0.0], [0.0, 1.0]])
        >>> index.search([[0.6, 0.8]], k=2).rows.tolist()
        [[1, 0]]
    """

    def __init__(self, vectors: npt.ArrayLike, rows: Rows | None = None) -> None:
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        check_vectors(self._vectors.shape)
        if not np.isfinite(self._vectors).all():
            raise ArtefactError(
                "a passage's vector holds NaN or infinity; the encoder that made it is damaged."
            )
        self._rows = np.arange(len(self._vectors)) if rows is None else np.asarray(rows, dtype=np.int64)
        if self._rows.shape != (len(self._vectors),) or (np.diff(self._rows) <= 0).any():
            raise ArtefactError(
                f"{len(self._vectors)} vectors need as many corpus rows, ascending; found {self._rows.shape}."
            )

    @property
    def array(self) -> Vectors:
        """``(n, D)`` all vectors, in the order of ``rows``."""
        return self._vectors

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

    def blocks(self) -> Iterator[Vectors]:
        """All vectors in the order of ``rows``, ``(n_i, D)`` float32 at a time."""
        yield self._vectors

    def vectors(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """See :meth:`PassageIndex.vectors`."""
        rows = np.asarray(rows)
        return self._vectors[positions(self._rows, rows.ravel())].reshape(*rows.shape, self.dimension)


class FaissIndex:
    """Exact search with FAISS (inner product), on the GPU where faiss has one. Vectors stay where they lie.

    Args:
        index: A FAISS index that holds the blocks' vectors in order.
        blocks: ``(n_i, D)`` arrays, memory-mapped ones too, float32 or float16.
        rows: ``(n,)`` corpus rows of all of them, ascending.
    """

    def __init__(self, index: Any, blocks: Sequence[npt.NDArray[np.floating[Any]]], rows: Rows) -> None:
        self._blocks = blocks
        self._ends = np.cumsum([len(block) for block in blocks])
        self._rows = rows
        self._index = faiss.index_cpu_to_all_gpus(index) if faiss.get_num_gpus() > 0 else index

    @classmethod
    def from_vectors(cls, vectors: npt.ArrayLike, rows: Rows | None = None) -> FaissIndex:
        """An index of vectors in memory; arguments and errors as :class:`ArrayIndex`."""
        table = ArrayIndex(vectors, rows)
        return cls(_flat([table.array]), [table.array], table.rows)

    @classmethod
    def from_shards(cls, shards: Sequence[Shard], save_or_load: bool = False) -> FaissIndex:
        """An index of shards on disk; whoever calls has them checked by :func:`check_fresh`.

        Args:
            shards: As ``open_shards`` gives them.
            save_or_load: Keep the FAISS index beside the shards (``index.faiss``), and take it from there
                when it was made of these very shards.

        Raises:
            ArtefactError: no shards, or the index cannot be written.
        """
        if not shards:
            raise ArtefactError("an index needs at least one shard. Make one with `replug embed`.")
        blocks = [shard.vectors for shard in shards]
        rows = np.concatenate([shard.rows for shard in shards])
        index = _saved_or_new(shards) if save_or_load else _flat(blocks)
        return cls(index, blocks, rows)

    @property
    def dimension(self) -> int:
        """Length D of the vectors."""
        return int(self._blocks[0].shape[1])

    @property
    def rows(self) -> Rows:
        """``(n,)`` the corpus rows held, ascending."""
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def search(self, queries: Vectors, k: int) -> SearchResult:
        """See :meth:`PassageIndex.search`."""
        queries, k = check_search(queries, k, self)
        scores, found = self._index.search(queries, k)
        if (found < 0).any():
            raise ArtefactError(
                f"FAISS found fewer than {k} of {len(self)} passages; a vector in the index is not finite. "
                "Embed the passages again with `replug embed`."
            )
        return SearchResult(scores, self._rows[found])

    def blocks(self) -> Iterator[Vectors]:
        """All vectors in the order of ``rows``, ``(n_i, D)`` float32 at a time; of float32 no copies."""
        for block in self._blocks:
            for start in range(0, len(block), _ROWS_AN_ADD):
                yield np.asarray(block[start : start + _ROWS_AN_ADD], dtype=np.float32)

    def vectors(self, rows: npt.NDArray[np.int64]) -> Vectors:
        """See :meth:`PassageIndex.vectors`."""
        rows = np.asarray(rows)
        places = positions(self._rows, rows.ravel())
        numbers = np.searchsorted(self._ends, places, side="right")
        vectors = np.empty((len(places), self.dimension), dtype=np.float32)
        for number in np.unique(numbers):
            block = self._blocks[number]
            here = numbers == number
            vectors[here] = block[places[here] - (self._ends[number] - len(block))]
        return vectors.reshape(*rows.shape, self.dimension)


def blocks_of(index: PassageIndex) -> Iterator[Vectors]:
    """All vectors of an index in the order of its rows, ``(n_i, D)`` float32 at a time."""
    if isinstance(index, ArrayIndex | FaissIndex):
        yield from index.blocks()
        return
    for start in range(0, len(index), _ROWS_AN_ADD):
        yield index.vectors(index.rows[start : start + _ROWS_AN_ADD])


def _flat(blocks: Sequence[npt.NDArray[np.floating[Any]]]) -> Any:
    index = faiss.IndexFlatIP(int(blocks[0].shape[1]))
    for block in blocks:
        check_vectors(block.shape)
        for start in range(0, len(block), _ROWS_AN_ADD):
            index.add(np.ascontiguousarray(block[start : start + _ROWS_AN_ADD], dtype=np.float32))
    return index


def _saved_or_new(shards: Sequence[Shard]) -> Any:
    """The FAISS index beside the shards if these shards made it; else a new one, which is then left there."""
    directory = shards[0].directory.parent
    made_of = {
        "faiss": faiss.__version__,
        "passages": sum(len(shard) for shard in shards),
        "dimension": shards[0].manifest.encoder.dimension,
        "shards": {shard.directory.name: shard.identity for shard in shards},
    }
    index = _saved(directory, made_of)
    if index is None:
        index = _flat([shard.vectors for shard in shards])
        _save(index, directory, made_of)
    return index


def _saved(directory: Path, made_of: dict[str, Any]) -> Any:
    path = directory / INDEX_NAME
    if not (directory / INDEX_MANIFEST_NAME).exists():
        return None
    try:
        manifest = read_json(directory / INDEX_MANIFEST_NAME, mend="Making it again.")
        if {name: manifest.get(name) for name in made_of} != made_of:
            _LOG.info("%s: made of other shards; making it again", path)
            return None
        if sha256_file(path) != manifest.get("sha256"):
            raise ArtefactError(f"{path}: not the file that {INDEX_MANIFEST_NAME} was written for.")
        index = faiss.read_index(str(path))
    except (ArtefactError, OSError, RuntimeError) as error:
        _LOG.warning("%s Making the index again.", error)
        return None
    _LOG.info("%s: index of %d passages loaded", path, index.ntotal)
    return index


def _save(index: Any, directory: Path, made_of: dict[str, Any]) -> None:
    path = directory / INDEX_NAME
    try:
        (directory / INDEX_MANIFEST_NAME).unlink(missing_ok=True)
        with atomic_write(path) as stream:
            faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))  # type: ignore[attr-defined]
        manifest = made_of | {"replug_version": __version__, "sha256": sha256_file(path)}
        write_json(directory / INDEX_MANIFEST_NAME, manifest)
    except (OSError, RuntimeError) as error:
        raise ArtefactError(
            f"{path}: the index cannot be written ({error}). Free some space, or leave out "
            "--save_or_load_index."
        ) from error
    _LOG.info("%s: index of %d passages saved", path, index.ntotal)


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
    k = int(k)  # FAISS takes no integer of numpy's
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

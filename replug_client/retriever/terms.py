"""How well a passage matches a query word by word, as numbers that a weight can be learnt for.

Two of them for each pair: over single terms, and over pairs of neighbouring terms. A term is a word, lower-cased; an
identifier of several parts gives these (``getHTTPResponse`` gives ``get http response``). With T(q) the query's
distinct terms that the corpus knows,

    match(q, d) = sum over t in T(q) of idf(t) * tf(t, d) / (tf(t, d) + k1 * (1 - b + b * |d| / mean |d|))
                  / sqrt(sum over t in T(q) of idf(t))

which is BM25 with Lucene's idf (Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and
Beyond", eq. 3.15), a query's repeated terms counted once, over the length of the query's own vector of sqrt(idf):
long queries weigh no more than short ones. k1 = 0.25 makes it nearly binary, for what matters to a language model is
that a name stands in the passage, not how often.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse  # type: ignore[import-untyped]

from replug_client.errors import CorpusError
from replug_client.progress import progress
from replug_client.retriever.lexical import token_spans
from replug_client.retriever.lexical_weights import GROUPS

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Matrix = Any  # scipy.sparse.csr_array, which has no types

_K1, _B = 0.25, 0.75
_UNKNOWN = -1
_SECOND = 32  # bits: a pair's key is its first term's number, shifted, and its second's


def terms(text: str) -> Iterator[str]:
    """The terms of a text, in order, lower-cased."""
    for word in token_spans(text):
        for start, end in word[1:] or word:
            yield text[start:end].lower()


@dataclass(frozen=True, slots=True, eq=False)
class QueryTerms:
    """The terms of B queries, as :meth:`TermMatches.queries` makes them.

    Attributes:
        groups: Of single terms, and of pairs: a sparse ``(B, V)`` matrix, each line of length 1 under idf.
    """

    groups: tuple[Matrix, ...]

    def __len__(self) -> int:
        return int(self.groups[0].shape[0])

    def __getitem__(self, part: slice) -> QueryTerms:
        return QueryTerms(tuple(group[part] for group in self.groups))


class TermMatches:
    """The terms of a corpus's passages, ready to be matched with queries.

    Args:
        texts: n passages, at least one; read once. What is kept is 8 bytes for each distinct term and pair of each
            passage, and as much again once the whole corpus is searched; making it takes several times as much.

    Raises:
        CorpusError: no passages.

    Example:
        >>> from replug_client.retriever.terms import TermMatches
        >>> matches = TermMatches(["parse a date", "open a file", "date of a file"])
        >>> found = matches.of_all(matches.queries(["parseDate"]))
        >>> found.shape
        (1, 3, 2)
        >>> found[0, :, 0].argmax().item()  # the passage with both of the name's parts
        0
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._numbers: dict[str, int] = {}
        numbers = array("i")
        lengths = []
        with progress("Reading the passages' terms", None, "passages") as advance:
            for text in texts:
                before = len(numbers)
                numbers.extend(self._numbers.setdefault(term, len(self._numbers)) for term in terms(text))
                lengths.append(len(numbers) - before)
                advance(1)
        if not lengths:
            raise CorpusError("matching terms needs at least one passage, found none.")
        flat, sizes = np.frombuffer(numbers, dtype=np.int32), np.array(lengths)
        # A pair ends where its second term stands; the first term of a passage ends none.
        ends = np.ones(len(flat), dtype=bool)
        ends[(np.cumsum(sizes) - sizes)[sizes > 0]] = False
        self._groups = (
            _Group.of(flat, sizes),
            _Group.of(_pairs(flat)[ends[1:]], np.maximum(sizes - 1, 0)),
        )

    def __len__(self) -> int:
        return int(self._groups[0].weights.shape[0])

    def queries(self, texts: Sequence[str]) -> QueryTerms:
        """Look up the terms of B queries."""
        numbers = [
            np.array([self._numbers.get(term, _UNKNOWN) for term in terms(text)], dtype=np.int64)
            for text in texts
        ]
        return QueryTerms(
            tuple(
                group.look_up(keys)
                for group, keys in zip(self._groups, (numbers, list(map(_pairs, numbers))), strict=True)
            )
        )

    def of(self, queries: QueryTerms, places: Rows) -> Floats:
        """The matches of B queries with N passages, by their places in the corpus: ``(B, N, 2)`` float32."""
        return _stacked(
            (query @ group.weights[places].T).toarray()
            for query, group in zip(queries.groups, self._groups, strict=True)
        )

    def of_own(self, queries: QueryTerms, places: Rows) -> Floats:
        """The matches of B queries each with K passages of its own: places ``(B, K)`` to ``(B, K, 2)`` float32."""
        lines = [self.of(queries[line : line + 1], own)[0] for line, own in enumerate(places)]
        return np.stack(lines) if lines else np.zeros((*places.shape, len(GROUPS)), np.float32)

    def of_all(self, queries: QueryTerms) -> Floats:
        """The matches of B queries with every passage: ``(B, n, 2)`` float32."""
        return _stacked(
            (query @ group.postings).toarray()
            for query, group in zip(queries.groups, self._groups, strict=True)
        )


@dataclass(frozen=True, eq=False)
class _Group:
    """Terms of one kind.

    Attributes:
        keys: ``(V,)`` int64, ascending.
        idf: ``(V,)`` float32.
        weights: Sparse ``(n, V)`` float32, what a term of the query adds to each passage's match.
    """

    keys: Keys
    idf: Floats
    weights: Matrix

    @classmethod
    def of(cls, flat: npt.NDArray[np.integer[Any]], lengths: Rows) -> _Group:
        """From the keys of all passages, one after the other, and how many each has."""
        # A key that no term has: a matrix without columns is none.
        keys, columns = np.unique(np.append(flat, _UNKNOWN).astype(np.int64), return_inverse=True)
        lines = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        counts = sparse.coo_array(
            (np.ones(len(lines), np.float32), (lines, columns[:-1].astype(np.int32))),
            shape=(len(lengths), len(keys)),
        ).tocsr()
        del columns, lines
        # Copies: what they were made of had room for every word, not for every distinct one.
        counts.indices, counts.data = counts.indices.copy(), counts.data.copy()
        frequency = np.bincount(counts.indices, minlength=len(keys))
        idf = np.log(1 + (len(lengths) - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
        relative = lengths / max(lengths.mean(), 1)
        saturation = np.repeat(_K1 * (1 - _B + _B * relative), np.diff(counts.indptr)).astype(np.float32)
        counts.data = counts.data / (counts.data + saturation) * idf[counts.indices]
        return cls(keys, idf, counts)

    @cached_property
    def postings(self) -> Matrix:
        """The same by term: ``(V, n)``."""
        return self.weights.T.tocsr()

    def look_up(self, queries: Sequence[Keys]) -> Matrix:
        """Sparse ``(B, V)``: each distinct known term of a query, all of a line equal."""
        found = [self._known(np.unique(query)) for query in queries]
        lengths = [len(columns) for columns in found]
        norms = [np.sqrt(self.idf[columns].sum()) for columns in found]
        values = np.repeat([1 / norm if norm else 0.0 for norm in norms], lengths).astype(np.float32)
        columns = np.concatenate([*found, np.zeros(0, np.int64)]).astype(np.int32)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return sparse.csr_array((values, columns, starts), shape=(len(queries), len(self.keys)))

    def _known(self, keys: Keys) -> Keys:
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        known: Keys = places[(self.keys[places] == keys) & (keys != _UNKNOWN)]
        return known


def _pairs(numbers: npt.NDArray[np.integer[Any]]) -> Keys:
    """Keys of neighbouring terms; one that the corpus does not know makes no pair."""
    first, second = numbers[:-1].astype(np.int64), numbers[1:].astype(np.int64)
    keys: Keys = np.where((first < 0) | (second < 0), _UNKNOWN, (first << _SECOND) | second)
    return keys


def _stacked(groups: Iterable[Floats]) -> Floats:
    return np.stack(list(groups), axis=-1).astype(np.float32, copy=False)

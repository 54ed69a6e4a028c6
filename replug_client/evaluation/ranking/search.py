"""What each retriever finds for the queries of a collection, each in its own index."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sentence_transformers import SentenceTransformer

from replug_client.corpus.store import PassageStore
from replug_client.errors import OptionError
from replug_client.evaluation.ranking.fusion import Fusion, fuse
from replug_client.evaluation.ranking.measures import Ranked, ranked
from replug_client.retriever.build import build_index
from replug_client.retriever.encoder import ComputeDtype, EncoderOptions, fingerprint, load_encoder
from replug_client.retriever.hybrid import LazyMatches
from replug_client.retriever.index import PassageIndex
from replug_client.retriever.lexical import LexicalIndex
from replug_client.retriever.search import Retriever
from replug_client.retriever.shards import Shard

_LOG = logging.getLogger(__name__)

BASE, TUNED, BM25 = "base", "tuned", "bm25"
SINGLE = (BASE, TUNED, BM25)
_LABELS = {BASE: "base", TUNED: "tuned", BM25: "BM25"}
_HOW = {"rrf": "RRF", "minmax": "scores"}


def retriever_name(text: str) -> str:
    """The canonical name of a retriever or of a fusion of some: ``base``, ``tuned+bm25``.

    Raises:
        OptionError: a part that is none of base, tuned and bm25, or stands twice.
    """
    parts = text.strip().lower().split("+")
    if not set(parts) <= set(SINGLE) or len(set(parts)) != len(parts):
        raise OptionError(
            f"--retrievers {text}: expected base, tuned or bm25, or several fused, such as tuned+bm25."
        )
    return "+".join(sorted(parts, key=SINGLE.index))


def label_of(name: str, how: Fusion) -> str:
    """What a table calls it: ``tuned + BM25 (RRF)``."""
    parts = [_LABELS[part] for part in name.split("+")]
    return parts[0] if len(parts) == 1 else f"{' + '.join(parts)} ({_HOW[how]})"


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded encoder and what it was loaded with."""

    options: EncoderOptions
    model: SentenceTransformer

    @classmethod
    def load(cls, options: EncoderOptions) -> Encoder:
        """Load it.

        Raises:
            OptionError, ArtefactError: as :func:`load_encoder`.
        """
        return cls(options, load_encoder(options))


@dataclass(frozen=True, slots=True)
class Search:
    """How all collections are searched.

    Attributes:
        encoders: ``base`` and ``tuned``, as far as there are.
        names: Retrievers and fusions, as :func:`retriever_name` gives them.
        top_k: Passages a query.
        fusion: How lists are fused; each is searched to ``top_k``.
        cache_dir: Where passage vectors are kept.
        shards: Vectors made before, used where they fit the corpus and the encoder.
        compute_dtype: Precision when passages are embedded; None: that of the shards, where they fit the corpus, else
            float32.
        batch_size: Passages a forward pass.
        drop_identical: A passage with the query's own id is not a result (BEIR's rule: ArguAna's and Quora's queries
            stand in their corpora).
    """

    encoders: Mapping[str, Encoder]
    names: Sequence[str]
    top_k: int
    fusion: Fusion
    cache_dir: Path
    shards: Sequence[Shard] = ()
    compute_dtype: ComputeDtype | None = None
    batch_size: int = 64
    drop_identical: bool = True

    def run(self, store: PassageStore, queries: Mapping[str, str]) -> dict[str, Ranked]:
        """Each retriever's ranking of each query, under its name.

        Raises:
            OptionError: an encoder is needed that is not there.
            ArtefactError: an index cannot be made.
        """
        needed = dict.fromkeys(part for name in self.names for part in name.split("+"))
        itself = self._itself(store, queries)
        # One more is fetched where the query's own passage may be among them.
        k = self.top_k + 1 if itself else self.top_k
        indexes: dict[str, PassageIndex] = {}
        found: dict[str, dict[str, list[tuple[str, float]]]] = {}
        for name in needed:
            scores, rows = (
                LexicalIndex(store.iter_texts()).search_scored(list(queries.values()), k)
                if name == BM25
                else self._nearest(name, store, list(queries.values()), k, indexes)
            )
            found[name] = _lists(store, queries, scores, rows, itself, self.top_k)
        return {name: self._fused(name, found, queries) for name in self.names}

    def _itself(self, store: PassageStore, queries: Mapping[str, str]) -> set[str]:
        """Queries whose id is also a passage's."""
        if not self.drop_identical:
            return set()
        return {id_ for id_ in queries if store.row_of(id_) is not None}

    def _nearest(
        self, name: str, store: PassageStore, queries: Sequence[str], k: int, indexes: dict[str, PassageIndex]
    ) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.int64]]:
        if name not in self.encoders:
            raise OptionError(
                f"--retrievers: {name} was not given; name it with --{name}, or a run with --run."
            )
        encoder = self.encoders[name]
        # Where only the query side was tuned, both encoders have one index.
        key = fingerprint(encoder.model, "document").key
        if key not in indexes:
            indexes[key] = build_index(
                encoder.model,
                store,
                self.cache_dir,
                encoder_options=encoder.options,
                shards=self.shards,
                compute_dtype=self.compute_dtype,
                batch_size=self.batch_size,
            )
        matches = LazyMatches(store.iter_texts)
        result = Retriever(encoder.model, indexes[key], matches).search(queries, k, f"queries, {name}")
        return result.scores, result.rows

    def _fused(
        self, name: str, found: Mapping[str, Ranked], queries: Mapping[str, str]
    ) -> dict[str, Sequence[tuple[str, float]]]:
        parts = name.split("+")
        if len(parts) == 1:
            return dict(found[name])
        return {id_: fuse([found[part][id_] for part in parts], self.fusion, self.top_k) for id_ in queries}


def _lists(
    store: PassageStore,
    queries: Mapping[str, str],
    scores: npt.NDArray[np.floating],
    rows: npt.NDArray[np.int64],
    itself: set[str],
    top_k: int,
) -> dict[str, list[tuple[str, float]]]:
    """Rows as passage ids, in the measures' order, without the query's own passage; BM25's fillers left out."""
    used = np.unique(rows[rows >= 0])
    ids = dict(zip(used.tolist(), store.ids(used), strict=True))
    lists = {}
    for query, line, values in zip(queries, rows.tolist(), scores.tolist(), strict=True):
        pairs = {ids[row]: value for row, value in zip(line, values, strict=True) if row >= 0}
        if query in itself:
            pairs.pop(query, None)
        lists[query] = ranked(pairs, top_k)
    return lists

"""Retrieve the same queries with two models, each over its own index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer

from replug_client.corpus.store import PassageStore
from replug_client.evaluation.comparison import Comparison, QueryComparison, agreement, compare_query
from replug_client.evaluation.tuned_run import Compared, Query
from replug_client.retriever.build import build_index, usable_shards
from replug_client.retriever.encoder import EncoderOptions, encode_queries, fingerprint, load_encoder
from replug_client.retriever.index import PassageIndex, SearchResult
from replug_client.retriever.shards import Shard

# A passage that is new among the first k is looked for this far down the other list.
_DEPTH = 100
# Three queries say little; the means are over this many held-out ones, where there are so many.
_MEAN_OVER = 200


@dataclass(frozen=True, slots=True)
class Retriever:
    """An encoder with the index of its own passage vectors."""

    model: SentenceTransformer
    index: PassageIndex


def open_retrievers(
    base: EncoderOptions,
    tuned: EncoderOptions,
    store: PassageStore,
    *,
    shards: Sequence[str],
    cache_dir: Path,
) -> tuple[Retriever, Retriever]:
    """Both encoders, each with its own index over the whole corpus.

    Shards that a model made of this very corpus are used as they are; passages of a model that has
    none are embedded, once, under ``cache_dir``. Where both encode passages alike (only the query
    side was tuned) they share one index.

    Raises:
        OptionError: an encoder cannot be loaded.
        ArtefactError: an index cannot be made.
    """
    found = _opened(shards)
    first = _retriever(base, load_encoder(base), store, found, cache_dir)
    model = load_encoder(tuned)
    if fingerprint(model, "document") == fingerprint(first.model, "document"):
        return first, Retriever(model, first.index)
    return first, _retriever(tuned, model, store, found, cache_dir)


def open_retriever(
    options: EncoderOptions, store: PassageStore, *, shards: Sequence[str] = (), cache_dir: Path
) -> Retriever:
    """One encoder with its own index; see :func:`open_retrievers`."""
    return _retriever(options, load_encoder(options), store, _opened(shards), cache_dir)


def _opened(patterns: Sequence[str]) -> list[Shard]:
    return usable_shards(patterns)


def _retriever(
    options: EncoderOptions,
    model: SentenceTransformer,
    store: PassageStore,
    shards: Sequence[Shard],
    cache_dir: Path,
) -> Retriever:
    return Retriever(model, build_index(model, store, cache_dir, encoder_options=options, shards=shards))


def compare_retrievers(
    queries: Sequence[Query], base: Retriever, tuned: Retriever, k: int
) -> list[QueryComparison]:
    """Compare two retrievers on every query; see :mod:`replug_client.evaluation.comparison`."""
    first = _search(base, "queries, base", queries, k)
    second = _search(tuned, "queries, tuned", queries, k)
    return [
        compare_query(
            query.text,
            (first.rows[number].tolist(), first.scores[number].tolist()),
            (second.rows[number].tolist(), second.scores[number].tolist()),
            k,
            continuation=query.continuation,
            document_id=query.document_id,
        )
        for number, query in enumerate(queries)
    ]


def _search(retriever: Retriever, description: str, queries: Sequence[Query], k: int) -> SearchResult:
    texts = [query.text for query in queries]
    vectors = encode_queries(retriever.model, texts, description=description)
    return retriever.index.search(vectors, max(k, _DEPTH))


def run_comparison(asked: Compared, *, show: int, cache_dir: Path) -> Comparison:
    """The whole comparison: open corpus, encoders and indexes, retrieve, compare.

    Of held-out queries ``show`` are shown, spread over the file, and the means are over more of
    them; queries that were given are all shown.

    Raises:
        CorpusError: the passages cannot be read.
        OptionError: an encoder cannot be loaded.
        ArtefactError: an index cannot be made.
    """
    store = PassageStore.open(asked.passages, cache_dir)
    base, tuned = open_retrievers(asked.base, asked.tuned, store, shards=asked.shards, cache_dir=cache_dir)
    queries = asked.queries
    if asked.held_out:
        queries = tuple(queries[place] for place in spread(len(queries), max(show, _MEAN_OVER)))
    compared = compare_retrievers(queries, base, tuned, asked.n_docs)
    shown = [compared[place] for place in spread(len(compared), show)] if asked.held_out else compared
    rows = {place.row for item in shown for place in (*item.base, *item.tuned)}
    return Comparison(
        base=shown_name(asked.base.model_name_or_path),
        tuned=shown_name(asked.tuned.model_name_or_path),
        shown=tuple(shown),
        passages={row: store[row] for row in rows},
        agreement=agreement(compared),
        held_out=asked.held_out,
    )


def shown_name(model_name_or_path: str) -> str:
    """A hub name as it is; of a folder elsewhere, the last two parts, which say most."""
    path = Path(model_name_or_path)
    return str(Path(*path.parts[-2:])) if path.is_absolute() else model_name_or_path


def spread(total: int, wanted: int) -> list[int]:
    """``min(wanted, total)`` positions out of ``total``, spread evenly, ascending."""
    wanted = min(wanted, total)
    return [(2 * number + 1) * total // (2 * wanted) for number in range(wanted)]

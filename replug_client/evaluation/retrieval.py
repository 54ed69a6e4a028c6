"""Retrieve the same queries with two models, each over its own index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sentence_transformers import SentenceTransformer

from replug_client.corpus.records import Passage
from replug_client.corpus.store import PassageStore
from replug_client.evaluation.appraisal import Appraiser
from replug_client.evaluation.comparison import Comparison, QueryComparison, agreement, compare_query
from replug_client.evaluation.highlight import common_words
from replug_client.evaluation.tuned_run import Compared, Query
from replug_client.retriever.build import build_index, usable_shards
from replug_client.retriever.encoder import EncoderOptions, fingerprint, load_encoder
from replug_client.retriever.hybrid import LazyMatches
from replug_client.retriever.index import SearchResult
from replug_client.retriever.lexical_weights import lexical_weights
from replug_client.retriever.search import Retriever
from replug_client.retriever.shards import Shard

# A passage that is new among the first k is looked for this far down the other list.
_DEPTH = 100
# Three queries say little; the means are over this many held-out ones, where there are so many.
_MEAN_OVER = 200
# Which words are common is seen on so many passages.
_COMMON_OVER = 1000


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
    found = usable_shards(shards)
    matches = LazyMatches(store.iter_texts)
    first = _retriever(base, load_encoder(base), store, found, cache_dir, matches)
    model = load_encoder(tuned)
    if fingerprint(model, "document") == fingerprint(first.model, "document"):
        return first, Retriever(model, first.index, matches)
    return first, _retriever(tuned, model, store, found, cache_dir, matches)


def open_retriever(
    options: EncoderOptions, store: PassageStore, *, shards: Sequence[str] = (), cache_dir: Path
) -> Retriever:
    """One encoder with its own index; see :func:`open_retrievers`."""
    matches = LazyMatches(store.iter_texts)
    return _retriever(options, load_encoder(options), store, usable_shards(shards), cache_dir, matches)


def _retriever(
    options: EncoderOptions,
    model: SentenceTransformer,
    store: PassageStore,
    shards: Sequence[Shard],
    cache_dir: Path,
    matches: LazyMatches,
) -> Retriever:
    index = build_index(model, store, cache_dir, encoder_options=options, shards=shards)
    return Retriever(model, index, matches)


def compare_retrievers(
    queries: Sequence[Query], base: Retriever, tuned: Retriever, k: int, *, quiet: bool = False
) -> list[QueryComparison]:
    """Compare two retrievers on every query; see :mod:`replug_client.evaluation.comparison`.

    ``quiet`` shows no progress bar.
    """
    first = _search(base, None if quiet else "queries, base", queries, k)
    second = _search(tuned, None if quiet else "queries, tuned", queries, k)
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


def _search(retriever: Retriever, description: str | None, queries: Sequence[Query], k: int) -> SearchResult:
    return retriever.search([query.text for query in queries], max(k, _DEPTH), description)


@dataclass(frozen=True, slots=True)
class Opened:
    """A corpus and both retrievers, ready to be searched, with the names that people see."""

    store: PassageStore
    base: Retriever
    tuned: Retriever
    names: tuple[str, str]

    @classmethod
    def of(cls, asked: Compared, cache_dir: Path) -> Opened:
        """Open corpus, encoders and indexes.

        Raises:
            CorpusError: the passages cannot be read.
            OptionError: an encoder cannot be loaded.
            ArtefactError: an index cannot be made.
        """
        store = PassageStore.open(asked.passages, cache_dir)
        base, tuned = open_retrievers(
            asked.base, asked.tuned, store, shards=asked.shards, cache_dir=cache_dir
        )
        return cls(store, base, tuned, (_called(asked.base, base), _called(asked.tuned, tuned)))

    def passages_of(self, compared: Sequence[QueryComparison]) -> dict[int, Passage]:
        """Every passage in one of the lists, by row."""
        rows = {place.row for item in compared for place in (*item.base, *item.tuned)}
        return {row: self.store[row] for row in rows}

    def common_words(self) -> frozenset[str]:
        """Words that say nothing of a passage, for so many have them; from passages spread over the corpus."""
        return common_words(self.store[row].text for row in spread(len(self.store), _COMMON_OVER))


def run_comparison(
    asked: Compared, opened: Opened, *, show: int, appraiser: Appraiser | None = None
) -> Comparison:
    """Retrieve and compare.

    Of held-out queries ``show`` are shown, spread over the file, and the means are over more of
    them; queries that were given are all shown. The passages of those shown are scored by the
    ``appraiser``'s LM, where there is one.

    Raises:
        SupervisorError: the supervisor gives no scores.
    """
    queries = asked.queries
    if asked.held_out:
        queries = tuple(queries[place] for place in spread(len(queries), max(show, _MEAN_OVER)))
    compared = compare_retrievers(queries, opened.base, opened.tuned, asked.n_docs)
    shown = [compared[place] for place in spread(len(compared), show)] if asked.held_out else compared
    if appraiser is not None:
        shown = appraiser.appraise(shown, opened.store, description="Scoring passages")
    return Comparison(
        base=opened.names[0],
        tuned=opened.names[1],
        shown=tuple(shown),
        passages=opened.passages_of(shown),
        agreement=agreement(compared),
        held_out=asked.held_out,
        supervisor=None if appraiser is None else appraiser.name,
    )


def _called(options: EncoderOptions, retriever: Retriever) -> str:
    name = shown_name(options.model_name_or_path)
    return name if lexical_weights(retriever.model) is None else f"{name}, by vectors and words"


def shown_name(model_name_or_path: str) -> str:
    """A hub name as it is; of a folder further down or elsewhere, the last two parts, which say most."""
    parts = Path(model_name_or_path).parts
    return str(Path(*parts[-2:])) if len(parts) > 2 else model_name_or_path


def spread(total: int, wanted: int) -> list[int]:
    """``min(wanted, total)`` positions out of ``total``, spread evenly, ascending."""
    wanted = min(wanted, total)
    return [(2 * number + 1) * total // (2 * wanted) for number in range(wanted)]

"""What each retrieval finds for the queries of an evaluation, each in its own index."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from replug_client.corpus.store import PassageStore
from replug_client.errors import OptionError
from replug_client.evaluation.conditions import BASE, BM25, RANDOM, TUNED, Retrieved, random_rows
from replug_client.evaluation.retrieval import open_retriever, open_retrievers
from replug_client.retriever.encoder import EncoderOptions
from replug_client.retriever.lexical import LexicalIndex
from replug_client.retriever.search import Retriever


def open_needed(
    needed: Collection[str],
    base: EncoderOptions | None,
    tuned: EncoderOptions | None,
    store: PassageStore,
    *,
    shards: Sequence[str] = (),
    cache_dir: Path,
) -> dict[str, Retriever]:
    """The retrievers of ``needed`` that are given, by ``base`` and ``tuned``; both may share one index.

    Raises:
        OptionError: an encoder cannot be loaded.
        ArtefactError: an index cannot be made.
    """
    if BASE in needed and TUNED in needed and base is not None and tuned is not None:
        both = open_retrievers(base, tuned, store, shards=shards, cache_dir=cache_dir)
        return dict(zip((BASE, TUNED), both, strict=True))
    return {
        name: open_retriever(encoder, store, shards=shards, cache_dir=cache_dir)
        for name, encoder in ((BASE, base), (TUNED, tuned))
        if name in needed and encoder is not None
    }


def retrieve(
    needed: Mapping[str, int],
    queries: Sequence[str],
    store: PassageStore,
    retrievers: Mapping[str, Retriever],
    *,
    seed: int = 0,
) -> dict[str, Retrieved]:
    """Find passages for the n queries.

    Args:
        needed: Retrieval to the number of passages, as :func:`~replug_client.evaluation.conditions.passages_needed`
            gives it.
        queries: n texts.
        store: The corpus.
        retrievers: ``base`` and ``tuned``, as far as they are needed.
        seed: Of the random passages.

    Returns:
        Retrieval to ``(n, min(wanted, len(store)))`` rows, with similarities where an encoder gave them.

    Raises:
        OptionError: an encoder is needed that is not there.
    """
    found = {}
    for name, k in needed.items():
        if name == RANDOM:
            found[name] = Retrieved(random_rows(len(queries), len(store), k, seed=seed))
        elif name == BM25:
            found[name] = Retrieved(LexicalIndex(store.iter_texts()).search(queries, k))
        elif name in retrievers:
            found[name] = _nearest(retrievers[name], queries, k, f"queries, {name}")
        else:
            raise OptionError(f"--conditions: {name} needs a {name} retriever, and none was given: --{name}")
    return found


def _nearest(retriever: Retriever, queries: Sequence[str], k: int, description: str) -> Retrieved:
    result = retriever.search(queries, k, description)
    return Retrieved(np.asarray(result.rows), np.asarray(result.scores))

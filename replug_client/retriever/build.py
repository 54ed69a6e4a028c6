"""A model's own index: the passages embedded with it, or vectors on disk where they are fresh."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SentenceTransformer

from replug_client.corpus.store import PassageStore
from replug_client.errors import ArtefactError, StaleArtefactError
from replug_client.retriever.embedding import EmbedOptions, embed_shard
from replug_client.retriever.encoder import EncoderOptions, fingerprint
from replug_client.retriever.freshness import differences
from replug_client.retriever.index import FaissIndex
from replug_client.retriever.projection import has_projection, project, without_projection
from replug_client.retriever.shards import Shard, open_shards

_LOG = logging.getLogger(__name__)


def usable_shards(patterns: Sequence[str]) -> list[Shard]:
    """Shards that may serve; where they cannot be used the log says why, and vectors are made anew."""
    if not patterns:
        return []
    try:
        return open_shards(patterns)
    except (ArtefactError, StaleArtefactError) as error:
        _LOG.warning("these passage vectors cannot be used, so passages are embedded anew: %s", error)
        return []


def build_index(
    model: SentenceTransformer,
    store: PassageStore,
    cache_dir: Path,
    *,
    encoder_options: EncoderOptions | None = None,
    shards: Sequence[Shard] = (),
    embed: EmbedOptions | None = None,
) -> FaissIndex:
    """The index of all passages under this very model.

    A model tuned on the query side alone has its base's passage vectors: the base's shards serve it too. Those of
    a model with a projection are one matrix product away from its base's.

    Args:
        model: The encoder.
        store: The passages.
        cache_dir: Vectors that must be made are kept in ``cache_dir/embeddings``, one folder for each
            encoder and corpus, and found again.
        encoder_options: What ``model`` was loaded with, noted in the manifest; None: not known.
        shards: Vectors that are used if they are fresh for this model and hold the whole corpus.
        embed: How to embed; the whole corpus becomes one shard.

    Raises:
        CorpusError: no passages.
        ArtefactError: the vectors cannot be made or written.
    """
    covered = sum(len(shard) for shard in shards) == len(store)
    if shards and covered and not differences(shards, model, store):
        return FaissIndex.from_shards(shards)
    if (
        has_projection(model)
        and shards
        and covered
        and not differences(shards, without_projection(model), store)
    ):
        return FaissIndex.from_vectors(project(model, [shard.vectors for shard in shards]))
    asked = embed or EmbedOptions()
    whole = EmbedOptions(dtype=asked.dtype, batch_size=asked.batch_size, compute_dtype=asked.compute_dtype)
    key = fingerprint(model, "document").key
    name = f"{store.sha256[:16]}-{key}-{whole.compute_dtype}-{whole.dtype}"
    directory = cache_dir / "embeddings" / name
    return FaissIndex.from_shards([embed_shard(model, store, directory, whole, encoder_options)])

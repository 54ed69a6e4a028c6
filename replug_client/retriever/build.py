"""A model's own index: the passages embedded with it, or vectors on disk where they are fresh."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from sentence_transformers import SentenceTransformer

from replug_client.corpus.store import PassageStore
from replug_client.errors import ArtefactError, StaleArtefactError
from replug_client.retriever.embedding import EmbedOptions, embed_shard
from replug_client.retriever.encoder import ComputeDtype, EncoderOptions, fingerprint
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
    compute_dtype: ComputeDtype | None = None,
    batch_size: int = 64,
) -> FaissIndex:
    """The index of all passages under this very model.

    A model tuned on the query side alone has its base's passage vectors: the base's shards serve it too. Those of
    a model with a projection are one matrix product away from its base's. Vectors that must be made are made in the
    precision that the shards were computed in, so that two encoders of one corpus are compared in one.

    Args:
        model: The encoder.
        store: The passages.
        cache_dir: Vectors that must be made are kept in ``cache_dir/embeddings``, one folder for each
            encoder and corpus, and found again.
        encoder_options: What ``model`` was loaded with, noted in the manifest; None: not known.
        shards: Vectors that are used if they are fresh for this model and hold the whole corpus.
        compute_dtype: Precision of the encoder; shards made in another do not serve. None: that of the shards, if
            they hold this corpus, else float32.
        batch_size: Passages a forward pass.

    Raises:
        CorpusError: no passages.
        ArtefactError: the vectors cannot be made or written.
    """
    covered = sum(map(len, shards)) == len(store)
    whole = shards if covered and shards and shards[0].manifest.corpus_sha256 == store.sha256 else ()
    theirs = cast(ComputeDtype, whole[0].manifest.compute_dtype) if whole else "float32"
    precision = compute_dtype or theirs
    serve = compute_dtype is None or all(shard.manifest.compute_dtype == compute_dtype for shard in whole)
    if whole and serve:
        if not differences(whole, model, store):
            return FaissIndex.from_shards(whole)
        if has_projection(model) and not differences(whole, without_projection(model), store):
            return FaissIndex.from_vectors(project(model, [shard.vectors for shard in whole]))
    asked = EmbedOptions(batch_size=batch_size, compute_dtype=precision)
    key = fingerprint(model, "document").key
    name = f"{store.sha256[:16]}-{key}-{asked.compute_dtype}-{asked.dtype}"
    directory = cache_dir / "embeddings" / name
    return FaissIndex.from_shards([embed_shard(model, store, directory, asked, encoder_options)])

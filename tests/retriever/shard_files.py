"""Shards of given vectors, without an encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from replug_client.retriever.fingerprint import EncoderFingerprint
from replug_client.retriever.shards import VECTORS_NAME, Shard, ShardManifest, write_ids


def encoder_record(dimension: int, weights: str = "0" * 64) -> EncoderFingerprint:
    """A fingerprint that no encoder has."""
    return EncoderFingerprint(weights, "1" * 64, "", "mean", dimension, 64, True)


def write_shard(
    directory: Path,
    vectors: npt.NDArray[np.float32],
    start_row: int = 0,
    *,
    dtype: str = "float32",
    weights: str = "0" * 64,
    corpus: str = "c" * 64,
) -> Shard:
    """A finished shard of these vectors, from ``start_row`` on."""
    directory.mkdir(parents=True)
    np.save(directory / VECTORS_NAME, vectors.astype(dtype))
    write_ids(directory, iter([[f"p{start_row + number}" for number in range(len(vectors))]]))
    manifest = ShardManifest(
        shard_id=0,
        num_shards=1,
        start_row=start_row,
        rows=len(vectors),
        corpus_rows=1000,
        corpus_sha256=corpus,
        passages=("corpus.csv",),
        encoder=encoder_record(vectors.shape[1], weights),
        encoder_options={"model_name_or_path": "m"},
        dtype=dtype,
        compute_dtype="float32",
    )
    manifest.write(directory)
    return Shard(directory)

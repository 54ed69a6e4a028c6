"""Passages in, a shard of vectors out; ``kill -9`` at any moment loses a few seconds of work."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import sentence_transformers
import torch
import transformers
from sentence_transformers import SentenceTransformer

from replug_client import __version__
from replug_client.artefacts import MANIFEST_NAME, read_json, write_json
from replug_client.corpus.store import PassageStore
from replug_client.errors import ArtefactError, CorpusError, OptionError
from replug_client.progress import progress
from replug_client.retriever.encoder import ComputeDtype, EncoderOptions, encode_passages, fingerprint
from replug_client.retriever.shards import (
    DTYPES,
    JOURNAL_NAME,
    VECTORS_NAME,
    Shard,
    ShardManifest,
    write_ids,
)

_LOG = logging.getLogger(__name__)
_BATCHES_A_CHUNK = 4
_ROWS_A_READ = 4096

# numpy's own module is typed in some versions and not in others.
_npy: Any = np.lib.format


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """How passages become vectors.

    Attributes:
        shard_id: Which shard to make, from 0.
        num_shards: How many shards the corpus is cut into; each is one contiguous block of it.
        dtype: Of the stored vectors: ``float32`` or ``float16``.
        batch_size: Passages a forward pass.
        compute_dtype: Precision of the encoder's matrix products. bfloat16 is faster where the hardware has
            it, and moves a vector of length 1 by less than 0.01.
        journal_seconds: How often the state is made safe: at most so much work is done again after a crash.
    """

    shard_id: int = 0
    num_shards: int = 1
    dtype: str = "float32"
    batch_size: int = 64
    compute_dtype: ComputeDtype = "float32"
    journal_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.shard_id < self.num_shards:
            raise OptionError(
                f"--shard_id {self.shard_id} of --num_shards {self.num_shards}: expected 0 to num_shards - 1."
            )
        if self.dtype not in DTYPES:
            raise OptionError(f"--vector_dtype {self.dtype}: expected one of {', '.join(DTYPES)}.")
        if self.compute_dtype not in get_args(ComputeDtype):
            raise OptionError(
                f"--compute_dtype {self.compute_dtype}: expected one of {', '.join(get_args(ComputeDtype))}."
            )
        if self.batch_size < 1:
            raise OptionError(f"--per_gpu_batch_size {self.batch_size}: expected at least 1.")


def embed_shard(
    model: SentenceTransformer,
    store: PassageStore,
    output_dir: Path,
    options: EmbedOptions,
    encoder_options: EncoderOptions | None = None,
) -> Shard:
    """Embed one shard into ``output_dir/passages_<shard_id>``.

    A finished shard of the same encoder, passages and options is kept; an unfinished one is gone on with;
    anything else in its place is made again.

    Args:
        model: The encoder, as ``load_encoder(encoder_options)`` gave it, or tuned since.
        store: The passages.
        output_dir: Holds the shards.
        options: Which shard, and how.
        encoder_options: Kept in the manifest, for the command that mends a stale shard; None: not known.

    Raises:
        CorpusError: fewer passages than shards.
        ArtefactError: no space left, another process at work there, or vectors that are not finite.
    """
    directory = output_dir / f"passages_{options.shard_id:02d}"
    manifest = _plan(model, store, options, encoder_options)
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        if not _is_finished(directory, manifest):
            _embed(model, store, directory, manifest, options)
            manifest.write(directory)
        (directory / JOURNAL_NAME).unlink(missing_ok=True)
    return Shard(directory)


def _plan(
    model: SentenceTransformer,
    store: PassageStore,
    options: EmbedOptions,
    encoder_options: EncoderOptions | None,
) -> ShardManifest:
    start = len(store) * options.shard_id // options.num_shards
    end = len(store) * (options.shard_id + 1) // options.num_shards
    if start == end:
        raise CorpusError(
            f"--num_shards {options.num_shards}: the corpus has {len(store)} passages, so shard "
            f"{options.shard_id} would be empty. Use at most {max(1, len(store))} shards."
        )
    given = {} if encoder_options is None else encoder_options.to_json()
    return ShardManifest(
        shard_id=options.shard_id,
        num_shards=options.num_shards,
        start_row=start,
        rows=end - start,
        corpus_rows=len(store),
        corpus_sha256=store.sha256,
        passages=tuple(str(path) for path in store.paths),
        encoder=fingerprint(model, "document"),
        encoder_options={name: value for name, value in given.items() if value is not None},
        dtype=options.dtype,
        compute_dtype=options.compute_dtype,
        versions={
            "replug": __version__,
            "sentence_transformers": sentence_transformers.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    )


def _is_finished(directory: Path, manifest: ShardManifest) -> bool:
    if not (directory / MANIFEST_NAME).exists():
        return False
    try:
        found = Shard(directory)
        found.ids()
    except ArtefactError as error:
        _LOG.warning("%s Embedding it again.", error)
        return False
    if found.manifest.plan == manifest.plan:
        _LOG.info("%s: already there, and fresh (%d passages)", directory, len(found))
        return True
    _LOG.info("%s: made by other weights, passages or options; embedding it again", directory)
    return False


def _embed(
    model: SentenceTransformer,
    store: PassageStore,
    directory: Path,
    manifest: ShardManifest,
    options: EmbedOptions,
) -> None:
    done = _done_before(directory, manifest)
    if done is None:
        _begin(store, directory, manifest)
        done = 0
    vectors = _npy.open_memmap(directory / VECTORS_NAME, mode="r+")
    order = _by_length(store, manifest)
    step = options.batch_size * _BATCHES_A_CHUNK
    began, saved, first = time.monotonic(), time.monotonic(), done
    with progress(f"Embedding passages ({directory.name})", manifest.rows, "passages", done) as advance:
        while done < manifest.rows:
            chunk = order[done : done + step]
            vectors[chunk] = _encode(model, store, manifest, chunk, options)
            done += len(chunk)
            advance(len(chunk))
            if time.monotonic() - saved >= options.journal_seconds or done == manifest.rows:
                vectors.flush()
                _write_journal(directory, manifest, done)
                saved = time.monotonic()
    seconds = max(time.monotonic() - began, 1e-9)
    rate = (done - first) / seconds
    _LOG.info("%s: %d passages in %.1f s (%.0f/s)", directory, done - first, seconds, rate)


def _encode(
    model: SentenceTransformer,
    store: PassageStore,
    manifest: ShardManifest,
    chunk: npt.NDArray[np.int64],
    options: EmbedOptions,
) -> npt.NDArray[np.floating[Any]]:
    texts = store.texts(chunk + manifest.start_row)
    vectors = encode_passages(model, texts, batch_size=options.batch_size, dtype=options.compute_dtype)
    with np.errstate(over="ignore"):
        stored = vectors.astype(manifest.dtype)
    if not np.isfinite(stored).all():
        raise ArtefactError(
            f"a vector has values up to {np.abs(vectors).max():.3g}, too large for --vector_dtype {manifest.dtype}. "
            "Store float32, or normalise the vectors with --normalize."
        )
    return stored


def _by_length(store: PassageStore, manifest: ShardManifest) -> npt.NDArray[np.int64]:
    """Positions in the shard, longest text first: little padding, and what does not fit fails at once."""
    lengths = np.empty(manifest.rows, dtype=np.int64)
    for rows in _blocks(manifest):
        lengths[rows - manifest.start_row] = [len(text) for text in store.texts(rows)]
    return np.argsort(-lengths, kind="stable")


def _blocks(manifest: ShardManifest) -> Iterator[npt.NDArray[np.int64]]:
    end = manifest.start_row + manifest.rows
    for start in range(manifest.start_row, end, _ROWS_A_READ):
        yield np.arange(start, min(start + _ROWS_A_READ, end))


def _done_before(directory: Path, manifest: ShardManifest) -> int | None:
    """How many positions, longest first, an earlier run made safe; None where it left nothing of use."""
    if not (directory / JOURNAL_NAME).exists() or (directory / MANIFEST_NAME).exists():
        return None
    try:
        journal = read_json(directory / JOURNAL_NAME, mend="Embedding it again.")
        vectors = np.load(directory / VECTORS_NAME, mmap_mode="r", allow_pickle=False)
    except (ArtefactError, OSError, ValueError, EOFError) as error:
        _LOG.warning("%s: cannot be gone on with (%s); embedding it again", directory, error)
        return None
    if journal.get("plan") != manifest.plan or vectors.shape != manifest.shape:
        _LOG.info("%s: unfinished, by other weights, passages or options; starting again", directory)
        return None
    _LOG.info("%s: going on after %d of %d passages", directory, journal["done"], manifest.rows)
    return int(journal["done"])


def _begin(store: PassageStore, directory: Path, manifest: ShardManifest) -> None:
    # What says that vectors are there goes before they do.
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    (directory / JOURNAL_NAME).unlink(missing_ok=True)
    header = {
        "descr": _npy.dtype_to_descr(np.dtype(manifest.dtype)),
        "fortran_order": False,
        "shape": manifest.shape,
    }
    try:
        with (directory / VECTORS_NAME).open("wb") as stream:
            _npy.write_array_header_2_0(stream, header)
            size = stream.tell() + int(np.prod(manifest.shape)) * np.dtype(manifest.dtype).itemsize
            # A full disk is an error now, not a bus error when a page of the map is written.
            _allocate(stream.fileno(), size)
            os.fsync(stream.fileno())
    except OSError as error:
        raise ArtefactError(
            f"{directory}: cannot make room for {manifest.rows} vectors ({error.strerror}). Free some space, "
            "name another --output_dir, or use --vector_dtype float16."
        ) from error
    write_ids(directory, (store.ids(rows) for rows in _blocks(manifest)))
    _write_journal(directory, manifest, 0)


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)


def _write_journal(directory: Path, manifest: ShardManifest, done: int) -> None:
    write_json(directory / JOURNAL_NAME, {"done": done, "rows": manifest.rows, "plan": manifest.plan})


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the lock goes with the process, however it ends."""
    with (directory / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArtefactError(
                f"{directory}: another process is embedding this shard. Wait for it, or give each process "
                "its own --shard_id."
            ) from None
        yield

"""Embedding a shard: what is stored, what is kept, and what is left after `kill -9`."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from replug_client.corpus.store import PassageStore
from replug_client.errors import ArtefactError, CorpusError, OptionError
from replug_client.retriever import embedding
from replug_client.retriever.embedding import EmbedOptions, embed_shard
from replug_client.retriever.encoder import EncoderOptions, encode_passages, load_encoder
from replug_client.retriever.shards import Shard
from tests.retriever.tiny import DIMENSION, saved_encoder, sentences, store_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderOptions:
    folder = saved_encoder(tmp_path_factory.mktemp("encoder") / "e5-tiny")
    return EncoderOptions(str(folder), device="cpu")


@pytest.fixture(scope="module")
def model(encoder: EncoderOptions) -> SentenceTransformer:
    return load_encoder(encoder)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many passages each call of the encoder was given."""
    counts: list[int] = []

    def counting(model: SentenceTransformer, texts: list[str], **options: object) -> np.ndarray:
        counts.append(len(texts))
        return encode_passages(model, texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(embedding, "encode_passages", counting)
    return counts


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_the_shards_together_hold_every_passages_vector_in_corpus_order(
    tmp_path: Path,
    model: SentenceTransformer,
    encoder: EncoderOptions,
    dtype: str,
    tolerance: float,
    num_shards: int,
) -> None:
    texts = sentences(50)
    store = store_of(tmp_path, texts)
    shards = [
        embed_shard(model, store, tmp_path / "out", EmbedOptions(number, num_shards, dtype, 4), encoder)
        for number in range(num_shards)
    ]
    assert [shard.directory.name for shard in shards] == [f"passages_{n:02d}" for n in range(num_shards)]
    assert [row for shard in shards for row in shard.rows] == list(range(50))
    assert [id_ for shard in shards for id_ in shard.ids()] == [f"p{number}" for number in range(50)]
    assert all(shard.vectors.dtype == dtype for shard in shards)
    stored = np.concatenate([shard.vectors for shard in shards]).astype(np.float32)
    plain = SentenceTransformer(encoder.model_name_or_path, device="cpu")
    expected = plain.encode(["passage: " + text for text in texts])  # e5: by its name
    np.testing.assert_allclose(stored, expected, atol=tolerance)


def test_the_manifest_says_what_made_the_shard(
    tmp_path: Path, model: SentenceTransformer, encoder: EncoderOptions
) -> None:
    store = store_of(tmp_path, sentences(5))
    shard = embed_shard(model, store, tmp_path / "out", EmbedOptions(), encoder)
    manifest = json.loads((shard.directory / "manifest.json").read_text())
    assert manifest["rows"] == manifest["corpus_rows"] == 5 and manifest["start_row"] == 0
    assert manifest["corpus_sha256"] == store.sha256
    assert manifest["encoder"]["prompt"] == "passage: " and manifest["encoder"]["dimension"] == DIMENSION
    assert manifest["encoder_options"]["model_name_or_path"] == encoder.model_name_or_path
    assert set(manifest["versions"]) == {"replug", "sentence_transformers", "transformers", "torch", "numpy"}
    left = {path.name for path in shard.directory.iterdir()}
    assert left == {"manifest.json", "vectors.npy", "ids.arrow", ".lock"}


def test_a_finished_shard_is_kept_and_anything_else_made_again(
    tmp_path: Path, model: SentenceTransformer, encoder: EncoderOptions, calls: list[int]
) -> None:
    store = store_of(tmp_path / "a", sentences(6))
    out = tmp_path / "out"

    def encoded(
        options: EmbedOptions, with_model: SentenceTransformer = model, of: PassageStore = store
    ) -> int:
        calls.clear()
        embed_shard(with_model, of, out, options, encoder)
        return sum(calls)

    assert encoded(EmbedOptions()) == 6
    assert encoded(EmbedOptions(batch_size=3)) == 0
    assert encoded(EmbedOptions(dtype="float16")) == 6
    assert encoded(EmbedOptions(dtype="float16", compute_dtype="bfloat16")) == 6
    assert encoded(EmbedOptions()) == 6
    prompted = load_encoder(EncoderOptions(encoder.model_name_or_path, passage_prompt="", device="cpu"))
    assert encoded(EmbedOptions(), prompted) == 6
    assert encoded(EmbedOptions(), prompted, store_of(tmp_path / "b", sentences(7))) == 7
    (out / "passages_00" / "ids.arrow").unlink()
    assert encoded(EmbedOptions(), prompted, store_of(tmp_path / "b", sentences(7))) == 7


class CrashError(Exception):
    """Stands for whatever ends a run between two batches."""


def crash_after(monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    left = [chunks]

    def crashing(model: SentenceTransformer, texts: list[str], **options: object) -> np.ndarray:
        left[0] -= 1
        if left[0] < 0:
            raise CrashError
        return encode_passages(model, texts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(embedding, "encode_passages", crashing)


def test_an_interrupted_shard_goes_on_unless_something_else_is_asked_for(
    tmp_path: Path,
    model: SentenceTransformer,
    encoder: EncoderOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    store = store_of(tmp_path, sentences(40))
    options = EmbedOptions(batch_size=2, journal_seconds=0)
    for other, remaining in ((options, 24), (EmbedOptions(batch_size=2, dtype="float16"), 40)):
        with monkeypatch.context() as patch:
            crash_after(patch, 2)  # two chunks of 4 batches of 2
            with pytest.raises(CrashError):
                embed_shard(model, store, tmp_path / "out", options, encoder)
        with pytest.raises(ArtefactError, match="16 of 40 passages"):
            Shard(tmp_path / "out" / "passages_00")
        caplog.clear()
        shard = embed_shard(model, store, tmp_path / "out", other, encoder)
        assert f"{remaining} passages in" in caplog.text
        np.testing.assert_allclose(shard.vectors, encode_passages(model, sentences(40)), atol=1e-3)
        (tmp_path / "out" / "passages_00" / "manifest.json").unlink()


@pytest.mark.parametrize("harm", ["journal", "vectors"])
def test_an_interrupted_shard_that_is_damaged_starts_again(
    tmp_path: Path,
    model: SentenceTransformer,
    encoder: EncoderOptions,
    monkeypatch: pytest.MonkeyPatch,
    harm: str,
) -> None:
    store = store_of(tmp_path, sentences(20))
    options = EmbedOptions(batch_size=2, journal_seconds=0)
    with monkeypatch.context() as patch:
        crash_after(patch, 1)
        with pytest.raises(CrashError):
            embed_shard(model, store, tmp_path / "out", options, encoder)
    name = {"journal": "progress.json", "vectors": "vectors.npy"}[harm]
    (tmp_path / "out" / "passages_00" / name).write_bytes(b"\x93NUM")
    shard = embed_shard(model, store, tmp_path / "out", options, encoder)
    np.testing.assert_allclose(shard.vectors, encode_passages(model, sentences(20)), atol=1e-5)


_EMBED = """
import sys
from pathlib import Path
from replug_client.corpus.store import PassageStore
from replug_client.progress import configure_logging
from replug_client.retriever.embedding import EmbedOptions, embed_shard
from replug_client.retriever.encoder import EncoderOptions, load_encoder
configure_logging("info")
folder, encoder = Path(sys.argv[1]), EncoderOptions(sys.argv[2], device="cpu")
store = PassageStore.open([folder / "corpus.jsonl"], folder / "cache")
options = EmbedOptions(batch_size=8, journal_seconds=0.0)
embed_shard(load_encoder(encoder), store, folder / "killed", options, encoder)
"""


def test_kill_9_loses_only_what_was_not_yet_in_the_journal(
    tmp_path: Path, model: SentenceTransformer, encoder: EncoderOptions
) -> None:
    texts = sentences(8_000, longest=50)
    store = store_of(tmp_path, texts)
    command = [sys.executable, "-c", _EMBED, str(tmp_path), encoder.model_name_or_path]
    directory = tmp_path / "killed" / "passages_00"
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while done_in(directory) < 64:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = done_in(directory)
    assert 64 <= done < len(texts), "it was killed too late to show anything"
    assert not (directory / "manifest.json").exists()
    # As it was left: what the journal counts is there, longest first.
    order = np.argsort([-len(text) for text in texts], kind="stable")
    partial = np.load(directory / "vectors.npy", mmap_mode="r")
    expected = encode_passages(model, [texts[row] for row in order[:64]])
    np.testing.assert_allclose(partial[order[:64]], expected, atol=1e-5)
    # What was safe is not computed again: these rows would not survive if it were.
    vectors = np.lib.format.open_memmap(directory / "vectors.npy", mode="r+")
    vectors[order[:64]] = 7.0
    vectors.flush()
    keep = texts[:200]
    shard = embed_shard(model, store, tmp_path / "killed", EmbedOptions(batch_size=256), encoder)
    assert (shard.vectors[order[:64]] == 7.0).all()
    rows = np.setdiff1d(np.arange(200), order[:64])
    np.testing.assert_allclose(shard.vectors[rows], encode_passages(model, keep)[rows], atol=1e-5)
    assert np.isfinite(shard.vectors).all() and (np.abs(shard.vectors).sum(axis=1) > 0).all()


def done_in(directory: Path) -> int:
    try:
        return int(json.loads((directory / "progress.json").read_text())["done"])
    except FileNotFoundError:
        return 0


def test_two_processes_cannot_embed_one_shard(
    tmp_path: Path, model: SentenceTransformer, encoder: EncoderOptions
) -> None:
    store = store_of(tmp_path, sentences(3))
    (tmp_path / "out" / "passages_00").mkdir(parents=True)
    descriptor = os.open(tmp_path / "out" / "passages_00" / ".lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ArtefactError, match="another process is embedding this shard"):
            embed_shard(model, store, tmp_path / "out", EmbedOptions(), encoder)
    finally:
        os.close(descriptor)
    assert len(embed_shard(model, store, tmp_path / "out", EmbedOptions(), encoder)) == 3


def test_a_full_disk_is_an_error_before_the_first_batch(
    tmp_path: Path, model: SentenceTransformer, encoder: EncoderOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ArtefactError, match=r"cannot make room for 3 vectors \(No space left on device\)"):
        embed_shard(model, store_of(tmp_path, sentences(3)), tmp_path / "out", EmbedOptions(), encoder)


def test_vectors_too_large_for_float16_are_refused(tmp_path: Path, encoder: EncoderOptions) -> None:
    model = load_encoder(EncoderOptions(encoder.model_name_or_path, normalize=False, device="cpu"))
    store = store_of(tmp_path, sentences(3))
    model[0].model.encoder.layer[0].output.LayerNorm.weight.data.fill_(1e6)
    with pytest.raises(ArtefactError, match="too large for --vector_dtype float16"):
        embed_shard(model, store, tmp_path / "out", EmbedOptions(dtype="float16"), encoder)


def test_more_shards_than_passages_are_refused(
    tmp_path: Path, model: SentenceTransformer, encoder: EncoderOptions
) -> None:
    store = store_of(tmp_path, sentences(2))
    with pytest.raises(CorpusError, match="the corpus has 2 passages"):
        embed_shard(model, store, tmp_path / "out", EmbedOptions(0, 3), encoder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_id": 2, "num_shards": 2}, "--shard_id 2 of --num_shards 2"),
        ({"shard_id": -1}, "--shard_id -1"),
        ({"dtype": "int8"}, "--vector_dtype int8"),
        ({"compute_dtype": "int8"}, "--compute_dtype int8"),
        ({"batch_size": 0}, "--per_gpu_batch_size 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        EmbedOptions(**options)  # type: ignore[arg-type]

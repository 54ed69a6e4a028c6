"""Stale vectors are refused with what differs and a command, and the command mends it."""

from __future__ import annotations

import copy
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from replug_client.cli.app import run
from replug_client.corpus.store import PassageStore
from replug_client.errors import StaleArtefactError
from replug_client.retriever.asymmetric import combine
from replug_client.retriever.build import build_index
from replug_client.retriever.embedding import EmbedOptions, embed_shard
from replug_client.retriever.encoder import EncoderOptions, encode_passages, load_encoder
from replug_client.retriever.index import check_fresh
from replug_client.retriever.shards import Shard, open_shards
from tests.retriever.tiny import saved_encoder, sentences, store_of

TEXTS = sentences(12)


@pytest.fixture
def options(tmp_path: Path) -> EncoderOptions:
    return EncoderOptions(str(saved_encoder(tmp_path / "encoder" / "my model")), device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> PassageStore:
    return store_of(tmp_path, TEXTS)


@pytest.fixture
def shards(tmp_path: Path, options: EncoderOptions, store: PassageStore) -> list[Shard]:
    model = load_encoder(options)
    for number in range(2):
        embed_shard(model, store, tmp_path / "out", EmbedOptions(number, 2, "float16"), options)
    return open_shards([tmp_path / "out"])


def changed(model: SentenceTransformer) -> SentenceTransformer:
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.parameters())[0, 0] += 1e-3
    return other


def refusal(
    shards: list[Shard], model: SentenceTransformer, store: PassageStore, name: str | None = None
) -> str:
    with pytest.raises(StaleArtefactError) as error:
        check_fresh(shards, model, store, model_name=name)
    return str(error.value)


def mend(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = re.findall(r"^  replug embed (.*)$", message, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["generate_passage_embeddings.py", *shlex.split(command)])
        with pytest.raises(SystemExit) as end:
            run("embed")
        assert end.value.code == 0


def test_fresh_shards_pass(shards: list[Shard], options: EncoderOptions, store: PassageStore) -> None:
    check_fresh(shards, load_encoder(options), store)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"passage_prompt": "it's a passage: "}, "prompt"),
        ({"pooling": "cls"}, "pooling"),
        ({"max_seq_length": 5}, "max seq length"),
        ({"normalize": False}, "normalized"),
    ],
)
def test_another_setting_is_named_and_the_command_mends_it(
    shards: list[Shard],
    options: EncoderOptions,
    store: PassageStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: dict[str, object],
    named: str,
) -> None:
    monkeypatch.setenv("REPLUG_CACHE", str(tmp_path / "cache"))
    model = load_encoder(EncoderOptions(options.model_name_or_path, device="cpu", **setting))  # type: ignore[arg-type]
    message = refusal(shards, model, store)
    assert named in message and "passages (" not in message
    mend(message, monkeypatch)
    mended = open_shards([tmp_path / "out"])
    check_fresh(mended, model, store)
    assert [shard.manifest.dtype for shard in mended] == ["float16", "float16"]
    # What the shards were asked for is asked for again when something else goes stale.
    (flag,) = re.findall(r"--device cpu (.*)$", message.split("\n")[-1])
    assert flag in refusal(mended, changed(model), store)


def test_other_weights_are_named_and_the_command_mends_it(
    shards: list[Shard],
    options: EncoderOptions,
    store: PassageStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REPLUG_CACHE", str(tmp_path / "cache"))
    model = changed(load_encoder(options))
    model.save_pretrained(str(tmp_path / "tuned model"))
    message = refusal(shards, model, store, str(tmp_path / "tuned model"))
    assert "weights" in message and "prompt" not in message.split("\n")[0]
    mend(message, monkeypatch)
    check_fresh(open_shards([tmp_path / "out"]), model, store)


def test_other_passages_are_named(shards: list[Shard], options: EncoderOptions, tmp_path: Path) -> None:
    other = store_of(tmp_path / "other", [*TEXTS[:-1], "another text"])
    message = refusal(shards, load_encoder(options), other)
    assert "passages (12 with hash" in message and "weights" not in message
    assert str(tmp_path / "other" / "corpus.jsonl") in message


def test_a_model_tuned_on_its_query_side_goes_with_its_bases_shards(
    shards: list[Shard], options: EncoderOptions, store: PassageStore
) -> None:
    base = load_encoder(options)
    check_fresh(shards, combine(changed(base), base), store)
    with pytest.raises(StaleArtefactError, match="weights"):
        check_fresh(shards, combine(base, changed(base)), store)


def test_a_part_of_the_corpus_is_fresh_and_reported(
    shards: list[Shard], options: EncoderOptions, store: PassageStore, caplog: pytest.LogCaptureFixture
) -> None:
    check_fresh(shards[:1], load_encoder(options), store)
    assert "the shards hold 6 of 12 passages" in caplog.text


def test_a_models_own_index_takes_shards_that_are_fresh_and_whole_else_embeds_once(
    shards: list[Shard], options: EncoderOptions, store: PassageStore, tmp_path: Path
) -> None:
    base = load_encoder(options)
    cache = tmp_path / "cache"
    assert len(build_index(base, store, cache, shards=shards)) == 12
    assert not (cache / "embeddings").exists()

    tuned = changed(base)
    index = build_index(tuned, store, cache, encoder_options=options, shards=shards)
    assert abs(index.vectors(index.rows) - encode_passages(tuned, TEXTS)).max() < 1e-6
    (made,) = (cache / "embeddings").iterdir()
    stamp = (made / "passages_00" / "manifest.json").stat().st_mtime_ns
    build_index(tuned, store, cache, encoder_options=options)
    assert (made / "passages_00" / "manifest.json").stat().st_mtime_ns == stamp

    assert len(build_index(base, store, cache, shards=shards[:1])) == 12, "half the corpus is not the corpus"
    assert len(list((cache / "embeddings").iterdir())) == 2


def test_vectors_that_are_made_beside_shards_are_made_in_their_precision(
    options: EncoderOptions, store: PassageStore, tmp_path: Path
) -> None:
    base = load_encoder(options)
    plan = EmbedOptions(dtype="float16", compute_dtype="bfloat16")
    shards = [embed_shard(base, store, tmp_path / "bf16", plan, options)]
    tuned, cache = changed(base), tmp_path / "cache"
    rough = encode_passages(tuned, TEXTS, dtype="bfloat16")

    def made(**how: Any) -> str:
        index = build_index(tuned, store, cache / str(how), shards=shards, **how)
        (folder,) = (cache / str(how) / "embeddings").iterdir()
        (shard,) = open_shards([folder])
        difference = abs(index.vectors(index.rows) - rough).max()
        assert (difference < 1e-6) == (shard.manifest.compute_dtype == "bfloat16")
        return shard.manifest.compute_dtype

    assert made() == "bfloat16"
    assert made(compute_dtype="float32") == "float32"
    build_index(base, store, cache, shards=shards, compute_dtype="bfloat16")
    assert not (cache / "embeddings").exists()
    build_index(base, store, cache, shards=shards, compute_dtype="float32")
    assert len(list((cache / "embeddings").iterdir())) == 1, (
        "the shards are of another precision than was asked for"
    )

    other = store_of(tmp_path / "other", [*TEXTS[:-1], "another text"])
    build_index(base, other, cache / "other", shards=shards)
    (folder,) = (cache / "other" / "embeddings").iterdir()
    (shard,) = open_shards([folder])
    assert shard.manifest.compute_dtype == "float32", "shards of another corpus say nothing of this one"

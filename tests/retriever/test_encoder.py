"""Encoders are set up as their family wants, and a saved one gives the same vectors without replug."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from replug_client.errors import ArtefactError, OptionError
from replug_client.retriever.encoder import (
    EncoderOptions,
    check_projection_size,
    encode_passages,
    encode_queries,
    load_encoder,
)
from tests.retriever.tiny import DIMENSION, bare_encoder, minilm, saved_encoder, sentences

BGE_QUERY = "Represent this sentence for searching relevant passages: "
TEXTS = sentences(9)


def load(path: Path | str, **options: object) -> SentenceTransformer:
    return load_encoder(EncoderOptions(str(path), device="cpu", **options))  # type: ignore[arg-type]


def by_hand(folder: Path, texts: list[str], *, pooling: str, normalize: bool) -> np.ndarray:
    """Vectors with transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    with torch.no_grad():
        for text in texts:
            states = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=64))
            tokens = states.last_hidden_state[0]
            vector = tokens[0] if pooling == "cls" else tokens.mean(dim=0)
            vectors.append(vector / vector.norm() if normalize else vector)
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize(
    ("name", "query_prompt", "passage_prompt", "pooling", "normalize"),
    [
        ("bge-small-en-v1.5", BGE_QUERY, "", "cls", True),
        ("e5-base-v2", "query: ", "passage: ", "mean", True),
        ("gte-small", "", "", "mean", True),
        ("gte-base-en-v1.5", "", "", "cls", True),
        ("all-MiniLM-L6-v2", "", "", "mean", True),
        ("contriever", "", "", "mean", False),
    ],
)
def test_a_bare_folder_is_pooled_prompted_and_normalised_as_its_family_wants(
    tmp_path: Path, name: str, query_prompt: str, passage_prompt: str, pooling: str, normalize: bool
) -> None:
    folder = bare_encoder(tmp_path / name)
    model = load(folder)
    for encode, prompt in ((encode_queries, query_prompt), (encode_passages, passage_prompt)):
        expected = by_hand(folder, [prompt + text for text in TEXTS], pooling=pooling, normalize=normalize)
        np.testing.assert_allclose(encode(model, TEXTS), expected, atol=1e-5)
    other = by_hand(folder, TEXTS, pooling="mean" if pooling == "cls" else "cls", normalize=normalize)
    assert np.abs(encode_passages(model, TEXTS) - other).max() > 0.01, "the pooling makes no difference here"


@pytest.mark.parametrize("name", ["bge-small-en-v1.5", "e5-small", "contriever", "my-model"])
@pytest.mark.parametrize("bare", [True, False])
def test_plain_sentence_transformers_gives_the_same_vectors_from_the_saved_folder(
    tmp_path: Path, name: str, bare: bool
) -> None:
    make = bare_encoder if bare else saved_encoder
    model = load(make(tmp_path / name))
    model.save_pretrained(str(tmp_path / "saved"))
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(plain.encode_query(TEXTS), encode_queries(model, TEXTS), atol=1e-6)
    np.testing.assert_allclose(plain.encode_document(TEXTS), encode_passages(model, TEXTS), atol=1e-6)
    again = load(tmp_path / "saved")
    np.testing.assert_allclose(encode_queries(again, TEXTS), encode_queries(model, TEXTS), atol=1e-6)


def test_the_folder_of_a_saved_model_says_its_pooling_and_the_family_only_adds_what_it_does_not_say(
    tmp_path: Path,
) -> None:
    folder = saved_encoder(tmp_path / "bge-small-en-v1.5", pooling="max", normalize=False)
    model = load(folder)
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling", "Normalize"]
    assert model[1].pooling_mode == "max"
    assert model.prompts["query"] == BGE_QUERY


def test_prompts_saved_in_the_model_go_before_the_familys(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "e5-mine", prompts={"query": "Q ", "document": "D "})
    model = load(folder)
    assert model.prompts["query"] == "Q " and model.prompts["document"] == "D "


def test_options_go_before_everything(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "e5-mine", prompts={"query": "Q "})
    model = load(
        folder, query_prompt="", passage_prompt="P ", pooling="cls", normalize=False, max_seq_length=7
    )
    assert model.prompts["query"] == "" and model.prompts["document"] == "P "
    assert [type(module).__name__ for module in model] == ["Transformer", "Pooling"]
    expected = by_hand(
        tmp_path / "e5-mine-bare", ["P " + text for text in TEXTS[:2]], pooling="cls", normalize=False
    )
    np.testing.assert_allclose(encode_passages(model, TEXTS[:2]), expected, atol=1e-5)
    assert model.max_seq_length == 7
    long, cut = "a " * 40, "a " * 5  # CLS and SEP take two of the seven
    np.testing.assert_allclose(encode_queries(model, [long]), encode_queries(model, [cut]), atol=1e-5)


def test_an_empty_prompt_asked_for_stays_empty_when_the_saved_model_is_loaded_again(tmp_path: Path) -> None:
    model = load(bare_encoder(tmp_path / "e5-small"), query_prompt="")
    model.save_pretrained(str(tmp_path / "e5-tuned"))
    again = load(tmp_path / "e5-tuned")
    assert again.prompts["query"] == "" and again.prompts["document"] == "passage: "


def test_a_folder_named_by_a_relative_path_falls_under_its_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bare_encoder(tmp_path / "bge-small-en"))
    assert load(".").prompts["query"] == BGE_QUERY


def test_a_bare_model_of_an_unknown_family_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load(bare_encoder(tmp_path / "my-model"))
    assert "unknown family" in caplog.text


def test_vectors_come_in_the_order_of_the_texts_whatever_the_batch(tmp_path: Path) -> None:
    model = load(saved_encoder(tmp_path / "m"))
    texts = sentences(70)
    one_by_one = np.concatenate([encode_passages(model, [text]) for text in texts])
    vectors = encode_passages(model, texts, batch_size=2)  # more than one chunk
    assert vectors.dtype == np.float32 and vectors.shape == (70, DIMENSION)
    np.testing.assert_allclose(vectors, one_by_one, atol=1e-5)


def test_no_texts_give_no_vectors(tmp_path: Path) -> None:
    assert encode_queries(load(saved_encoder(tmp_path / "m")), []).shape == (0, DIMENSION)


def test_encoding_leaves_a_model_in_training_mode(tmp_path: Path) -> None:
    model = load(saved_encoder(tmp_path / "m"))
    model.train()
    encode_queries(model, TEXTS)
    assert model.training and model[0].training


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = load(saved_encoder(tmp_path / "m"))
    with torch.no_grad():
        model[0].model.embeddings.word_embeddings.weight[5 + 3] = float("nan")  # word3
    encode_passages(model, ["word2", "word4"])
    with pytest.raises(ArtefactError, match=r"1 of 2 texts, first for text 1: 'word3'"):
        encode_passages(model, ["word2", "word3"])


def test_the_projection_size_is_checked(tmp_path: Path) -> None:
    model = load(saved_encoder(tmp_path / "m"))
    check_projection_size(model, None)
    check_projection_size(model, DIMENSION)
    with pytest.raises(OptionError, match=f"--projection_size 384: .* {DIMENSION} numbers"):
        check_projection_size(model, 384)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "average"}, "--pooling average: expected one of"),
        ({"max_seq_length": 0}, "--max_length 0"),
        ({"max_seq_length": 2}, "--max_length 2: this encoder adds 2 tokens of its own .* give at least 3"),
        ({"max_seq_length": 65}, "--max_length 65: this encoder has positions for 64"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    folder = saved_encoder(tmp_path / "m")
    with pytest.raises(OptionError, match=message):
        load(folder, **options)


@pytest.mark.parametrize("name", ["no/such-model", "/no/such/folder", "nothing-like-it"])
def test_a_model_that_is_not_there_is_an_error_that_says_what_was_expected(name: str) -> None:
    with pytest.raises(OptionError, match=f"{name}.*cannot be loaded.*Expected a folder"):
        load(name)


@pytest.mark.parametrize("device", ["cuda:63", "gpu"])
def test_a_device_that_is_not_there_is_an_error_that_names_it(device: str, tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "m")
    with pytest.raises(OptionError, match=f"--device {device} is not to be had here"):
        load_encoder(EncoderOptions(str(folder), device=device))


def test_a_folder_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be loaded"):
        load(tmp_path)


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    folder = saved_encoder(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ArtefactError, match=r"pytorch_model\.bin: pickled weights"):
        load(folder)


def test_minilm_gives_what_plain_sentence_transformers_gives_and_bfloat16_comes_close() -> None:
    texts = ["def read(path): return open(path).read()", "A bird sings.", "class A:\n    pass\n" * 60]
    model = load(minilm())
    assert model.prompts["query"] == "" and model.max_seq_length == 256
    expected = SentenceTransformer(minilm(), device="cpu").encode(texts)
    np.testing.assert_allclose(encode_queries(model, texts), expected, atol=1e-6)
    coarse = encode_passages(model, texts, dtype="bfloat16")
    assert coarse.dtype == np.float32
    assert 1e-6 < np.linalg.norm(coarse - expected, axis=1).max() < 0.02

"""Vectors and words together: the sums, their weights, and a folder that plain sentence-transformers loads."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from replug_client.errors import ArtefactError, OptionError
from replug_client.retriever import encoder, hybrid
from replug_client.retriever.asymmetric import combine, query_encoder_of
from replug_client.retriever.encoder import (
    EncoderOptions,
    encode_passages,
    encode_queries,
    fingerprint,
    load_encoder,
)
from replug_client.retriever.fingerprint import identity
from replug_client.retriever.hybrid import HybridIndex, LazyMatches
from replug_client.retriever.index import ArrayIndex, FaissIndex
from replug_client.retriever.lexical_weights import (
    add_lexical,
    lexical_weights,
    save_lexical,
    without_lexical,
)
from replug_client.retriever.projection import has_projection, with_projection
from replug_client.retriever.search import Retriever
from replug_client.retriever.terms import TermMatches
from tests.retriever.tiny import saved_encoder, sentences

TEXTS = sentences(40)
ROWS = np.arange(0, 120, 3)  # a part of the corpus
QUERIES = ["word1 word2 word3", "word7", "nothing known", ""]
WEIGHTS = (0.3, 0.7)


def sums(vectors: np.ndarray, passages: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    matches = TermMatches(TEXTS)
    return vectors @ passages.T + matches.of_all(matches.queries(QUERIES)) @ np.float32(weights)


@pytest.mark.parametrize("kind", [ArrayIndex, FaissIndex.from_vectors])
@pytest.mark.parametrize("at_once", [1, 50, 1 << 24])
def test_what_is_found_is_best_by_the_sum(kind, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(hybrid, "_SUMS_AT_ONCE", at_once)
    generator = np.random.default_rng(0)
    passages = generator.normal(size=(40, 8)).astype(np.float32)
    vectors = generator.normal(size=(len(QUERIES), 8)).astype(np.float32)
    index = HybridIndex(kind(passages, ROWS), LazyMatches(lambda: TEXTS))
    expected = sums(vectors, passages, WEIGHTS)
    order = np.argsort(-expected, axis=1, kind="stable")
    for k in (1, 5, 40, 100):
        found = index.search(vectors, QUERIES, k, WEIGHTS)
        np.testing.assert_array_equal(found.rows, ROWS[order[:, :k]])
        np.testing.assert_allclose(found.scores, np.take_along_axis(expected, order[:, :k], 1), atol=1e-5)
    with pytest.raises(OptionError, match="k = 0"):
        index.search(vectors, QUERIES, 0, WEIGHTS)
    with pytest.raises(OptionError, match="dimension 8"):
        index.search(vectors[:, :3], QUERIES, 1, WEIGHTS)
    assert index.search(vectors[:0], [], 3, WEIGHTS).rows.shape == (0, 3)


def test_equal_sums_come_by_row() -> None:
    index = HybridIndex(ArrayIndex(np.ones((4, 1)), np.array([2, 5, 6, 9])), LazyMatches(lambda: ["a"] * 4))
    assert index.search(np.ones((1, 1), np.float32), ["a"], 3, WEIGHTS).rows.tolist() == [[2, 5, 6]]


@pytest.mark.parametrize("weights", [None, (0.0, 0.0)])
def test_without_weights_no_text_is_read(weights: tuple[float, ...] | None) -> None:
    def never() -> list[str]:
        raise AssertionError("read")

    vectors = np.eye(3, dtype=np.float32)
    index = HybridIndex(ArrayIndex(vectors), LazyMatches(never))
    assert index.search(vectors, ["a"] * 3, 1, weights).rows.tolist() == [[0], [1], [2]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved_encoder(tmp_path / "encoder")


def loaded(folder: Path) -> SentenceTransformer:
    return load_encoder(EncoderOptions(str(folder), device="cpu"))


def test_weights_lie_beside_an_encoder_that_stays_plain(folder: Path) -> None:
    alone = loaded(folder)
    assert lexical_weights(alone) is None
    save_lexical(folder, WEIGHTS)
    model = loaded(folder)
    assert lexical_weights(model) == pytest.approx(WEIGHTS)
    plain = SentenceTransformer(str(folder), device="cpu")
    for mine in (alone, model):
        np.testing.assert_allclose(encode_queries(mine, QUERIES), plain.encode_query(QUERIES), atol=1e-6)
        for route in ("query", "document"):
            assert fingerprint(mine, route) == fingerprint(alone, route)  # type: ignore[arg-type]
    assert identity(model, "document") == identity(alone, "document") == fingerprint(alone, "document").key
    assert identity(model, "query") == f"{identity(alone, 'query')} words 0.3 0.7"
    assert lexical_weights(query_encoder_of(combine(model, alone))) is None
    assert lexical_weights(without_lexical(model)) is None
    assert [type(part) for part in model] == [type(part) for part in alone]


def test_a_retriever_searches_as_its_model_was_trained(folder: Path) -> None:
    save_lexical(folder, WEIGHTS)
    model = loaded(folder)
    passages, vectors = encode_passages(model, TEXTS), encode_queries(model, QUERIES)
    found = Retriever(model, ArrayIndex(passages), LazyMatches(lambda: TEXTS)).search(QUERIES, 4)
    expected = sums(vectors, passages, WEIGHTS)
    np.testing.assert_array_equal(found.rows, np.argsort(-expected, axis=1, kind="stable")[:, :4])
    by_vectors = Retriever(model, ArrayIndex(passages)).search(QUERIES, 4)
    assert (by_vectors.rows != found.rows).any()


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        {"weights": [1, 2]},
        {"weights": {"terms": 1}},
        {"weights": {"terms": 1, "pairs": "2"}},
        {"weights": {"terms": True, "pairs": 1}},
        {"weights": {"terms": 10**400, "pairs": 1}},
    ],
)
def test_damaged_weights_are_said(folder: Path, value: object) -> None:
    (folder / "lexical.json").write_text(json.dumps(value))
    with pytest.raises(ArtefactError, match=r"lexical\.json") as caught:
        loaded(folder)
    assert "replug train" in str(caught.value)


def test_a_checkpoint_keeps_them(folder: Path, tmp_path: Path) -> None:
    model = loaded(folder)
    add_lexical(model, WEIGHTS)
    model.save_pretrained(str(tmp_path / "checkpoint"), create_model_card=False)
    again = SentenceTransformer(str(tmp_path / "checkpoint"), device="cpu", trust_remote_code=True)
    assert lexical_weights(again) == pytest.approx(WEIGHTS)


def test_several_threads_read_the_corpus_once() -> None:
    reads = []

    def texts() -> list[str]:
        reads.append(1)
        time.sleep(0.05)
        return ["a"]

    matches = LazyMatches(texts)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: matches(), range(4)))
    assert len(reads) == 1 and all(one is found[0] for one in found)


def test_weights_beside_a_hub_model_are_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is played: its model is a folder, and its files come one by one."""
    cached = tmp_path / "cached"
    cached.mkdir()
    save_lexical(cached, WEIGHTS)
    asked = []

    def hub_file(name: str, file: str) -> str:
        asked.append((name, file))
        return str(cached / file)

    monkeypatch.setattr(encoder, "_load", lambda _: SentenceTransformer(str(folder), device="cpu"))
    monkeypatch.setattr(encoder, "load_file_path", hub_file)
    assert lexical_weights(load_encoder(EncoderOptions("owner/name"))) == pytest.approx(WEIGHTS)
    assert asked == [("owner/name", "lexical.json")]

    def refused(*_: str) -> str:
        raise OSError("429 Too Many Requests")

    monkeypatch.setattr(encoder, "load_file_path", refused)
    with pytest.raises(OptionError, match=r"owner/name: .*lexical\.json.*429"):
        load_encoder(EncoderOptions("owner/name"))


def test_a_projection_keeps_its_name_without_words(folder: Path) -> None:
    model = with_projection(loaded(folder), np.eye(16))
    add_lexical(model, WEIGHTS)
    assert has_projection(without_lexical(model))

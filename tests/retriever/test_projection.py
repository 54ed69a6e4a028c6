"""A projection over a frozen base: plain sentence-transformers loads it, and the base's vectors are enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from replug_client.errors import OptionError
from replug_client.retriever.asymmetric import combine
from replug_client.retriever.build import build_index
from replug_client.retriever.embedding import EmbedOptions, embed_shard
from replug_client.retriever.encoder import (
    EncoderOptions,
    encode_passages,
    encode_queries,
    fingerprint,
    load_encoder,
)
from replug_client.retriever.projection import (
    ProjectedEncoder,
    attach,
    first_weights,
    has_projection,
    project,
    projection_of,
    with_projection,
    without_projection,
)
from tests.retriever.tiny import DIMENSION, saved_encoder, sentences, store_of

TEXTS = sentences(12)


@pytest.fixture
def base(tmp_path: Path) -> SentenceTransformer:
    name = saved_encoder(tmp_path / "base", prompts={"query": "find: ", "document": ""})
    return load_encoder(EncoderOptions(str(name), device="cpu"))


def turned(base: SentenceTransformer, dimension: int = 5) -> ProjectedEncoder:
    weights = np.random.default_rng(3).normal(size=(dimension, DIMENSION))
    return with_projection(base, weights)


def test_the_identity_gives_the_bases_vectors(base: SentenceTransformer) -> None:
    model = with_projection(base, first_weights(encode_passages(base, TEXTS), DIMENSION))
    np.testing.assert_allclose(encode_queries(model, TEXTS), encode_queries(base, TEXTS), atol=1e-6)
    np.testing.assert_allclose(encode_passages(model, TEXTS), encode_passages(base, TEXTS), atol=1e-6)


def test_fewer_numbers_keep_the_inner_products_best() -> None:
    """Of vectors in three dimensions three numbers keep everything; of two, the first two keep the most."""
    generator = np.random.default_rng(0)
    frame = np.linalg.qr(generator.normal(size=(DIMENSION, 3)))[0]
    vectors = (generator.normal(size=(50, 3)) * (5.0, 2.0, 1.0)) @ frame.T
    exact = vectors @ vectors.T
    weights = first_weights(vectors, 3)
    np.testing.assert_allclose((vectors @ weights.T) @ (vectors @ weights.T).T, exact, atol=1e-4)
    two = vectors @ first_weights(vectors, 2).T
    others = vectors @ np.linalg.qr(generator.normal(size=(DIMENSION, 2)))[0]
    assert np.square(two).sum() > np.square(others).sum()
    np.testing.assert_array_equal(first_weights(vectors, 2), first_weights(vectors.copy(), 2))


def test_the_bases_vectors_are_enough(base: SentenceTransformer) -> None:
    model = turned(base)
    vectors = encode_passages(base, TEXTS)
    expected = encode_passages(model, TEXTS)
    assert expected.shape == (len(TEXTS), 5)
    np.testing.assert_allclose(project(model, [vectors[:7], vectors[7:]]), expected, atol=1e-6)
    np.testing.assert_allclose(project(model, [vectors.astype(np.float16)]), expected, atol=1e-2)


def test_saved_it_is_a_plain_model(base: SentenceTransformer, tmp_path: Path) -> None:
    model = turned(base)
    model.save_pretrained(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert type(loaded) is SentenceTransformer
    np.testing.assert_allclose(loaded.encode_query(TEXTS), encode_queries(model, TEXTS), atol=1e-6)
    np.testing.assert_allclose(loaded.encode_document(TEXTS), encode_passages(model, TEXTS), atol=1e-6)
    assert has_projection(loaded) and not has_projection(base)
    assert fingerprint(loaded, "document") == fingerprint(model, "document")
    assert fingerprint(without_projection(loaded), "document") == fingerprint(base, "document")
    again = load_encoder(EncoderOptions(str(tmp_path / "saved"), device="cpu"))
    np.testing.assert_allclose(encode_queries(again, TEXTS), encode_queries(model, TEXTS), atol=1e-6)


def test_gradients_reach_the_projection_from_texts_and_from_vectors(base: SentenceTransformer) -> None:
    model = turned(base)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    weight = model.get_parameter("projection.linear.weight")
    tokens = model.preprocess(TEXTS)
    vectors = torch.from_numpy(encode_passages(base, TEXTS))
    found = []
    for features in (tokens, {"sentence_embedding": vectors}):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled="input_ids" not in features):
            output = model(features)["sentence_embedding"]
        assert output.dtype == torch.float32
        output.sum(0)[0].backward()
        assert weight.grad is not None
        found.append(weight.grad.clone())
    assert float(found[0].abs().max()) > 1e-3
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_two_encoders_may_share_one(base: SentenceTransformer, tmp_path: Path) -> None:
    other = load_encoder(EncoderOptions(str(saved_encoder(tmp_path / "other", seed=7)), device="cpu"))
    query_side = turned(other)
    both = attach(combine(other, base), projection_of(query_side))
    both.save_pretrained(str(tmp_path / "saved"))
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(loaded.encode_query(TEXTS), encode_queries(query_side, TEXTS), atol=1e-6)
    expected = project(query_side, [encode_passages(base, TEXTS)])
    np.testing.assert_allclose(loaded.encode_document(TEXTS), expected, atol=1e-6)


def test_its_index_is_made_of_the_bases_shards_without_the_encoder(
    base: SentenceTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_of(tmp_path / "corpus", TEXTS)
    shards = [
        embed_shard(base, store, tmp_path / "shards", EmbedOptions(shard_id=number, num_shards=2))
        for number in range(2)
    ]
    model = turned(base)
    expected = encode_passages(model, TEXTS)
    queries = encode_queries(model, TEXTS[:3])
    with monkeypatch.context() as patch:
        patch.setattr(type(base[0]), "forward", _never)
        index = build_index(model, store, tmp_path / "cache", shards=shards)
    np.testing.assert_allclose(index.vectors(index.rows), expected, atol=1e-6)
    order = np.argsort(-(queries @ expected.T), axis=1)[:, :4]
    np.testing.assert_array_equal(index.search(queries, 4).rows, order)


def _never(*_: object) -> None:
    raise AssertionError("the encoder was run")


def test_what_cannot_be_projected_is_refused(base: SentenceTransformer) -> None:
    with pytest.raises(OptionError, match=r"--projection_dim 17: the encoder gives vectors of 16"):
        first_weights(np.ones((3, DIMENSION)), DIMENSION + 1)
    with pytest.raises(OptionError, match="--projection_dim 0"):
        first_weights(np.ones((3, DIMENSION)), 0)
    with pytest.raises(OptionError, match="without a projection"):
        with_projection(turned(base, DIMENSION), np.eye(DIMENSION))

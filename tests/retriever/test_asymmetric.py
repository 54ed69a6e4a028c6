"""Two encoders in one model, which plain sentence-transformers loads."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from replug_client.errors import OptionError
from replug_client.retriever.asymmetric import combine, is_asymmetric, passage_encoder_of, query_encoder_of
from replug_client.retriever.encoder import EncoderOptions, encode_passages, encode_queries, load_encoder
from tests.retriever.tiny import minilm, saved_encoder, sentences

TEXTS = sentences(8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[SentenceTransformer, SentenceTransformer]:
    """Two different encoders with different prompts."""
    folder = tmp_path_factory.mktemp("encoders")
    query = EncoderOptions(str(saved_encoder(folder / "a", seed=1)), query_prompt="q: ", device="cpu")
    passage = EncoderOptions(str(saved_encoder(folder / "b", seed=2)), passage_prompt="p: ", device="cpu")
    return load_encoder(query), load_encoder(passage)


def test_the_saved_model_encodes_each_side_with_its_encoder(
    pair: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path
) -> None:
    query, passage = pair
    combine(query, passage).save_pretrained(str(tmp_path / "m"))
    plain = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    np.testing.assert_allclose(plain.encode_query(TEXTS), encode_queries(query, TEXTS), atol=1e-6)
    np.testing.assert_allclose(plain.encode_document(TEXTS), encode_passages(passage, TEXTS), atol=1e-6)
    np.testing.assert_allclose(plain.encode(TEXTS), passage.encode(TEXTS), atol=1e-6)
    assert np.abs(plain.encode_query(TEXTS) - query.encode_document(TEXTS)).max() > 1e-3
    loaded = load_encoder(EncoderOptions(str(tmp_path / "m"), device="cpu"))
    np.testing.assert_allclose(encode_queries(loaded, TEXTS), encode_queries(query, TEXTS), atol=1e-6)


def test_prompts_that_are_neither_sides_stay_as_the_passage_encoder_has_them(tmp_path: Path) -> None:
    folder = str(saved_encoder(tmp_path / "m"))
    prompts = {"query": "q: ", "passage": "p: ", "classify": "c: "}
    base = SentenceTransformer(folder, device="cpu", prompts=prompts, default_prompt_name="classify")
    combine(copy.deepcopy(base), base).save_pretrained(str(tmp_path / "two"))
    both = SentenceTransformer(str(tmp_path / "two"), device="cpu")
    for name in (None, "passage", "classify"):
        found, expected = (model.encode(TEXTS, prompt_name=name) for model in (both, base))
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=str(name))
    np.testing.assert_allclose(both.encode_document(TEXTS), base.encode_document(TEXTS), atol=1e-6)


def test_each_side_can_be_taken_out_again(pair: tuple[SentenceTransformer, SentenceTransformer]) -> None:
    query, passage = pair
    model = combine(query, passage)
    assert is_asymmetric(model)
    taken = query_encoder_of(model), passage_encoder_of(model)
    assert not is_asymmetric(taken[0]) and not is_asymmetric(taken[1])
    np.testing.assert_array_equal(encode_queries(taken[0], TEXTS), encode_queries(query, TEXTS))
    np.testing.assert_array_equal(encode_passages(taken[1], TEXTS), encode_passages(passage, TEXTS))
    again = combine(model, model)
    np.testing.assert_array_equal(encode_queries(again, TEXTS), encode_queries(query, TEXTS))
    assert query_encoder_of(query) is query


def test_what_is_tuned_on_one_side_leaves_the_other(
    pair: tuple[SentenceTransformer, SentenceTransformer],
) -> None:
    base = pair[1]
    tuned = copy.deepcopy(base)
    model = combine(tuned, base)
    before = encode_passages(model, TEXTS), encode_queries(model, TEXTS)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.ones_like(parameter), alpha=0.1)
    np.testing.assert_array_equal(encode_passages(model, TEXTS), before[0])
    assert np.abs(encode_queries(model, TEXTS) - before[1]).max() > 1e-3


def test_encoders_of_different_dimension_are_refused(
    pair: tuple[SentenceTransformer, SentenceTransformer],
) -> None:
    large = load_encoder(EncoderOptions(minilm(), device="cpu"))
    with pytest.raises(OptionError, match="vectors of 384 numbers, the passage encoder of 16"):
        combine(large, pair[1])


def test_pooling_of_an_asymmetric_model_is_not_changed(
    pair: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path
) -> None:
    combine(*pair).save_pretrained(str(tmp_path / "m"))
    load_encoder(EncoderOptions(str(tmp_path / "m"), pooling="mean", normalize=True, device="cpu"))
    with pytest.raises(OptionError, match=r"keeps the pooling \(mean\)"):
        load_encoder(EncoderOptions(str(tmp_path / "m"), pooling="cls", device="cpu"))


def test_a_length_limit_counts_for_both_sides(
    pair: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path
) -> None:
    combine(*pair).save_pretrained(str(tmp_path / "m"))
    model = load_encoder(EncoderOptions(str(tmp_path / "m"), max_seq_length=6, device="cpu"))
    for encode in (encode_queries, encode_passages):
        np.testing.assert_allclose(
            encode(model, ["a b c d e f g h"]), encode(model, ["a b c d e f"]), atol=1e-6
        )

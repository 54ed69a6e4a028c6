"""Gradient caching gives the gradient of the whole batch, and never runs more than a chunk with a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from replug_client.errors import OptionError
from replug_client.retriever.encoder import EncoderOptions, load_encoder
from replug_client.training.choices import Denominator, Direction
from replug_client.training.grad_cache import encode_in_chunks
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from replug_client.training.toy import toy
from replug_client.training.trainer import set_dropout
from tests.retriever.tiny import saved_encoder, sentences

QUERIES, PASSAGES, K = 4, 11, 5
OBJECTIVES = {
    "p-q": ObjectiveOptions(0.2, 0.3),
    "q-p over the batch": ObjectiveOptions(0.2, 0.3, kl=Direction.Q_P, denominator=Denominator.BATCH),
}


@pytest.fixture
def model(tmp_path: Path) -> SentenceTransformer:
    model = load_encoder(EncoderOptions(str(saved_encoder(tmp_path / "encoder")), device="cpu"))
    set_dropout(model, 0.0)
    return model.train()


def batch(model: SentenceTransformer) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    texts = sentences(QUERIES + PASSAGES)
    generator = torch.Generator().manual_seed(3)
    columns = torch.stack([torch.randperm(PASSAGES, generator=generator)[:K] for _ in range(QUERIES)])
    log_likelihoods = -10 * torch.rand(QUERIES, K, generator=generator)
    labels = torch.stack([log_likelihoods, *(torch.full((QUERIES, K), 7.0),) * 2, columns.float()], -1)
    queries, passages = (model.preprocess(part) for part in (texts[:QUERIES], texts[QUERIES:]))
    return rows_of(queries), rows_of(passages), labels.double()


def rows_of(features: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in features.items() if isinstance(value, Tensor)}


def gradients(model: SentenceTransformer, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=list(OBJECTIVES))
@pytest.mark.parametrize("chunk", [1, 4, PASSAGES, 100])
def test_the_gradient_is_that_of_the_whole_batch(
    objective: ObjectiveOptions, chunk: int, model: SentenceTransformer
) -> None:
    queries, passages, labels = batch(model)
    whole = LSRLoss(model, objective)([dict(queries), dict(passages)], labels)
    expected = gradients(model, whole)
    cached = LSRLoss(model, objective, grad_cache_chunk=chunk)([dict(queries), dict(passages)], labels)
    assert abs(float(cached.detach() - whole.detach())) < 1e-6
    found = gradients(model, cached)
    assert found.keys() == expected.keys() and len(found) > 10
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3, "no gradient to compare"
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) <= 1e-6 * max(1.0, largest), name


def test_dropout_is_the_same_in_both_passes(model: SentenceTransformer) -> None:
    """Against the same chunks with their graphs kept: other masks in the second pass would give other gradients."""
    set_dropout(model, 0.3)
    _, passages, _ = batch(model)
    direction = torch.randn(PASSAGES, 16, generator=torch.Generator().manual_seed(1))

    torch.manual_seed(5)
    parts = [{name: value[start : start + 4] for name, value in passages.items()} for start in (0, 4, 8)]
    kept = torch.cat([model(part)["sentence_embedding"] for part in parts])
    expected = gradients(model, (kept * direction).sum())
    torch.manual_seed(5)
    found = gradients(model, (encode_in_chunks(model, passages, 4) * direction).sum())
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected.items())
    torch.manual_seed(6)
    other = gradients(model, (encode_in_chunks(model, passages, 4) * direction).sum())
    assert any(not torch.allclose(other[name], value, atol=1e-3) for name, value in expected.items())


def test_no_more_than_a_chunk_is_kept_at_once(model: SentenceTransformer) -> None:
    """What autograd keeps between the passes is as good as nothing beside what one chunk would leave."""
    _, passages, _ = batch(model)
    kept: list[int] = []

    def count(value: Tensor) -> Tensor:
        kept.append(value.numel())
        return value

    with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value):
        model({name: value[:4] for name, value in passages.items()})
        whole = sum(kept)
        kept.clear()
        sizes: list[int] = []
        handle = model[0].register_forward_pre_hook(lambda _, given: sizes.append(len(given[0]["input_ids"])))
        vectors = encode_in_chunks(model, passages, 4)
        between = sum(kept)
    assert whole > 0 and between < 0.01 * whole
    vectors.sum().backward()  # type: ignore[no-untyped-call]
    handle.remove()
    assert sizes == [4, 4, 3, 3, 4, 4], "the last chunk's graph comes first, and each chunk runs twice"


def test_a_chunk_below_one_is_refused(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        encode_in_chunks(model, batch(model)[1], 0)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=list(OBJECTIVES))
def test_texts_without_padding_are_cut_where_they_begin(objective: ObjectiveOptions, chunk: int) -> None:
    """A StaticEmbedding reads the tokens of all texts end to end: counting tokens for texts gave another loss."""
    texts = [" ".join(f"w{number}" for number in range(start, start + 1 + start % 4)) for start in range(15)]
    static, supervisor, _ = toy(texts)
    supervisor.close()
    queries, passages = (static.preprocess(part) for part in (texts[:QUERIES], texts[QUERIES:]))
    labels = torch.stack(
        [
            -10 * torch.rand(QUERIES, K, generator=torch.Generator().manual_seed(3)),
            *(torch.full((QUERIES, K), 7.0),) * 2,
            torch.arange(QUERIES * K).view(QUERIES, K) % PASSAGES,
        ],
        -1,
    ).double()
    whole = LSRLoss(static, objective)([dict(queries), dict(passages)], labels)
    expected = gradients(static, whole)
    cached = LSRLoss(static, objective, grad_cache_chunk=chunk)([dict(queries), dict(passages)], labels)
    assert float(cached.detach()) == pytest.approx(float(whole.detach()), abs=1e-6)
    found = gradients(static, cached)
    (name,) = expected
    torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_features_in_which_texts_cannot_be_told_apart_are_refused(model: SentenceTransformer) -> None:
    flat = {"input_ids": torch.arange(6), "attention_mask": torch.ones(6)}
    packed = {"input_ids": torch.arange(6)[None], "cu_seq_lens_q": torch.tensor([0, 2, 6])}
    for features in (flat, packed):
        with pytest.raises(OptionError, match=r"--grad_cache_chunk 2: .*expected a row for each text"):
            encode_in_chunks(model, features, 2)

"""From example numbers to a batch: the right labels, and the vectors that encoding alone would give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from replug_client.corpus.records import Example
from replug_client.retriever.encoder import EncoderOptions, encode_passages, encode_queries, load_encoder
from replug_client.retriever.index import ArrayIndex
from replug_client.training.choices import Denominator, Direction
from replug_client.training.collator import IndexNegatives, LSRDataCollator, label_tensor
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from replug_client.training.stream import ScoredCandidates
from tests.retriever.tiny import DIMENSION, saved_encoder

QUERIES = ["word1 word2", "word3", "word4 word5 word6 word7"]
PASSAGES = [f"word{number} word{number + 3} word{2 * number}" for number in range(20)]
EXAMPLES = [
    Example(f"d{number}", query, "yy", (1,), (7,) * (number + 1), 5 + number)
    for number, query in enumerate(QUERIES)
]
SCORED = ScoredCandidates(
    rows=np.array([[9, 4, 17], [4, 2, -1]]),
    log_likelihoods=np.array([[-1.5, -2.5, -3.5], [-0.5, -4.25, 0.0]]),
    num_tokens=np.array([3, 1]),
    num_bytes=np.array([7, 5]),
)


def test_labels_hold_scores_lengths_and_columns() -> None:
    passages, labels = label_tensor(SCORED)
    assert passages.tolist() == [2, 4, 9, 17]
    assert labels.dtype == torch.float64
    assert labels.tolist() == [
        [[-1.5, 3, 7, 2], [-2.5, 3, 7, 1], [-3.5, 3, 7, 3]],
        [[-0.5, 1, 5, 1], [-4.25, 1, 5, 0], [0.0, 1, 5, -1]],
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformer:
    folder = saved_encoder(tmp_path_factory.mktemp("collator") / "encoder")
    options = EncoderOptions(str(folder), query_prompt="ask: ", passage_prompt="read: ", device="cpu")
    return load_encoder(options)


def collator(model: SentenceTransformer, *, frozen: bool) -> LSRDataCollator:
    vectors = np.random.default_rng(0).normal(size=(20, DIMENSION)).astype(np.float32)
    return LSRDataCollator(
        model,
        EXAMPLES,
        lambda numbers: SCORED if numbers.tolist() == [2, 0] else pytest.fail("other numbers"),
        passage_texts=None if frozen else (lambda rows: [PASSAGES[row] for row in rows]),
        frozen=ArrayIndex(vectors) if frozen else None,
    )


FEATURES = [{"example": 2}, {"example": 0}]


def encoded(model: SentenceTransformer, batch: dict[str, torch.Tensor], name: str) -> np.ndarray:
    features = {key[len(name) + 1 :]: value for key, value in batch.items() if key.startswith(name)}
    with torch.no_grad():
        return model(features)["sentence_embedding"].numpy()  # type: ignore[no-any-return]


@pytest.mark.parametrize("leave_prompt_out", [False, True])
def test_queries_and_passages_are_encoded_with_their_prompts(
    model: SentenceTransformer, leave_prompt_out: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model[1], "include_prompt", not leave_prompt_out)
    batch = collator(model, frozen=False)(FEATURES)
    queries = encode_queries(model, [QUERIES[2], QUERIES[0]])
    passages = encode_passages(model, [PASSAGES[row] for row in (2, 4, 9, 17)])
    np.testing.assert_allclose(encoded(model, batch, "query"), queries, atol=1e-5)
    np.testing.assert_allclose(encoded(model, batch, "passage"), passages, atol=1e-5)
    plain = encode_queries(load_plain(model), [QUERIES[2], QUERIES[0]])
    assert np.abs(queries - plain).max() > 1e-2, "the prompt does not show, so nothing was tested"


def load_plain(model: SentenceTransformer) -> SentenceTransformer:
    return SentenceTransformer(modules=list(model), device="cpu")


def test_frozen_passages_are_vectors_of_the_index(model: SentenceTransformer) -> None:
    made = collator(model, frozen=True)
    batch = made(FEATURES)
    assert made.frozen is not None
    np.testing.assert_array_equal(
        batch["passage_sentence_embedding"].numpy(), made.frozen.vectors(np.array([2, 4, 9, 17]))
    )
    assert not any(key.startswith("passage_input") for key in batch)
    assert torch.equal(batch["label"], label_tensor(SCORED)[1])


def test_passages_are_either_texts_or_vectors(model: SentenceTransformer) -> None:
    with pytest.raises(ValueError, match="either"):
        LSRDataCollator(model, EXAMPLES, lambda _: SCORED)
    with pytest.raises(ValueError, match="either"):
        LSRDataCollator(model, EXAMPLES, lambda _: SCORED, lambda _: [], ArrayIndex(np.ones((1, 2))))


def test_negatives_of_the_index_join_the_passages_and_leave_the_candidates_where_they_are() -> None:
    plain_passages, plain = label_tensor(SCORED)
    passages, labels = label_tensor(SCORED, np.array([0, 4, 19]))
    assert passages.tolist() == [0, 2, 4, 9, 17, 19]
    assert torch.equal(labels[..., :3], plain[..., :3])
    own = labels[..., 3].long()
    assert torch.equal(own == -1, plain[..., 3] == -1)
    present = own >= 0
    assert (passages[own[present]] == plain_passages[plain[..., 3].long()[present]]).all()


def test_negatives_are_distinct_and_follow_from_the_batch() -> None:
    negatives = IndexNegatives(np.arange(100, 200), 30, seed=1)
    drawn = negatives.draw(np.array([3, 1]))
    assert len(set(drawn.tolist())) == 30
    assert set(drawn.tolist()) <= set(range(100, 200))
    assert negatives.draw(np.array([3, 1])).tolist() == drawn.tolist()
    assert negatives.draw(np.array([3, 2])).tolist() != drawn.tolist()
    assert IndexNegatives(np.arange(7), 30, seed=1).draw(np.array([0])).tolist() == list(range(7))


def test_a_batch_with_negatives_has_their_vectors_and_pushes_them_down(model: SentenceTransformer) -> None:
    made = collator(model, frozen=True)
    made.negatives = IndexNegatives(np.arange(20), 20, seed=0)
    batch = made(FEATURES)
    vectors = batch["passage_sentence_embedding"]
    assert vectors.shape == (20, DIMENSION)
    similarity = torch.zeros(2, 20, dtype=torch.float64, requires_grad=True)
    options = ObjectiveOptions(0.1, 0.1, kl=Direction.Q_P, denominator=Denominator.BATCH)
    LSRLoss(model, options).from_similarity(similarity, batch["label"]).backward()
    assert similarity.grad is not None
    others = torch.ones(20, dtype=torch.bool)
    others[[9, 4, 17]] = False
    assert (similarity.grad[0, others] > 0).all()

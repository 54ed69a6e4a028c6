"""Weights of matching words, taught by the LM's scores: the loss, its gradient, temperatures and validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from replug_client.retriever.encoder import EncoderOptions, encode_passages, encode_queries, load_encoder
from replug_client.retriever.hybrid import LazyMatches
from replug_client.retriever.index import ArrayIndex
from replug_client.retriever.lexical_weights import add_lexical, lexical_weights
from replug_client.retriever.search import Retriever
from replug_client.retriever.terms import TermMatches
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.training.candidates import CandidateMiner, CandidateOptions
from replug_client.training.choices import Denominator, Direction
from replug_client.training.collator import LSRDataCollator
from replug_client.training.loss import LSRLoss, ObjectiveOptions
from replug_client.training.stream import ScoredCandidates
from replug_client.training.targets import with_words
from replug_client.training.text_collator import split_batch
from replug_client.training.validation import HeldOutLikelihood
from tests.retriever.tiny import saved_encoder
from tests.training.test_validation import EXAMPLES as VALIDATED
from tests.training.test_validation import PASSAGES as VALIDATED_PASSAGES
from tests.training.test_validation import QUERIES as VALIDATED_QUERIES
from tests.training.test_validation import evaluator, nll, scores

PASSAGES = [f"word{number} word{number + 1} filler" for number in range(0, 40, 2)]
QUERIES = [f"word{number} other" for number in range(0, 40, 2)]  # each has one passage with its word
EXAMPLES = [
    type(VALIDATED[0])(f"d{number}", query, "y", (number,), (7,), 1) for number, query in enumerate(QUERIES)
]


@pytest.fixture
def model(tmp_path: Path) -> SentenceTransformer:
    model = load_encoder(EncoderOptions(str(saved_encoder(tmp_path / "encoder")), device="cpu"))
    add_lexical(model)
    return model


def everything(sign: float) -> ScoredCandidates:
    """All passages are every query's candidates; the LM likes (or, with -1, dislikes) the one with its word."""
    liked = np.eye(len(QUERIES)) * sign
    rows = np.tile(np.arange(len(PASSAGES)), (len(QUERIES), 1))
    ones = np.ones(len(QUERIES), dtype=int)
    return ScoredCandidates(rows=rows, log_likelihoods=3 * liked - 5, num_tokens=ones, num_bytes=ones)


def batch_of(model: SentenceTransformer, sign: float = 1.0):  # type: ignore[no-untyped-def]
    matches = TermMatches(PASSAGES)
    collator = LSRDataCollator(
        model,
        EXAMPLES,
        lambda _: everything(sign),
        frozen=ArrayIndex(encode_passages(model, PASSAGES)),
        matches=lambda texts, rows: matches.of(matches.queries(texts), rows),
    )
    return collator([{"example": number} for number in range(len(QUERIES))])


def test_the_loss_is_of_the_sum(model: SentenceTransformer) -> None:
    options = ObjectiveOptions(0.3, 0.5, kl=Direction.Q_P, denominator=Denominator.BATCH)
    loss = LSRLoss(model, options)
    weights = dict(model.named_parameters())["3.lexical_weights"]
    with torch.no_grad():
        weights.copy_(torch.tensor([0.4, -0.2]))
    features, labels = split_batch(batch_of(model))
    value = loss(features, labels)
    matches = TermMatches(PASSAGES)
    similarity = encode_queries(model, QUERIES) @ encode_passages(model, PASSAGES).T
    similarity += matches.of_all(matches.queries(QUERIES)) @ np.float32([0.4, -0.2])
    expected = loss.from_similarity(torch.from_numpy(similarity), labels)
    torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    value.backward()
    assert weights.grad is not None and bool(weights.grad.abs().sum() > 0)
    analytic = weights.grad.clone()
    for place in range(2):  # central differences
        ends = []
        for step in (1e-2, -1e-2):
            with torch.no_grad():
                weights[place] += step
            ends.append(float(loss(*split_batch(batch_of(model))).detach()))
            with torch.no_grad():
                weights[place] -= step
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(analytic[place]), abs=2e-3)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_lms_liking_for_words_is_learnt_and_found_by(model: SentenceTransformer, sign: float) -> None:
    """The encoder is random and stays so: what is learnt is how far words are to be trusted."""

    def found() -> float:
        index = ArrayIndex(encode_passages(model, PASSAGES))
        rows = Retriever(model, index, LazyMatches(lambda: PASSAGES)).search(QUERIES, 1).rows[:, 0]
        return float((rows == np.arange(len(QUERIES))).mean())

    assert found() < 0.5
    model.requires_grad_(False)
    weights = dict(model.named_parameters())["3.lexical_weights"].requires_grad_(True)
    loss = LSRLoss(model, ObjectiveOptions(0.1, 0.2, kl=Direction.Q_P))
    optimiser = torch.optim.AdamW([weights], lr=0.05)
    batch = batch_of(model, sign)
    for _ in range(60):
        optimiser.zero_grad()
        loss(*split_batch(dict(batch))).backward()
        optimiser.step()
    learnt = lexical_weights(model)
    assert learnt is not None
    if sign > 0:
        assert learnt[0] > 0.1 and found() >= 0.9
    else:
        assert learnt[0] < -0.1 and found() == 0.0


def test_candidates_are_the_hybrids_own(model: SentenceTransformer) -> None:
    passages = encode_passages(model, PASSAGES)
    matches = LazyMatches(lambda: PASSAGES)
    index = ArrayIndex(passages)
    miner = CandidateMiner(index, None, index.rows, CandidateOptions(3, 0, 0), 0, matches)
    vectors, numbers = encode_queries(model, QUERIES), np.arange(len(QUERIES))
    by_words = miner.mine(vectors, QUERIES, numbers, (50.0, 0.0))
    assert by_words[:, 0].tolist() == numbers.tolist()
    np.testing.assert_array_equal(miner.mine(vectors, QUERIES, numbers), index.search(vectors, 3).rows)


def test_a_temperature_is_chosen_as_if_words_differed_as_vectors_do() -> None:
    generator = np.random.default_rng(1)
    similarity, matched = generator.normal(size=(5, 9)), generator.normal(size=(5, 9, 2)) * 7
    mask = generator.random((5, 9)) < 0.8
    words = with_words(similarity, matched, mask) - similarity
    assert words[mask].std() == pytest.approx(similarity[mask].std())
    assert np.corrcoef(words.ravel(), matched.sum(-1).ravel())[0, 1] == pytest.approx(1)
    np.testing.assert_array_equal(with_words(similarity, np.zeros((5, 9, 2)), mask), similarity)


def test_validation_searches_by_words_too(tmp_path: Path, model: SentenceTransformer) -> None:
    index = ArrayIndex(encode_passages(model, VALIDATED_PASSAGES))
    by_vectors = evaluator(model, tmp_path, FakeSupervisor(scores))
    matches = LazyMatches(lambda: VALIDATED_PASSAGES)
    by_words = HeldOutLikelihood(by_vectors.data, lambda _: index, matches=matches)
    zero = by_words(model)
    assert zero == pytest.approx(by_vectors(model))
    with torch.no_grad():
        dict(model.named_parameters())["3.lexical_weights"].copy_(torch.tensor([5.0, 1.0]))
    figures = by_words(model)
    matched = matches().of_all(matches().queries(VALIDATED_QUERIES)) @ np.float32([5.0, 1.0])
    sums = encode_queries(model, VALIDATED_QUERIES) @ index.array.T + matched
    nats = [
        nll(number, row) * len(example.continuation_ids)
        for number, (example, row) in enumerate(zip(VALIDATED, sums.argmax(axis=1).tolist(), strict=True))
    ]
    num_bytes = sum(example.num_bytes for example in VALIDATED)
    assert figures["bits_per_byte"] == pytest.approx(sum(nats) / np.log(2) / num_bytes)
    assert figures["expected_score"] != pytest.approx(zero["expected_score"])
    assert figures["kl"] != pytest.approx(zero["kl"])

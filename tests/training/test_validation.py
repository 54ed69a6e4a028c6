"""Validation's figures, held against the same figures worked out apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from replug_client.corpus.records import Example
from replug_client.retriever.encoder import EncoderOptions, encode_passages, encode_queries, load_encoder
from replug_client.retriever.index import ArrayIndex
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt
from replug_client.training.candidates import NO_PASSAGE
from replug_client.training.choices import Direction
from replug_client.training.loss import ObjectiveOptions
from replug_client.training.options import BestMetric
from replug_client.training.validation import (
    HeldOutLikelihood,
    ValidationSet,
    ValidationState,
    full_precision,
    selection,
)
from tests.retriever.tiny import saved_encoder, store_of

PASSAGES = [f"word{number} word{number + 7}" for number in range(12)]
QUERIES = [f"word{number} word{3 * number}" for number in range(8)]
EXAMPLES = [
    Example(f"d{number // 2}", query, "y", (50 + number,), (7,) * (1 + number % 3), 4 + number)
    for number, query in enumerate(QUERIES)
]


class RowTokenizer:
    """A passage's only token is its row."""

    bos_id = None

    def encode(self, text: str) -> list[int]:
        return [PASSAGES.index(text)] if text else []

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        raise NotImplementedError

    def decode(self, ids: object) -> str:
        raise NotImplementedError


def nll(number: int, row: int) -> float:
    """Nats of one token, exact in float32."""
    return float(np.random.default_rng([number, row]).integers(1, 65)) / 16


def total(number: int, row: int) -> float:
    return nll(number, row) * len(EXAMPLES[number].continuation_ids)


def scores(prompt: Prompt) -> list[float]:
    return [-nll(prompt.ids[1] - 50, prompt.ids[0])] * prompt.num_continuation


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[SentenceTransformer, SentenceTransformer]:
    folder = tmp_path_factory.mktemp("validation")
    paths = [saved_encoder(folder / f"encoder{seed}", seed=seed) for seed in (0, 1)]
    base, current = (load_encoder(EncoderOptions(str(path), device="cpu")) for path in paths)
    return base, current


OBJECTIVE = ObjectiveOptions(0.2, 0.4, kl=Direction.Q_P)


DEPTH = 11
POOL = np.array([[(number + 5 * place) % 12 for place in range(5)] for number in range(8)])
POOL[3, 4] = NO_PASSAGE


def evaluator(
    base: SentenceTransformer,
    folder: Path,
    supervisor: FakeSupervisor,
    best_metric: BestMetric = BestMetric.BITS_PER_BYTE,
) -> HeldOutLikelihood:
    index = ArrayIndex(encode_passages(base, PASSAGES))
    lists = index.search(encode_queries(base, QUERIES), DEPTH).rows
    data = ValidationSet(
        EXAMPLES,
        lists[:, :4],
        store_of(folder, PASSAGES),
        PromptBuilder(RowTokenizer(), retrieved_max_length=5, max_prompt_tokens=50, separator=""),
        supervisor,
        OBJECTIVE,
        pool_rows=POOL,
        base_lists=lists,
        best_metric=best_metric,
    )
    return HeldOutLikelihood(data, lambda model: index)


def test_every_figure_is_what_a_computation_apart_gives(
    encoders: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path
) -> None:
    base, current = encoders
    held_out = evaluator(base, tmp_path, FakeSupervisor(scores))
    figures = held_out(current, steps=7)
    vectors = encode_passages(base, PASSAGES)
    before, after = (encode_queries(model, QUERIES) @ vectors.T for model in (base, current))
    first, now = before.argmax(axis=1), after.argmax(axis=1)
    size = sum(example.num_bytes for example in EXAMPLES)
    bits = [
        sum(total(number, row) for number, row in enumerate(rows)) / math.log(2) / size
        for rows in (first, now)
    ]
    assert (first != now).any(), "the two encoders agree, so nothing was tested"
    assert figures["bits_per_byte"] == pytest.approx(bits[1], rel=1e-9)
    assert figures["base_minus_current"] == pytest.approx(bits[0] - bits[1], abs=1e-9)
    assert (
        figures["base_minus_current_low"]
        <= figures["base_minus_current"]
        <= figures["base_minus_current_high"]
    )
    assert figures["changed"] == (first != now).mean()
    assert figures["unique"] == len(set(now.tolist())) / len(QUERIES)
    divergences = []
    for number, example in enumerate(EXAMPLES):
        rows = np.argsort(-before[number])[:4]
        per_token = torch.tensor(
            [-total(number, row) / len(example.continuation_ids) for row in rows], dtype=torch.float64
        )
        q = torch.softmax(per_token / OBJECTIVE.temperature_gold, 0)
        p = torch.softmax(torch.tensor(after[number, rows]).double() / OBJECTIVE.temperature_score, 0)
        divergences.append(float((q * (q / p).log()).sum()))
    assert figures["kl"] == pytest.approx(np.mean(divergences), abs=1e-5)
    assert held_out.history == [{"step": 7.0, **figures}]


def rank_of_the_lms_best(similarity: np.ndarray, number: int) -> tuple[int, int]:
    """Its row, and its rank from 1."""
    own = [row for row in POOL[number].tolist() if row != NO_PASSAGE]
    best = min(own, key=lambda row: nll(number, row))
    return best, int((similarity[number] > similarity[number, best]).sum()) + 1


def test_recall_and_mrr_are_of_the_passage_that_the_lm_likes_best(
    encoders: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path
) -> None:
    base, current = encoders
    held_out = evaluator(base, tmp_path, FakeSupervisor(scores))
    figures = held_out(current)
    vectors = encode_passages(base, PASSAGES)
    before, after = (encode_queries(model, QUERIES) @ vectors.T for model in (base, current))
    now = np.array([rank_of_the_lms_best(after, number)[1] for number in range(8)])
    then = np.array([rank_of_the_lms_best(before, number)[1] for number in range(8)])
    assert len(set(now)) > 2 and (now != then).any(), "nothing was tested"
    assert figures["recall_at_10"] == (now <= 10).mean()
    reciprocal = [np.where(ranks <= DEPTH, 1 / ranks, 0.0).mean() for ranks in (now, then)]
    assert figures["mrr"] == pytest.approx(reciprocal[0])
    assert figures["mrr_minus_base"] == pytest.approx(reciprocal[0] - reciprocal[1])
    assert figures["mrr_minus_base_low"] <= figures["mrr_minus_base"] <= figures["mrr_minus_base_high"]
    assert sum(map(sum, held_out.state.best_ranks)) == 8
    for move in held_out.state.risen + held_out.state.fallen:
        assert move.row in POOL[move.example]
        found = [int((s[move.example] > s[move.example, move.row]).sum()) + 1 for s in (before, after)]
        assert (move.base_rank, move.rank) == tuple(found)
    assert all(move.rank < move.base_rank for move in held_out.state.risen)
    assert all(move.rank > move.base_rank for move in held_out.state.fallen)


def test_the_expected_score_is_under_p_and_less_the_pools_mean(
    encoders: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path
) -> None:
    base, current = encoders
    figures = evaluator(base, tmp_path, FakeSupervisor(scores))(current)
    after = encode_queries(current, QUERIES) @ encode_passages(base, PASSAGES).T
    gains = []
    for number in range(8):
        own = [row for row in POOL[number].tolist() if row != NO_PASSAGE]
        values = np.array([-nll(number, row) for row in own])  # the mean per token is one token's
        p = np.exp(after[number, own] / OBJECTIVE.temperature_score)
        gains.append((p / p.sum() * values).sum() - values.mean())
    assert figures["expected_score"] == pytest.approx(np.mean(gains), abs=1e-5)


def test_churn_is_what_is_new_since_the_last_validation_also_after_a_resume(
    encoders: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path
) -> None:
    base, current = encoders
    held_out = evaluator(base, tmp_path, FakeSupervisor(scores))
    assert "churn" not in held_out(base, steps=0)
    state = json.loads(json.dumps(held_out.state.to_json()))
    found = held_out(current, steps=5)
    assert found["churn"] > 0
    assert held_out(current)["churn"] == 0.0
    resumed = evaluator(base, tmp_path, FakeSupervisor(scores))
    resumed.state = ValidationState.from_json(state)
    assert resumed(current, steps=5) == found


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        (BestMetric.BITS_PER_BYTE, 1.0, 1.1),
        (BestMetric.KL, 0.1, 0.2),
        (BestMetric.EXPECTED_SCORE, 0.2, 0.1),
        (BestMetric.RECALL, 0.5, 0.4),
        (BestMetric.MRR, 0.3, 0.2),
    ],
)
def test_the_best_has_the_least_to_be_selected_by(metric: BestMetric, better: float, worse: float) -> None:
    good, bad = ({"kl": 0.7, metric.value: value} for value in (better, worse))
    assert selection(good, metric) < selection(bad, metric)
    if metric is not BestMetric.KL:
        assert selection(good | {"kl": 0.6}, metric) < selection(good, metric), "the divergence breaks ties"


def test_every_metric_that_can_be_chosen_is_measured(
    encoders: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path
) -> None:
    for metric in BestMetric:
        figures = evaluator(encoders[0], tmp_path, FakeSupervisor(scores), metric)(encoders[1])
        assert figures["selection"] == selection(figures, metric)


def test_the_base_against_itself_differs_in_nothing(
    encoders: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path
) -> None:
    figures = evaluator(encoders[0], tmp_path, FakeSupervisor(scores))(encoders[0])
    assert (figures["base_minus_current"], figures["changed"]) == (0.0, 0.0)
    assert figures["mrr_minus_base"] == 0.0
    assert figures["base_minus_current_low"] == figures["base_minus_current_high"] == 0.0


def test_lower_is_better(encoders: tuple[SentenceTransformer, SentenceTransformer], tmp_path: Path) -> None:
    held_out = evaluator(encoders[0], tmp_path, FakeSupervisor(scores))
    assert held_out.primary_metric == "bits_per_byte"
    assert held_out.greater_is_better is False


def test_the_trainers_autocast_is_set_aside(
    encoders: tuple[SentenceTransformer, SentenceTransformer],
) -> None:
    model = encoders[1]
    exact = encode_queries(model, QUERIES)
    plain = model.forward

    def lower(*given: object, **named: object) -> object:  # as accelerate does
        with torch.autocast("cpu", torch.bfloat16):
            return plain(*given, **named)

    model.forward = lower  # type: ignore[method-assign,assignment]
    try:
        assert np.abs(encode_queries(model, QUERIES) - exact).max() > 1e-4
        with full_precision(model):
            np.testing.assert_array_equal(encode_queries(model, QUERIES), exact)
        assert model.forward is lower
    finally:
        del model.forward

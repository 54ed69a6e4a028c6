"""The temperatures of a run: as given, or from the first candidates' own scores."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from replug_client.corpus.records import Example
from replug_client.errors import OptionError
from replug_client.retriever.encoder import EncoderOptions, encode_passages, encode_queries, load_encoder
from replug_client.retriever.index import ArrayIndex
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.protocol import Prompt
from replug_client.training.calibration import normalised_entropy
from replug_client.training.candidates import CandidateMiner, CandidateOptions
from replug_client.training.choices import Aggregation, Denominator, Direction, Objective
from replug_client.training.collator import IndexNegatives
from replug_client.training.distributed import ALONE
from replug_client.training.objectives import log_distribution
from replug_client.training.options import TargetOptions, TrainOptions
from replug_client.training.prepare import Prepared
from replug_client.training.schedule import Schedule
from replug_client.training.targets import calibrate
from tests.retriever.tiny import saved_encoder

PASSAGES = [f"word{number} word{number + 7}" for number in range(12)]
QUERIES = [f"word{number} word{2 * number}" for number in range(20)]
TOKENS, BYTES = 4, 9
BATCH = 4


def preference(example: int, row: int) -> float:
    return -float(np.random.default_rng([example, row]).uniform(1, 3))


class Partly(SimpleNamespace):
    """Only what calibration reads of a :class:`Prepared`; it asks for scores as the whole one does."""

    processes = ALONE
    log_likelihoods = Prepared.log_likelihoods


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = saved_encoder(tmp_path_factory.mktemp("targets") / "encoder")
    model = load_encoder(EncoderOptions(str(folder), device="cpu"))
    examples = [
        Example(f"d{number}", query, "y", (number,), (7,) * TOKENS, BYTES)
        for number, query in enumerate(QUERIES)
    ]
    index = ArrayIndex(encode_passages(model, PASSAGES))

    def scores(prompt: Prompt) -> list[float]:
        return [preference(prompt.ids[1], prompt.ids[0])] * TOKENS

    return cast(
        Prepared,
        Partly(
            base=model,
            index=index,
            indexed=index.rows,
            supervisor=FakeSupervisor(scores),
            sets=SimpleNamespace(train=examples),
            miner=CandidateMiner(index, None, index.rows, CandidateOptions(5, 0, 0), 0),
            prompt=lambda example, row: Prompt((row, *example.query_ids, *example.continuation_ids), TOKENS),
            schedule=lambda steps: Schedule(len(examples), BATCH, 0),
        ),
    )


def options(**target: Any) -> TrainOptions:
    steps = SimpleNamespace(batch_size=BATCH, processes=1, seed=0)
    modes = SimpleNamespace(lexical=False)
    return cast(TrainOptions, SimpleNamespace(target=TargetOptions(**target), steps=steps, modes=modes))


def top_scores(prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """``(examples, 5)`` similarities and scores per token of every example's top five, computed apart."""
    similarity = encode_queries(prepared.base, QUERIES) @ encode_passages(prepared.base, PASSAGES).T
    top = np.argsort(-similarity, axis=1)[:, :5]
    scores = np.array([[preference(example, row) for row in own] for example, own in enumerate(top)])
    return np.take_along_axis(similarity, top, axis=1), scores


def median_entropies(prepared: Prepared, gamma: float, beta: float) -> tuple[float, float]:
    """Of P and Q over every example's top five, computed apart."""
    p, q = (
        log_distribution(torch.tensor(values), temperature)
        for values, temperature in zip(top_scores(prepared), (gamma, beta), strict=True)
    )
    return float(normalised_entropy(p).median()), float(normalised_entropy(q).median())


@pytest.mark.parametrize("wanted", [0.3, 0.6])
def test_both_get_the_entropy_that_was_asked_for(
    wanted: float, prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        chosen = calibrate(options(gold_entropy=wanted), prepared)
    p, q = median_entropies(prepared, chosen.temperature_score, chosen.temperature_gold)
    assert q == pytest.approx(wanted, abs=0.01)
    assert p == pytest.approx(wanted, abs=0.01)
    assert f"temperature_gold = {chosen.temperature_gold:.4g} (auto)" in caplog.text
    assert f"temperature_score = {chosen.temperature_score:.4g} (auto)" in caplog.text
    spread = sorted(np.std(line) for line in top_scores(prepared)[1])[(len(QUERIES) - 1) // 2]
    assert (
        f"differ by {spread:.3g} nats per token (median standard deviation of {len(QUERIES)}" in caplog.text
    )
    assert f"is {wanted:.2f} of log K, as --gold_entropy {wanted:g} asks" in caplog.text


def test_p_follows_a_q_that_was_given(prepared: Prepared) -> None:
    chosen = calibrate(options(temperature_gold=0.2), prepared)
    assert chosen.temperature_gold == 0.2
    p, q = median_entropies(prepared, chosen.temperature_score, 0.2)
    assert p == pytest.approx(q, abs=0.01)


@pytest.mark.parametrize("negatives", [0, 4, 500])
def test_over_a_batch_p_gets_its_share_of_the_log_of_all_passages(
    negatives: int, prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    chosen_of = options(
        kl=Direction.Q_P, denominator=Denominator.BATCH, index_negatives=negatives, gold_entropy=0.6
    )
    with caplog.at_level(logging.INFO):
        chosen = calibrate(chosen_of, prepared)
    similarity = encode_queries(prepared.base, QUERIES) @ encode_passages(prepared.base, PASSAGES).T
    top = np.argsort(-similarity, axis=1)[:, :5]
    shares, sizes = [], []
    for batch in Schedule(len(QUERIES), BATCH, 0).epoch(0):
        drawn = IndexNegatives(np.arange(len(PASSAGES)), negatives, 0).draw(batch)
        passages = sorted({*top[batch].ravel().tolist(), *drawn.tolist()})
        for example in batch:
            weights = np.exp(similarity[example, passages].astype(np.float64) / chosen.temperature_score)
            p = weights / weights.sum()
            entropy = -float((p * np.log(p)).sum())
            shares.append(entropy / np.log(len(passages)))
            sizes.append(len(passages))
    assert sorted(shares)[(len(shares) - 1) // 2] == pytest.approx(0.6, abs=0.01)
    assert max(sizes) <= len(PASSAGES) and (negatives < 500 or set(sizes) == {len(PASSAGES)})
    assert f"a batch's passages ({sorted(sizes)[(len(sizes) - 1) // 2]})" in caplog.text


def test_a_batch_changes_gamma_and_not_beta(prepared: Prepared) -> None:
    own = calibrate(options(kl=Direction.Q_P), prepared)
    batch = calibrate(options(kl=Direction.Q_P, denominator=Denominator.BATCH), prepared)
    assert batch.temperature_gold == own.temperature_gold
    assert batch.temperature_score != pytest.approx(own.temperature_score, rel=0.01)


def test_what_is_given_is_taken_and_nothing_is_scored(prepared: Prepared) -> None:
    supervisor = cast(FakeSupervisor, prepared.supervisor)
    before = len(supervisor.asked)
    chosen = calibrate(options(temperature_gold=0.1, temperature_score=0.2), prepared)
    assert (chosen.temperature_score, chosen.temperature_gold) == (0.2, 0.1)
    assert len(supervisor.asked) == before


def test_the_temperature_has_the_scale_of_the_aggregation(prepared: Prepared) -> None:
    mean = calibrate(options(), prepared).temperature_gold
    total = calibrate(options(score=Aggregation.SUM), prepared).temperature_gold
    by_byte = calibrate(options(score=Aggregation.BYTE), prepared).temperature_gold
    assert total == pytest.approx(TOKENS * mean, rel=1e-3)
    assert by_byte == pytest.approx(TOKENS * mean / BYTES, rel=1e-3)


def test_leave_one_out_is_calibrated_on_its_own_scores(prepared: Prepared) -> None:
    chosen = calibrate(options(objective=Objective.LOOP), prepared)
    likelihoods = np.exp(TOKENS * top_scores(prepared)[1])
    left = (likelihoods.sum(1, keepdims=True) - likelihoods) / 4
    q = log_distribution(torch.tensor(-np.log(left) / TOKENS), chosen.temperature_gold)
    assert float(normalised_entropy(q).median()) == pytest.approx(0.5, abs=0.01)
    assert chosen.objective is Objective.LOOP


def test_the_objective_is_handed_on(prepared: Prepared) -> None:
    chosen = calibrate(options(objective=Objective.MARGINAL, contrastive_weight=0.3), prepared)
    assert (chosen.objective, chosen.contrastive_weight) == (Objective.MARGINAL, 0.3)


@pytest.mark.parametrize("flag", ["temperature_gold", "temperature_score"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_impossible_temperatures_are_refused(flag: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"--{flag}"):
        TargetOptions(**{flag: value})  # type: ignore[arg-type]


def test_equal_scores_are_refused_with_advice(prepared: Prepared, tmp_path: Path) -> None:
    deaf = cast(Prepared, Partly(**vars(prepared)))
    deaf.supervisor = FakeSupervisor(lambda prompt: [-1.0] * TOKENS)  # type: ignore[misc,assignment]
    with pytest.raises(OptionError, match=r"equal scores.*--temperature_gold"):
        calibrate(options(), deaf)


def test_probabilities_near_0_are_not_laid_to_the_passages(prepared: Prepared) -> None:
    long = cast(Prepared, Partly(**vars(prepared)))
    long.supervisor = FakeSupervisor(  # type: ignore[misc,assignment]
        lambda prompt: [100 * preference(prompt.ids[1], prompt.ids[0])] * TOKENS
    )
    with pytest.raises(OptionError, match=r"--score probability: found .*e-.*Take --score mean"):
        calibrate(options(score=Aggregation.PROBABILITY), long)
    calibrate(options(score=Aggregation.MEAN), long)


def test_equal_probabilities_that_are_not_near_0_are_laid_to_the_passages(prepared: Prepared) -> None:
    deaf = cast(Prepared, Partly(**vars(prepared)))
    deaf.supervisor = FakeSupervisor(lambda prompt: [-1.0] * TOKENS)  # type: ignore[misc,assignment]
    with pytest.raises(OptionError, match="equal scores"):
        calibrate(options(score=Aggregation.PROBABILITY), deaf)

"""A step's diagnosis: values worked out by hand, rank correlation against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replug_client.training.diagnostics import (
    RunningMeans,
    average_ranks,
    batch_diagnostics,
    rank_correlation,
    unique_share,
)
from replug_client.training.objectives import log_distribution

FIGURES = (
    "p_entropy",
    "q_entropy",
    "uniform_targets",
    "one_hot_targets",
    "expected_score",
    "rank_correlation",
)


def last(p: list[list[float]], q: list[list[float]], scores: list[list[float]]) -> dict[str, torch.Tensor]:
    """Probabilities, 0 where there is no candidate."""
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in (("p", p), ("q", q))}
    return {
        "log_p": tensors["p"].log(),
        "log_q": tensors["q"].log(),
        "mask": tensors["p"] > 0,
        "scores": torch.tensor(scores, dtype=torch.float64),
    }


def test_figures_by_hand() -> None:
    figures = batch_diagnostics(
        last(
            p=[[0.25, 0.25, 0.5, 0.0], [0.1, 0.2, 0.3, 0.4]],
            q=[[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]],
            scores=[[-1.0, -2.0, -3.0, 99.0], [-2.0, -2.0, -2.0, -2.0]],
        )
    )
    first = 1.5 * math.log(2) / math.log(3)  # 1/2 + 1/4 + 1/4 has 1.5 bits
    second = -sum(share * math.log(share) for share in (0.1, 0.2, 0.3, 0.4)) / math.log(4)
    assert figures["p_entropy"] == pytest.approx((first + second) / 2)
    assert figures["q_entropy"] == pytest.approx((first + 1) / 2)
    assert figures["uniform_targets"] == 0.5
    assert figures["one_hot_targets"] == 0.0
    # First: ranks of P 0.5 0.5 2, of Q 2 0.5 0.5; rho = -0.75 / 1.5. Second: Q is constant, left out.
    assert figures["rank_correlation"] == pytest.approx(-0.5)
    # First: 0.25 * -1 + 0.25 * -2 + 0.5 * -3 = -2.25, less the mean -2. Second: 0.
    assert figures["expected_score"] == pytest.approx(-0.125)


def test_one_hot_targets_are_counted_and_no_order_gives_no_correlation() -> None:
    uniform = [[0.5, 0.5]]
    figures = batch_diagnostics(last(p=uniform, q=[[1.0, 0.0]], scores=[[-1.0, -9.0]]))
    assert figures["one_hot_targets"] == 1.0
    assert figures["q_entropy"] == 0.0
    assert "rank_correlation" not in figures


def test_an_only_candidate_is_neither_one_hot_nor_uniform() -> None:
    p, q = [[0.25, 0.75], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]
    both, first = (
        batch_diagnostics(last(p[:lines], q[:lines], [[-1.0, -3.0], [-5.0, 99.0]][:lines]))
        for lines in (2, 1)
    )
    assert both == first
    assert both["one_hot_targets"] == 0.0
    assert batch_diagnostics(last(p[1:], q[1:], [[-5.0, 99.0]])) == {}


def test_the_parts_of_the_loss_are_told_apart() -> None:
    left = last(p=[[0.5, 0.5]], q=[[1.0, 0.0]], scores=[[-1.0, -9.0]])
    assert not [name for name in batch_diagnostics(left) if name.endswith("_loss")]
    figures = batch_diagnostics(left | {"contrastive": torch.tensor(1.5), "isotropy": torch.tensor(0.25)})
    assert (figures["contrastive_loss"], figures["isotropy_loss"]) == (1.5, 0.25)


@settings(deadline=None)  # the first call imports SciPy
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_rank_correlation_is_scipys(pairs: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    found = rank_correlation(first, second)
    if len(set(first.tolist())) == 1 or len(set(second.tolist())) == 1:
        assert found.isnan()
    else:
        assert found.item() == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)


def test_ranks_and_correlation_by_hand() -> None:
    assert average_ranks(torch.tensor([10.0, 30.0, 10.0, 20.0])).tolist() == [0.5, 3.0, 0.5, 2.0]
    # Differences of ranks 1 1 1 1, so rho = 1 - 6 * 4 / (4 * 15).
    found = rank_correlation(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 4.0, 3.0]))
    assert found.item() == pytest.approx(0.6)


def example_by_example(last: dict[str, torch.Tensor]) -> dict[str, float]:
    """The figures as their description says them, without a tensor of a whole batch."""

    def ranks(values: list[float]) -> list[float]:
        return [
            sum(other < own for other in values) + (sum(other == own for other in values) - 1) / 2
            for own in values
        ]

    def entropy(log_shares: list[float]) -> float:
        return -sum(math.exp(log) * log for log in log_shares if log > -math.inf) / math.log(len(log_shares))

    figures: dict[str, list[float]] = {name: [] for name in FIGURES}
    for log_p, log_q, scores, mask in zip(
        *(last[name] for name in ("log_p", "log_q", "scores", "mask")), strict=True
    ):
        p, q, own = (values[mask].tolist() for values in (log_p, log_q, scores))
        if len(p) < 2:
            continue
        figures["p_entropy"].append(entropy(p))
        figures["q_entropy"].append(entropy(q))
        figures["uniform_targets"].append(float(entropy(q) > 0.99))
        figures["one_hot_targets"].append(float(math.exp(max(q)) > 0.99))
        expected = sum(math.exp(log) * score for log, score in zip(p, own, strict=True))
        figures["expected_score"].append(expected - sum(own) / len(own))
        if len(set(p)) > 1 and len(set(q)) > 1:
            figures["rank_correlation"].append(float(np.corrcoef(ranks(p), ranks(q))[0, 1]))
    return {name: float(np.mean(values)) for name, values in figures.items() if values}


@pytest.mark.parametrize(("batch", "candidates"), [(1, 2), (8, 4), (64, 20)])
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_at_once_gives_the_figures_of_its_examples(batch: int, candidates: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def numbers() -> torch.Tensor:
        # Few distinct values, so that there are ties, rows without an order among them.
        return torch.randint(0, 6, (batch, candidates), generator=generator).double()

    mask = torch.rand(batch, candidates, generator=generator) < 0.8
    mask[0] = True  # and, in the larger ones, examples with one candidate or with a single sharp target
    if batch > 4:
        mask[1] = torch.arange(candidates) == 1
    scores = numbers()
    sharp = torch.where(torch.arange(batch)[:, None] % 4 == 3, 50.0, 0.3)
    kept = mask.any(-1)
    left = {
        "mask": mask[kept],
        "log_p": log_distribution(numbers()[kept], 2.0, mask[kept]),
        "log_q": log_distribution((scores * sharp)[kept], 1.0, mask[kept]),
        "scores": scores.masked_fill(~mask, math.nan)[kept],
    }
    found, expected = batch_diagnostics(left), example_by_example(left)
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=1e-12)


def test_no_figure_is_looked_for_example_by_example() -> None:
    """A step of training waits for its diagnosis: what it costs may not rise with the number of examples."""

    def operations(batch: int) -> int:
        values = torch.randn(batch, 6, generator=torch.Generator().manual_seed(0)).double()
        left = {"mask": torch.ones(batch, 6, dtype=torch.bool), "scores": values}
        left |= {name: values.log_softmax(-1) for name in ("log_p", "log_q")}
        with torch.profiler.profile() as profile:
            batch_diagnostics(left)
        return sum(event.count for event in profile.key_averages())

    assert operations(64) <= operations(4) + 2


def test_means_since_they_were_last_read() -> None:
    means = RunningMeans()
    means.add({"a": 1.0, "b": 4.0})
    means.add({"a": 2.0})
    assert means.flush() == {"a": 1.5, "b": 4.0}
    assert means.flush() == {}


def test_unique_share() -> None:
    assert unique_share(np.array([[1, 2], [2, 3]])) == 0.75
    assert unique_share(np.zeros((0, 0))) == 0.0
    many = np.arange(1000) % 10  # a hundred queries a passage: no collapse where there are only ten
    assert unique_share(many, passages=10) == 1.0 and unique_share(many, passages=500) == 0.02
    assert unique_share(many[:5], passages=10) == 1.0

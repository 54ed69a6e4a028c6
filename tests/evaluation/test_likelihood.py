"""Bits per byte and the conditions' table, against values worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest

from replug_client.corpus.records import Example
from replug_client.errors import OptionError, PromptTooLongError, WrongAnswerError
from replug_client.evaluation.conditions import Combination, Condition, Retrieved
from replug_client.evaluation.likelihood import TOO_LONG, LikelihoodTable, evaluate_conditions
from replug_client.statistics import bits_per_byte
from replug_client.supervisor.protocol import Prompt, Score, Supervisor

# A passage's text is its cost: the supervisor below pays that many nats for each token after it.
COSTS = ["0.5", "2.0", "1.0", "4.0"]
NO_PASSAGE_COST = 3.0


class CostStore:
    """Four passages."""

    def __len__(self) -> int:
        return len(COSTS)

    def texts(self, rows: Sequence[int]) -> list[str]:
        return [COSTS[row] for row in rows]

    def ids(self, rows: Sequence[int]) -> list[str]:
        return [f"p{row}" for row in rows]


class CostBuilder:
    """Prompt ids with the costs of the passages in front, in hundredths of a nat."""

    limit = 100

    def build(
        self,
        passages: str | Sequence[str],
        query_ids: Sequence[int],
        continuation_ids: Sequence[int],
        label: str,
    ) -> Prompt:
        costs = [float(text) for text in passages] if passages else [NO_PASSAGE_COST]
        ids = (*(round(cost * 100) for cost in costs), *query_ids, *continuation_ids)
        if len(ids) > self.limit:
            raise PromptTooLongError(label)
        return Prompt(ids, len(continuation_ids), label)


class CostSupervisor:
    """Each token pays what the last id before the query says, the nearest passage; remembers what it was asked."""

    name = "cost"
    fingerprint = "cost"
    max_prompt_tokens = CostBuilder.limit

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[Prompt] = []
        self.calls = 0
        self.fail_at = fail_at
        self.futures: list[Future[list[Score]]] = []

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        return self.submit(prompts).result()

    def submit(self, prompts: Sequence[Prompt]) -> Future[list[Score]]:
        future: Future[list[Score]] = Future()
        if self.fail_at == self.calls:
            future.set_exception(WrongAnswerError(prompts[0].label))
        else:
            self.asked.extend(prompts)
            future.set_result(
                [Score(np.full(p.num_continuation, -nearest(p) / 100, np.float32)) for p in prompts]
            )
        self.calls += 1
        self.futures.append(future)
        return future

    def close(self) -> None:
        pass


def example(document: str, tokens: int, num_bytes: int, query_tokens: int = 3) -> Example:
    return Example(document, "q", "c", (1,) * query_tokens, (2,) * tokens, num_bytes)


def nearest(prompt: Prompt) -> int:
    return next(token for token in reversed(prompt.ids) if token > 2)


def evaluate(
    examples: Sequence[Example],
    rows: dict[str, Any],
    supervisor: CostSupervisor,
    similarities: dict[str, Any] | None = None,
    **options: Any,
) -> LikelihoodTable:
    """Conditions by name; the ceiling is over all of the base's."""
    names = [name.partition(".") for name in rows]
    conditions = [Condition(first, Combination.parse(how or "first")) for first, _, how in names]
    found = {
        name.partition(".")[0]: Retrieved(np.array(lines), (similarities or {}).get(name))
        for name, lines in rows.items()
        if lines is not None
    }
    return evaluate_conditions(
        examples,
        conditions,
        found,
        cast(Any, CostStore()),
        cast(Any, CostBuilder()),
        supervisor,
        **options,
    )


def test_the_costed_supervisor_is_a_supervisor() -> None:
    assert isinstance(CostSupervisor(), Supervisor)


def test_bits_per_byte_is_the_ratio_of_sums() -> None:
    # ln 2 nats are 1 bit: (1 + 8) bits over (1 + 2) bytes, not the mean of 1 and 4.
    assert bits_per_byte([math.log(2), 8 * math.log(2)], [1, 2]) == pytest.approx(3.0)


def test_a_uniform_guess_over_bytes_costs_eight_bits() -> None:
    assert bits_per_byte([5 * math.log(256)], [5]) == pytest.approx(8.0)


@pytest.mark.parametrize(
    ("nll", "num_bytes"),
    [([], []), ([1.0], [0]), ([1.0], [1, 2]), ([float("nan")], [1]), ([float("inf")], [1])],
)
def test_bits_per_byte_refuses_what_has_no_answer(nll: list[float], num_bytes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"vectors|finite|byte"):
        bits_per_byte(nll, num_bytes)


def test_every_condition_gets_its_own_passage_and_the_ceiling_the_best() -> None:
    examples = [example("a", tokens=2, num_bytes=4), example("b", tokens=1, num_bytes=2)]
    conditions = {
        "none": None,
        "random": [[3], [3]],
        "base": [[1, 2], [3, 1]],
        "tuned": [[2], [0]],
        "ceiling": None,
    }
    table = evaluate(examples, conditions, CostSupervisor())
    assert table.nll["none"].tolist() == [6.0, 3.0]
    assert table.nll["random"].tolist() == [8.0, 4.0]
    assert table.nll["base"].tolist() == [4.0, 4.0]
    assert table.nll["tuned"].tolist() == [2.0, 0.5]
    assert table.nll["ceiling"].tolist() == [2.0, 2.0]
    assert table.num_tokens.tolist() == [2, 1]
    assert table.perplexity("base") == pytest.approx(math.exp(8 / 3))
    assert table.log_likelihood("base") == pytest.approx(-4.0)
    # base 8 nats, tuned 2.5, ceiling 4, over 6 bytes.
    value = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert value["bits_per_byte"]["base"] == pytest.approx(8 / (6 * math.log(2)))
    assert list(value["bits_per_byte"]) == ["none", "random", "base", "tuned", "ceiling"]
    assert value["base_minus_tuned"]["mean"] == pytest.approx(5.5 / (6 * math.log(2)))
    assert value["share_of_ceiling_closed"] == pytest.approx(5.5 / 4)
    assert (value["n"], value["documents"], value["left_out"]) == (2, 2, {})


def test_a_passage_in_several_conditions_is_scored_once() -> None:
    supervisor = CostSupervisor()
    conditions = {"base.ensemble-2": [[1, 2]], "tuned": [[1]], "ceiling": None, "none": None}
    evaluate([example("a", 1, 1)], conditions, supervisor)
    assert sorted(prompt.ids[0] for prompt in supervisor.asked) == [100, 200, 300]


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_blocks_of_any_size_keep_examples_and_scores_together(size: int) -> None:
    examples = [example(str(i), tokens=i + 1, num_bytes=1) for i in range(7)]
    rows = [[i % 4, (i + 1) % 4] for i in range(7)]
    conditions = {"base": rows, "ceiling": None}
    table = evaluate(examples, conditions, CostSupervisor(), examples_per_call=size)
    best = [min(float(COSTS[row]) for row in pair) for pair in rows]
    assert table.nll["ceiling"].tolist() == [(i + 1) * cost for i, cost in enumerate(best)]
    assert table.document_ids == tuple(str(i) for i in range(7))


def test_a_prompt_too_long_leaves_its_example_out_of_every_condition_and_is_counted() -> None:
    examples = [example("a", 1, 1), example("b", 1, 1, query_tokens=200), example("c", 1, 5)]
    table = evaluate(examples, {"none": None, "base": [[0], [1], [2]]}, CostSupervisor())
    assert table.document_ids == ("a", "c")
    assert {name: len(values) for name, values in table.nll.items()} == {"none": 2, "base": 2}
    assert table.num_bytes.tolist() == [1, 5]
    assert table.left_out == {TOO_LONG: 1}
    assert table.to_json()["left_out"] == {TOO_LONG: 1}


def test_nothing_left_to_evaluate_is_an_error_that_says_why() -> None:
    with pytest.raises(OptionError, match=r"none of 1 examples.*too long"):
        evaluate([example("a", 1, 1, query_tokens=200)], {"none": None}, CostSupervisor())


def test_a_supervisor_error_ends_the_evaluation_and_names_the_pair() -> None:
    supervisor = CostSupervisor(fail_at=1)
    examples = [example(str(i), 1, 1) for i in range(8)]
    with pytest.raises(WrongAnswerError, match=r"example 2 of document '2', passage 'p0'"):
        evaluate(examples, {"base": [[0]] * 8}, supervisor, examples_per_call=2)
    assert supervisor.calls < 4


@pytest.mark.parametrize("rows", [[[4]], [[-2]], [[0], [0]], [[]], [0]])
def test_rows_that_point_nowhere_are_refused(rows: list[Any]) -> None:
    with pytest.raises(ValueError, match="rows"):
        evaluate([example("a", 1, 1)], {"base": rows}, CostSupervisor())


def table_of(base: Sequence[float], tuned: Sequence[float], ceiling: Sequence[float]) -> LikelihoodTable:
    n = len(base)
    return LikelihoodTable(
        {"base": np.array(base), "tuned": np.array(tuned), "ceiling": np.array(ceiling)},
        np.ones(n, np.int64),
        np.ones(n, np.int64),
        tuple(str(i) for i in range(n)),
    )


def test_share_closed_is_one_at_the_ceiling_zero_at_the_base_and_negative_below_it() -> None:
    assert table_of([4, 4], [2, 2], [2, 2]).share_closed() == pytest.approx(1.0)
    assert table_of([4, 4], [4, 4], [2, 2]).share_closed() == pytest.approx(0.0)
    assert table_of([4, 4], [5, 5], [2, 2]).share_closed() == pytest.approx(-0.5)
    assert table_of([4, 4], [3, 3], [4, 4]).share_closed() is None


def test_without_a_tuned_condition_the_json_has_no_difference() -> None:
    value = evaluate([example("a", 1, 1)], {"base": [[0]]}, CostSupervisor()).to_json()
    assert "base_minus_tuned" not in value
    assert "share_of_ceiling_closed" not in value


def test_one_document_has_a_difference_but_no_interval_over_documents() -> None:
    examples = [example("a", 1, 1), example("a", 1, 1)]
    value = evaluate(examples, {"base": [[1], [3]], "tuned": [[0], [2]]}, CostSupervisor()).to_json()
    assert value["base_minus_tuned"]["low"] is None
    assert value["base_minus_tuned"]["over_examples"]["low"] == pytest.approx(1.5 / math.log(2))
    json.dumps(value, allow_nan=False)


def test_a_concatenation_is_one_prompt_with_the_most_relevant_next_to_the_query() -> None:
    supervisor = CostSupervisor()
    table = evaluate([example("a", 2, 1)], {"base.concat-3": [[1, 2, 3]]}, supervisor)
    (prompt,) = supervisor.asked
    assert prompt.ids[:3] == (400, 100, 200)
    assert prompt.label == "example 0 of document 'a', passages 'p3', 'p2', 'p1'"
    assert table.nll["base.concat-3"].tolist() == [4.0]


def test_an_ensemble_mixes_probabilities_at_every_token() -> None:
    # exp(0.4 / 0.2) to 1 over tokens of exp(-2) and exp(-1), each token: log of the weighted mean.
    heavy = math.e**2 / (1 + math.e**2)
    per_token = math.log(heavy * math.exp(-2.0) + (1 - heavy) * math.exp(-1.0))
    table = evaluate(
        [example("a", 3, 1)],
        {"base.ensemble-2": [[1, 2]]},
        CostSupervisor(),
        {"base.ensemble-2": np.array([[0.5, 0.1]])},
        temperature=0.2,
    )
    assert table.nll["base.ensemble-2"][0] == pytest.approx(-3 * per_token, abs=1e-6)


def test_passages_without_similarities_count_alike() -> None:
    table = evaluate([example("a", 1, 1)], {"random.ensemble-2": [[1, 2]]}, CostSupervisor())
    expected = -math.log((math.exp(-2.0) + math.exp(-1.0)) / 2)
    assert table.nll["random.ensemble-2"][0] == pytest.approx(expected, abs=1e-6)


def test_where_nothing_was_found_no_passage_is_read_and_the_examples_are_counted() -> None:
    examples = [example("a", 1, 1), example("b", 1, 1), example("c", 1, 1)]
    rows = {"bm25.ensemble-2": [[0, 1], [0, -1], [-1, -1]], "none": None}
    table = evaluate(examples, rows, CostSupervisor())
    assert table.nll["bm25.ensemble-2"][1:].tolist() == [0.5, NO_PASSAGE_COST]
    assert table.fewer == {"bm25.ensemble-2": 2}
    assert table.n == 3

"""Bits per byte and the conditions' table, against values worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest

from replug_client.corpus.records import Example, Passage
from replug_client.errors import OptionError, PromptTooLongError, WrongAnswerError
from replug_client.evaluation.likelihood import (
    TOO_LONG,
    LikelihoodTable,
    bits_per_byte,
    evaluate_conditions,
    random_rows,
    standard_conditions,
)
from replug_client.supervisor.protocol import Prompt, Score, Supervisor

# A passage's text is its cost: the supervisor below pays that many nats for each token after it.
COSTS = ["0.5", "2.0", "1.0", "4.0"]
NO_PASSAGE_COST = 3.0


class CostStore:
    """Four passages."""

    def __len__(self) -> int:
        return len(COSTS)

    def __getitem__(self, row: int) -> Passage:
        return Passage(id=f"p{row}", text=COSTS[row])


class CostBuilder:
    """Prompt ids that carry the passage's cost in front, in hundredths of a nat."""

    limit = 100

    def build(
        self,
        passage_text: str,
        query_ids: Sequence[int],
        continuation_ids: Sequence[int],
        label: str,
    ) -> Prompt:
        cost = NO_PASSAGE_COST if passage_text == "" else float(passage_text)
        ids = (round(cost * 100), *query_ids, *continuation_ids)
        if len(ids) > self.limit:
            raise PromptTooLongError(label)
        return Prompt(ids, len(continuation_ids), label)


class CostSupervisor:
    """Pays what the first id says; remembers what it was asked."""

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
                [Score(np.full(p.num_continuation, -p.ids[0] / 100, np.float32)) for p in prompts]
            )
        self.calls += 1
        self.futures.append(future)
        return future

    def close(self) -> None:
        pass


def example(document: str, tokens: int, num_bytes: int, query_tokens: int = 3) -> Example:
    return Example(document, "q", "c", (1,) * query_tokens, (2,) * tokens, num_bytes)


def evaluate(
    examples: Sequence[Example],
    conditions: dict[str, Any],
    supervisor: CostSupervisor,
    **options: Any,
) -> LikelihoodTable:
    return evaluate_conditions(
        examples,
        {name: None if rows is None else np.array(rows) for name, rows in conditions.items()},
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
        "base": [[1], [3]],
        "tuned": [[2], [0]],
        "ceiling": [[1, 2], [3, 1]],
    }
    table = evaluate(examples, conditions, CostSupervisor())
    assert table.nll["none"].tolist() == [6.0, 3.0]
    assert table.nll["random"].tolist() == [8.0, 4.0]
    assert table.nll["base"].tolist() == [4.0, 4.0]
    assert table.nll["tuned"].tolist() == [2.0, 0.5]
    assert table.nll["ceiling"].tolist() == [2.0, 2.0]
    assert table.num_tokens.tolist() == [2, 1]
    # base 8 nats, tuned 2.5, ceiling 4, over 6 bytes.
    value = json.loads(json.dumps(table.to_json(), allow_nan=False))
    assert value["bits_per_byte"]["base"] == pytest.approx(8 / (6 * math.log(2)))
    assert list(value["bits_per_byte"]) == ["none", "random", "base", "tuned", "ceiling"]
    assert value["base_minus_tuned"]["mean"] == pytest.approx(5.5 / (6 * math.log(2)))
    assert value["share_of_ceiling_closed"] == pytest.approx(5.5 / 4)
    assert (value["n"], value["documents"], value["left_out"]) == (2, 2, {})


def test_a_passage_in_several_conditions_is_scored_once() -> None:
    supervisor = CostSupervisor()
    conditions = {"base": [[1]], "tuned": [[1]], "ceiling": [[1, 2]], "none": None}
    evaluate([example("a", 1, 1)], conditions, supervisor)
    assert sorted(prompt.ids[0] for prompt in supervisor.asked) == [100, 200, 300]


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_blocks_of_any_size_keep_examples_and_scores_together(size: int) -> None:
    examples = [example(str(i), tokens=i + 1, num_bytes=1) for i in range(7)]
    rows = [[i % 4, (i + 1) % 4] for i in range(7)]
    table = evaluate(examples, {"c": rows}, CostSupervisor(), examples_per_call=size)
    best = [min(float(COSTS[row]) for row in pair) for pair in rows]
    assert table.nll["c"].tolist() == [(i + 1) * cost for i, cost in enumerate(best)]
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


@pytest.mark.parametrize("rows", [[[4]], [[-1]], [[0], [0]], [[]], [0]])
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


def test_standard_conditions_take_first_passages_and_the_whole_base_list() -> None:
    base, tuned = np.array([[1, 2], [3, 0]]), np.array([[0, 1], [2, 3]])
    conditions = standard_conditions(base, tuned, num_passages=4, seed=3)
    assert list(conditions) == ["none", "random", "base", "tuned", "ceiling"]
    assert conditions["none"] is None
    for name, expected in {
        "base": [[1], [3]],
        "tuned": [[0], [2]],
        "ceiling": base.tolist(),
    }.items():
        rows = conditions[name]
        assert rows is not None
        assert rows.tolist() == expected


def test_random_rows_cover_the_corpus_and_follow_the_seed() -> None:
    rows = random_rows(2000, 4, seed=1)
    assert rows.shape == (2000, 1)
    assert np.bincount(rows[:, 0]).min() > 400
    assert (rows == random_rows(2000, 4, seed=1)).all()
    assert (rows != random_rows(2000, 4, seed=2)).any()
    with pytest.raises(ValueError, match="0 passages"):
        random_rows(1, 0, seed=1)

"""Tables and the verdict of an evaluation on the LM's side, from figures made up for it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from replug_client.errors import ArtefactError
from replug_client.evaluation.conditions import Condition, parse_conditions
from replug_client.evaluation.likelihood import LikelihoodTable
from replug_client.evaluation.lm_result import LMTables, lm_tables
from replug_client.evaluation.per_example import read_per_example, write_per_example
from replug_client.evaluation.results import EvaluationResult

CONDITIONS = parse_conditions(["none", "random", "base", "tuned", "ceiling"], ["first", "ensemble-3"])


def table_of(gain: float, *, ensemble_gain: float = 0.0, documents: int = 20) -> LikelihoodTable:
    n = 40
    base = np.linspace(90.0, 110.0, n)
    wobble = np.where(np.arange(n) % 2 == 0, 0.5, -0.5)
    return LikelihoodTable(
        {
            "none": base + 4,
            "random": base + 5,
            "random.ensemble-3": base + 4.5,
            "base": base,
            "base.ensemble-3": base - 1,
            "tuned": base - gain - wobble,
            "tuned.ensemble-3": base - 1 - ensemble_gain - wobble,
            "ceiling": base - 10,
        },
        np.full(n, 100, np.int64),
        np.full(n, 50, np.int64),
        tuple(str(i % documents) for i in range(n)),
    )


def shown(tables: LMTables, width: int) -> str:
    stream = io.StringIO()
    result = EvaluationResult("lm", tables.tables, verdict=tables.verdict)
    Console(file=stream, width=width).print(result.render())
    return stream.getvalue()


def test_figures_are_those_worked_out_by_hand() -> None:
    main, against = lm_tables(table_of(2.0), CONDITIONS).tables
    rows = {row.name: row for row in main.rows}
    # 100 nats a continuation of 100 bytes and 50 tokens: 1 / ln 2 bits a byte, perplexity e^2.
    assert rows["base"].values == pytest.approx(
        {"bits_per_byte": 1 / np.log(2), "perplexity": np.exp(2), "log_likelihood": -100}
    )
    assert main.baseline == "base"
    assert not rows["base"].differences
    assert rows["random"].differences["bits_per_byte"].mean == pytest.approx(-0.05 / np.log(2))
    assert rows["tuned"].emphasis
    first, ensemble = against.rows
    assert first.values["share_of_ceiling_closed"] == pytest.approx(0.2)
    assert ensemble.differences["tuned"].mean == pytest.approx(0.0, abs=1e-12)
    # To the ceiling from the ensemble's own base.
    assert ensemble.values["share_of_ceiling_closed"] == pytest.approx(0.0, abs=1e-12)


def test_the_verdict_follows_the_interval_and_names_n_and_the_share_of_the_ceiling() -> None:
    yes = lm_tables(table_of(2.0), CONDITIONS).verdict
    assert yes.startswith("Did LSR help? Yes: with the first passage, base minus tuned is +0.0289 [+0.0")
    assert "(n = 40 examples of 20 documents); 20% of the distance from base to ceiling is closed." in yes
    assert "Others: ensemble-3 +0.0000 [" in yes
    assert "? No, it hurt: " in lm_tables(table_of(-2.0), CONDITIONS).verdict
    assert "? Not shown: " in lm_tables(table_of(0.0), CONDITIONS).verdict


def test_one_document_has_no_interval_and_no_answer() -> None:
    tables = lm_tables(table_of(2.0, documents=1), CONDITIONS)
    assert "? Not shown: " in tables.verdict
    assert "[no interval]" in tables.verdict
    assert any("One document" in note for note in tables.tables[0].notes)


@pytest.mark.parametrize(
    ("names", "baseline"),
    [
        (["none", "tuned"], "none"),
        (["base.ensemble-3", "none"], "base.ensemble-3"),
        (["random", "tuned"], "random"),
        (["tuned"], None),
    ],
)
def test_the_baseline_is_the_base_else_no_passage_else_what_comes_first(
    names: list[str], baseline: str | None
) -> None:
    table = table_of(2.0)
    conditions = [condition for name in names for condition in CONDITIONS if condition.name == name]
    part = replace(table, nll={name: table.nll[name] for name in names})
    tables = lm_tables(part, conditions)
    assert tables.tables[0].baseline == baseline
    assert len(tables.tables) == 1, "there is nothing to hold tuned against under the same combination"
    assert tables.verdict == ""
    assert sum(bool(row.differences) for row in tables.tables[0].rows) == len(names) - 1


def test_within_80_columns_every_figure_is_whole() -> None:
    out = shown(lm_tables(table_of(2.0), CONDITIONS), 80)
    assert max(map(len, out.splitlines())) <= 80
    assert all(label in out for label in ("no passage", "random,", "(ceiling)"))
    # Seven differences to the base, two of tuned to base, the heads' and the verdict's.
    assert out.count("[+") + out.count("[-") == 7 + 2 + 2
    assert "…" not in out


def test_fewer_passages_than_asked_for_are_told_below_the_table() -> None:
    table = replace(table_of(1.0), fewer={"random.ensemble-3": 7})
    notes = lm_tables(table, CONDITIONS, notes=["mine"]).tables[0].notes
    assert any(
        note.startswith("random, ensemble of 3: fewer passages than asked for in 7 of 40") for note in notes
    )
    assert notes[-1] == "mine"


def test_details_hold_the_narrower_intervals_over_examples() -> None:
    details = lm_tables(table_of(2.0, documents=4), CONDITIONS).details
    gain = details["bits_per_byte_better_over_examples"]["tuned"]
    assert gain["low"] <= gain["mean"] <= gain["high"]
    assert details["log_likelihood"]["base"] == pytest.approx(-4000)
    assert (details["tokens"], details["bytes"], details["documents"]) == (2000, 4000, 4)


def test_the_file_of_examples_gives_the_table_again(tmp_path: Path) -> None:
    table = table_of(2.0)
    write_per_example(tmp_path / "examples.jsonl", table)
    again = read_per_example(tmp_path / "examples.jsonl")
    assert again.document_ids == table.document_ids
    assert {name: nll.tolist() for name, nll in again.nll.items()} == {
        name: nll.tolist() for name, nll in table.nll.items()
    }
    assert again.to_json() == table.to_json()


@pytest.mark.parametrize("content", [None, "", "[1]\n", '{"log_likelihood": {"a": 1}}\n', "{\n"])
def test_another_file_is_refused_with_the_command_that_makes_one(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "x.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtefactError, match="replug evaluate lm --per_example"):
        read_per_example(path)


def test_a_label_is_short_and_says_who_and_how() -> None:
    assert [condition.label for condition in CONDITIONS[1:4]] == [
        "a random passage",
        "random, ensemble of 3",
        "base retriever's first",
    ]
    assert Condition("none").label == "no passage"

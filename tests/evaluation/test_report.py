"""The likelihood table as printed."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from replug_client.evaluation.likelihood import LikelihoodTable
from replug_client.evaluation.report import render_likelihood


def printed(table: LikelihoodTable, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(render_likelihood(table))
    return stream.getvalue()


def table_of(tuned_gain: float, documents: int = 20) -> LikelihoodTable:
    n = 40
    base = np.linspace(90.0, 110.0, n)
    wobble = np.where(np.arange(n) % 2 == 0, 0.5, -0.5)
    return LikelihoodTable(
        {
            "none": base + 4,
            "random": base + 5,
            "base": base,
            "tuned": base - tuned_gain - wobble,
            "ceiling": base - 10,
        },
        np.full(n, 100, np.int64),
        np.full(n, 30, np.int64),
        tuple(str(i % documents) for i in range(n)),
        {"prompt too long for the supervisor": 3},
    )


def test_every_condition_has_its_n_its_figure_and_its_interval_within_80_columns() -> None:
    out = printed(table_of(2.0))
    assert max(len(line) for line in out.splitlines()) <= 80
    for name in (
        "no passage",
        "a random passage",
        "base retriever's first",
        "tuned retriever's first",
        "best of",
    ):
        line = next(line for line in out.splitlines() if name in line)
        assert " 40 " in line
        assert ("[" in line) == ("base retriever" not in line)
    # 100 nats a continuation of 100 bytes: 1 / ln 2 bits a byte
    assert "1.4427" in out
    assert "Left out: 3 examples (prompt too long for the supervisor)." in out
    assert "40 examples of 20 documents" in out


def test_the_verdict_follows_the_interval() -> None:
    assert "tuned is better" in printed(table_of(2.0))
    assert "20% of the distance" in printed(table_of(2.0))
    assert "tuned is worse" in printed(table_of(-2.0))
    assert "no clear difference" in printed(table_of(0.0))


def test_one_document_says_that_there_is_no_interval() -> None:
    assert "no interval: 1 document" in printed(table_of(2.0, documents=1))


def test_without_a_base_there_is_no_difference_column() -> None:
    table = LikelihoodTable({"tuned": np.array([1.0])}, np.array([1]), np.array([1]), ("a",))
    out = printed(table)
    assert "base − this" not in out
    assert "1.4427" in out

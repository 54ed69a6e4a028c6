"""What an evaluation shows on a terminal, however narrow: nothing is cut off, and nothing is obeyed."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from replug_client.evaluation.results import Difference, EvaluationResult, Metric, ResultTable, Row

METRICS = [Metric(f"m{n}", f"a heading of metric {n}") for n in range(6)]
DIFFERENCES = {metric.name: Difference(0.1234, 0.0123, 0.2345) for metric in METRICS}
VALUES = {metric.name: 1.0 + place / 7 for place, metric in enumerate(METRICS)}
ROWS = [
    Row("base.ensemble-10", "base retriever, ensemble of 10", 1_234_567, VALUES),
    Row("tuned", "tuned \x1b[31mretriever[bold]", 1_234_567, VALUES, DIFFERENCES, emphasis=True),
]
RESULT = EvaluationResult("qa", [ResultTable("t", "A title", METRICS, ROWS, "base.ensemble-10")])


def shown(width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(RESULT.render())
    return stream.getvalue()


@pytest.mark.parametrize("width", [64, 72, 80, 100, 133, 240, 400])
def test_every_figure_is_shown_whole_at_every_width(width: int) -> None:
    text = shown(width)
    assert max(map(len, text.splitlines())) <= width
    for value in VALUES.values():
        assert text.count(f"{value:.4f}") == 2
    assert text.count("+0.1234 [+0.0123, +0.2345]") == len(METRICS)
    assert "…" not in text
    assert text.count("1,234,567") == 2 * text.count("condition")  # each piece says its n


def test_a_wide_terminal_has_one_table_and_nothing_is_obeyed() -> None:
    text = shown(400)
    assert text.count("condition") == 1
    assert "\x1b" not in text
    assert "retriever[bold]" in text

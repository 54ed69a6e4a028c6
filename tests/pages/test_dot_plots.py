"""Where dots, intervals and the reference stand in a plot."""

from __future__ import annotations

import re

import pytest

from replug_client.pages.dot_plots import Dot, Scale, dot_plot


def test_a_scale_holds_its_values_with_a_margin() -> None:
    scale = Scale.over([0.0, 100.0])
    assert (scale.low, scale.high) == (pytest.approx(-7.0), pytest.approx(107.0))
    assert scale.place(50.0) == pytest.approx(50.0)
    assert scale.place(0.0) == pytest.approx(100 * 7 / 114)


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_single_value_stands_in_the_middle(value: float) -> None:
    assert Scale.over([value, value]).place(value) == pytest.approx(50.0)


def test_dots_intervals_and_reference_are_on_one_scale() -> None:
    dots = [Dot("a", "n = 3", 2.0, "+2 [+1, +3]", 1.0, 3.0, True, "good"), Dot("b <", "n = 3", -1.0, "-1")]
    figure = dot_plot("title", "note", dots, reference=0.0)
    scale = Scale(-1 - 0.28, 3 + 0.28)  # 7 % of -1 ... 3

    def said(value: float) -> str:
        return f"{scale.place(value):.2f}%"

    assert re.findall(r'cx="([^"]+)"', figure) == [said(2.0), said(-1.0)]
    assert f'x1="{said(1.0)}" x2="{said(3.0)}"' in figure
    assert figure.count(f'class="reference" x1="{said(0.0)}"') == 2
    assert figure.count('class="interval') == 1
    assert "b &lt;" in figure and 'aria-label="a: +2 [+1, +3]"' in figure


def test_without_dots_there_is_no_figure() -> None:
    assert dot_plot("title", "note", []) == ""

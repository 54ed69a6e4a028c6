"""docs/objectives.md: its examples give what it says, and its flags are there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from replug_client.training.choices import Aggregation, Denominator, Direction, Objective

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
VALUES = {"objective": Objective, "kl": Direction, "score": Aggregation, "denominator": Denominator}


def test_the_examples_give_what_the_page_says() -> None:
    result = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert result.attempted > 5
    assert result.failed == 0


def test_every_objective_is_described_and_no_other() -> None:
    text = PAGE.read_text("utf-8")
    assert set(re.findall(r"^\*\*`(\w+)`\*\*", text, re.MULTILINE)) == {item.value for item in Objective}
    for flag, values in VALUES.items():
        used = set(re.findall(rf"--{flag} ([a-z][a-z-]*)", text))
        assert used and used <= {item.value for item in values}

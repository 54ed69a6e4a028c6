"""The examples in the docstrings run as they stand, with nothing but what they import themselves."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from replug_client import training

MODULES = (
    "replug_client.compat.fed_rag",
    "replug_client.compat.rag_system",
    "replug_client.inference.answerer",
    "replug_client.inference.replug",
    "replug_client.inference.toy",
    "replug_client.training.toy",
    *sorted({home for name, home in training._HOMES.items() if name not in ("Prompt", "Score")}),
)
MUST_HAVE = {
    "Answerer",
    "Replug",
    "DataCollatorForLSR",
    "HuggingFaceTrainerForLSR",
    "LSRDataCollator",
    "LSRLoss",
    "LSRTrainer",
    "LSRTrainingArguments",
    "RAGSystem",
    "Supervisor",
    "TrainerForLSR",
    "ArrayIndex",
    "toy",
}


def examples() -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True, recurse=True)
    found = [test for name in MODULES for test in finder.find(import_module(name), globs={})]
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: str(example.name).split(".", 1)[1])
def test_an_example_runs_as_it_stands(example: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    result = runner.run(example, out=report.append)
    assert result.attempted and not result.failed, "".join(report)


def test_the_page_for_python_runs_from_top_to_bottom() -> None:
    page = Path(__file__).parents[2] / "docs" / "python.md"
    example = doctest.DocTestParser().get_doctest(page.read_text("utf-8"), {}, "python.md", str(page), 0)
    report: list[str] = []
    result = doctest.DocTestRunner().run(example, out=report.append)
    assert result.attempted > 30 and not result.failed, "".join(report)


def test_every_piece_of_the_public_interface_has_one() -> None:
    named = {example.name.rsplit(".", 1)[1] for example in examples()}
    assert named >= MUST_HAVE


@pytest.mark.parametrize("module", ["training.loss", "compat.fed_rag"])
def test_the_losses_show_that_the_gradient_reaches_the_retriever(module: str) -> None:
    (example,) = (test for test in examples() if test.name == f"replug_client.{module}.LSRLoss")
    lines = "".join(line.source for line in example.examples)
    assert ".backward()" in lines and ".grad" in lines

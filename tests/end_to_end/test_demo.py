"""The demo's whole job on a few files of the library, twice: what it writes, and that it starts nothing anew."""

from __future__ import annotations

import io
import json
import math
import runpy
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from sentence_transformers import SentenceTransformer

from demo import pipeline
from demo.pipeline import Plan
from demo.stdlib_corpus import CorpusOptions
from replug_client.evaluation.results import EvaluationResult
from tests.end_to_end.conftest import ROOT

pytestmark = pytest.mark.slow

HELD_OUT = 6
CONDITIONS = {"none", "random", "base", "tuned", "bm25", "ceiling"}


def small_plan(folder: Path) -> Plan:
    """The demo's plan at a size of seconds. Halves are held out, so that no Python leaves a side empty."""
    return Plan(
        folder=folder,
        corpus=CorpusOptions(files=12, held_out_every=2),
        train={
            "n_docs": "2",
            "bm25_docs": "2",
            "random_docs": "0",
            "per_gpu_batch_size": "4",
            "max_steps": "3",
            "max_examples": "12",
            "validation_fraction": "0.5",
            "max_validation": "4",
            "refresh_every": "0",
        },
        max_held_out=HELD_OUT,
        results=folder / "results.json",
        command="make demo",
        combinations="first ensemble-2",
    )


def scores_kept(folder: Path) -> int:
    with sqlite3.connect(folder / "cache" / "scores.sqlite") as database:
        return int(database.execute("SELECT COUNT(*) FROM scores").fetchone()[0])


def made(folder: Path) -> dict[str, int]:
    """When each artefact was finished."""
    files = (
        "embeddings/passages_00/manifest.json",
        "retriever/run.json",
        "retriever/query_0_Transformer/model.safetensors",
    )
    return {name: (folder / name).stat().st_mtime_ns for name in files}


def in_this_process(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run what ``python ...`` would run, without the ten seconds of importing everything anew.

    All but the last of the demo's commands, which shows that they start as the demo starts them.
    """
    program, *words = command[1:]
    if program.endswith("test_retriever.py"):
        return subprocess.run(command, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words if program == "-m" else [program, *words])
        run: Any = runpy.run_module if program == "-m" else runpy.run_path
        with pytest.raises(SystemExit) as end:
            run(words[0] if program == "-m" else program, run_name="__main__")
    return subprocess.CompletedProcess(command, int(end.value.code or 0))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, str]:
    """A finished demo, and what its own console said."""
    plan = small_plan(tmp_path_factory.mktemp("demo"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(pipeline, "subprocess", SimpleNamespace(run=in_this_process))
        said = io.StringIO()
        pipeline.run(plan, Console(file=said, width=120))
    return plan, said.getvalue()


@pytest.fixture(scope="module")
def results(demo: tuple[Plan, str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(demo[0].results.read_text())
    return value


@pytest.fixture(scope="module")
def evaluation(demo: tuple[Plan, str]) -> EvaluationResult:
    return EvaluationResult.read(demo[0].folder / "retriever" / "evaluation_lm.json")


def test_the_table_has_every_condition_and_the_paired_difference(results: dict[str, Any]) -> None:
    bits = results["bits_per_byte"]
    assert set(bits) == CONDITIONS
    assert all(math.isfinite(value) and 0 < value < 8 for value in bits.values())
    assert results["n"] == HELD_OUT
    difference = results["base_minus_tuned"]
    assert difference["mean"] == pytest.approx(bits["base"] - bits["tuned"])
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert bits["ceiling"] <= bits["base"]  # the base's first passage is one of the K


def test_the_packages_together_are_the_whole(results: dict[str, Any]) -> None:
    rows = results["by_package"]
    assert sum(row["n"] for row in rows) == results["n"]
    assert sum(row["documents"] for row in rows) == results["documents"]
    lowest, highest = min(row["base"] for row in rows), max(row["base"] for row in rows)
    assert lowest <= results["bits_per_byte"]["base"] <= highest


def test_the_table_is_the_command_s_and_its_ensembles_stand_beside_it(
    demo: tuple[Plan, str], results: dict[str, Any], evaluation: EvaluationResult
) -> None:
    rows = {row.name: row for row in evaluation.tables[0].rows}
    assert all(row.n == HELD_OUT for row in rows.values())
    figures = results["bits_per_byte"] | results["combined"]
    assert {name: row.values["bits_per_byte"] for name, row in rows.items()} == pytest.approx(figures)
    assert set(results["combined"]) == {f"{name}.ensemble-2" for name in ("random", "bm25", "base", "tuned")}
    difference = rows["tuned"].differences["bits_per_byte"]
    assert (difference.low, difference.high) == (
        results["base_minus_tuned"]["low"],
        results["base_minus_tuned"]["high"],
    )
    assert evaluation.verdict.startswith("Did LSR help? ")
    assert "replug evaluate lm" in demo[1]
    assert str(demo[0].folder / "retriever") in demo[1].replace("\n", "")


def test_the_tuned_retriever_loads_and_says_what_made_it(demo: tuple[Plan, str]) -> None:
    folder = demo[0].folder / "retriever"
    assert SentenceTransformer(str(folder), device="cpu").encode_query(["parse a date"]).shape == (1, 384)
    run = json.loads((folder / "run.json").read_text())
    assert run["status"] == "complete"
    assert run["figures"]["steps"] == 3
    assert run["options"]["supervisor"]["kind"] == "local"


def test_the_second_time_nothing_is_embedded_trained_or_scored(
    demo: tuple[Plan, str], results: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = demo
    before, scores = made(plan.folder), scores_kept(plan.folder)
    assert scores > 0
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(pipeline, "subprocess", SimpleNamespace(run=in_this_process))
    pipeline.run(plan, Console(file=io.StringIO()))
    assert json.loads(plan.results.read_text()) == results
    assert made(plan.folder) == before
    assert scores_kept(plan.folder) == scores
    again = EvaluationResult.read(plan.folder / "retriever" / "evaluation_lm.json")
    assert again.details["scores"]["asked"] == 0
    assert again.details["scores"]["from_the_cache"] > 0

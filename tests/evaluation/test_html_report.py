"""The report of several evaluations: verdicts first, n everywhere, nothing hidden, nothing of anybody's run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from replug_client.cli.app import main
from replug_client.errors import ArtefactError
from replug_client.evaluation.html_report import main_difference, report_page
from replug_client.evaluation.html_values import values
from replug_client.evaluation.results import Difference, EvaluationResult, Metric, ResultTable, Row
from replug_client.evaluation.run_summary import RunSummary

BITS = Metric("bits_per_byte", "bits/byte", lower_is_better=True, digits=3)
BASE = Row("base", "base retriever", 1234, {"bits_per_byte": 1.05})
GAIN = Difference(0.01, 0.002, 0.02)
TUNED = Row("tuned", "tuned retriever", 1234, {"bits_per_byte": 1.04}, {"bits_per_byte": GAIN}, True)
LM = EvaluationResult(
    "lm",
    [ResultTable("first", "First passage", [BITS], [BASE, TUNED], "base", ["Each token once."])],
    options={"context_len": 64},
    inputs={"corpus": "c0ffee"},
    left_out={"too long": 12, "none of these": 0},
    verdict="It helps.",
    details={"worst": [{"query": "<b>why</b>"}]},
)


def test_verdicts_come_first_then_figures_then_what_was_read() -> None:
    other = replace(LM, kind="qa", verdict="It answers no better.", left_out={})
    page = report_page({"out/lm.json": LM, "out/qa.json": other})
    order = ["It helps.", "It answers no better.", "First passage", "c0ffee"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "12 too long" in page and "none of these" not in page and "Nothing was left out." in page
    assert page.count("+0.010 [+0.002, +0.020]") >= 3
    assert page.count("n = 1,234") >= 3 and "Each token once." in page
    assert "&lt;b&gt;why&lt;/b&gt;" in page and "<b>why" not in page
    assert "context_len" in page


def test_the_main_difference_is_the_first_table_s_tuned_row() -> None:
    assert main_difference(LM) == (TUNED, TUNED.differences["bits_per_byte"])
    assert main_difference(replace(LM, tables=[])) is None
    assert main_difference(replace(LM, tables=[replace(LM.tables[0], rows=[BASE])])) is None


def test_an_interval_around_zero_is_neither_good_nor_bad() -> None:
    unclear = replace(TUNED, differences={"bits_per_byte": Difference(0.01, -0.002, 0.02)})
    for row, tone in ((TUNED, '"verdict good"'), (unclear, '"verdict"')):
        table = replace(LM.tables[0], rows=[BASE, row])
        assert f"class={tone}" in report_page({"lm.json": replace(LM, tables=[table])})


def test_values_of_any_kind_are_said_and_long_ones_cut() -> None:
    assert "<dt>a</dt><dd><span>1.5, yes, \u2013</span></dd>" in values({"a": [1.5, True, None]})
    assert "and 5 more" in values([{"n": n} for n in range(105)])
    deep: object = "end"
    for _ in range(30):
        deep = [[deep]]
    assert "end" not in values(deep)


def record(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    value = {
        "status": "complete",
        "base_model": "mini",
        "train": "query",
        "hashes": {"corpus": "c0ffee"},
        "figures": {
            "steps": 40,
            "validation": [{"step": 0, "bits_per_byte": 1.05}, {"step": 40, "bits_per_byte": 1.04}],
            "alarms": [{"name": "collapse", "message": "look at it"}],
        },
    }
    (folder / "run.json").write_text(json.dumps(value | changes))
    return folder


def test_the_run_is_shown_and_a_corpus_that_is_not_its_own_is_said(tmp_path: Path) -> None:
    run = RunSummary.read(record(tmp_path / "mine"))
    page = report_page({"lm.json": LM}, run)
    assert "Evaluation of mine" in page and "collapse: look at it" in page
    assert "Held-out bits per byte: last now 1.04" in page
    assert "Not over the corpus" not in page
    other = replace(LM, inputs={"corpus": "dec0de"})
    assert "that the run was trained on: lm.json." in report_page({"lm.json": other}, run)


@pytest.mark.parametrize("changes", [{"status": "running"}, {"figures": 3}])
def test_a_record_that_is_none_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ArtefactError, match=r"run\.json"):
        RunSummary.read(record(tmp_path / "mine", **changes))


def test_the_command_takes_several_files_behind_one_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "lm.json", tmp_path / "qa.json"]
    LM.write(files[0])
    replace(LM, kind="qa").write(files[1])
    output = tmp_path / "report.html"
    run = record(tmp_path / "mine")
    arguments = [
        "evaluate",
        "report",
        "--input",
        *map(str, files),
        "--output",
        str(output),
        "--run",
        str(run),
    ]
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert not caught.value.code
    assert "2 evaluations" in capsys.readouterr().err
    assert output.read_text("utf-8").count("It helps.") == 2
    with pytest.raises(SystemExit) as caught:
        main([*arguments[:3], str(files[0]), str(files[0]), "--output", str(output)])
    assert caught.value.code == 2
    assert "twice" in capsys.readouterr().err

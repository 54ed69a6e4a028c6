"""`replug evaluate qa` from its flags to its files, with a small real LM and small real encoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replug_client.cli.app import main
from tests.evaluation.qa.reference import choice_log_likelihood, greedy_answer
from tests.retriever.tiny import saved_encoder
from tests.supervisor.reference import DEMO_LM

SET = Path(__file__).with_name("qa")
QUESTIONS, PASSAGES = SET / "questions.jsonl", SET / "passages.jsonl"
CONDITIONS = ["none", "random", "bm25", "base", "tuned"]
Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("encoders")
    return str(saved_encoder(folder / "base", seed=1)), str(saved_encoder(folder / "tuned", seed=2))


@pytest.fixture(scope="module")
def arguments(encoders: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base, tuned = encoders
    return [
        *("evaluate", "qa", "--questions", str(QUESTIONS), "--passages", str(PASSAGES)),
        *("--base", base, "--tuned", tuned, "--model", str(DEMO_LM), "--supervisor", "local"),
        *("--device", "cpu", "--dtype", "float32", "--max_tokens", "8"),
        *("--cache_dir", str(tmp_path_factory.mktemp("cache"))),
    ]


def run(*arguments: str) -> None:
    """The command; typer ends a program that went well, too."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code in (0, None)


@pytest.fixture(scope="module")
def written(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out")
    files = {flag: str(folder / name) for flag, name in FILES.items()}
    more = [word for pair in files.items() for word in pair]
    run(*arguments, "--combinations", "first,concat-2,ensemble-2", "--hit_at", "1", "--hit_at", "4", *more)
    return folder


FILES = {"--output": "qa.json", "--markdown": "qa.md", "--per_example": "qa.jsonl"}


@pytest.fixture(scope="module")
def result(written: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((written / "qa.json").read_text())
    return value


@pytest.fixture(scope="module")
def lines(written: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = [json.loads(line) for line in (written / "qa.jsonl").read_text().splitlines()]
    return {(line["id"], line["condition"]): line for line in found}


def table(result: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    (found,) = [item for item in result["tables"] if item["name"] == name]
    return {row["name"]: row for row in found["rows"]}


def test_every_table_has_every_condition_with_its_n(result: dict[str, Any]) -> None:
    for part, n in (("answers", 4), ("choices", 3)):
        for combination in ("first", "concat-2", "ensemble-2"):
            suffix = "" if combination == "first" else f".{combination}"
            rows = table(result, f"{part}.{combination}")
            assert list(rows) == ["none", *(f"{name}{suffix}" for name in CONDITIONS[1:])]
            assert {row["n"] for row in rows.values()} == {n}
            assert rows[f"tuned{suffix}"]["differences"]
    assert list(table(result, "retrieval")) == CONDITIONS[1:]
    assert result["left_out"] == {"without a known answer": 1}
    assert result["kind"] == "qa"
    assert "(n = 4 questions)" in result["verdict"]


def test_the_tables_are_the_means_of_the_lines(
    result: dict[str, Any], lines: dict[tuple[str, str], dict[str, Any]]
) -> None:
    assert len(lines) == 7 * 13
    for name, row in table(result, "answers.ensemble-2").items():
        own = [line["f1"] for (_, condition), line in lines.items() if condition == name and "f1" in line]
        assert row["values"]["f1"] == pytest.approx(sum(own) / 4)
    for name, row in table(result, "choices.first").items():
        own = [
            line["accuracy_byte"]
            for line in lines.values()
            if line["condition"] == name and "choices" in line
        ]
        assert row["values"]["accuracy_byte"] == pytest.approx(sum(own) / 3)
    outcomes = table(result, "answers.outcomes")["tuned"]["values"]
    assert sum(outcomes.values()) == 4


def test_bm25_finds_every_answer_and_the_hits_say_so(
    result: dict[str, Any], lines: dict[tuple[str, str], dict[str, Any]]
) -> None:
    assert table(result, "retrieval")["bm25"]["values"] == {"hit@1": 1.0, "hit@4": 1.0, "mrr@4": 1.0}
    assert lines["insort", "bm25"]["passages"] == ["bisect"]
    assert lines["insort", "bm25"]["answer_rank"] == 1


@pytest.mark.parametrize(("name", "passages"), [("none", 0), ("bm25", 1), ("base.concat-2", 2)])
def test_likelihoods_are_transformers_own(
    lines: dict[tuple[str, str], dict[str, Any]], name: str, passages: int
) -> None:
    line = lines["dumps", name]
    assert len(line["passages"]) == passages
    texts = {row["id"]: row["text"] for row in map(json.loads, PASSAGES.read_text().splitlines())}
    before = "".join(f"{texts[passage]}\n" for passage in reversed(line["passages"]))
    for choice, found, alone in zip(
        line["choices"], line["log_likelihood"], line["log_likelihood_no_context"], strict=True
    ):
        expected = choice_log_likelihood(before, f"Question: {line['question']}\nAnswer:", f" {choice}")
        assert found == pytest.approx(expected, abs=1e-3)
        assert alone == pytest.approx(choice_log_likelihood("", "Answer:", f" {choice}"), abs=1e-3)


def test_the_ceiling_is_the_best_of_the_bases_first_k(
    arguments: list[str], tmp_path: Path, result: dict[str, Any]
) -> None:
    """Of choices: what one passage of the k makes right is right; each is asked for alone to tell which."""
    out, each = tmp_path / "qa.json", tmp_path / "qa.jsonl"
    more = ["--conditions", "none base ceiling", "--k", "3", "--combinations", "first concat-2"]
    run(*arguments, *more, "--output", str(out), "--per_example", str(each))
    found = json.loads(out.read_text())
    for name in ("choices.first", "choices.concat-2", "answers.first", "answers.concat-2"):
        assert "ceiling" in table(found, name)  # nothing to combine: it stands in each
    rows = table(found, "choices.first")
    assert rows["ceiling"]["values"]["accuracy_sum"] >= rows["base"]["values"]["accuracy_sum"]
    assert rows["ceiling"]["label"] == "best of the base's K (ceiling)"
    assert list(table(found, "retrieval")) == ["base"]
    lines = [json.loads(line) for line in each.read_text().splitlines()]
    by = {(line["id"], line["condition"]): line for line in lines}
    texts = {row["id"]: row["text"] for row in map(json.loads, PASSAGES.read_text().splitlines())}
    choosing = [line for line in lines if line["condition"] == "ceiling" and "choices" in line]
    assert len(choosing) == 3
    for line in choosing:
        gold = line["choices"].index(line["answers"][0])

        def lead(passage: str, line: dict[str, Any] = line, gold: int = gold) -> float:
            values = [
                choice_log_likelihood(
                    f"{texts[passage]}\n", f"Question: {line['question']}\nAnswer:", f" {choice}"
                )
                for choice in line["choices"]
            ]
            return values.pop(gold) - max(values)

        (chosen,) = line["passages"]
        first = by[line["id"], "base"]["passages"][0]
        assert lead(chosen) >= lead(first) - 1e-3
        assert (lead(chosen) > 0) == (line["accuracy_sum"] == 1)
        assert lead(chosen) <= max(map(lead, texts)) + 1e-3


def test_a_free_answer_is_transformers_own_greedy_one(lines: dict[tuple[str, str], dict[str, Any]]) -> None:
    line = lines["level", "none"]
    text = greedy_answer(f"Question: {line['question']}\nAnswer:", 8)
    assert line["given"] == text.split("\n")[0].strip()


def test_where_bm25_finds_fewer_passages_it_is_said(result: dict[str, Any]) -> None:
    (found,) = [item for item in result["tables"] if item["name"] == "choices.concat-2"]
    (note,) = [note for note in found["notes"] if "fewer" in note]
    assert note.startswith("BM25, 2 concatenated: fewer passages than asked for in 2 of 3 questions")


def test_markdown_has_the_tables_and_the_verdict(written: Path) -> None:
    text = (written / "qa.md").read_text()
    assert "### Free answers, first passage" in text
    assert "| **tuned retriever's first** | **4** |" in text
    assert "**Did LSR help with free answers?" in text


def test_json_alone_on_stdout_from_the_cache_with_mmlus_form(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    more = [
        *("--choice_template", r"{question}\n{choices}\nAnswer: {letter}", "--conditions", "none base"),
        *("--choice_scoring", "no_context", "--max_questions", "7", "--worst", "1", "--json"),
    ]
    run(*arguments, *more)
    value = json.loads(capsys.readouterr().out)
    assert value["left_out"] == {"beyond --max_questions": 1, "without a known answer": 1}
    rows = table(value, "choices.first")
    assert list(rows) == ["none", "base"]
    metrics = next(item for item in value["tables"] if item["name"] == "choices.first")["metrics"]
    assert metrics[0]["name"] == "accuracy_no_context"
    # A letter is one byte, and one token of this LM with its space: three readings are one.
    for row in rows.values():
        assert row["values"]["accuracy_sum"] == row["values"]["accuracy_byte"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--template", "no place"], r"{question} is not in it"),
        (["--choice_scoring", "pmi"], "expected one of sum, mean, byte, no_context"),
        (["--questions", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--combinations", "last"], "'last' is unknown"),
        (["--temperature_score", "0"], "--temperature_score 0.0: expected a positive number"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *more])
    assert ended.value.code in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_without_a_tuned_encoder_it_is_not_a_condition(
    encoders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                *("evaluate", "qa", "--questions", str(QUESTIONS), "--passages", str(PASSAGES)),
                *("--base", encoders[0], "--conditions", "tuned", "--model", str(DEMO_LM)),
                *("--supervisor", "local", "--cache_dir", str(tmp_path)),
            ]
        )
    assert "name it with --tuned, or a run with --run" in capsys.readouterr().err

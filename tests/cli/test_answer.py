"""`replug answer` from its flags to what it prints, with a small real encoder and the demo LM in process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from replug_client.cli.app import main
from tests.retriever.tiny import WORDS, saved_encoder

DEMO_LM = Path(__file__).parents[2] / "demo" / "lm"
HOSTILE = "word1 word2 \x1b[31mred\x1b]0;title\x07 \u202egnp.exe"
Answer = Callable[..., str]


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What it prints; a failure is shown with its message."""
    with pytest.raises(SystemExit) as end:
        main(["answer", *map(str, arguments)])
    captured = capsys.readouterr()
    if end.value.code:
        raise AssertionError(captured.err)
    return captured.out


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answer")
    saved_encoder(folder / "encoder")
    rows = [{"id": f"p{i}", "text": " ".join(WORDS[i : i + 6])} for i in range(8)]
    rows[0] = {"id": "hostile\x1b[2J", "text": HOSTILE, "title": "a title"}
    (folder / "passages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def answer(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Answer:
    def run(question: str, *arguments: object) -> str:
        given = ["--passages", workplace / "passages.jsonl", "--retriever", workplace / "encoder"]
        given += ["--model", DEMO_LM, "--supervisor", "local", "--device", "cpu", "--max_tokens", 6]
        given += ["--cache_dir", workplace / "cache", *arguments]
        return command(capsys, question, *given)

    return run


def test_the_text_comes_first_and_then_the_weights(answer: Answer) -> None:
    shown = answer("word1 word2", "--n_docs", 3)
    found: dict[str, Any] = json.loads(answer("word1 word2", "--n_docs", 3, "--json"))
    assert shown.startswith(found["text"].rstrip().split("\n")[0])
    assert len(found["passages"]) == 3
    assert sum(passage["prior"] for passage in found["passages"]) == pytest.approx(1)
    assert sum(passage["posterior"] for passage in found["passages"]) == pytest.approx(1)
    for passage in found["passages"]:
        assert f"{passage['prior']:.3f}" in shown
        assert f"{passage['posterior']:.3f}" in shown
    assert len(found["tokens"]) == len(found["log_probs"]) == len(found["dropped_mass"]) == 6
    assert "6 tokens; --max_tokens ended it; the mixture is exact" in " ".join(shown.split())


def test_nothing_of_a_passage_reaches_the_terminal_as_control(answer: Answer) -> None:
    shown = answer("word1 word2", "--n_docs", 8)
    assert "\\x1b[31mred" in shown
    assert not any(character in shown for character in "\x1b\x07\u202e")
    as_json = answer("word1 word2", "--n_docs", 8, "--json")
    assert as_json.isascii()
    assert HOSTILE in [passage["text"] for passage in json.loads(as_json)["passages"]]


@pytest.mark.parametrize("combination", ["concat", "ensemble-answers", "none"])
def test_every_combination_answers(answer: Answer, combination: str) -> None:
    found = json.loads(answer("word1", "--combination", combination, "--json"))
    assert found["combination"] == combination
    assert found["text"]
    assert len(found["passages"]) == (0 if combination == "none" else 4)
    assert bool(found["choices"]) is (combination == "ensemble-answers")
    assert answer("word1", "--combination", combination).startswith(found["text"].split("\n")[0])


def test_the_template_holds_the_question_and_stdin_is_read(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = json.loads(answer("Question: word1\nAnswer:", "--combination", "none", "--json"))
    monkeypatch.setattr("sys.stdin", io.StringIO("word1\n"))
    template = ["--template", r"Question: {question}\nAnswer:"]
    assert json.loads(answer("-", *template, "--combination", "none", "--json"))["tokens"] == plain["tokens"]


def test_the_same_seed_gives_the_same_text(answer: Answer) -> None:
    sampled = ["--temperature", 1, "--top_p", 0.9, "--json", "--seed"]
    assert answer("word1", *sampled, 7) == answer("word1", *sampled, 7)
    assert answer("word1", *sampled, 7) != answer("word1", *sampled, 8)


def test_a_run_gives_what_no_flag_gives(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = saved_encoder(tmp_path / "run", seed=3)
    supervisor = {"model": str(DEMO_LM), "kind": "local", "base_url": None, "tokenizer": None}
    options = {
        "supervisor": {**supervisor, "local": {"dtype": "float32"}},
        "data": {
            "context_len": 8,
            "pred_len": 8,
            "min_pred_len": 4,
            "ngram_guard": 0,
            "data": [],
            "validation_data": [],
        },
        "place": {"cache_dir": str(tmp_path)},
        "retrieved_max_length": 16,
        "separator": "\n",
        "steps": {"keep": "best"},
    }
    record = {
        "status": "complete",
        "base_model": str(workplace / "encoder"),
        "encoder": {},
        "passages": [str(workplace / "passages.jsonl")],
        "passages_embeddings": [],
        "n_docs": 4,
        "objective": {"temperature_score": 0.01},
        "options": options,
    }
    (run / "run.json").write_text(json.dumps(record))
    flags = ["--run", run, "--max_tokens", 2, "--cache_dir", tmp_path, "--json"]
    sharp = json.loads(command(capsys, "word1", *flags))
    assert sharp["model"] == str(DEMO_LM)
    flat = json.loads(command(capsys, "word1", *flags, "--temperature_score", 1))
    similarities = [passage["similarity"] for passage in sharp["passages"]]
    assert [passage["similarity"] for passage in flat["passages"]] == similarities
    assert sharp["passages"][0]["prior"] > flat["passages"][0]["prior"] > 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n_docs", 0], "--n_docs must be at least 1"),
        (["--template", "no place"], "{question}"),
        (["--max_tokens", 5000], "Lower --max_tokens"),
        (["--top_p", 2], "--top_p"),
        (["--answer_weights", "best"], "--answer_weights must be prior or likelihood"),
        (["--temperature_score", 0], "--temperature_score must be above 0"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(answer: Answer, arguments: list[object], message: str) -> None:
    with pytest.raises(AssertionError) as caught:
        answer("word1", *arguments)
    (line,) = str(caught.value).strip().split("\n")
    assert line.startswith("error: ")
    assert message in line


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["answer", "word1", "--model", "m"])
    assert end.value.code == 2
    assert "give --passages and --retriever, or a run with --run" in capsys.readouterr().err

"""`replug evaluate lm` from its flags to what it writes, with small encoders and the demo's LM in this process."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from replug_client.cli.app import main
from replug_client.evaluation.likelihood import TOO_LONG
from replug_client.evaluation.per_example import read_per_example
from replug_client.evaluation.results import EvaluationResult
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt
from replug_client.supervisor.tokenizer import load_tokenizer
from tests.retriever.tiny import WORDS, corpus_file, saved_encoder
from tests.supervisor.fake_server import MODEL, FakeServer, running
from tests.supervisor.reference import DEMO_LM, reference_log_probs

CONTEXT, PRED, LONGEST, GAMMA = 6, 5, 24, 0.3
Run = Callable[..., EvaluationResult]


class CommandFailedError(Exception):
    """Its message went to stderr."""


def sentences(count: int, words: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, words)) for _ in range(count)]


PASSAGES = sentences(12, 8, seed=0)
DOCUMENTS = [*sentences(5, 12, seed=1), PASSAGES[3]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoders, a corpus, documents, of which the last stands in the corpus, and the record of a run."""
    folder = tmp_path_factory.mktemp("lm")
    saved_encoder(folder / "base", seed=1)
    saved_encoder(folder / "run", seed=2)
    corpus_file(folder / "corpus.jsonl", PASSAGES)
    lines = [json.dumps({"id": f"d{number}", "text": text}) for number, text in enumerate(DOCUMENTS)]
    (folder / "documents.jsonl").write_text("\n".join(lines))
    (folder / "trained.jsonl").write_text(lines[0])
    held_out = [{"document_id": "h", "query": "word1 word2", "continuation": " word3 word4"}] * 3
    (folder / "run" / "held_out.jsonl").write_text("\n".join(map(json.dumps, held_out)))
    (folder / "run" / "run.json").write_text(json.dumps(record(folder)))
    return folder


def record(folder: Path) -> dict[str, Any]:
    """As training writes it; only what an evaluation reads."""
    data = {"data": [str(folder / "trained.jsonl")], "validation_data": [], "ngram_guard": 0}
    lengths = {"context_len": CONTEXT, "pred_len": PRED, "min_pred_len": PRED}
    supervisor = {"model": str(DEMO_LM), "kind": "local", "base_url": None, "tokenizer": None}
    return {
        "status": "complete",
        "base_model": str(folder / "base"),
        "encoder": {"model_name_or_path": str(folder / "base")},
        "passages": [str(folder / "corpus.jsonl")],
        "passages_embeddings": [],
        "n_docs": 4,
        "held_out": "held_out.jsonl",
        "objective": {"temperature_score": GAMMA},
        "options": {
            "data": data | lengths,
            "supervisor": {**supervisor, "local": {"dtype": "float32"}},
            "place": {"cache_dir": str(folder / "cache")},
            "steps": {"keep": "best"},
            "retrieved_max_length": LONGEST,
            "separator": "\n",
        },
    }


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    def call(*flags: object) -> EvaluationResult:
        out = place / "result.json"
        out.unlink(missing_ok=True)
        ends = ["--device", "cpu", "--cache_dir", str(place / "cache"), "--output", str(out)]
        with pytest.raises(SystemExit) as end:
            main(["evaluate", "lm", *map(str, flags), *ends])
        if end.value.code:
            raise CommandFailedError
        return EvaluationResult.read(out)

    return call


@pytest.fixture(scope="module")
def whole(place: Path, run: Run) -> EvaluationResult:
    """Everything of the run, on documents of one's own, with figures of each example."""
    combinations = ("first", "concat-1", "ensemble-1", "concat-3", "ensemble-3")
    return run(
        *("--run", place / "run", "--data", place / "documents.jsonl", "--combinations", *combinations),
        *("--k", 3, "--per_example", place / "examples.jsonl", "--markdown", place / "result.md"),
    )


def values(result: EvaluationResult) -> dict[str, float]:
    return {row.name: row.values["bits_per_byte"] for row in result.tables[0].rows}


def test_every_condition_has_its_line_on_the_same_examples(whole: EvaluationResult) -> None:
    rows = whole.tables[0].rows
    combined = [".concat-1", ".ensemble-1", ".concat-3", ".ensemble-3"]
    expected = [f"{name}{how}" for name in ("random", "bm25", "base", "tuned") for how in ("", *combined)]
    assert [row.name for row in rows] == ["none", *expected, "ceiling"]
    assert len({row.n for row in rows}) == 1
    assert all(row.differences for row in rows if row.name != "base")
    for row in rows:
        assert row.values["perplexity"] > 1
        assert row.values["log_likelihood"] < 0


def test_what_was_left_out_is_counted_with_its_reason(whole: EvaluationResult) -> None:
    assert whole.left_out["documents that stand in the corpus themselves"] == 1
    assert whole.left_out["documents that the run trained or validated on"] == 1
    assert whole.details["documents"] == len(DOCUMENTS) - 2


def test_one_passage_combined_is_that_passage(whole: EvaluationResult) -> None:
    found = values(whole)
    for name in ("random", "base", "tuned", "bm25"):
        assert found[f"{name}.concat-1"] == found[f"{name}.ensemble-1"] == found[name]
    assert found["ceiling"] <= min(found["base"], found["base.ensemble-3"])


def test_an_ensemble_s_figure_is_what_transformers_and_sentence_transformers_give(
    place: Path, whole: EvaluationResult
) -> None:
    """Independent of replug but for the cutting of the prompt's parts: encode, sort, score, mix."""
    table = read_per_example(place / "examples.jsonl")
    assert table.bits_per_byte("base.ensemble-3") == pytest.approx(values(whole)["base.ensemble-3"])
    encoder = SentenceTransformer(str(place / "base"), device="cpu")
    tokenizer = load_tokenizer(str(DEMO_LM))
    ids = tokenizer.encode(DOCUMENTS[1])
    query_ids, continuation_ids = ids[:CONTEXT], ids[CONTEXT : CONTEXT + PRED]
    similarity = encoder.encode_document(PASSAGES) @ encoder.encode_query(tokenizer.decode(query_ids))
    rows = np.argsort(-similarity)[:3]
    weights = np.exp(similarity[rows] / GAMMA)
    weights /= weights.sum()
    builder = PromptBuilder(tokenizer, retrieved_max_length=LONGEST, max_prompt_tokens=1024)
    each = [
        np.exp(reference_log_probs(builder.build(PASSAGES[row], query_ids, continuation_ids))) for row in rows
    ]
    expected = -np.log(
        sum(weight * probabilities for weight, probabilities in zip(weights, each, strict=True))
    ).sum()
    assert table.document_ids[0] == "d1"
    assert table.nll["base.ensemble-3"][0] == pytest.approx(expected, abs=1e-3)
    ids = [*builder.context("", ())]
    for row in rows[::-1]:
        ids += [*tokenizer.encode(PASSAGES[row])[:LONGEST], *tokenizer.encode("\n")]
    ids += [*query_ids, *continuation_ids]
    concatenated = reference_log_probs(Prompt(tuple(ids), PRED))
    assert table.nll["base.concat-3"][0] == pytest.approx(-sum(concatenated), abs=1e-3)


def test_tables_and_verdict_are_written_for_people(place: Path, whole: EvaluationResult) -> None:
    text = (place / "result.md").read_text()
    assert "| **tuned, ensemble of 3** |" in text
    assert whole.verdict in text
    against = {row.name: row for row in whole.tables[1].rows}
    found = values(whole)
    assert list(against) == ["first", "concat-1", "ensemble-1", "concat-3", "ensemble-3"]
    for name, row in against.items():
        suffix = "" if name == "first" else f".{name}"
        difference = row.differences["tuned"]
        assert difference.mean == pytest.approx(found[f"base{suffix}"] - found[f"tuned{suffix}"])
        assert difference.low is not None and difference.high is not None
        assert difference.low <= difference.mean <= difference.high


def test_a_second_time_nothing_is_scored(place: Path, run: Run, whole: EvaluationResult) -> None:
    again = run("--run", place / "run", "--data", place / "documents.jsonl", "--k", 3)
    assert again.details["scores"]["asked"] == 0
    assert values(again) == {name: value for name, value in values(whole).items() if "." not in name}


def test_without_data_the_run_s_own_held_out_examples_count_and_it_is_said_that_they_chose(
    place: Path, run: Run
) -> None:
    result = run("--run", place / "run", "--conditions", "none", "base", "tuned")
    assert [row.name for row in result.tables[0].rows] == ["none", "base", "tuned"]
    assert result.tables[0].rows[0].n == 3
    assert any("--keep best" in note for note in result.tables[0].notes)
    assert result.options["temperature"] == GAMMA


def test_sliding_windows_score_each_token_of_a_text_once(place: Path, run: Run) -> None:
    text = " = One = \n \n word1 word2 word3 word4 \n \n = Two = \n \n word5 word6 word7 \n"
    (place / "wiki.test.tokens").write_text(text)
    result = run(
        *(
            "--model",
            DEMO_LM,
            "--supervisor",
            "local",
            "--dtype",
            "float32",
            "--passages",
            place / "corpus.jsonl",
        ),
        *("--data", place / "wiki.test.tokens", "--conditions", "none", "bm25", "--sliding"),
        *("--context_len", 5, "--pred_len", 4),
    )
    encode = load_tokenizer(str(DEMO_LM)).encode
    documents = [text[: text.index(" = Two")], text[text.index(" = Two") :]]
    assert result.details["documents"] == 2
    assert result.details["tokens"] == sum(len(encode(document)) - 1 for document in documents)
    assert sum(result.left_out.values()) == 2, "the first token of each"
    rows = {row.name: row for row in result.tables[0].rows}
    total = result.details["log_likelihood"]["none"]
    assert rows["none"].values["perplexity"] == pytest.approx(math.exp(-total / result.details["tokens"]))
    assert result.tables[0].baseline == "none"
    assert result.verdict == ""


def test_several_servers_share_the_prompts_and_one_too_long_leaves_its_example_out(
    place: Path, run: Run
) -> None:
    text = "a" * 90 + "b" * 90
    (place / "letters.txt").write_text(text)
    with running(FakeServer()) as one, running(FakeServer()) as two:
        result = run(
            *("--model", MODEL, "--base_url", one.base_url, "--base_url", two.base_url),
            *("--passages", place / "corpus.jsonl", "--data", place / "letters.txt"),
            *("--conditions", "none", "random", "--combinations", "first", "ensemble-2", "concat-5"),
            *("--context_len", 60, "--pred_len", 30, "--min_pred_len", 10, "--retrieved_max_length", 40),
            *("--sliding", "--cache_dir", place / "served"),
        )
        asked = sum(len(request["prompt"]) for server in (one, two) for request in server.requests)
        assert one.complaints == two.complaints == []
    # Five passages, 205 tokens, and 61 to 90 of a window exceed the server's 257; the first window has 31.
    assert result.tables[0].rows[0].n == 1
    assert result.left_out[TOO_LONG] == 5
    assert 1 + 2 + 1 <= asked <= 1 + 2 + 1 + 8, "and a few to get to know the servers"


def test_json_alone_goes_to_stdout(place: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    result = run("--run", place / "run", "--conditions", "none", "tuned", "--json")
    assert json.loads(capsys.readouterr().out) == result.to_json()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name it with --model, or a run with --run"),
        (["--model", "m"], "no corpus: name its files with --passages"),
        (["--model", "m", "--passages", "p.csv"], "no documents to evaluate on"),
        (
            ["--model", "m", "--passages", "p.csv", "--data", "d.csv", "--conditions", "tuned"],
            "--tuned, or a run",
        ),
        (
            ["--model", "m", "--passages", "p.csv", "--data", "d.csv", "--conditions", "every"],
            "'every' is unknown",
        ),
        (["--run", "RUN", "--sliding"], "--sliding needs whole documents"),
        (["--run", "RUN", "--temperature_score", "0"], "--temperature_score 0"),
        (["--run", "RUN", "--data", "TRAINED"], "no example is left.*trained or validated on': 1"),
    ],
)
def test_what_cannot_work_is_said_with_the_flag_that_mends_it(
    place: Path, run: Run, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"RUN": str(place / "run"), "TRAINED": str(place / "trained.jsonl")}
    with pytest.raises(CommandFailedError):
        run(*(names.get(flag, flag) for flag in flags))
    assert re.search(message, capsys.readouterr().err)

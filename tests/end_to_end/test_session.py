"""The README's terminal session, word for word, with local folders for hub names, against a real vLLM."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import SentenceTransformer

from demo.pipeline import minilm
from replug_client.artefacts import sha256_file
from tests.end_to_end.conftest import DEMO_LM, MODEL, ROOT, VllmServer
from tests.end_to_end.relay import Relay
from tests.end_to_end.session import (
    COMPARE,
    EMBED,
    HOSTILE_ID,
    HOSTILE_TEXT,
    HOSTILE_WORDS,
    TRAIN,
    Terminal,
    write_files,
)

OUTPUT = "output_finetuned_retriever"
# Before any training pair, `train` asks /v1/models once, /tokenize for a few words, and /v1/completions
# twice: for the canary prompt alone, and for the canary beside its own first part. That is 3 prompts.
START_REQUESTS, START_PROMPTS = 2, 3
# A server that was left alone for ten seconds is asked for its canary once more before it gets work: after the
# preparations, and perhaps once in between on a slow machine; and once at the end, and each minute in between.
MOST_RECHECKS = 5

# The session itself stands in a fixture, before the first test: its three commands and the server's start.
pytestmark = pytest.mark.timeout(1200)

Process = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Session:
    """A session that has been typed, and what the server counted while it trained."""

    terminal: Terminal
    embed: Process
    train: Process
    compare: Process
    train_requests: int
    train_prompts: int

    @property
    def folder(self) -> Path:
        return self.terminal.folder

    def run(self, output: str = OUTPUT) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / output / "run.json").read_text(encoding="utf-8"))
        return value


@pytest.fixture(scope="module")
def session(vllm_server: VllmServer, tmp_path_factory: pytest.TempPathFactory) -> Session:
    terminal = Terminal(tmp_path_factory.mktemp("session"), vllm_server.base_url)
    write_files(terminal.folder)
    embed = terminal.type(EMBED, anew=True)
    requests, prompts = vllm_server.http_requests(), vllm_server.prompts_answered()
    train = terminal.type(TRAIN, anew=True)
    requests, prompts = vllm_server.http_requests() - requests, vllm_server.prompts_answered() - prompts
    compare = terminal.type(COMPARE, anew=True, COLUMNS="140")
    for command in (embed, train, compare):
        print(f"$ {' '.join(command.args)}\n{command.stdout}{command.stderr}")
    return Session(terminal, embed, train, compare, requests, prompts)


def test_the_readme_shows_these_commands() -> None:
    assert EMBED + TRAIN + COMPARE in (ROOT / "README.md").read_text(encoding="utf-8")


def test_each_command_succeeds_and_is_quiet_where_nobody_watches(session: Session) -> None:
    for command in (session.embed, session.train, session.compare):
        assert command.returncode == 0, command.stderr
        assert "\r" not in command.stderr, "a progress bar, though stderr is no terminal"
        for line in command.stderr.splitlines():
            assert re.match(r"\d\d:\d\d:\d\d (INFO|WARNING) ", line), line
        assert "HTTP Request" not in command.stderr
    assert session.compare.stderr == ""


def test_the_shard_holds_a_vector_for_each_passage_and_the_index_lies_beside_it(session: Session) -> None:
    shard = session.folder / "code_embeddings" / "passages_00"
    manifest = json.loads((shard / "manifest.json").read_text())
    vectors = np.load(shard / "vectors.npy", mmap_mode="r")
    with pa.memory_map(str(shard / "ids.arrow")) as source:
        ids = pa.ipc.open_file(source).read_all().column(0).to_pylist()
    assert vectors.shape == (manifest["rows"], 384) == (len(ids), 384)
    assert (manifest["shard_id"], manifest["num_shards"], manifest["start_row"]) == (0, 1, 0)
    assert ids[-1] == HOSTILE_ID and len(set(ids)) == len(ids)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    expected = SentenceTransformer(str(minilm()), device="cpu").encode_document([HOSTILE_TEXT])
    assert np.abs(expected[0] - vectors[-1]).max() < 1e-5
    assert list(session.folder.glob("code_embeddings/**/index.faiss")), "--save_or_load_index keeps the index"


def test_the_record_is_complete(session: Session) -> None:
    run = session.run()
    assert run["status"] == "complete"
    assert run["base_model"] == str(minilm().resolve())
    assert run["passages"] == [str(session.folder / "github_corpus.csv")]
    assert run["hashes"]["training_queries.csv"] == sha256_file(session.folder / "training_queries.csv")
    assert run["supervisor"]["name"] == MODEL
    assert run["n_docs"] == 10
    assert run["options"]["steps"]["learning_rate"] == 2e-5
    assert run["options"]["steps"]["batch_size"] == 4
    assert (run["options"]["data"]["context_len"], run["options"]["data"]["pred_len"]) == (128, 128)
    assert {"replug", "python", "torch", "sentence-transformers"} <= set(run["versions"])
    assert not (session.folder / OUTPUT / "unfinished.json").exists()


def test_the_figures_are_those_of_the_run(session: Session) -> None:
    figures = session.run()["figures"]
    examples = figures["examples"]
    assert examples["train"]["documents"] == 7 and examples["validation"]["documents"] == 1
    assert figures["steps"] == examples["train"]["used"] // 4 >= 5
    steps = [entry["step"] for entry in figures["validation"]]
    assert steps[0] == 0 and steps[-1] == figures["steps"] and len(steps) >= 4
    assert all(0 < entry["bits_per_byte"] < 8 for entry in figures["validation"])
    assert figures["validation"][0]["base_minus_current"] == 0, "before training, it is the base"
    assert all(
        {"loss", "p_entropy", "q_entropy", "rank_correlation"} <= set(entry) for entry in figures["log"]
    )
    assert figures["seconds"] > 0
    held_out = (session.folder / OUTPUT / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(held_out) == examples["validation"]["used"]
    assert {json.loads(line)["document_id"] for line in held_out} == {"copyreg.py"}


def kept_scores(cache: Path) -> dict[bytes, bytes]:
    with sqlite3.connect(cache / "scores.sqlite") as database:
        return dict(database.execute("SELECT key, value FROM scores"))


def test_every_pair_was_asked_of_the_server_once(session: Session) -> None:
    scores = session.run()["figures"]["scores"]
    assert 0 <= session.train_prompts - scores["misses"] - START_PROMPTS <= MOST_RECHECKS
    assert scores["misses"] > 100
    assert len(kept_scores(session.folder / "cache")) == scores["misses"]
    assert session.train_requests < session.train_prompts / 4, "many prompts travel in one request"


def test_plain_sentence_transformers_loads_the_result(session: Session) -> None:
    texts = ["parse a date from a string", "def merge(*iterables, key=None, reverse=False):"]
    tuned = SentenceTransformer(str(session.folder / OUTPUT), device="cpu")
    base = SentenceTransformer(str(minilm()), device="cpu")
    assert np.array_equal(tuned.encode_document(texts), base.encode_document(texts)), "passages: as they were"

    figures = session.run()["figures"]
    checkpoints = session.folder / OUTPUT / "checkpoints"
    kept = SentenceTransformer(str(checkpoints / f"checkpoint-{figures['best_step']}"), device="cpu")
    last = SentenceTransformer(str(checkpoints / f"checkpoint-{figures['steps']}"), device="cpu")
    queries = tuned.encode_query(texts)
    assert np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
    assert np.allclose(queries, kept.encode_query(texts), atol=1e-5), "the best checkpoint is what is saved"
    moved = np.abs(last.encode_query(texts) - base.encode_query(texts)).max()
    assert 1e-4 < moved < 0.5, "training changed the weights"


@pytest.fixture(scope="module")
def as_json(session: Session) -> dict[str, Any]:
    done = session.terminal.type(COMPARE, "--json")
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def test_the_comparison_stands_side_by_side(session: Session, as_json: dict[str, Any]) -> None:
    text = session.compare.stdout
    headings = [line for line in text.splitlines() if line.startswith("base: ")]
    assert len(headings) == len(as_json["queries"]) == 3
    assert all(f"tuned: {OUTPUT}" in line for line in headings), "both columns in one line"
    assert all(len(line) <= 140 for line in text.splitlines())
    assert unsafe(text) == set()


def test_the_comparison_as_json_says_what_the_text_says(session: Session, as_json: dict[str, Any]) -> None:
    lines = session.compare.stdout.splitlines()
    halves = {"base": [left(line) for line in lines], "tuned": [right(line) for line in lines]}
    for side, found in halves.items():
        ranked = [line for line in found if re.match(r" ?\d+  -?\d\.\d{3}  ", line)]
        shown = [place for query in as_json["queries"] for place in query[side]]
        assert len(shown) == len(ranked) == 30
        for place, line in zip(shown, ranked, strict=True):
            assert line.startswith(f"{place['rank']:>2}  {place['similarity']:.3f}  ")
            assert place["status"] == "kept" or place["status"] in line
        assert [place["similarity"] for place in shown[:10]] == sorted(
            (place["similarity"] for place in shown[:10]), reverse=True
        )
    for query in as_json["queries"]:
        assert figures_line(query, 10) in session.compare.stdout
    mean = as_json["agreement"]
    assert mean["n"] == session.run()["figures"]["examples"]["validation"]["used"]
    assert f"mean over {mean['n']} held-out queries: {figures_line(mean, 10)}" in session.compare.stdout


def figures_line(value: dict[str, Any], k: int) -> str:
    return (
        f"overlap@{k} {value['overlap']:.2f} · RBO {value['rank_biased_overlap']:.2f} · "
        f"Kendall's tau {value['kendall_tau']:+.2f}"
    )


def left(line: str) -> str:
    return line.partition("│")[0].rstrip()


def right(line: str) -> str:
    return line.partition("│")[2].removeprefix(" ").rstrip()


def unsafe(text: str) -> set[str]:
    """Characters that a terminal obeys rather than shows."""
    return {char for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char != "\n"}


def test_a_hostile_passage_is_shown_and_not_obeyed(session: Session) -> None:
    done = session.terminal.type(COMPARE, "--query", HOSTILE_WORDS, "--n-docs", "2")
    assert done.returncode == 0, done.stderr
    assert HOSTILE_ID in done.stdout
    for shown in (r"\x1b[31mred\x1b]0;title\x07", r"\u202etxt.exe", "[bold]x[/bold]"):
        assert shown in done.stdout
    assert unsafe(done.stdout) == set()
    assert "overlap@2 " in done.stdout, "both spellings of a flag work"


HYPHENS = {
    "--passages_embeddings": "--passages-embeddings",
    "code_embeddings/passages_00": "code_embeddings/passages_*",
    "--n_docs": "--n-docs",
    "--context_len": "--context-len",
    "--re_model_name_or_path": "--re-model-name-or-path",
    "--save_or_load_index": "--save-or-load-index",
    OUTPUT: "output_again",
}


def test_without_a_server_the_message_says_how_to_start_one_and_nothing_is_lost(session: Session) -> None:
    shard = session.folder / "code_embeddings" / "passages_00" / "manifest.json"
    before = sha256_file(shard), kept_scores(session.folder / "cache")
    nowhere = "http://127.0.0.1:9/v1"  # the discard port: nothing listens there
    failed = session.terminal.type(TRAIN, swap=HYPHENS, OPENAI_BASE_URL=nowhere)
    assert failed.returncode == 1
    assert f"error: {nowhere}/models: no connection" in failed.stderr
    assert "python -m server --model" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (sha256_file(shard), kept_scores(session.folder / "cache")) == before
    assert session.run()["status"] == "complete"


def test_a_model_that_is_not_served_is_refused_with_what_is(session: Session) -> None:
    swap = {str(DEMO_LM): "other-lm", OUTPUT: "output_never"}
    done = session.terminal.type(TRAIN, swap=swap)
    assert done.returncode == 2
    assert f"does not serve 'other-lm'; it serves '{MODEL}'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (session.folder / "output_never").exists()


def test_the_same_training_again_asks_the_server_for_nothing(
    session: Session, vllm_server: VllmServer
) -> None:
    """With hyphens and a glob, into the folder of the attempt that found no server."""
    requests, prompts = vllm_server.http_requests(), vllm_server.prompts_answered()
    done = session.terminal.type(TRAIN, swap=HYPHENS)
    assert done.returncode == 0, done.stderr
    assert vllm_server.http_requests() - requests == START_REQUESTS
    assert vllm_server.prompts_answered() - prompts == START_PROMPTS
    again, first = session.run("output_again"), session.run()
    assert again["figures"]["scores"]["misses"] == 0
    assert again["passages_embeddings"] == [str(session.folder / "code_embeddings" / "passages_*")]
    for name in ("bits_per_byte", "kl", "changed"):
        assert [entry[name] for entry in again["figures"]["validation"]] == [
            entry[name] for entry in first["figures"]["validation"]
        ]
    weights = "model.safetensors"
    assert [sha256_file(path) for path in sorted((session.folder / "output_again").rglob(weights))] == [
        sha256_file(path) for path in sorted((session.folder / OUTPUT).rglob(weights))
    ]


def test_what_was_scored_before_the_server_died_is_not_asked_for_again(
    session: Session, vllm_server: VllmServer
) -> None:
    """A small run, on a cache of its own, whose server goes after four requests of training pairs."""
    small = ("--max_examples", 8, "--max_validation", 2, "--max_steps", 2)
    small = (*small, "--concurrency", 1, "--server_wait", 1)
    swap, cache = {OUTPUT: "output_cut"}, session.folder / "cut-cache"
    before = vllm_server.prompts_answered()
    with Relay(vllm_server.base_url, START_REQUESTS + 4) as relay:
        cut = session.terminal.type(
            TRAIN, *small, swap=swap, REPLUG_CACHE=str(cache), OPENAI_BASE_URL=relay.base_url
        )
    assert cut.returncode == 1
    assert f"error: {relay.base_url}/completions: no connection" in cut.stderr
    assert "Traceback" not in cut.stderr
    kept = kept_scores(cache)
    # One request at a time: each that was answered came back before the next was sent, so that all of it is kept.
    answered = vllm_server.prompts_answered() - before
    assert len(kept) >= 3 * 8
    assert 0 <= answered - len(kept) - START_PROMPTS <= MOST_RECHECKS

    before = vllm_server.prompts_answered()
    done = session.terminal.type(TRAIN, *small, swap=swap, REPLUG_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    scores = session.run("output_cut")["figures"]["scores"]
    asked = vllm_server.prompts_answered() - before
    assert 0 <= asked - scores["misses"] - START_PROMPTS <= MOST_RECHECKS
    everything = kept_scores(cache)
    assert len(everything) == len(kept) + scores["misses"]
    assert kept.items() <= everything.items()

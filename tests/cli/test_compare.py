"""`replug compare` from its flags to what it prints, with small real encoders."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from replug_client.cli.app import run as run_command
from replug_client.corpus.store import PassageStore
from replug_client.retriever.asymmetric import combine
from replug_client.retriever.embedding import EmbedOptions, embed_shard
from replug_client.retriever.encoder import EncoderOptions, load_encoder

ROOT = Path(__file__).parents[2]
WORDS = [f"word{i}" for i in range(40)]
HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J \u202egnp.exe\u202c \u2066x\u2069 z\u200bw \x7f"
Compare = Callable[..., str]


def save_encoder(folder: Path, seed: int) -> Path:
    """A BERT of one layer with random weights and a vocabulary of forty words."""
    bare = folder.with_name(folder.name + "-bare")
    bare.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (bare / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(vocab=str(bare / "vocab.txt")).save_pretrained(bare)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(bare)
    modules = [Transformer(str(bare)), Pooling(16, "mean"), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``base``; ``query``, the base with another query side; ``both``, another encoder altogether."""
    folder = tmp_path_factory.mktemp("encoders")
    paths = {"base": save_encoder(folder / "base", seed=1), "both": save_encoder(folder / "both", seed=2)}
    base = load_encoder(EncoderOptions(str(paths["base"]), device="cpu"))
    changed = copy.deepcopy(base)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    combine(changed, base).save_pretrained(str(folder / "query"))
    return paths | {"query": folder / "query"}


@pytest.fixture
def workplace(tmp_path: Path, encoders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a finished run of a query-tuned model, as training leaves it; the working folder."""
    rng = np.random.default_rng(0)
    rows = [{"id": f"{i:03}", "text": " ".join(rng.choice(WORDS, 8)), "file": f"f{i}.py"} for i in range(30)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(json.dumps(row) for row in rows))
    store = PassageStore.open([corpus], tmp_path / "cache")
    options = EncoderOptions(str(encoders["base"]), device="cpu")
    embed_shard(load_encoder(options), store, tmp_path / "embeddings", EmbedOptions(), options)
    finish_run(tmp_path, encoders, "query")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REPLUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


def finish_run(folder: Path, encoders: dict[str, Path], tuned: str) -> None:
    output = folder / "output_finetuned_retriever"
    SentenceTransformer(str(encoders[tuned]), device="cpu").save_pretrained(str(output))
    rng = np.random.default_rng(1)
    lines = [
        {"document_id": f"doc{i}", "query": " ".join(rng.choice(WORDS, 5)), "continuation": f"next {i}"}
        for i in range(12)
    ]
    (output / "held_out.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    record = {
        "status": "complete",
        "base_model": str(encoders["base"]),
        "encoder": EncoderOptions(str(encoders["base"])).to_json(),
        "passages": [str(folder / "corpus.jsonl")],
        "passages_embeddings": [str(folder / "embeddings" / "passages_*")],
        "n_docs": 4,
        "held_out": "held_out.jsonl",
    }
    (output / "run.json").write_text(json.dumps(record))


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Compare:
    """Runs the command; gives what it printed."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["test_retriever.py", *arguments, "--device", "cpu"])
        with pytest.raises(SystemExit) as caught:
            run_command("compare")
        captured = capsys.readouterr()
        assert not caught.value.code, captured.err
        return captured.out

    return call


def retrieved(model: Path, texts: list[str], query: str, k: int) -> list[int]:
    """Independent of replug: sentence-transformers alone and a sort."""
    encoder = SentenceTransformer(str(model), device="cpu")
    similarity = encoder.encode_document(texts) @ encoder.encode_query(query)
    return [int(row) for row in np.argsort(-similarity)[:k]]


def corpus_texts(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()]


def check_lists(value: dict[str, Any], folder: Path, models: dict[str, Path], k: int) -> None:
    texts = corpus_texts(folder)
    for query in value["queries"]:
        for side in ("base", "tuned"):
            expected = retrieved(models[side], texts, query["query"], k)
            assert [int(place["id"]) for place in query[side]] == expected
            assert [place["rank"] for place in query[side]] == list(range(1, k + 1))


def test_a_query_tuned_model_shares_its_base_s_vectors(
    workplace: Path, compare: Compare, encoders: dict[str, Path]
) -> None:
    value = json.loads(compare("--json"))
    assert [query["document_id"] for query in value["queries"]] == ["doc2", "doc6", "doc10"]
    assert (value["held_out"], value["agreement"]["n"], value["agreement"]["k"]) == (True, 12, 4)
    check_lists(value, workplace, {"base": encoders["base"], "tuned": encoders["query"]}, k=4)
    assert not (workplace / "cache" / "embeddings").exists()
    assert any(query["base"] != query["tuned"] for query in value["queries"])


def test_a_model_tuned_on_both_sides_searches_its_own_index(
    workplace: Path, compare: Compare, encoders: dict[str, Path]
) -> None:
    finish_run(workplace, encoders, "both")
    value = json.loads(compare("--json", "--queries", "12"))
    assert len(value["queries"]) == 12
    check_lists(value, workplace, {"base": encoders["base"], "tuned": encoders["both"]}, k=4)
    assert len(list((workplace / "cache" / "embeddings").iterdir())) == 1


def test_stale_or_missing_shards_are_not_searched(
    workplace: Path, compare: Compare, encoders: dict[str, Path]
) -> None:
    with (workplace / "corpus.jsonl").open("a") as stream:
        stream.write("\n" + json.dumps({"id": "030", "text": "word1 word2 word3"}))
    value = json.loads(compare("--json", "--query", "word1 word2 word3"))
    assert {place["id"] for side in ("base", "tuned") for place in value["queries"][0][side]} >= {"030"}
    check_lists(value, workplace, {"base": encoders["base"], "tuned": encoders["query"]}, k=4)


def test_without_arguments_both_lists_stand_side_by_side(workplace: Path, compare: Compare) -> None:
    out = compare()
    lines = out.splitlines()
    heads = [line for line in lines if "base: " in line and "tuned: output_finetuned_retriever" in line]
    assert len(heads) == 3
    assert lines[0].startswith("query 1 of 3, from doc2 ")
    assert "what really follows:" in out
    assert "file=f" in out
    assert sum(line.startswith("overlap@4 ") for line in lines) == 3
    assert lines[-1].startswith("mean over 12 held-out queries: overlap@4 ")


def test_flags_choose_queries_and_number(
    workplace: Path, compare: Compare, encoders: dict[str, Path]
) -> None:
    (workplace / "q.txt").write_text("word3 word4\nword5\n")
    value = json.loads(compare("--json", "--query", "word1", "--query_file", "q.txt", "--n-docs", "100"))
    assert [query["query"] for query in value["queries"]] == ["word1", "word3 word4", "word5"]
    assert (value["held_out"], value["agreement"]["n"], value["agreement"]["k"]) == (False, 3, 30)
    assert value["agreement"]["overlap"] == 1.0
    check_lists(value, workplace, {"base": encoders["base"], "tuned": encoders["query"]}, k=30)


def test_no_run_is_needed_where_the_flags_say_everything(
    workplace: Path, compare: Compare, encoders: dict[str, Path]
) -> None:
    (workplace / "output_finetuned_retriever" / "run.json").unlink()
    flags = ["--base", str(encoders["base"]), "--tuned", str(encoders["both"]), "--passages", "corpus.jsonl"]
    value = json.loads(compare("--json", "--query", "word1 word7", *flags, "--n_docs", "5"))
    check_lists(value, workplace, {"base": encoders["base"], "tuned": encoders["both"]}, k=5)


def test_a_missing_run_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["test_retriever.py"])
    with pytest.raises(SystemExit) as caught:
        run_command("compare")
    assert caught.value.code == 1
    error = capsys.readouterr().err
    assert "output_finetuned_retriever/run.json: no such file" in error
    assert "replug train" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("columns", ["80", "120"])
def test_hostile_passages_and_queries_never_reach_the_terminal(
    workplace: Path, compare: Compare, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    row = {"id": f"id{HOSTILE}", "text": f"word1 {HOSTILE}", "title": HOSTILE, "file": HOSTILE}
    (workplace / "corpus.jsonl").write_text(json.dumps(row))
    monkeypatch.setenv("COLUMNS", columns)
    for flags in ((), ("--json",)):
        out = compare("--query", f"word1 {HOSTILE}", *flags)
        assert "\\u202e" in out
        bad = [c for c in out if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
        assert bad == []


def test_html_is_a_page_that_holds_what_the_lists_hold(
    workplace: Path, compare: Compare, encoders: dict[str, Path]
) -> None:
    out = compare("--html", "out.html", "--queries", "2", "--json")
    page = (workplace / "out.html").read_text("utf-8")
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert block is not None
    value, printed = json.loads(block[1]), json.loads(out)
    for drawn, query in zip(value["queries"], printed["queries"], strict=True):
        for side in ("base", "tuned"):
            ids = [drawn["passages"][place["passage"]]["id"] for place in drawn[side]]
            assert ids == [place["id"] for place in query[side]]
    assert value["agreement"]["n"] == 12 and len(value["queries"]) == 2


def test_with_a_supervisor_each_passage_says_what_it_is_worth(workplace: Path, compare: Compare) -> None:
    flags = ("--model", str(ROOT / "demo" / "lm"), "--supervisor", "local", "--dtype", "float32")
    value = json.loads(compare("--json", "--queries", "2", *flags))
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "lm")
    model = AutoModelForCausalLM.from_pretrained(ROOT / "demo" / "lm", dtype=torch.float32)

    def log_likelihood(passage: str, query: str, continuation: str) -> float:
        """Independent of replug: transformers alone."""
        texts = [*([passage, "\n"] if passage else []), query]
        before = [token for text in texts for token in tokenizer.encode(text, add_special_tokens=False)]
        before = [*([tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []), *before]
        after = tokenizer.encode(continuation, add_special_tokens=False)
        with torch.no_grad():
            logits = model(torch.tensor([[*before, *after]])).logits[0].log_softmax(-1)
        return sum(float(logits[len(before) - 1 + place, token]) for place, token in enumerate(after))

    assert value["supervisor"] == "lm"
    for query in value["queries"]:
        asked = (query["query"], query["continuation"])
        without = log_likelihood("", *asked)
        assert query["scored"]["no_passage"] == pytest.approx(without, abs=1e-3)
        for place in (query["base"][0], query["tuned"][-1]):
            assert place["gain"] == pytest.approx(log_likelihood(place["text"], *asked) - without, abs=1e-3)
    assert "LM (lm): the tuned retriever's first passage gives" in compare("--queries", "2", *flags)


@pytest.mark.parametrize("flags", [["--json"], ["--html", "out.html"]])
def test_serve_goes_with_no_other_form(
    workplace: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["test_retriever.py", "--serve", *flags])
    with pytest.raises(SystemExit) as caught:
        run_command("compare")
    assert caught.value.code == 2
    assert "--serve goes neither with" in capsys.readouterr().err


def test_the_served_page_answers_and_ends_with_ctrl_c(workplace: Path, encoders: dict[str, Path]) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "test_retriever.py"), "--serve", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        # Tests that run in the background have inherited that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as server:
        try:
            assert server.stdout is not None and server.stderr is not None
            said = server.stdout.readline().decode()
            found = re.search(r"http://127\.0\.0\.1:\d+/", said)
            assert found is not None, said + server.stderr.read().decode()
            answer = httpx2.get(found[0] + "api/search", params={"query": "word1 word7", "k": 5})
            value = answer.raise_for_status().json()
            ids = [int(value["passages"][place["passage"]]["id"]) for place in value["tuned"]]
            assert ids == retrieved(encoders["query"], corpus_texts(workplace), "word1 word7", 5)
            assert value["scored"] is None
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=30) == 0
            assert server.stderr.read().decode() == "Ended.\n"
        finally:
            server.kill()


def test_the_top_level_file_runs_in_a_pipe_that_takes_ascii_only(workplace: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "test_retriever.py"), "--n-docs", "2", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    assert b"overlap@2 " in done.stdout.decode("ascii").encode()

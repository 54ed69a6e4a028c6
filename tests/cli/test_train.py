"""`replug train` and `run_replug_lsr.py`: files and a supervisor in, a tuned retriever with its record out."""

from __future__ import annotations

import json
import os
import random
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from replug_client.cli.app import main
from replug_client.retriever.lexical_weights import read_lexical
from replug_client.training import run
from replug_client.training.prepare import Prepared
from replug_client.training.validation import full_precision
from tests.retriever.tiny import WORDS, corpus_file, saved_encoder, sentences

ROOT = Path(__file__).parents[2]
LM = ROOT / "demo" / "lm"
QUERIES = ["word1 word2", "def word3(): return word4", "nothing known"]


def replug(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


def documents(path: Path, count: int = 24) -> Path:
    generator = random.Random(3)
    lines = [
        json.dumps({"id": f"d{number}", "text": " ".join(generator.choices(WORDS, k=30))})
        for number in range(count)
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 30 passages with its embeddings, documents, and a small encoder."""
    folder = tmp_path_factory.mktemp("train")
    saved_encoder(folder / "encoder")
    corpus_file(folder / "corpus.jsonl", sentences(30))
    documents(folder / "documents.jsonl")
    command = ["embed", "--model_name_or_path", str(folder / "encoder"), "--device", "cpu"]
    command += ["--passages", str(folder / "corpus.jsonl"), "--output_dir", str(folder / "embeddings")]
    assert replug(*command, "--cache_dir", str(folder / "cache")) == 0
    return folder


def basic(place: Path, output: str) -> list[str]:
    options: dict[str, object] = {
        "model": LM,
        "supervisor": "local",
        "passages": place / "corpus.jsonl",
        "passages_embeddings": place / "embeddings" / "passages_*",
        "data": place / "documents.jsonl",
        "re_model_name_or_path": place / "encoder",
        "output_dir": place / output,
        "cache_dir": place / "cache",
        "device": "cpu",
        "context_len": 24,
        "pred_len": 8,
        "min_pred_len": 4,
        "retrieved_max_length": 24,
        "validation_fraction": 0.2,
        "max_examples": 16,
        "max_validation": 6,
        "n_docs": 3,
        "bm25_docs": 1,
        "random_docs": 1,
        "learning_rate": 1e-3,
        "max_steps": 8,
        "refresh_every": 3,
        "eval_every": 2,
        "projection_size": 16,
    }
    return ["train", *(text for name, value in options.items() for text in (f"--{name}", str(value)))]


def tuned(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def read_run(folder: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((folder / "run.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def query_run(place: Path) -> tuple[Path, Prepared]:
    """The first run, on an empty score cache, and what it worked with in memory."""
    kept: list[Prepared] = []
    save = run.save_tuned
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "save_tuned", lambda *given: (kept.append(given[1]), save(*given))[1])
        assert replug(*basic(place, "query")) == 0
    return place / "query", kept[0]


def test_plain_sentence_transformers_gives_the_tuned_queries_and_the_bases_passages(
    query_run: tuple[Path, Prepared], place: Path
) -> None:
    folder, prepared = query_run
    base, model = tuned(place / "encoder"), tuned(folder)
    queries = model.encode_query(QUERIES)
    with full_precision(prepared.model):
        np.testing.assert_allclose(queries, prepared.model.encode_query(QUERIES), atol=1e-5)
    assert np.abs(queries - base.encode_query(QUERIES)).max() > 1e-3, "nothing was learned"
    np.testing.assert_array_equal(model.encode_document(QUERIES), base.encode_document(QUERIES))


def test_the_record_says_what_made_it(query_run: tuple[Path, Prepared], place: Path) -> None:
    folder, prepared = query_run
    record = read_run(folder)
    assert record["status"] == "complete"
    assert record["base_model"] == str(place / "encoder")
    assert record["passages"] == [str(place / "corpus.jsonl")]
    assert record["passages_embeddings"] == [str(place / "embeddings" / "passages_*")]
    assert (record["train"], record["n_docs"]) == ("query", 3)
    assert record["supervisor"]["fingerprint"] and record["supervisor"]["name"]
    assert record["objective"]["temperature_gold"] > 0 and record["objective"]["temperature_score"] > 0
    assert record["options"]["steps"]["learning_rate"] == 1e-3
    assert record["versions"]["torch"] == torch.__version__
    assert set(record["hashes"]) == {"corpus", str(place / "documents.jsonl")}
    figures = record["figures"]
    assert figures["steps"] == 8
    assert [entry["step"] for entry in figures["validation"]] == [0, 2, 4, 6, 8]
    assert figures["validation"][0]["base_minus_current"] == 0.0
    after = [entry for entry in figures["validation"] if entry["step"] > 0]
    # Bits per byte decide; equal ones are decided by the held-out divergence.
    best = min(after, key=lambda entry: (round(entry["bits_per_byte"], 9), entry["kl"]))
    assert figures["best_step"] == best["step"]
    assert figures["log"] and all(
        {"loss", "p_entropy", "q_entropy", "unique_first_passages", "staleness_steps"} <= set(entry)
        for entry in figures["log"]
    )
    counts = figures["examples"]
    assert counts["train"]["used"] == 16 == len(prepared.sets.train)
    assert counts["train"]["documents"] + counts["validation"]["documents"] == 24
    held_out = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    assert [(line["document_id"], line["query"], line["continuation"]) for line in held_out] == [
        (example.document_id, example.query, example.continuation) for example in prepared.sets.validation
    ]
    assert list((folder / "tensorboard").glob("events.*"))
    assert not (folder / "unfinished.json").exists()


def test_the_same_run_again_asks_the_supervisor_nothing_and_ends_with_the_same_weights(
    query_run: tuple[Path, Prepared], place: Path
) -> None:
    first = read_run(query_run[0])["figures"]["scores"]
    assert first["misses"] > 0
    assert replug(*basic(place, "again")) == 0
    again = read_run(place / "again")["figures"]["scores"]
    assert again["misses"] == 0
    assert again["hits"] + again["shared"] == sum(first.values())
    assert_same_weights(place / "again", query_run[0])
    assert list((place / "again" / "tensorboard").glob("events.*"))


def test_both_encoders_are_trained_and_the_hyphen_spelling_works(place: Path) -> None:
    spelled = [
        "--" + argument[2:].replace("_", "-") if argument.startswith("--") else argument
        for argument in basic(place, "both")
    ]
    options = ["--train", "both", "--kl", "q-p", "--denominator", "batch", "--gradient-accumulation-steps=2"]
    options += ["--grad-cache-chunk", "3"]
    assert replug(*spelled, *options, "--no-bf16", "--per-gpu-batch-size=2", "--max-steps", "4") == 0
    base, model = tuned(place / "encoder"), tuned(place / "both")
    passages = model.encode_document(QUERIES)
    assert np.abs(passages - base.encode_document(QUERIES)).max() > 1e-3
    np.testing.assert_allclose(passages, model.encode_query(QUERIES), atol=1e-6)  # one encoder
    record = read_run(place / "both")
    assert record["train"] == "both"
    assert record["figures"]["steps"] == 4


def assert_same_weights(first: Path, second: Path) -> None:
    files = sorted(path.relative_to(first) for path in first.glob("**/model.safetensors"))
    files = [path for path in files if "checkpoints" not in path.parts]
    assert files
    for path in files:
        expected, found = load_file(first / path), load_file(second / path)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), path
    assert read_lexical(first) == read_lexical(second)


# Imports take longer than the run, so one process makes them and forks before torch has any thread.
KILLER = """
import json, os, signal, sys, time
import replug_client.supervisor.local, replug_client.training.run
from replug_client.cli.app import main

def begin(arguments):
    pid = os.fork()
    if pid == 0:
        main(arguments)
    return pid

whole, cut, fractions = json.loads(sys.argv[1])
began = time.monotonic()
_, status = os.waitpid(begin(whole), 0)
ends = [status]
whole_time = time.monotonic() - began
for fraction in fractions:
    pid = begin(cut)
    time.sleep(fraction * whole_time)
    os.kill(pid, signal.SIGKILL)
    ends.append(os.waitpid(pid, 0)[1])
ends.append(os.waitpid(begin(cut), 0)[1])
print(json.dumps(ends))
"""


@pytest.mark.slow
def test_a_run_killed_at_three_random_moments_ends_with_the_same_weights(
    query_run: tuple[Path, Prepared], place: Path
) -> None:
    fractions = [random.uniform(0.3, 0.95) for _ in range(3)]
    # The scores are in the cache: a local LM's last bits depend on which pairs share a batch.
    arguments = [*basic(place, "whole"), "--max_steps", "12"]
    cut = [*basic(place, "cut"), "--max_steps", "12", "--resume"]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps([arguments, cut, fractions])],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends[0] == ends[-1] == 0, (fractions, done.stderr)
    assert 9 in ends, (fractions, ends, "no run was killed: all were too quick")
    assert_same_weights(place / "whole", place / "cut")
    whole, resumed = read_run(place / "whole")["figures"], read_run(place / "cut")["figures"]
    assert resumed["best_step"] == whole["best_step"]
    assert resumed["validation"][0]["step"] == 0
    assert [entry["bits_per_byte"] for entry in resumed["validation"]] == [
        entry["bits_per_byte"] for entry in whole["validation"]
    ]


@pytest.fixture
def unfinished(query_run: tuple[Path, Prepared], place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that stopped before its end."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    shutil.rmtree(place / "unfinished", ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr(run, "save_tuned", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            main([*basic(place, "unfinished"), "--max_steps", "2"])
    assert (place / "unfinished" / "unfinished.json").exists()
    return place / "unfinished"


def test_resume_with_other_options_is_refused_and_names_them(
    unfinished: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*basic(place, "unfinished"), "--max_steps", "2", "--resume", "--seed", "5", "--kl", "p-q"]
    assert replug(*options) == 1
    message = capsys.readouterr().err
    assert "options.steps.seed was 0, now 5" in message
    assert "options.target.kl was 'q-p', now 'p-q'" in message
    assert "learning_rate" not in message and "Traceback" not in message


def test_an_unfinished_run_goes_on_or_is_refused(
    unfinished: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*basic(place, "unfinished"), "--max_steps", "2"]
    assert replug(*options) == 2
    assert "--resume" in capsys.readouterr().err
    assert replug(*options, "--resume") == 0
    assert read_run(unfinished)["figures"]["steps"] == 2
    assert replug(*options, "--resume") == 0, "finished: nothing to do"
    assert replug(*options, "--resume", "--kl", "p-q") == 1, "finished, but of something else"
    assert "options.target.kl was 'q-p', now 'p-q'" in capsys.readouterr().err


def test_a_finished_run_is_kept_unless_it_may_be_overwritten(
    query_run: tuple[Path, Prepared], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(query_run[0], place / "finished")
    assert replug(*basic(place, "finished")) == 2
    message = capsys.readouterr().err
    assert "finished run" in message and "--overwrite" in message and "Traceback" not in message
    # What cannot begin throws nothing away.
    assert replug(*basic(place, "finished"), "--overwrite", "--projection_size", "17") == 2
    assert read_run(place / "finished")["figures"]["steps"] == 8
    assert replug(*basic(place, "finished"), "--overwrite", "--max_steps", "1") == 0
    assert read_run(place / "finished")["figures"]["steps"] == 1


def test_stale_shards_are_refused_with_the_command_that_mends_them(
    query_run: tuple[Path, Prepared], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_encoder(place / "other", seed=9)
    assert replug(*basic(place, "stale"), "--re_model_name_or_path", str(place / "other")) == 1
    message = capsys.readouterr().err
    assert "weights" in message and "replug embed" in message and "Traceback" not in message
    assert not (place / "stale").exists(), "what never began leaves nothing to clear away"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--projection_size", "384"], "--projection_size 384"),
        (["--denominator", "batch", "--kl", "p-q"], "--kl q-p"),
        (["--n_docs", "1", "--bm25_docs", "0", "--random_docs", "0"], "--n_docs 1"),
        (["--grad_cache_chunk", "2"], "--grad_cache_chunk goes with --train both"),
        (["--temperature_gold", "0"], "--temperature_gold 0"),
        (["--passages_embeddings", "nowhere/passages_*"], "nowhere"),
        (["--context_len", "4000"], "no training example is left"),
        (
            ["--per_gpu_batch_size", "16", "--gradient_accumulation_steps", "4"],
            "gradient_accumulation_steps 4",
        ),
        (["--score", "probability", "--pred_len", "60", "--context_len", "40"], "Take --score mean"),
    ],
)
def test_what_cannot_work_is_said_without_a_traceback(
    options: list[str],
    expected: str,
    query_run: tuple[Path, Prepared],
    place: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert replug(*basic(place, "refused"), *options) in (1, 2)
    message = capsys.readouterr().err
    assert expected in message and "error: " in message
    assert "Traceback" not in message
    assert not (place / "refused").exists()


def test_the_top_level_file_is_the_same_command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(ROOT / "run_replug_lsr.py")
    monkeypatch.setattr(sys, "argv", [file, *basic(place, "never")[1:], "--temperature-gold", "-1"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(file, run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: --temperature_gold -1.0: expected a positive number")

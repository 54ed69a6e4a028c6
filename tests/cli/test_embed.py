"""`replug embed` and `generate_passage_embeddings.py`, as a person types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from replug_client.cli.app import main
from replug_client.retriever.shards import Shard
from tests.retriever.tiny import corpus_file, minilm, saved_encoder, sentences

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_encoder(tmp_path_factory.mktemp("encoder") / "bge-small-tiny", pooling="cls")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    corpus_file(tmp_path / "corpus.jsonl", sentences(10))
    monkeypatch.setenv("REPLUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def replug(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["embed", *arguments])
    return int(end.value.code or 0)


def basic(encoder: Path) -> list[str]:
    return [
        "--model_name_or_path",
        str(encoder),
        "--passages",
        "corpus.jsonl",
        "--output_dir",
        "out",
        "--device",
        "cpu",
    ]


def test_the_sessions_command_runs_with_minilm(place: Path) -> None:
    (place / "github_corpus.csv").write_text('id,text\n007,"def f(x):\n    return x"\n8,import os\n')
    command = [sys.executable, str(ROOT / "generate_passage_embeddings.py"), "--model_name_or_path", minilm()]
    command += [
        "--passages",
        "github_corpus.csv",
        "--output_dir",
        "code_embeddings",
        "--projection_size",
        "384",
    ]
    command += ["--shard_id", "0", "--num_shards", "1"]
    done = subprocess.run(
        command, cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "code_embeddings/passages_00: 2 vectors of 384 numbers (float32)\n"
    assert "\r" not in done.stderr and "it/s" not in done.stderr, "no bars where stderr is no terminal"
    shard = Shard(place / "code_embeddings" / "passages_00")
    expected = SentenceTransformer(minilm(), device="cpu").encode(["def f(x):\n    return x", "import os"])
    np.testing.assert_allclose(shard.vectors, expected, atol=1e-6)
    assert shard.ids() == ["007", "8"]


def test_hyphens_work_and_every_option_arrives(place: Path, encoder: Path) -> None:
    corpus_file(place / "more.jsonl", [])
    (place / "more.jsonl").write_text(json.dumps({"id": "x", "text": "one more"}))
    arguments = [
        argument.replace("_", "-") if argument.startswith("--") else argument for argument in basic(encoder)
    ]
    arguments += [
        "--passages",
        "more.jsonl",
        "--num-shards",
        "2",
        "--shard-id=1",
        "--vector-dtype",
        "float16",
    ]
    arguments += ["--per-gpu-batch-size", "2", "--compute-dtype", "bfloat16", "--passage-prompt", "p: "]
    arguments += ["--pooling", "mean", "--no-normalize", "--max-length", "9", "--log-level", "error"]
    assert replug(*arguments) == 0
    manifest = Shard(place / "out" / "passages_01").manifest
    assert (manifest.start_row, manifest.rows, manifest.corpus_rows) == (5, 6, 11)
    assert (manifest.dtype, manifest.compute_dtype) == ("float16", "bfloat16")
    found = manifest.encoder
    assert (found.prompt, found.pooling, found.normalized, found.max_seq_length) == ("p: ", "mean", False, 9)


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--projection_size", "384"], 2, "Pass --projection_size 16"),
        (["--shard_id", "1"], 2, "--shard_id 1 of --num_shards 1"),
        (["--passages", "none.csv"], 1, "none.csv"),
        (["--model_name_or_path", "./none"], 2, "cannot be loaded"),
        (["--pooling", "best"], 2, "--pooling best"),
        (["--num_shards", "99"], 1, "the corpus has 10 passages"),
    ],
)
def test_what_cannot_work_is_one_line_and_no_traceback(
    place: Path, encoder: Path, capsys: pytest.CaptureFixture[str], more: list[str], status: int, message: str
) -> None:
    assert replug(*basic(encoder), *more) == status
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (place / "out" / "passages_00" / "manifest.json").exists()


def test_a_second_run_leaves_the_shard_as_it_is(
    place: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replug(*basic(encoder)) == 0
    before = (place / "out" / "passages_00" / "vectors.npy").stat().st_mtime_ns
    capsys.readouterr()
    assert replug(*basic(encoder)) == 0
    assert "already there, and fresh (10 passages)" in capsys.readouterr().err
    assert (place / "out" / "passages_00" / "vectors.npy").stat().st_mtime_ns == before

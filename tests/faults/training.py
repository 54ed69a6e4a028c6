"""A small training run against a server: a tiny encoder, a few documents, and the real command."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from replug_client.cli.app import main
from tests.retriever.tiny import WORDS, corpus_file, saved_encoder, sentences
from tests.supervisor.fake_server import MODEL
from tests.supervisor.reference import DEMO_LM

PRED_LEN = 8


def write_files(folder: Path) -> None:
    """A corpus of 30 passages with its embeddings, documents, and an encoder."""
    saved_encoder(folder / "encoder")
    corpus_file(folder / "corpus.jsonl", sentences(30))
    generator = random.Random(3)
    documents = [{"id": f"d{n}", "text": " ".join(generator.choices(WORDS, k=30))} for n in range(24)]
    (folder / "documents.jsonl").write_text("\n".join(map(json.dumps, documents)))
    options = {"passages": folder / "corpus.jsonl", "output_dir": folder / "embeddings", "device": "cpu"}
    encoder = {"model_name_or_path": folder / "encoder", "cache_dir": folder / "cache"}
    assert replug(["embed", *spelled(options | encoder)]) == 0


def replug(words: Sequence[str]) -> int:
    """Run one of replug's commands in this process; its exit status."""
    try:
        main(words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def arguments(folder: Path, output: str, base_url: str, **changes: object) -> list[str]:
    """``replug train`` of 16 steps with a checkpoint every second one; its own cache, named after its output."""
    options: dict[str, object] = {
        "model": MODEL,
        "tokenizer": DEMO_LM,
        "base_url": base_url,
        "re_model_name_or_path": folder / "encoder",
        "device": "cpu",
        "passages": folder / "corpus.jsonl",
        "passages_embeddings": folder / "embeddings" / "passages_*",
        "data": folder / "documents.jsonl",
        "output_dir": folder / output,
        "cache_dir": folder / f"{output}-cache",
        "context_len": 24,
        "pred_len": PRED_LEN,
        "min_pred_len": 4,
        "retrieved_max_length": 24,
        "validation_fraction": 0.2,
        "max_examples": 24,
        "max_validation": 6,
        "n_docs": 6,
        "bm25_docs": 1,
        "random_docs": 1,
        "learning_rate": 1e-3,
        "max_steps": 16,
        "keep": "last",
        "refresh_every": 3,
        "eval_every": 2,
    }
    return ["train", *spelled(options | changes)]


def spelled(options: Mapping[str, object]) -> list[str]:
    """Options as they are typed."""
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def figures(folder: Path) -> dict[str, Any]:
    """What the run's record says came out."""
    found: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["figures"]
    return found


def assert_same_weights(first: Path, second: Path) -> None:
    """The tuned encoders of two runs, bit for bit."""
    files = [path.relative_to(first) for path in first.rglob("model.safetensors")]
    files = [path for path in files if "checkpoints" not in path.parts]
    assert files
    for path in files:
        expected, found = load_file(first / path), load_file(second / path)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items()), path

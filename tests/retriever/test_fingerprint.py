"""A fingerprint is the same for the same function, and another one for anything that changes a vector."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from replug_client.errors import ArtefactError
from replug_client.retriever.asymmetric import combine
from replug_client.retriever.encoder import EncoderOptions, load_encoder
from replug_client.retriever.fingerprint import EncoderFingerprint, fingerprint
from tests.retriever.tiny import bare_encoder, minilm, saved_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_encoder(tmp_path_factory.mktemp("encoder") / "m")


def load(folder: Path | str, **options: object) -> SentenceTransformer:
    return load_encoder(EncoderOptions(str(folder), device="cpu", **options))  # type: ignore[arg-type]


def nudge(model: SentenceTransformer) -> SentenceTransformer:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1e-3
    return changed


def test_saving_and_loading_leaves_the_fingerprint(tmp_path: Path) -> None:
    for name in (bare_encoder(tmp_path / "bge-small-en"), minilm()):
        model = load(name)
        found = fingerprint(model, "document")
        model.save_pretrained(str(tmp_path / "again"))
        assert fingerprint(load(tmp_path / "again"), "document") == found
        assert fingerprint(SentenceTransformer(str(tmp_path / "again"), device="cpu"), "document") == found
        assert EncoderFingerprint.from_json(found.to_json()) == found


def test_a_checkpoint_without_berts_pooler_has_one_fingerprint(tmp_path: Path) -> None:
    """transformers draws the missing weights anew at each load; they take no part in the vectors."""
    from safetensors.torch import load_file, save_file

    folder = bare_encoder(tmp_path / "m")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(1)
    first = load(folder)
    torch.manual_seed(2)
    second = load(folder)
    assert not torch.equal(first[0].model.pooler.dense.weight, second[0].model.pooler.dense.weight)
    assert fingerprint(first, "document") == fingerprint(second, "document")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"passage_prompt": "p: "}, "prompt ('' against 'p: ')"),
        ({"pooling": "cls"}, "pooling ('mean' against 'cls')"),
        ({"max_seq_length": 32}, "max seq length (64 against 32)"),
        ({"normalize": False}, "normalized (True against False)"),
    ],
)
def test_each_setting_shows_and_is_named(folder: Path, options: dict[str, object], named: str) -> None:
    different = fingerprint(load(folder), "document").differences(
        fingerprint(load(folder, **options), "document")
    )
    assert named in different and len(different) <= 2  # removing Normalize shows in the modules too


def test_a_single_weight_shows(folder: Path) -> None:
    model = load(folder)
    (different,) = fingerprint(model, "document").differences(fingerprint(nudge(model), "document"))
    assert different.startswith("weights")


def test_another_vocabulary_shows(folder: Path, tmp_path: Path) -> None:
    path = bare_encoder(tmp_path / "m")
    for name in ("tokenizer.json", "vocab.txt"):
        if (path / name).exists():
            text = (path / name).read_text()
            (path / name).write_text(text.replace("word7", "other7"))
    (different,) = fingerprint(load(folder), "query").differences(fingerprint(load(path), "query"))
    assert different.startswith("tokenizer")


def test_the_query_prompt_is_no_part_of_the_passage_side(folder: Path) -> None:
    plain, prompted = load(folder), load(folder, query_prompt="q: ")
    assert fingerprint(plain, "document") == fingerprint(prompted, "document")
    assert fingerprint(plain, "query") != fingerprint(prompted, "query")


def test_a_model_tuned_on_the_query_side_keeps_its_bases_passage_fingerprint(
    folder: Path, tmp_path: Path
) -> None:
    base = load(folder)
    tuned = combine(nudge(base), base)
    tuned.save_pretrained(str(tmp_path / "tuned"))
    for model in (
        tuned,
        load(tmp_path / "tuned"),
        SentenceTransformer(str(tmp_path / "tuned"), device="cpu"),
    ):
        assert fingerprint(model, "document") == fingerprint(base, "document")
        assert fingerprint(model, "query") != fingerprint(base, "query")


def test_a_record_with_other_fields_is_refused(folder: Path) -> None:
    value = fingerprint(load(folder), "query").to_json()
    with pytest.raises(ArtefactError, match="has the fields"):
        EncoderFingerprint.from_json(value | {"more": 1})

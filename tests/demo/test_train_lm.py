from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.lm_data import (
    SequenceOptions,
    collect_files,
    draw_sequence,
    encode_files,
    is_permissive,
    long_enough,
    train_tokenizer,
)
from demo.stdlib_corpus import LM_DIR
from demo.train_lm import RecipeOptions, evaluate, learning_rate_factor, main, new_model, train
from replug_client.errors import OptionError


def install(folder: Path, name: str, metadata: str, files: dict[str, str]) -> None:
    """A package as pip would leave it: files, metadata, and the record that lists them."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n{metadata}\n")
    for file, text in files.items():
        (folder / file).write_text(text)
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


@pytest.mark.parametrize(
    ("metadata", "permissive"),
    [
        ("License-Expression: MIT", True),
        ("License-Expression: Apache-2.0 OR BSD-2-Clause", True),
        ("License-Expression: (BSD-3-Clause AND 0BSD) OR Zlib", True),
        ("License-Expression: MIT AND GPL-3.0-or-later", False),
        ("License-Expression: MPL-2.0", False),
        ("License: Apache 2.0 License", True),
        ("License: MPL-2.0 AND MIT", False),
        ("License: see the file", False),
        ("Classifier: License :: OSI Approved :: MIT License", True),
        ("Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)", False),
        ("License: MIT\nClassifier: License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)", False),
        ("Summary: says nothing", False),
    ],
)
def test_only_packages_that_name_nothing_but_permissive_licences_are_read(
    tmp_path: Path, metadata: str, permissive: bool
) -> None:
    install(tmp_path, "pack", metadata, {"pack.py": "x = 1\n" * 200})
    assert [name for name, _ in collect_files(path=[str(tmp_path)])] == ["pack/pack.py"] * permissive


def test_copies_and_files_of_odd_sizes_are_left_out(tmp_path: Path) -> None:
    files = {"a.py": "x = 1\n" * 200, "b.py": "x = 1\n" * 200, "small.py": "x", "data.txt": "y\n" * 900}
    install(tmp_path, "pack", "License-Expression: MIT", files)
    assert [text for _, text in collect_files(path=[str(tmp_path)])] == [files["a.py"]]


def test_the_licence_of_a_real_package_is_found() -> None:
    from importlib.metadata import distribution

    assert is_permissive(distribution("torch"))
    assert not is_permissive(distribution("hypothesis"))  # MPL-2.0


def test_the_tokenizer_adds_nothing_and_loses_nothing() -> None:
    text = "def f(x):\n    return {'é': 12}  # 日本🙂\r\n\tx_1 += 1\n"
    tokenizer = train_tokenizer([text * 20], 400)
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert (tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")) == (0, 1)
    assert min(ids) > 1
    [encoded] = encode_files([text], tokenizer, 10**6)
    assert encoded.tolist() == ids


@pytest.fixture
def files() -> list[npt.NDArray[np.uint16]]:
    """Four files of 300 tokens, each with a range of ids of its own."""
    return [np.arange(300, dtype=np.uint16) + 1 + 1000 * number for number in range(4)]


def runs(ids: npt.NDArray[np.int64]) -> int:
    return 1 + int((np.diff(ids) != 1).sum())


@pytest.mark.parametrize(
    ("shares", "kind"),
    [
        ((1.0, 0.0, 0.0), "contiguous"),
        ((0.0, 1.0, 0.0), "same file"),
        ((0.0, 0.0, 1.0), "copy"),
        ((0.0, 0.0, 0.0), "other file"),
    ],
)
def test_sequences_are_what_their_kind_says(
    files: list[npt.NDArray[np.uint16]], shares: tuple[float, float, float], kind: str
) -> None:
    options = SequenceOptions(100, *shares, passage=(20, 30))
    rng = np.random.default_rng(0)
    other_files = 0
    for _ in range(30):
        sequence = draw_sequence(files, options, 0, rng)
        assert len(sequence) == 100
        assert sequence[0] == 0
        body = sequence[1:]
        sources = {int(i) // 1000 for i in body}
        assert runs(body) <= (1 if kind == "contiguous" else 2)
        if kind == "copy":
            border = int(np.flatnonzero(np.diff(body) != 1)[0]) + 1
            assert 20 <= border <= 30
            assert set(body[:border]) <= set(body[border:])
        other_files += len(sources) == 2
    assert (other_files > 15) == (kind == "other file")


def test_only_files_that_fill_a_sequence_are_used() -> None:
    lengths = [99, 100, 101]
    files = [np.zeros(length, dtype=np.uint16) for length in lengths]
    assert [len(file) for file in long_enough(files, SequenceOptions(100))] == [100, 101]


def test_the_learning_rate_rises_stays_and_falls() -> None:
    options = RecipeOptions()
    assert learning_rate_factor(0, options) == pytest.approx(1 / 200)
    assert learning_rate_factor(199, options) == 1
    assert learning_rate_factor(2298, options) == 1
    assert learning_rate_factor(3064, options) == pytest.approx(1 - 0.98 * 0.5)
    assert learning_rate_factor(3830, options) == pytest.approx(0.02)


def test_training_learns(files: list[npt.NDArray[np.uint16]]) -> None:
    torch.manual_seed(0)
    files = [file % 50 + 2 for file in files]
    sequences = SequenceOptions(64, passage=(10, 20))
    model = new_model(64, 64)
    options = RecipeOptions(steps=12, batch_size=4, warmup=1)
    losses = [loss for _, loss in train(model, files, sequences, options)]
    assert losses[0] == pytest.approx(np.log(64), abs=0.3)
    assert losses[-1] < losses[0] - 1
    assert evaluate(model, files, 64)["held_out"] < losses[0] - 1


def test_the_command_runs_and_what_it_writes_loads(tmp_path: Path) -> None:
    main(tmp_path, steps=2, tokens=60_000, batch_size=1, seed=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert next(model.parameters()).dtype == torch.float16
    assert model.config.vocab_size == len(tokenizer) == 6144
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    text = "import os\n\n\nclass A:\n    pass\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert model(input_ids=torch.tensor([[0, *ids]])).logits.shape == (1, len(ids) + 1, 6144)


def test_nothing_to_train_on_is_refused() -> None:
    with pytest.raises(OptionError, match="--steps 0"):
        RecipeOptions(steps=0)


def test_the_weights_that_stand_in_the_demo_are_those_of_the_readme() -> None:
    model = AutoModelForCausalLM.from_pretrained(LM_DIR)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(4.98e6, rel=0.01)
    assert model.config == type(model.config).from_pretrained(LM_DIR)
    assert new_model(6144, 512).num_parameters() == model.num_parameters()
    digest = hashlib.sha256((LM_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "b154cae5d8ce682fb80d01e735c9409058a3a1cc9bbb433b9ead31720ebbd268"

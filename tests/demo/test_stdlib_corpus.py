from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from demo.stdlib_corpus import (
    LM_DIR,
    CorpusOptions,
    SourceFile,
    build,
    choose,
    cut_passages,
    main,
    read_library,
    split_at_line,
)
from replug_client.artefacts import sha256_file
from replug_client.errors import CorpusError, OptionError

NAMES = ("passages.csv", "train.csv", "held_out.csv")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(LM_DIR / "tokenizer.json"))


def rows_of(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(1 << 30)
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_library(root: Path, count: int = 40) -> None:
    for number in range(count):
        body = "".join(
            f"def function_{number}_{line}(x):\n    return x + {line}  # é日本🙂 {number}\n\n"
            for line in range(60)
        )
        path = root / f"package_{number % 3}" / f"module_{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")


def test_the_same_library_gives_the_same_bytes_and_the_manifest_says_which(tmp_path: Path) -> None:
    write_library(tmp_path / "lib")
    for name in ("one", "two"):
        build(tmp_path / name, CorpusOptions(), root=tmp_path / "lib")
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    for name in NAMES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        assert manifest["sha256"][name] == sha256_file(tmp_path / "one" / name)


def test_passages_and_documents_of_a_file_are_disjoint_runs_of_its_text(tmp_path: Path) -> None:
    write_library(tmp_path / "lib")
    report = build(tmp_path / "out", CorpusOptions(min_passage_tokens=1), root=tmp_path / "lib")
    passages: dict[str, str] = defaultdict(str)
    for row in rows_of(report.passages):
        passages[row["file"]] += row["text"]
    documents = rows_of(report.train) + rows_of(report.held_out)
    assert len(documents) == report.num_train + report.num_held_out == report.num_files == 40
    for row in documents:
        assert passages[row["file"]] + row["text"] == (tmp_path / "lib" / row["file"]).read_text("utf-8")


def test_a_file_is_either_for_training_or_held_out_whatever_else_is_chosen(tmp_path: Path) -> None:
    write_library(tmp_path / "lib")
    few = build(tmp_path / "few", CorpusOptions(files=20, held_out_every=3), root=tmp_path / "lib")
    everything = build(tmp_path / "all", CorpusOptions(held_out_every=3), root=tmp_path / "lib")
    held = {row["file"] for row in rows_of(everything.held_out)}
    assert few.num_files == 20
    assert not held & {row["file"] for row in rows_of(everything.train)}
    assert {row["file"] for row in rows_of(few.held_out)} <= held
    assert not held & {row["file"] for row in rows_of(few.train)}


def test_passages_have_the_asked_length_and_know_their_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "".join(f"name_{number} = {number}\n" for number in range(400))
    options = CorpusOptions(passage_fraction=0.7, passage_tokens=50, min_passage_tokens=20)
    passages = list(cut_passages(SourceFile("a.py", text), tokenizer, options))
    lengths = [len(tokenizer.encode(p["text"], add_special_tokens=False).ids) for p in passages]
    assert lengths[:-1] == [50] * (len(passages) - 1)
    assert 20 <= lengths[-1] <= 50
    for passage in passages:
        assert "\n".join(text.split("\n")[passage["line"] - 1 :]).find(passage["text"]) >= 0


@pytest.mark.parametrize("passage_tokens", [1, 2, 3, 7])
def test_no_character_is_cut_even_where_one_takes_more_tokens_than_a_passage_has(
    tokenizer: Tokenizer, passage_tokens: int
) -> None:
    text = "é🙂日本語\n" * 30
    options = CorpusOptions(
        passage_fraction=0.99, passage_tokens=passage_tokens, min_passage_tokens=1, held_out_every=2
    )
    passages = list(cut_passages(SourceFile("a.py", text), tokenizer, options))
    cut = split_at_line(text, 0.99)
    kept = "".join(p["text"] for p in passages)
    assert kept.replace("\n", "") == text[:cut].replace("\n", "")  # pieces of nothing but space are left out
    assert len({p["id"] for p in passages}) == len(passages)


def test_tests_packages_small_files_and_copies_are_left_out(tmp_path: Path) -> None:
    body = "x = 1\n" * 500
    for name in ("a.py", "copy.py", "test/b.py", "pkg/tests/c.py", "site-packages/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body)
    (tmp_path / "small.py").write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n" * 500)
    sources, left_out = read_library(tmp_path, 2000)
    assert [source.name for source in sources] == ["a.py"]
    assert left_out == {"too small": 1, "not UTF-8": 1, "the same as another file": 1}


def test_the_librarys_own_tests_are_there_where_asked_for(tmp_path: Path) -> None:
    for number, name in enumerate(("a.py", "test/b.py", "pkg/tests/c.py", "site-packages/test/d.py")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"x = {number}\n" * 500)
    sources, _ = read_library(tmp_path, 2000, tests=True)
    assert [source.name for source in sources] == ["a.py", "pkg/tests/c.py", "test/b.py"]


def test_choosing_more_files_keeps_those_that_were_chosen() -> None:
    sources = [SourceFile(f"{number}.py", "") for number in range(100)]
    five, ten = choose(sources, 5), choose(sources, 10)
    assert set(five) < set(ten)
    assert choose(sources, None) == sources


def test_a_library_without_sources_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="PYTHON="):
        build(tmp_path / "out", CorpusOptions(), root=tmp_path)


def test_a_split_without_held_out_files_is_refused_and_leaves_no_manifest(tmp_path: Path) -> None:
    write_library(tmp_path / "lib", count=1)
    with pytest.raises(CorpusError, match="at least one of each"):
        build(tmp_path / "out", CorpusOptions(), root=tmp_path / "lib")
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"passage_fraction": 1.0},
        {"passage_fraction": 0.0},
        {"min_passage_tokens": 129},
        {"min_passage_tokens": 0},
        {"held_out_every": 1},
        {"files": 0},
    ],
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        CorpusOptions(**options)  # type: ignore[arg-type]


def test_the_command_cuts_the_running_interpreters_own_library(tmp_path: Path) -> None:
    import typer

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["--output_dir", str(tmp_path), "--files", "40"])
    assert result.exit_code == 0, result.output
    assert "40 files" in result.output
    assert all((tmp_path / name).stat().st_size > 1000 for name in NAMES)
    assert CliRunner().invoke(app, ["--files", "some"]).exit_code == 2

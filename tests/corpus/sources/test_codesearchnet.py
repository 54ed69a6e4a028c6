"""CodeSearchNet: functions, their documentation as queries, and no query inside its own passage."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replug_client.corpus.readers import open_source, read_documents
from replug_client.corpus.sources.codesearchnet import CodeSearchNetOptions, conversion
from replug_client.corpus.sources.conversion import convert
from replug_client.errors import CorpusError, OptionError


def record(
    name: str, code: str, docstring: str, partition: str, language: str = "python"
) -> dict[str, object]:
    return {
        "repo": "o/r", "path": "m.py", "func_name": name, "original_string": code, "language": language, "code": code,
        "code_tokens": ["x"], "docstring": docstring, "docstring_tokens": ["y"], "sha": "s", "url": "u",
        "partition": partition,
    }  # fmt: skip


DOC = "Add two\n    numbers.\n\n    More."
TRAIN = [
    record("C.f", f'def f(self):\n    """{DOC}"""\n    return 1', DOC, "train"),
    record("g", 'def g():\n    """Only this one."""', "Only this one.", "train"),
    record("h", "def h(): return 2", "Short.", "train"),
    record("j", "function j() {}", "A function in JavaScript.", "train", "javascript"),
]  # fmt: skip
TEST = [record("k", 'def k():\n    "What it does."\n    pass', "What it does.", "test")]
DOCUMENT = "Add two numbers.\ndef f(self):\n    return 1"


def write_files(folder: Path) -> Path:
    for split, rows in {"train": TRAIN, "test": TEST}.items():
        path = folder / "python" / "final" / "jsonl" / split / f"python_{split}_0.jsonl.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return folder


def test_functions_queries_and_pairs_are_written(tmp_path: Path) -> None:
    report = convert(
        conversion(str(write_files(tmp_path / "in")), CodeSearchNetOptions("python")), tmp_path / "out"
    )
    passages = list(open_source(report.files["passages"]))
    assert [(p.id, p.title, p.text) for p in passages] == [
        ("python-train-0", "C.f", "def f(self):\n    return 1"),
        ("python-train-2", "h", "def h(): return 2"),
        ("python-test-4", "k", "def k():\n    pass"),
    ]
    assert report.left_out == {
        "Python functions that do not parse, or hold nothing but a docstring": 1,
        "queries below --min_docstring_words": 1,
        "functions in other languages": 1,
    }
    queries = [(q.id, q.text, q.extra["partition"]) for q in open_source(report.files["queries"])]
    assert queries == [
        ("q-python-train-0", "Add two numbers.", "train"),
        ("q-python-test-4", "What it does.", "test"),
    ]
    with report.files["qrels.tsv"].open() as stream:
        assert list(csv.reader(stream, delimiter="\t"))[1:] == [
            ["q-python-train-0", "python-train-0", "1"],
            ["q-python-test-4", "python-test-4", "1"],
        ]
    (train,) = read_documents(report.files["train"])
    assert train.text == DOCUMENT
    assert report.rows["test"] == 1 and report.rows["validation"] == 0


def test_docstrings_may_be_kept_and_all_languages_read(tmp_path: Path) -> None:
    options = CodeSearchNetOptions(keep_docstrings=True, num_functions=4)
    report = convert(conversion(str(write_files(tmp_path / "in")), options), tmp_path / "out")
    passages = [p.text for p in open_source(report.files["passages"])]
    assert len(passages) == 4 and passages[0] == TRAIN[0]["code"] and passages[3] == "function j() {}"


def test_the_hubs_columns_give_the_same(tmp_path: Path) -> None:
    names = {
        "repo": "repository_name", "path": "func_path_in_repository", "code": "func_code_string",
        "docstring": "func_documentation_string", "partition": "split_name", "func_name": "func_name",
        "language": "language",
    }  # fmt: skip
    (tmp_path / "hub").mkdir()
    for split, rows in {
        "train": TRAIN,
        "validation": [record("v", "def v(): 1", "For validation only.", "valid")],
        "test": TEST,
    }.items():
        table = pa.Table.from_pylist([{names[key]: row[key] for key in names} for row in rows])
        pq.write_table(table, tmp_path / "hub" / f"{split}-00000-of-00001.parquet")
    report = convert(conversion(str(tmp_path / "hub"), CodeSearchNetOptions("python")), tmp_path / "out")
    (train,) = read_documents(report.files["train"])
    assert train.text == DOCUMENT
    (valid,) = read_documents(report.files["validation"])
    assert valid.text == "For validation only.\ndef v(): 1"


def test_what_it_cannot_use_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--language rust: expected one of python"):
        CodeSearchNetOptions("rust")
    (tmp_path / "x.jsonl").write_text(json.dumps(record("f", "x", "y", "holdout")) + "\n")
    with pytest.raises(CorpusError, match=r"x\.jsonl, line 1 .*partition 'holdout', expected"):
        convert(conversion(str(tmp_path / "x.jsonl"), CodeSearchNetOptions()), tmp_path / "out")
    with pytest.raises(CorpusError, match=r"code-search-net/code_search_net: no such file.*--input"):
        conversion("code-search-net/code_search_net", CodeSearchNetOptions())

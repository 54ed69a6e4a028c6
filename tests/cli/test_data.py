"""`replug data ...`, as a person types it: each command, and its output read by the other commands' readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replug_client.cli.app import main
from replug_client.corpus.readers import read_documents
from replug_client.corpus.store import PassageStore

WIKITEXT = "\n = {0} =\n\n {0} has a 10 @-@ seat hall , and one two three four five six seven eight .\n"


def replug(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["data", *arguments])
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REPLUG_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("format_", ["csv", "tsv", "jsonl", "parquet"])
def test_wikitext_gives_files_that_embed_and_train_read(
    place: Path, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    (place / "wiki.train.raw").write_text("".join(WIKITEXT.format(name) for name in "ABCD"))
    command = ["wikitext", "--input", "wiki.train.raw", "--training-every=2", "--format", format_]
    code, out, _ = replug(capsys, *command, "--output-dir", "out")
    assert code == 0
    assert out == f"out: passages.{format_} (2 rows), train.{format_} (2 rows), of 4 items\n"
    store = PassageStore.open([place / "out" / f"passages.{format_}"], place / "cache")
    assert store.ids([0, 1]) == ["train-0#0", "train-2#0"] and store[1].title == "C"
    documents = list(read_documents(place / "out" / f"train.{format_}"))
    assert [d.text[:21] for d in documents] == ["B has a 10-seat hall,", "D has a 10-seat hall,"]
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert manifest["inputs"][0]["file"] == "wiki.train.raw"
    code, out, _ = replug(capsys, *command, "--output_dir", "out")
    assert code == 0 and "(as it was)" in out


def test_msmarco_says_what_it_left_out(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "c.tsv").write_text("".join(f"{n}\tpassage {n}\n" for n in range(10)))
    (place / "q.tsv").write_text("1\tone\n2\ttwo\n")
    (place / "r.tsv").write_text("1\t0\t3\t1\n")
    arguments = [
        "msmarco",
        "--collection",
        "c.tsv",
        "--queries",
        "q.tsv",
        "--qrels",
        "r.tsv",
        "--output_dir",
        "out",
    ]
    code, out, _ = replug(capsys, *arguments, "--num_passages", "4", "--held_out_every", "0")
    assert code == 0
    assert out == (
        "out: passages.csv (4 rows), queries.csv (1 rows), qrels.tsv (1 rows), train.csv (1 rows), of 12 items\n"
        "left out: 6 passages beyond --num_passages, 1 queries without judgement\n"
    )


def test_a_beir_folder_becomes_passages_queries_and_qrels(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = place / "tiny"
    (folder / "qrels").mkdir(parents=True)
    passages = [{"_id": "d1", "title": "T", "text": "x"}, {"_id": "d2", "title": "", "text": ""}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(p) + "\n" for p in passages))
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "why"}\n{"_id": "q2", "text": "unjudged"}\n')
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq9\td1\t1\n")
    code, out, _ = replug(capsys, "beir", "tiny", "--output_dir", "out")
    assert code == 0
    assert "left out: 1 empty passages, 1 judged queries without text" in out
    assert (place / "out" / "passages.csv").read_text() == "id,title,text\nd1,T,T x\n"
    assert (place / "out" / "queries.csv").read_text() == "id,text\nq1,why\n"
    assert (place / "out" / "qrels.tsv").read_text() == "query-id\tcorpus-id\tscore\nq1\td1\t2\n"
    code, _, err = replug(capsys, "beir", "tiny", "--output_dir", "out2", "--split", "dev")
    assert code == 1 and "Name another --split; there is test." in err


def test_folder_jsonl_and_codesearchnet_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "src").mkdir()
    (place / "src" / "a.py").write_text("import os\n\ndef f():\n    return 1\n")
    code, out, _ = replug(capsys, "folder", "src", "--output_dir", "out/f", "--by", "functions")
    assert (code, out) == (0, "out/f: passages.csv (2 rows), of 1 items\n")
    (place / "rows.jsonl").write_text('{"body": "one two three"}\n')
    code, out, _ = replug(
        capsys, "jsonl", "rows.jsonl", "--output_dir", "out/j", "--text_field", "body", "--passage_length", "2"
    )  # fmt: skip
    assert (code, out) == (0, "out/j: passages.csv (2 rows), of 1 items\n")
    row = {
        "repo": "r",
        "path": "p",
        "func_name": "f",
        "language": "go",
        "code": "func f() {}",
        "partition": "test",
    }
    (place / "go.jsonl").write_text(json.dumps({**row, "docstring": "does a thing"}) + "\n")
    code, out, _ = replug(capsys, "codesearchnet", "--input", "go.jsonl", "--output_dir", "out/c")
    assert code == 0 and "passages.csv (1 rows), queries.csv (1 rows)" in out


def test_stdlib_is_the_demos_corpus(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = replug(capsys, "stdlib", "--output_dir", "out", "--files", "24")
    assert code == 0 and "24 files" in out
    assert len(PassageStore.open([place / "out" / "passages.csv"], place / "cache")) > 24


def test_overlap_reports_and_drops(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = " ".join(f"word{n}" for n in range(13))
    (place / "p.csv").write_text(f'id,text\np1,"{shared} \x1b[31m"\np2,other\n')
    (place / "d.csv").write_text(f"id,text\nd1,begin {shared}\nd2,more\n")
    (place / "e.csv").write_text("id,text\ne1,held out\n")
    files = ["--passages", "p.csv", "--data", "d.csv", "--evaluation", "e.csv"]
    code, out, _ = replug(capsys, "overlap", *files, "--drop", "--output_dir", "clean")
    assert code == 0
    assert "passages: 1 of 2 items (50.0%) share runs of 13 words with data; 0 have an id" in out
    assert "d1 (1 of 2 runs; passages p1): word0 word1" in out and "\x1b" not in out
    assert "clean/d.csv: 1 rows; left out: 1 shared with evaluation or passages" in out
    assert (place / "clean" / "d.csv").read_text() == "id,text\nd2,more\n"
    assert len((place / "clean" / "p.csv").read_text().splitlines()) == 3
    assert json.loads((place / "clean" / "overlap.json").read_text())["n"] == 13
    code, _, err = replug(capsys, "overlap", "--data", "d.csv")
    assert code == 2 and "at least two of" in err
    code, _, err = replug(capsys, "overlap", *files, "--drop")
    assert code == 2 and "--output_dir" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["wikitext", "--input", "nowhere.raw"], 1, "nowhere.raw: no such file or folder here"),
        (["wikitext", "--splits", "dev"], 2, "'dev' is none of train"),
        (["wikipedia", "--input", "./nowhere"], 1, "no such file or folder. Check the path."),
        (["msmarco"], 2, "no --collection"),
        (["folder", "nowhere"], 1, "no such folder"),
        (["jsonl", "nowhere.jsonl"], 1, "nowhere.jsonl: no such file"),
        (["codesearchnet", "--language", "cobol"], 2, "expected one of python"),
    ],
)
def test_errors_say_what_mends_them(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    found, _, err = replug(capsys, *arguments, "--output_dir", "out")
    assert (found, message in err) == (code, True), err
    assert "Traceback" not in err

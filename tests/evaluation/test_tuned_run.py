"""What a comparison takes from its flags, and what from a run's record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replug_client.errors import ArtefactError, CorpusError, OptionError
from replug_client.evaluation.retrieval import shown_name, spread
from replug_client.evaluation.tuned_run import CompareOptions, Query, TunedRun, read_queries, resolve
from replug_client.retriever.encoder import EncoderOptions


def write_run(folder: Path, **changes: Any) -> Path:
    """A record as training writes it; a change of ``...`` leaves the field out."""
    folder.mkdir(parents=True, exist_ok=True)
    passages = folder / "corpus.csv"
    passages.write_text("id,text\n1,one\n")
    (folder / "held_out.jsonl").write_text(
        json.dumps({"document_id": "d", "query": "q1", "continuation": "c1"})
        + "\n"
        + json.dumps({"document_id": "e", "query": "q2", "continuation": "c2"})
        + "\n"
    )
    record = {
        "status": "complete",
        "base_model": "org/base",
        "encoder": {"model_name_or_path": "org/base", "query_prompt": "Q: ", "device": "cuda"},
        "passages": [str(passages.absolute())],
        "passages_embeddings": ["shards/*"],
        "n_docs": 7,
        "held_out": "held_out.jsonl",
        **changes,
    }
    (folder / "run.json").write_text(json.dumps({k: v for k, v in record.items() if v is not ...}))
    return folder


def test_without_flags_everything_comes_from_the_record(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    found = resolve(CompareOptions(default_run=folder))
    # The device is this machine's, not that of the machine that trained.
    assert found.base == EncoderOptions("org/base", query_prompt="Q: ", device=None)
    assert found.tuned == EncoderOptions(str(folder))
    assert found.passages == (folder / "corpus.csv",)
    assert (found.shards, found.n_docs, found.held_out) == (("shards/*",), 7, True)
    assert found.queries == (Query("q1", "c1", "d"), Query("q2", "c2", "e"))


def test_flags_win_over_the_record(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (tmp_path / "more.txt").write_text("from the file\n\n and spaces \n")
    found = resolve(
        CompareOptions(
            run=folder,
            base="other/base",
            tuned="other/tuned",
            passages=(Path("p.csv"),),
            queries=("typed",),
            query_file=tmp_path / "more.txt",
            n_docs=3,
            device="cpu",
        )
    )
    assert found.base == EncoderOptions("other/base", device="cpu")
    assert found.tuned == EncoderOptions("other/tuned", device="cpu")
    assert (found.passages, found.n_docs, found.held_out) == ((Path("p.csv"),), 3, False)
    assert [query.text for query in found.queries] == ["typed", "from the file", " and spaces "]


def test_no_record_is_needed_where_the_flags_say_everything(tmp_path: Path) -> None:
    options = {"base": "a", "tuned": "b", "passages": (Path("p.csv"),), "queries": ("q",)}
    found = resolve(CompareOptions(**options, default_run=tmp_path / "none"))  # type: ignore[arg-type]
    assert (found.base.model_name_or_path, found.tuned.model_name_or_path) == ("a", "b")
    assert (found.n_docs, found.shards) == (10, ())
    for missing in options:
        rest = {name: value for name, value in options.items() if name != missing}
        with pytest.raises(ArtefactError, match=r"no such file.*--run.*--query_file are all needed"):
            resolve(CompareOptions(**rest, default_run=tmp_path / "none"))  # type: ignore[arg-type]


def test_a_tuned_folder_with_a_record_brings_it_along(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "elsewhere")
    found = resolve(CompareOptions(tuned=str(folder), default_run=tmp_path / "none"))
    assert found.base.model_name_or_path == "org/base"
    assert found.held_out


def test_a_project_that_moved_as_a_whole_is_looked_at_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "now" / "models" / "base").mkdir(parents=True)
    folder = write_run(tmp_path / "now" / "runs" / "first", base_model="/gone/project/models/base")
    monkeypatch.chdir(tmp_path / "now")
    assert TunedRun.read(folder).base.model_name_or_path == "models/base"
    monkeypatch.chdir(tmp_path)
    assert TunedRun.read(folder).base.model_name_or_path == "/gone/project/models/base"


def test_files_that_moved_with_the_run_are_found_beside_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", base_model=str(tmp_path / "gone" / "base"))
    (folder / "base").mkdir()
    moved = folder.rename(tmp_path / "moved")
    run = TunedRun.read(moved)
    assert run.passages == (moved / "corpus.csv",)
    assert run.held_out == moved / "held_out.jsonl"
    assert run.base.model_name_or_path == str(moved / "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "training"}, "not complete"),
        ({"base_model": ...}, "'base_model' should be str"),
        ({"encoder": {"colour": "red"}}, "encoder's options cannot be read"),
        ({"passages": "corpus.csv"}, "'passages' should be list"),
        ({"n_docs": None}, "'n_docs' should be int"),
    ],
)
def test_a_record_that_cannot_serve_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        TunedRun.read(write_run(tmp_path, **changes))


def test_a_run_without_held_out_queries_asks_for_some(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"no held-out queries.*--query"):
        resolve(CompareOptions(run=write_run(tmp_path, held_out=None)))


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(OptionError, match="--n_docs 0"):
        CompareOptions(n_docs=0)
    with pytest.raises(OptionError, match="--query is empty"):
        CompareOptions(queries=(" ",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "cannot be read"),
        ("empty.txt", b"\n \n", "no query in it"),
        ("bytes.txt", b"ok\n\xff\n", "cannot be read"),
        ("broken.jsonl", b'{"query": "a"}\n{"query": \n', "line 2: not JSON"),
        ("list.jsonl", b"[1]\n", "line 1: expected an object"),
        ("missing.jsonl", b'\n{"text": "a"}\n', "line 2: 'query' should be a text, found None"),
        ("empty.jsonl", b'{"query": " "}\n', "no query in it"),
        ("number.jsonl", b'{"query": "a", "document_id": 7}\n', "'document_id' should be a text, found 7"),
    ],
)
def test_query_files_that_cannot_be_read_name_the_place(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        read_queries(path)
    assert str(path) in str(caught.value)


def test_query_files_may_have_a_bom_crlf_and_line_separators_within_a_query(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes("\ufeffone\u2028still one\r\ntwo".encode())
    assert [query.text for query in read_queries(tmp_path / "q.txt")] == ["one\u2028still one", "two"]


def test_blank_queries_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"query": ""}\n\n{"query": "a"}\n')
    assert read_queries(tmp_path / "q.jsonl") == [Query("a")]


def test_spread_takes_positions_evenly_and_never_more_than_there_are() -> None:
    assert spread(9, 3) == [1, 4, 7]
    assert spread(2, 5) == [0, 1]
    assert spread(1000, 200) == list(range(2, 1000, 5))


def test_names_are_short_and_hub_names_whole() -> None:
    assert shown_name("sentence-transformers/all-MiniLM-L6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    assert shown_name("/usr/lib/models/mini") == "models/mini"

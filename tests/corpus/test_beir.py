from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from replug_client.corpus.beir import (
    BeirSource,
    fetch_beir,
    is_beir_folder,
    read_beir_queries,
    read_qrels,
)
from replug_client.corpus.download import DownloadOptions
from replug_client.errors import ArtefactError, CorpusError, DownloadError, OptionError
from tests.corpus.file_server import FileServer, serving

QUICK = DownloadOptions(attempts=1, wait=0.0, timeout=5.0)


def lines(path: Path, *values: object) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_title_and_text_are_joined_as_beir_joins_them(tmp_path: Path) -> None:
    corpus = lines(
        tmp_path / "corpus.jsonl",
        {"_id": "1", "title": "Title", "text": "Text.", "metadata": {}},
        {"_id": "2", "title": "", "text": "No title."},
        {"_id": "3", "title": "No text", "text": ""},
        {"_id": "4", "title": " ", "text": ""},
        {"_id": 5, "text": "A number is an id."},
    )
    source = BeirSource(corpus)
    assert [(p.id, p.title, p.text) for p in source] == [
        ("1", "Title", "Title Text."),
        ("2", None, "No title."),
        ("3", "No text", "No text"),
        ("5", None, "A number is an id."),
    ]
    assert source.empty == 1
    plain = list(BeirSource(corpus, join_title=False))
    assert [p.text for p in plain] == ["Text.", "No title.", "No text", "A number is an id."]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x"}, "no column '_id'"),
        ({"_id": "1", "text": ["x"]}, "found list"),
        ({"_id": "0", "text": "x"}, "duplicate id '0'"),
    ],
)
def test_a_bad_passage_is_named_with_its_line(tmp_path: Path, row: object, said: str) -> None:
    corpus = lines(tmp_path / "corpus.jsonl", {"_id": "0", "text": "x"}, row)
    with pytest.raises(CorpusError, match=rf"line 2.*{said}"):
        list(BeirSource(corpus))


def test_queries_can_be_cut_to_those_wanted(tmp_path: Path) -> None:
    path = lines(tmp_path / "queries.jsonl", {"_id": "a", "text": "A"}, {"_id": "b", "text": "B"})
    assert read_beir_queries(path) == {"a": "A", "b": "B"}
    assert read_beir_queries(path, {"b"}) == {"b": "B"}


@pytest.mark.parametrize(
    "text",
    [
        'query-id\tcorpus-id\tscore\nq 1\td"1\t2\nq 1\td2\t0\nq2\td1\t1.0\n',
        'q 1\td"1\t2\nq 1\td2\t0\nq2\td1\t1\n',
        'q 1\t0\td"1\t2\nq 1\t0\td2\t0\r\nq2\t0\td1\t1\n',
    ],
)
def test_judgements_are_read_with_or_without_a_header_and_in_trec_form(tmp_path: Path, text: str) -> None:
    (tmp_path / "test.tsv").write_text(text)
    assert read_qrels(tmp_path / "test.tsv") == {"q 1": {'d"1': 2, "d2": 0}, "q2": {"d1": 1}}


def test_trec_judgements_with_spaces_between(tmp_path: Path) -> None:
    (tmp_path / "qrels.txt").write_text("q1 0 d1 2\nq1  0  d2 0\n")
    assert read_qrels(tmp_path / "qrels.txt") == {"q1": {"d1": 2, "d2": 0}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("query-id\tcorpus-id\tscore\n", "no judgement"),
        ("q\td\t1\nq\td\n", "line 2"),
        ("q\td\t1\nq\te\t0.5\n", "a whole number"),
        ("q\td\t1\nq\td\t2\n", "judged 1 before, and here 2"),
    ],
)
def test_bad_judgements_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "test.tsv").write_text(text)
    with pytest.raises(CorpusError, match=said):
        read_qrels(tmp_path / "test.tsv")


def archive(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr(f"{name}/corpus.jsonl", '{"_id": "1", "text": "x"}\n')
        packed.writestr(f"{name}/queries.jsonl", '{"_id": "1", "text": "x"}\n')
        packed.writestr(f"{name}/qrels/test.tsv", "q\td\t1\n")
    return path.read_bytes()


def test_a_data_set_is_fetched_unpacked_and_found_again(tmp_path: Path) -> None:
    with serving(FileServer(archive(tmp_path / "made.zip", "mine"))) as server:
        folder = fetch_beir("mine", tmp_path / "cache", base_url=server.url, options=QUICK)
        assert folder == tmp_path / "cache" / "beir" / "mine" and is_beir_folder(folder)
        assert fetch_beir("mine", tmp_path / "cache", base_url=server.url, options=QUICK) == folder
        assert len(server.seen) == 1


def test_a_published_hash_is_checked(tmp_path: Path) -> None:
    with (
        serving(FileServer(archive(tmp_path / "made.zip", "scifact"))) as server,
        pytest.raises(DownloadError, match="expected 5f7d1de60b170fc8027bb7898e2efca1"),
    ):
        fetch_beir("scifact", tmp_path / "cache", base_url=server.url, options=QUICK)
    assert not (tmp_path / "cache/beir/scifact").exists()


def test_offline_it_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_beir("scifact", tmp_path, base_url="http://127.0.0.1:9", options=QUICK)
    said = str(caught.value)
    assert (
        f"put scifact.zip (md5 5f7d1de60b170fc8027bb7898e2efca1) there as {tmp_path}/beir/scifact.zip" in said
    )
    assert f"as the folder {tmp_path}/beir/scifact" in said


def test_a_hostile_archive_and_a_hostile_name_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as packed:
        packed.writestr("../evil", "x")
    with serving(FileServer((tmp_path / "made.zip").read_bytes())) as server, pytest.raises(ArtefactError):
        fetch_beir("mine", tmp_path / "cache", base_url=server.url, options=QUICK)
    assert not (tmp_path / "cache" / "evil").exists()
    with pytest.raises(OptionError):
        fetch_beir("../up", tmp_path / "cache")

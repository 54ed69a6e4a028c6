"""MS MARCO: subsets that keep what is relevant, splits by hash, triples of both kinds."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest

from replug_client.corpus.readers import open_source, read_documents
from replug_client.corpus.sources.conversion import convert
from replug_client.corpus.sources.msmarco import MsMarcoFiles, MsMarcoOptions, conversion
from replug_client.errors import CorpusError, OptionError


def write_set(folder: Path, passages: int = 50, queries: int = 8) -> MsMarcoFiles:
    """Query q is answered by passages 3q and 3q + 1; one judged passage and one judged query do not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "collection.tsv").write_text(
        "".join(f'{n}\tpassage "number {n}\n' for n in range(passages))  # a lone quote is text here
    )
    (folder / "queries.tsv").write_text(
        "".join(f"{q}\tquestion {q}\n" for q in range(100, 100 + queries + 2))
    )
    judged = [(100 + q, 3 * q + extra) for q in range(queries) for extra in (0, 1)]
    lines = [f"{q}\t0\t{p}\t1\n" for q, p in [*judged, (100, 999), (777, 1)]]
    (folder / "qrels.tsv").write_text("".join(lines))
    return MsMarcoFiles(folder / "collection.tsv", folder / "queries.tsv", folder / "qrels.tsv")


def qrels(path: Path) -> list[tuple[str, ...]]:
    with path.open() as stream:
        return [tuple(row) for row in csv.reader(stream, delimiter="\t")]


def test_everything_is_kept_unless_a_subset_is_asked_for(tmp_path: Path) -> None:
    report = convert(conversion(write_set(tmp_path / "in"), MsMarcoOptions()), tmp_path / "out")
    assert report.rows["passages"] == 50 and report.rows["queries"] == 8
    assert report.left_out == {
        "queries without judgement": 2,
        "judged queries without text": 1,
        "judgements of passages that are not in the collection": 1,
    }
    assert [p.text for p in open_source(report.files["passages"])][7] == 'passage "number 7'
    rows = qrels(report.files["qrels.tsv"])
    assert rows[0] == ("query-id", "corpus-id", "score")
    assert rows[1:4] == [("100", "0", "1"), ("100", "1", "1"), ("101", "3", "1")]
    assert len(rows) == 17


def test_documents_are_a_query_and_its_relevant_passage_split_by_query(tmp_path: Path) -> None:
    options = MsMarcoOptions(held_out_every=3)
    report = convert(conversion(write_set(tmp_path / "in"), options), tmp_path / "out")
    train = list(read_documents(report.files["train"]))
    held = list(read_documents(report.files["held_out"]))
    assert len(train) + len(held) == 16 and train and held
    assert {d.extra["query_id"] for d in train}.isdisjoint(d.extra["query_id"] for d in held)
    first = min([*train, *held], key=lambda document: document.id)
    assert (first.id, first.text) == ("100-0", 'question 100\npassage "number 0')
    parts = {p.id: p.extra["part"] for p in open_source(report.files["queries"])}
    assert all(parts[d.extra["query_id"]] == "held_out" for d in held)


def test_a_subset_has_its_size_and_keeps_what_is_relevant(tmp_path: Path) -> None:
    files = write_set(tmp_path / "in")
    options = MsMarcoOptions(num_passages=20, num_queries=3)
    report = convert(conversion(files, options), tmp_path / "out")
    kept = [p.id for p in open_source(report.files["passages"])]
    assert len(kept) == 20 and len(set(kept)) == 20
    judged = {row[1] for row in qrels(report.files["qrels.tsv"])[1:]}
    assert len(judged) == 6 and judged <= set(kept)
    assert report.left_out["passages beyond --num_passages"] == 30
    assert report.left_out["queries beyond --num_queries"] == 5
    other = convert(conversion(files, MsMarcoOptions(20, 3, seed=1)), tmp_path / "seed")
    assert kept != [p.id for p in open_source(other.files["passages"])]
    again = convert(conversion(files, options), tmp_path / "again")
    assert again.files["passages"].read_bytes() == report.files["passages"].read_bytes()


def test_fewer_passages_than_are_relevant_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--num_passages is 5, but 16 passages are relevant"):
        conversion(write_set(tmp_path / "in"), MsMarcoOptions(num_passages=5))
    only = convert(conversion(write_set(tmp_path / "in"), MsMarcoOptions(num_passages=16)), tmp_path / "out")
    assert only.rows["passages"] == 16


def test_triples_of_texts_need_no_collection(tmp_path: Path) -> None:
    path = tmp_path / "triples.train.small.tsv.gz"
    path.write_bytes(gzip.compress(b"q one\tgood\tbad\nq two\tbetter\tworse\nq 3\ta\tb\n"))
    report = convert(
        conversion(MsMarcoFiles(triples=path), MsMarcoOptions(num_triples=2)), tmp_path / "out", "jsonl"
    )
    assert report.files["triplets"].read_text().splitlines() == [
        '{"id": "1", "query": "q one", "positive": "good", "negative": "bad"}',
        '{"id": "2", "query": "q two", "positive": "better", "negative": "worse"}',
    ]


def test_passages_of_triples_of_ids_are_kept_in_a_subset(tmp_path: Path) -> None:
    files = write_set(tmp_path / "in")
    (tmp_path / "ids.tsv").write_text("100\t0\t49\n101\t3\t48\n102\t6\t47\n")
    files = MsMarcoFiles(files.collection, files.queries, files.qrels, tmp_path / "ids.tsv")
    report = convert(conversion(files, MsMarcoOptions(num_passages=18, num_triples=2)), tmp_path / "out")
    kept = {p.id for p in open_source(report.files["passages"])}
    assert {"49", "48"} <= kept and len(kept) == 18 and "47" not in kept
    assert report.files["triplets"].read_text().splitlines()[1] == "1,100,0,49"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"7\n", r"collection\.tsv, line 2 .*found 1 columns, expected 2"),
        (b"7\tcaf\xe9\n", r"collection\.tsv, line 2 .*byte 0xe9"),
        (b"\ttext\n", r"line 2 .*the first is empty"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "collection.tsv"
    path.write_bytes(b"1\ttext\x00 with a null\n" + line)
    with pytest.raises(CorpusError, match=message):
        convert(conversion(MsMarcoFiles(path), MsMarcoOptions()), tmp_path / "out")


def test_flags_that_need_each_other_say_so() -> None:
    with pytest.raises(OptionError, match="go together"):
        MsMarcoFiles(collection=Path("c.tsv"), queries=Path("q.tsv"))
    with pytest.raises(OptionError, match="no --collection"):
        MsMarcoFiles()
    with pytest.raises(OptionError, match="--held_out_every is 1"):
        MsMarcoOptions(held_out_every=1)

"""Rows whose columns are called anything, as passages."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest

from replug_client.corpus.readers import open_source
from replug_client.corpus.sources.conversion import ConversionReport, convert
from replug_client.corpus.sources.pieces import PieceOptions
from replug_client.corpus.sources.records_in import RecordOptions, conversion
from replug_client.errors import CorpusError, OptionError

LINES = b'{"body": "one two three", "name": "T", "n": 7}\n\n{"body": " ", "n": 8}\n{"body": "four\\u0000", "n": 9}\n'


def make(paths: list[Path], output: Path, **changes: object) -> ConversionReport:
    options = RecordOptions(
        **{"pieces": PieceOptions(2), "text_field": "body", "title_field": "name", **changes}
    )  # type: ignore[arg-type]
    return convert(conversion(paths, options, None), output)


def rows(report: ConversionReport) -> list[tuple[str, str | None, str]]:
    return [(p.id, p.title, p.text) for p in open_source(report.files["passages"])]


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_rows_become_passages(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    path.write_bytes({"": bytes, ".gz": gzip.compress, ".zst": zstd}[suffix](LINES))
    report = make([path], tmp_path / "out")
    assert rows(report) == [("1#0", "T", "one two"), ("1#1", "T", " three"), ("3#0", None, "four\x00")]
    assert report.left_out == {"rows without text": 1}
    by_id = make([path], tmp_path / "ids", id_field="n", pieces=None)
    assert rows(by_id) == [("7", "T", "one two three"), ("9", None, "four\x00")]


def test_rows_of_several_files_have_ids_of_their_own(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(LINES)
    report = make([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out", pieces=None)
    assert [row[0] for row in rows(report)] == ["0-1", "0-3", "1-1", "1-3"]


def test_a_csv_is_read_by_its_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("key,body,name\n007,one two three,T\n")
    report = make([tmp_path / "x.csv"], tmp_path / "out", id_field="key")
    assert rows(report) == [("007#0", "T", "one two"), ("007#1", "T", " three")]
    with pytest.raises(OptionError, match="--id_field"):
        make([tmp_path / "x.csv"], tmp_path / "other")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"}', r"x\.jsonl, line 5 \(record 4\): no field 'body'; found 'text'"),
        (b'{"body": ["x"]}', r"line 5 .*column 'body': found list, expected text"),
        (b'{"body": "caf\xe9"}', r"line 5 .*column 'body': byte 0xe9 .*not UTF-8"),
        (b'{"body": "\\ud800"}', r"line 5 .*U\+D800 .*half a surrogate"),
        (b'{"body": "x"', r"line 5 .*not JSON"),
        (b'{"body": "x", "body": "y"}', r"line 5 .*a key stands twice"),
        (b"[" * 100_000, r"line 5 .*not JSON"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(LINES + line + b"\n")
    with pytest.raises(CorpusError, match=message):
        make([tmp_path / "x.jsonl"], tmp_path / "out")


def test_a_packed_csv_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"id,body\n1,x\n"))
    with pytest.raises(CorpusError, match="Unpack it first"):
        make([tmp_path / "x.csv.gz"], tmp_path / "out")

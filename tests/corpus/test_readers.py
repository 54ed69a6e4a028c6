"""What files may look like, and what is said when they cannot be read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replug_client.corpus.readers import open_source, read_documents
from replug_client.corpus.records import Document, Passage
from replug_client.errors import CorpusError

MakeFile = Callable[[str, bytes], Path]


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    def make(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return make


def refusal(path: Path) -> str:
    with pytest.raises(CorpusError) as caught:
        list(open_source(path))
    return str(caught.value)


def texts(path: Path) -> list[str]:
    return [row.text for row in open_source(path)]


# ---- any text file -----------------------------------------------------------------------------


def test_a_bom_is_no_part_of_the_first_column(make_file: MakeFile) -> None:
    assert texts(make_file("a.csv", b"\xef\xbb\xbfid,text\n1,one\n")) == ["one"]
    assert texts(make_file("a.jsonl", b'\xef\xbb\xbf{"id": "1", "text": "one"}\n')) == ["one"]
    assert texts(make_file("b.csv", b'\xef\xbb\xbf"id",text\n1,one\n')) == ["one"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_rows_may_end_in_any_way_and_the_last_need_not(make_file: MakeFile, end: bytes) -> None:
    path = make_file("a.csv", end.join([b"id,text", b"1,one", b"2,two"]))
    assert texts(path) == ["one", "two"]


def test_line_ends_inside_quotes_stay_what_they_are_beside_others(make_file: MakeFile) -> None:
    path = make_file("a.csv", b'id,text\r\n1,"a\nb\r\nc\rd"\r\n2,two\r\n')
    assert texts(path) == ["a\nb\r\nc\rd", "two"]


def test_blank_lines_are_skipped_and_still_count_as_lines(make_file: MakeFile) -> None:
    path = make_file("a.csv", b"\n\nid,text\n\n1,one\n\n2,\n")
    assert "a.csv, line 7 (record 2), column 'text': empty text" in refusal(path)
    path = make_file("a.jsonl", b'\n{"id": "1", "text": "one"}\r\n \n{"id": "2", "text": ""}\n')
    assert "a.jsonl, line 4 (record 2), column 'text': empty text" in refusal(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_refused(make_file: MakeFile, suffix: str, content: bytes) -> None:
    assert f"a{suffix}: an empty file" in refusal(make_file("a" + suffix, content))


def test_a_header_alone_is_an_empty_file(make_file: MakeFile) -> None:
    assert "a.csv: an empty file" in refusal(make_file("a.csv", b"id,text\n"))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_utf16_is_named_as_such(make_file: MakeFile, suffix: str) -> None:
    message = refusal(make_file("a" + suffix, "id,text\n1,one\n".encode("utf-16")))
    assert "UTF-16" in message
    assert "iconv" in message


def test_ids_that_look_like_numbers_stay_apart(make_file: MakeFile) -> None:
    path = make_file("a.csv", b"id,text\n007,bond\n7,seven\n7.0,float\n")
    assert [row.id for row in open_source(path)] == ["007", "7", "7.0"]


def test_other_column_names_can_be_given(make_file: MakeFile) -> None:
    path = make_file("a.csv", b"key,body,text\n1,one,other\n")
    (row,) = open_source(path, id_column="key", text_column="body")
    assert row == Passage(id="1", text="one", extra={"text": "other"})


# ---- CSV and TSV -------------------------------------------------------------------------------


def test_a_ragged_row_names_the_line_it_starts_on(make_file: MakeFile) -> None:
    content = b'id,text,path\n1,"one\n\nstill one",p\n2,two\n3,three,p\n'
    message = refusal(make_file("a.csv", content))
    assert "a.csv, line 5 (record 2), column 'path': a ragged row: 2 fields, expected 3" in message


def test_a_row_with_too_many_fields_is_ragged_too(make_file: MakeFile) -> None:
    message = refusal(make_file("a.csv", b"id,text\n1,one, or two\n"))
    assert "line 2 (record 1), column 'text': a ragged row: 3 fields, expected 2" in message


def test_a_missing_column_lists_what_there_is(make_file: MakeFile) -> None:
    message = refusal(make_file("a.csv", b"id,body\n1,one\n"))
    assert "a.csv, line 1 (the header): no column 'text'; found 'id', 'body'" in message
    assert "no column 'id'" in refusal(make_file("b.csv", b"key,text\n1,one\n"))


def test_a_column_that_is_nearly_right_is_pointed_out(make_file: MakeFile) -> None:
    assert "Rename ' Text' to 'text'" in refusal(make_file("a.csv", b"id, Text\n1,one\n"))


def test_the_wrong_delimiter_is_recognised(make_file: MakeFile) -> None:
    assert "separated by a tab" in refusal(make_file("a.csv", b"id\ttext\n1\tone\n"))
    assert "separated by a semicolon" in refusal(make_file("b.csv", b"id;text\n1;one\n"))
    assert "separated by a comma" in refusal(make_file("a.tsv", b"id,text\n1,one\n"))


def test_a_column_that_stands_twice_is_refused(make_file: MakeFile) -> None:
    assert "column 'text': a column of this name" in refusal(make_file("a.csv", b"id,text,text\n1,a,b\n"))


def test_undecodable_bytes_name_line_and_column(make_file: MakeFile) -> None:
    content = b'id,text,path\n1,"one\ntwo",ok\n2,fine,caf\xe9\n'
    message = refusal(make_file("a.csv", content))
    assert "a.csv, line 4 (record 2), column 'path': byte 0xe9 (after 3 characters) is not UTF-8" in message
    assert "iconv" in message
    assert "column '2': byte 0xe9" in refusal(make_file("b.csv", b"id,t\xe9xt\n1,one\n"))


def test_bytes_that_spell_a_surrogate_are_undecodable(make_file: MakeFile) -> None:
    assert "byte 0xed" in refusal(make_file("a.csv", b"id,text\n1,\xed\xa0\x80\n"))


def test_a_quote_that_is_never_closed_names_where_it_opens(make_file: MakeFile) -> None:
    message = refusal(make_file("a.csv", b'id,text\n1,one\n2,"two\n3,three\n'))
    assert "a.csv, line 3 (record 2): the row that starts here cannot be read" in message


def test_a_quote_inside_a_quoted_field_must_be_doubled(make_file: MakeFile) -> None:
    message = refusal(make_file("a.csv", b'id,text\n1,"say "hello" now"\n'))
    assert "line 2" in message
    assert "doubled" in message
    assert texts(make_file("b.csv", b'id,text\n1,say "hello" now\n')) == ['say "hello" now']


def test_fields_over_the_csv_modules_limit_are_read(make_file: MakeFile) -> None:
    csv.field_size_limit(131_072)
    long = b"word " * 40_000
    assert texts(make_file("a.csv", b"id,text\n1," + long + b"\n")) == [long.decode()]


def test_nul_bytes_are_kept(make_file: MakeFile) -> None:
    assert texts(make_file("a.csv", b"id,text\n1,a\x00b\n")) == ["a\x00b"]


# ---- JSONL -------------------------------------------------------------------------------------


def jsonl(make_file: MakeFile, *rows: Any) -> Path:
    return make_file("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())


def test_json_whole_numbers_become_the_text_of_the_id(make_file: MakeFile) -> None:
    path = jsonl(make_file, {"id": 7, "text": "a"}, {"id": "007", "text": "b"}, {"id": 2**70, "text": "c"})
    assert [row.id for row in open_source(path)] == ["7", "007", str(2**70)]


@pytest.mark.parametrize(
    ("value", "found"), [(7.0, "7.0 (float)"), (True, "true (bool)"), (None, "nothing"), ([1], "[1]")]
)
def test_other_json_ids_are_refused(make_file: MakeFile, value: object, found: str) -> None:
    message = refusal(jsonl(make_file, {"id": "1", "text": "a"}, {"id": value, "text": "b"}))
    assert f"line 2 (record 2), column 'id': found {found}" in message
    assert "an id is text or a whole number" in message


def test_a_json_number_and_the_same_text_are_one_id(make_file: MakeFile) -> None:
    assert "duplicate id '7'" in refusal(jsonl(make_file, {"id": 7, "text": "a"}, {"id": "7", "text": "b"}))


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": 1}])
def test_a_json_text_must_be_a_string(make_file: MakeFile, value: object) -> None:
    assert "line 1 (record 1), column 'text'" in refusal(jsonl(make_file, {"id": "1", "text": value}))


def test_a_missing_json_key_names_the_line(make_file: MakeFile) -> None:
    message = refusal(jsonl(make_file, {"id": "1", "text": "a"}, {"id": "2", "body": "b"}))
    assert "a.jsonl, line 2 (record 2): no column 'text'; found 'id', 'body'" in message


def test_other_json_values_are_kept_as_text(make_file: MakeFile) -> None:
    path = jsonl(
        make_file, {"id": "1", "text": "a", "n": 3, "f": 0.5, "no": None, "yes": True, "l": ["é", 1]}
    )
    (row,) = open_source(path)
    assert row.extra == {"n": "3", "f": "0.5", "yes": "true", "l": '["é", 1]'}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"id": "1", "text": "a"', "not JSON"),
        (b'["id", "text"]', "found a JSON list"),
        (b"3", "found a JSON int"),
        (b'{"id": "1", "text": "a", "text": "b"}', "a key stands twice"),
        (b"[" * 100_000, "not JSON"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_a_line_that_is_no_object_is_refused(make_file: MakeFile, line: bytes, found: str) -> None:
    message = refusal(make_file("a.jsonl", b'{"id": "0", "text": "a"}\n' + line + b"\n"))
    assert "a.jsonl, line 2 (record 2): " in message
    assert found in message


def test_undecodable_bytes_in_json_name_line_and_column(make_file: MakeFile) -> None:
    message = refusal(make_file("a.jsonl", b'{"id": "1", "text": "a"}\n{"id": "2", "text": "caf\xe9"}\n'))
    assert "line 2 (record 2), column 'text': byte 0xe9 (after 3 characters) is not UTF-8" in message
    assert "line 1 (record 1): byte 0xe9" in refusal(make_file("b.jsonl", b'{"id": "1", "t\xe9xt": "a"}\n'))


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_read(make_file: MakeFile) -> None:
    message = refusal(make_file("a.jsonl", b'{"id": "1", "text": "x\\ud83d"}\n'))
    assert "column 'text': U+D83D (after 1 characters) is half a surrogate pair" in message
    assert texts(make_file("b.jsonl", b'{"id": "1", "text": "\\ud83d\\ude00"}\n')) == ["\U0001f600"]


# ---- Parquet -----------------------------------------------------------------------------------


def parquet(tmp_path: Path, columns: dict[str, Any]) -> Path:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint8(), pa.string(), pa.large_string(), pa.binary()])
def test_parquet_ids_may_be_text_or_whole_numbers(tmp_path: Path, kind: pa.DataType) -> None:
    values = [7, 12] if pa.types.is_integer(kind) else ["7", "12"]
    path = parquet(tmp_path, {"id": pa.array(values, kind), "text": ["a", "b"]})
    assert [row.id for row in open_source(path)] == ["7", "12"]


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.decimal128(5, 2), pa.null()])
def test_other_parquet_ids_are_refused(tmp_path: Path, kind: pa.DataType) -> None:
    path = parquet(tmp_path, {"id": pa.nulls(2, kind), "text": ["a", "b"]})
    assert f"column 'id': found {kind}; an id is text or a whole number" in refusal(path)


def test_parquet_dictionaries_are_text(tmp_path: Path) -> None:
    column = pa.array(["same", "other", "same"]).dictionary_encode()
    path = parquet(tmp_path, {"id": ["1", "2", "3"], "text": column})
    assert texts(path) == ["same", "other", "same"]


def test_a_parquet_null_is_an_empty_text(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"id": ["1", "2"], "text": ["a", None]})
    assert "a.parquet, record 2, column 'text': empty text" in refusal(path)


def test_a_parquet_null_is_no_id(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"id": ["1", None], "text": ["a", "b"]})
    assert "record 2, column 'id': found nothing" in refusal(path)


def test_undecodable_bytes_in_parquet_name_record_and_column(tmp_path: Path) -> None:
    path = parquet(tmp_path, {"id": ["1", "2"], "text": pa.array([b"fine", b"caf\xe9"], pa.binary())})
    assert "record 2, column 'text': byte 0xe9 (after 3 characters) is not UTF-8" in refusal(path)


def test_other_parquet_columns_are_kept_as_text(tmp_path: Path) -> None:
    path = parquet(
        tmp_path,
        {
            "id": ["1"],
            "text": ["a"],
            "title": ["A title"],
            "stars": [3],
            "tags": [["x", "y"]],
            "picture": pa.array([b"\xff\x00"], pa.binary()),
            "none": pa.nulls(1, pa.string()),
        },
    )
    (row,) = open_source(path)
    assert row.title == "A title"
    assert row.extra == {"stars": "3", "tags": '["x", "y"]', "picture": "<2 bytes>"}


def test_a_missing_parquet_column_lists_what_there_is(tmp_path: Path) -> None:
    assert "a.parquet: no column 'text'; found 'id', 'body'" in refusal(
        parquet(tmp_path, {"id": ["1"], "body": ["a"]})
    )


def test_a_parquet_text_must_be_text(tmp_path: Path) -> None:
    assert "column 'text': found int64, expected text" in refusal(
        parquet(tmp_path, {"id": ["1"], "text": [3]})
    )


@pytest.mark.parametrize("content", [b"", b"id,text\n1,one\n", b"PAR1" + b"\x00" * 40])
def test_what_is_no_parquet_is_refused(make_file: MakeFile, content: bytes) -> None:
    assert "a.parquet, after record 0: cannot be read as Parquet" in refusal(make_file("a.parquet", content))


# ---- paths -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path, suffix: str) -> None:
    assert "no such file" in refusal(tmp_path / f"none{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    assert "a folder, expected a file" in refusal(tmp_path / f"folder{suffix}")


def test_an_unknown_suffix_lists_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"'\.xlsx', expected one of \.csv, \.tsv, \.jsonl, \.parquet"):
        open_source(tmp_path / "a.xlsx")


def test_the_suffix_may_be_in_capitals(make_file: MakeFile) -> None:
    assert texts(make_file("A.CSV", b"id,text\n1,one\n")) == ["one"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_advance_is_told_every_byte(make_file: MakeFile, suffix: str) -> None:
    rows = [b"id,text"] if suffix == ".csv" else []
    rows += [b'%d,"x"' % n if suffix == ".csv" else b'{"id": "%d", "text": "x"}' % n for n in range(20_000)]
    path = make_file("a" + suffix, b"\n".join(rows))
    steps: list[int] = []
    list(open_source(path, advance=steps.append))
    assert sum(steps) == path.stat().st_size
    assert len(steps) > 2


def test_documents_are_read_by_the_same_rules(make_file: MakeFile) -> None:
    path = make_file("a.csv", b"id,text,title,file\n007,one,T,f.py\n7,two,,g.py\n")
    assert list(read_documents(path)) == [
        Document(id="007", text="one", extra={"title": "T", "file": "f.py"}),
        Document(id="7", text="two", extra={"file": "g.py"}),
    ]
    with pytest.raises(CorpusError, match=r"line 3 \(record 2\), column 'id': duplicate id '1'"):
        list(read_documents(make_file("b.csv", b"id,text\n1,one\n1,two\n")))

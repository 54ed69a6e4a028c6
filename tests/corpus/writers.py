"""Files of passages for the tests, in every format that is read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from replug_client.corpus.records import Passage

COLUMNS = ("id", "title", "text", "path")


def cells(passage: Passage) -> dict[str, str]:
    return {
        "id": passage.id,
        "title": passage.title or "",
        "text": passage.text,
        "path": passage.extra["path"],
    }


def write_delimited(path: Path, passages: Iterable[Passage], delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(map(cells, passages))


def write_csv(path: Path, passages: Iterable[Passage]) -> None:
    write_delimited(path, passages, ",")


def write_tsv(path: Path, passages: Iterable[Passage]) -> None:
    write_delimited(path, passages, "\t")


def write_jsonl(path: Path, passages: Iterable[Passage]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for passage in passages:
            stream.write(json.dumps(cells(passage), ensure_ascii=False) + "\n")


def write_parquet(path: Path, passages: Iterable[Passage]) -> None:
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    rows = [cells(passage) for passage in passages]
    table = pa.Table.from_pylist(rows, schema=schema)
    # Compressed, repetitive texts would hide from the memory test what a reader holds.
    pq.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)


WRITERS: dict[str, Callable[[Path, Iterable[Passage]], None]] = {
    ".csv": write_csv,
    ".tsv": write_tsv,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}

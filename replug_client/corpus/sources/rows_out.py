"""Rows into a file that can be gone on with: appended, cut back to a checkpoint, and finished as what was asked."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from replug_client.artefacts import atomic_write

FORMATS = ("csv", "tsv", "jsonl", "parquet")
Cells = Mapping[str, str]
_GROUP_ROWS = 4096
_GROUP_CHARACTERS = 1 << 24
_DELIMITERS = {"csv": ",", "tsv": "\t"}


class GrowingFile:
    """A file of rows that is being made: ``.NAME.partial`` until :meth:`finish` gives it its name.

    Parquet cannot be appended to, so its rows wait as JSON lines and are packed at the end. Every cell is text;
    a column that a row lacks is empty.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Nothing is opened yet.

        Args:
            path: What it will be called; its suffix is one of :data:`FORMATS`.
            columns: In their order.
        """
        format_ = path.suffix.removeprefix(".")
        self.path = path
        self.partial = path.with_name(f".{path.name}.partial")
        self._columns = tuple(columns)
        self._format = format_
        self._encode: Callable[[Sequence[str]], bytes] = self._json_line
        if format_ in _DELIMITERS:
            self._encode = delimited_line(_DELIMITERS[format_])

    def open(self, size: int) -> None:
        """Go on behind the first ``size`` bytes; 0 begins anew."""
        if not size:
            self.partial.unlink(missing_ok=True)
        self._stream = self.partial.open("r+b" if size else "w+b")
        self._stream.truncate(size)
        self._stream.seek(size)
        if not size and self._format in _DELIMITERS:
            self._stream.write(self._encode(self._columns))

    def write(self, cells: Cells) -> None:
        """Add a row.

        Raises:
            ValueError: a cell for which there is no column.
        """
        if unknown := cells.keys() - set(self._columns):
            raise ValueError(f"no column {sorted(unknown)} in {self.path.name}; it has {self._columns}")
        self._stream.write(self._encode([cells.get(name, "") for name in self._columns]))

    def checkpoint(self) -> int:
        """See that all rows so far are on the disk; the size in bytes."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._stream.tell()

    def close(self) -> None:
        """Close the file as far as it is."""
        self._stream.close()

    def finish(self) -> None:
        """Give the closed file its name; a second call after an interruption changes nothing."""
        if not self.partial.exists():
            return
        if self._format != "parquet":
            self.partial.replace(self.path)
            return
        schema = pa.schema([(name, pa.string()) for name in self._columns])
        with atomic_write(self.path) as stream, pq.ParquetWriter(stream, schema) as writer:
            for group in self._groups():
                columns = [pa.array(values, pa.string()) for values in zip(*group, strict=True)]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
        self.partial.unlink()

    def _json_line(self, values: Sequence[str]) -> bytes:
        return (json.dumps(dict(zip(self._columns, values, strict=True)), ensure_ascii=False) + "\n").encode()

    def _groups(self) -> Iterator[list[list[str]]]:
        group: list[list[str]] = []
        characters = 0
        with self.partial.open("rb") as stream:
            for line in stream:
                group.append(list(json.loads(line).values()))
                characters += len(line)
                if len(group) == _GROUP_ROWS or characters >= _GROUP_CHARACTERS:
                    yield group
                    group, characters = [], 0
        if group:
            yield group


def delimited_line(delimiter: str) -> Callable[[Sequence[str]], bytes]:
    """What turns cells into one line of CSV or TSV, quoted where it must be."""
    buffer = io.StringIO(newline="")
    # With this line end the writer quotes a lone \r as well as \n; the rows themselves end in \n.
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator="\r\n")

    def encode(values: Sequence[str]) -> bytes:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow(values)
        return (buffer.getvalue()[:-2] + "\n").encode()

    return encode

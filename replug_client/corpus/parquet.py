"""Parquet: records out of a columnar file, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from replug_client.corpus.records import Passage
from replug_client.corpus.rows import Advance, Columns, Place, missing_column, passage_of, refuse_bad_bytes
from replug_client.errors import CorpusError

_BATCH_ROWS = 256


def parquet_passages(path: Path, columns: Columns, advance: Advance) -> Iterator[tuple[Place, Passage]]:
    """Records of a Parquet file; memory is bounded by its largest row group.

    Raises:
        CorpusError: not a Parquet file, a missing or repeated column, an id column that is neither
            text nor whole numbers, bytes that are not UTF-8, or whatever :func:`passage_of` refuses.
    """
    path.open("rb").close()  # Python's errors for a missing file or a folder, not Arrow's
    record = 0
    try:
        # pre_buffer, the default, fetches the whole file into memory.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            _check_schema(path, file.schema_arrow, columns)
            bytes_a_row = path.stat().st_size / max(1, file.metadata.num_rows)
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                required = (columns.id, columns.text)
                values = {name: _values(batch.column(name), name in required) for name in batch.schema.names}
                for row in range(batch.num_rows):
                    record += 1
                    place = Place(str(path), record)
                    cells = {name: column[row] for name, column in values.items()}
                    refuse_bad_bytes(place, cells)
                    yield place, passage_of(place, cells, columns)
                advance(round(bytes_a_row * batch.num_rows))
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(
            f"{path}, after record {record}: cannot be read as Parquet ({error}). Write the file again."
        ) from error


def _check_schema(path: Path, schema: pa.Schema, columns: Columns) -> None:
    names = list(schema.names)
    for name in names:
        if names.count(name) > 1:
            raise CorpusError(f"{path}: column {name!r} stands there more than once. Rename one of them.")
    for column in (columns.id, columns.text):
        if column not in names:
            raise missing_column(str(path), column, names)
    kind = _plain(schema.field(columns.id).type)
    if not (pa.types.is_integer(kind) or _is_text(kind)):
        raise CorpusError(
            f"{path}, column {columns.id!r}: found {kind}; an id is text or a whole number. "
            "Write the column as strings."
        )
    kind = _plain(schema.field(columns.text).type)
    if not _is_text(kind):
        raise CorpusError(
            f"{path}, column {columns.text!r}: found {kind}, expected text. Write the column as strings."
        )


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    """Strings, and binary too: older writers leave the mark "this is UTF-8" out."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, _is_binary)
    return any(test(kind) for test in tests)


def _is_binary(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _values(column: pa.Array, required: bool) -> list[Any]:
    """A column as Python values; text is decoded here, since Arrow's own error does not name the row."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_text(column.type):
        return list(column.to_pylist())
    # A column of pictures or the like is no text; it is named, not refused.
    lenient = _is_binary(column.type) and not required
    return [_decoded(cell, lenient) for cell in column.cast(pa.large_binary()).to_pylist()]


def _decoded(cell: bytes | None, lenient: bool) -> str | None:
    if cell is None:
        return None
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return f"<{len(cell)} bytes>" if lenient else cell.decode(errors="surrogateescape")

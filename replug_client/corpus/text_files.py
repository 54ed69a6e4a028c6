"""CSV, TSV and JSONL: records out of text files, streamed, each with the line it starts on."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from replug_client.corpus.records import Passage
from replug_client.corpus.rows import (
    UTF8_MEND,
    Advance,
    Columns,
    Place,
    missing_column,
    passage_of,
    refuse_bad_bytes,
)
from replug_client.errors import CorpusError

# Python's own limit is 128 KiB. Some limit there must be: one stray quote makes a field of all that follows.
FIELD_LIMIT = 1 << 28
_OTHER_DELIMITERS = {"a comma": ",", "a tab": "\t", "a semicolon": ";", "a bar": "|"}


class CountedFile(io.FileIO):
    """A file that reports how many bytes are read from it."""

    def __init__(self, path: Path, advance: Advance) -> None:
        super().__init__(path, "rb")
        self._advance = advance

    def readinto(self, buffer: Any, /) -> int:
        """As any file's."""
        count = super().readinto(buffer) or 0
        self._advance(count)
        return count


def _open(path: Path, advance: Advance) -> io.BufferedReader[CountedFile]:
    stream = io.BufferedReader(CountedFile(path, advance), 1 << 16)
    start = stream.peek(2)[:2]
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        stream.close()
        raise CorpusError(
            f"{path}, line 1: the file is UTF-16, expected UTF-8. "
            "Convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        )
    return stream


def delimited_rows(
    delimiter: str, path: Path, advance: Advance = lambda _: None
) -> Iterator[tuple[Place, list[str]]]:
    """Rows of a CSV or TSV file that are not blank lines (RFC 4180: quotes doubled, newlines inside quotes kept).

    The first one's place is record 0, the header. Bytes that are not UTF-8 become surrogates, so that they are found
    in their own cell (:func:`refuse_bad_bytes`) and not in some block of 8 KiB.

    Raises:
        CorpusError: a quote that is never closed, or UTF-16.
    """
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))
    with (
        _open(path, advance) as raw,
        io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="") as stream,
    ):
        yield from _rows(csv.reader(stream, delimiter=delimiter, strict=True), path)


def delimited_records(
    delimiter: str, path: Path, required: Sequence[str], advance: Advance = lambda _: None
) -> Iterator[tuple[Place, dict[str, str]]]:
    """Records of a CSV or TSV file with a header, as column name to cell.

    Raises:
        CorpusError: a missing or repeated column, a ragged row, bytes that are not UTF-8, or whatever
            :func:`delimited_rows` refuses.
    """
    rows = delimited_rows(delimiter, path, advance)
    place, header = next(rows, (Place(str(path), 0, 1), []))
    if not header:
        return
    _check_header(place, header, delimiter, required)
    for place, row in rows:
        if len(row) != len(header):
            raise _ragged(place, row, header)
        cells = dict(zip(header, row, strict=True))
        refuse_bad_bytes(place, cells)
        yield place, cells


def delimited_passages(
    delimiter: str, path: Path, columns: Columns, advance: Advance
) -> Iterator[tuple[Place, Passage]]:
    """Passages of a CSV or TSV file with a header.

    Raises:
        CorpusError: whatever :func:`delimited_records` or :func:`passage_of` refuses.
    """
    for place, cells in delimited_records(delimiter, path, (columns.id, columns.text), advance):
        yield place, passage_of(place, cells, columns)


def _rows(reader: Any, path: Path) -> Iterator[tuple[Place, list[str]]]:
    """Rows that are not blank lines, the header first, each with its place."""
    record = 0
    while True:
        place = Place(str(path), record, reader.line_num + 1)
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise place.error(
                f"the row that starts here cannot be read ({error}). "
                "A field that begins with a quote must end with one, and quotes inside it are doubled."
            ) from error
        if row:
            record += 1
            yield place, row


def _check_header(place: Place, header: list[str], delimiter: str, required: Sequence[str]) -> None:
    refuse_bad_bytes(place, {str(number): name for number, name in enumerate(header, 1)})
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise place.error(
            "a column of this name stands there more than once. Rename one.", column=repeated[0]
        )
    for column in required:
        if column in header:
            continue
        for name, other in _OTHER_DELIMITERS.items():
            if len(header) == 1 and other != delimiter and other in header[0]:
                raise place.error(
                    f"no column {column!r}; the columns seem to be separated by {name}, "
                    f"expected {delimiter!r}. The suffix decides: .csv means commas, .tsv tabs."
                )
        raise missing_column(str(place), column, header)


def _ragged(place: Place, row: list[str], header: list[str]) -> CorpusError:
    if len(row) < len(header):
        return place.error(
            f"a ragged row: {len(row)} fields, expected {len(header)}; this is the first that is missing. "
            "Add it, or quote what holds a newline.",
            column=header[len(row)],
        )
    return place.error(
        f"a ragged row: {len(row)} fields, expected {len(header)}; too many after this one. "
        "Quote what holds the delimiter.",
        column=header[-1],
    )


def jsonl_records(path: Path, advance: Advance = lambda _: None) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place; blank lines are skipped.

    Raises:
        CorpusError: a line that is no JSON object, a key twice in one object, or bytes that are not UTF-8.
    """
    record = 0
    with _open(path, advance) as stream:
        for number, line in enumerate(stream, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                record += 1
                place = Place(str(path), record, number)
                yield place, json_object(place, line)


def jsonl_passages(path: Path, columns: Columns, advance: Advance) -> Iterator[tuple[Place, Passage]]:
    """Passages of a JSONL file.

    Raises:
        CorpusError: whatever :func:`jsonl_records` or :func:`passage_of` refuses.
    """
    for place, record in jsonl_records(path, advance):
        yield place, passage_of(place, record, columns)


def json_object(place: Place, line: bytes) -> dict[str, Any]:
    """The JSON object of one line.

    Raises:
        CorpusError: no JSON object, a key twice in it, or bytes that are not UTF-8; names the place.
    """
    try:
        text, bad = line.decode(), None
    except UnicodeDecodeError as error:
        text, bad = line.decode(errors="surrogateescape"), error
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        if bad is None:
            raise place.error(f"not JSON ({error}). Write one JSON object a line.") from None
        value = {}
    if bad is not None:
        if isinstance(value, dict):
            refuse_bad_bytes(place, value)
        raise place.error(
            f"byte 0x{line[bad.start]:02x} (byte {bad.start} of the line) is not UTF-8. {UTF8_MEND}"
        )
    if not isinstance(value, dict):
        raise place.error(
            f"found a JSON {type(value).__name__}, expected an object. Write one JSON object a line."
        )
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value

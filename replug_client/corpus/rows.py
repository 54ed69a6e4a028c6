"""One row of a file: where it stands, and how its cells become a passage."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replug_client.corpus.records import Passage
from replug_client.errors import CorpusError

Advance = Callable[[int], None]
"""Called with the number of bytes read since the last call, so that a reader can drive a progress bar."""

_SURROGATE = re.compile("[\ud800-\udfff]")
UTF8_MEND = "Save the file as UTF-8, for example with: iconv -f LATIN1 -t UTF-8 OLD > NEW"


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns are read as what; every other column is kept in ``Passage.extra``."""

    id: str = "id"
    text: str = "text"
    title: str = "title"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands.

    Attributes:
        file: What the source is called: its path.
        record: 1-based number among the records; the header is 0, blank lines are not counted.
        line: 1-based number of the line on which it starts, as an editor shows it; ``None`` for
            what has no lines.
    """

    file: str
    record: int
    line: int | None = None

    def __str__(self) -> str:
        if self.line is None:
            return f"{self.file}, record {self.record}"
        return f"{self.file}, line {self.line} ({f'record {self.record}' if self.record else 'the header'})"

    def error(self, message: str, *, column: str | None = None) -> CorpusError:
        """The error for this record; ``message`` says what was found, expected, and what mends it."""
        where = f"{self}" if column is None else f"{self}, column {column!r}"
        return CorpusError(f"{where}: {message}")


@contextlib.contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn the usual reasons why a file cannot be opened into ``CorpusError``."""
    try:
        yield
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file. Check the path.") from None
    except IsADirectoryError:
        raise CorpusError(f"{path}: a folder, expected a file. Name the files in it.") from None
    except PermissionError:
        raise CorpusError(f"{path}: may not be read by this user. Change its permissions.") from None


def missing_column(where: str, column: str, found: list[str]) -> CorpusError:
    """The error for a file (or a record) without a column that it must have."""
    listed = ", ".join(repr(name) for name in found[:20]) + (", ..." if len(found) > 20 else "")
    alike = [name for name in found if name.strip().lower() == column.lower()]
    mend = (
        f"Rename {alike[0]!r} to {column!r}."
        if alike
        else f"Add it, or rename the one that holds the {column}."
    )
    return CorpusError(f"{where}: no column {column!r}; found {listed or 'none'}. {mend}")


def passage_of(place: Place, cells: Mapping[str, Any], columns: Columns) -> Passage:
    """Make a passage of a record's cells.

    Args:
        place: Where the record stands, for the errors.
        cells: Column name to value: text, or whatever JSON or Parquet holds.
        columns: Which column is the id, the text and the title.

    Raises:
        CorpusError: a column is missing, the text is empty or not text, the id is not text or a
            whole number, or a value holds half a surrogate pair (which UTF-8 cannot write).
    """
    for column in (columns.id, columns.text):
        if column not in cells:
            raise missing_column(str(place), column, list(cells))
    title = _as_text(place, columns.title, cells.get(columns.title))
    own = (columns.id, columns.text, columns.title)
    extra = {name: _as_text(place, name, value) for name, value in cells.items() if name not in own}
    return Passage(
        id=_id_text(place, columns.id, cells[columns.id]),
        text=_body(place, columns.text, cells[columns.text]),
        title=title or None,
        extra={name: value for name, value in extra.items() if value is not None},
    )


def refuse_bad_bytes(place: Place, cells: Mapping[str, Any]) -> None:
    """Raise if a cell, decoded with ``surrogateescape``, came from bytes that are not UTF-8."""
    for column, value in cells.items():
        if isinstance(value, str) and not value.isascii() and (bad := _SURROGATE.search(value)):
            byte = ord(bad.group()) & 0xFF
            raise place.error(
                f"byte 0x{byte:02x} (after {bad.start()} characters) is not UTF-8. {UTF8_MEND}", column=column
            )


def _id_text(place: Place, column: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        found = (
            "nothing" if value is None else f"{json.dumps(value, default=str)[:80]} ({type(value).__name__})"
        )
        raise place.error(f"found {found}; an id is text or a whole number. Write it as text.", column=column)
    if not value:
        raise place.error("the id is empty. Give each row an id of its own.", column=column)
    return encodable(place, column, value)


def _body(place: Place, column: str, value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        found = "nothing" if not value else "only white space"
        raise place.error(f"empty text: found {found}. Fill it in, or leave the row out.", column=column)
    if not isinstance(value, str):
        raise place.error(
            f"found {type(value).__name__}, expected text. Write it as a string.", column=column
        )
    return encodable(place, column, value)


def _as_text(place: Place, column: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        plain = isinstance(value, bool | int | float | list | dict)
        value = json.dumps(value, ensure_ascii=False, default=str) if plain else str(value)
    return encodable(place, column, value)


def encodable(place: Place, column: str, value: str) -> str:
    """``value`` as it is.

    Raises:
        CorpusError: it holds half a surrogate pair, which UTF-8 cannot write.
    """
    if not value.isascii() and (half := _SURROGATE.search(value)):
        raise place.error(
            f"U+{ord(half.group()):04X} (after {half.start()} characters) is half a surrogate pair, not a "
            "character. Write the whole pair, or leave it out.",
            column=column,
        )
    return value

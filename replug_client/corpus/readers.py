"""The passage source seam: what every source of passages gives, and the files that are one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol, runtime_checkable

from replug_client.corpus.parquet import parquet_passages
from replug_client.corpus.records import Document, Passage
from replug_client.corpus.rows import Advance, Columns, Place, file_errors, passage_of
from replug_client.corpus.text_files import delimited_passages, jsonl_passages
from replug_client.corpus.unique import IdSpool, refuse_duplicate
from replug_client.corpus.wikitext import TEXT_SUFFIXES, text_documents
from replug_client.errors import CorpusError

_Reader = Callable[[Path, Columns, Advance], Iterator[tuple[Place, Passage]]]


@runtime_checkable
class PassageSource(Protocol):
    """Passages in a fixed order, streamed: memory does not grow with their number.

    Each iteration starts afresh and gives the same passages. It raises ``CorpusError`` where a row
    cannot be read, at the end where an id stood twice, and where there is no passage at all; so
    what was taken from it counts only once it has ended.
    """

    @property
    def name(self) -> str:
        """What error messages and logs call it: a path, or the name of a data set."""
        ...

    def __iter__(self) -> Iterator[Passage]:
        """The passages: ids unique, texts not empty, every value text that UTF-8 can write."""
        ...


class FileSource:
    """A CSV, TSV, JSONL or Parquet file as a passage source; made by :func:`open_source`."""

    def __init__(self, path: Path, read: _Reader, columns: Columns, advance: Advance) -> None:
        self.path = path
        self._read = read
        self._columns = columns
        self._advance = advance

    @property
    def name(self) -> str:
        """The path, as it was given."""
        return str(self.path)

    def __iter__(self) -> Iterator[Passage]:
        return checked_passages(self.name, self._located, self._columns.id)

    def _located(self) -> Iterator[tuple[Place, Passage]]:
        with file_errors(self.path):
            yield from self._read(self.path, self._columns, self._advance)


class MemorySource:
    """Passages held in memory: the fake of the seam, under the same rules as the files."""

    def __init__(self, passages: Iterable[Passage], name: str = "memory") -> None:
        self._passages = tuple(passages)
        self._name = name

    @property
    def name(self) -> str:
        """The name it was given."""
        return self._name

    def __iter__(self) -> Iterator[Passage]:
        return checked_passages(self._name, self._located, "id")

    def _located(self) -> Iterator[tuple[Place, Passage]]:
        for record, passage in enumerate(self._passages, 1):
            place = Place(self._name, record)
            cells = {**passage.extra, "id": passage.id, "text": passage.text, "title": passage.title}
            passage_of(place, cells, Columns())
            yield place, passage


def checked_passages(
    name: str, located: Callable[[], Iterator[tuple[Place, Passage]]], column: str
) -> Iterator[Passage]:
    """The passages of ``located``, which may be called again; then what only the end can tell.

    Raises:
        CorpusError: as :class:`PassageSource`.
    """
    empty = True
    with IdSpool() as ids:
        for _, passage in located():
            ids.add(passage.id)
            empty = False
            yield passage
        if empty:
            raise CorpusError(
                f"{name}: an empty file, expected at least one row with an id and a text. Fill it."
            )
        refuse_duplicate(ids.suspects(), ((place, passage.id) for place, passage in located()), column)


_READERS: dict[str, _Reader] = {
    ".csv": partial(delimited_passages, ","),
    ".tsv": partial(delimited_passages, "\t"),
    ".jsonl": jsonl_passages,
    ".parquet": parquet_passages,
}


def open_source(
    path: Path | str, *, text_column: str = "text", id_column: str = "id", advance: Advance = lambda _: None
) -> PassageSource:
    """Open a file of passages; its suffix says how it is read: .csv, .tsv, .jsonl or .parquet.

    Text files are UTF-8, with or without a BOM, with any line ends. Nothing is read yet.

    Args:
        path: The file.
        text_column: The column that holds the text.
        id_column: The column that holds the id.
        advance: Called with the number of bytes read, as they are read.

    Raises:
        CorpusError: no reader for this suffix.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise CorpusError(
            f"{path}: suffix {path.suffix!r}, expected one of {known}. Rename or convert the file."
        )
    return FileSource(path, reader, Columns(id=id_column, text=text_column), advance)


def read_documents(
    path: Path | str, *, text_column: str = "text", id_column: str = "id", advance: Advance = lambda _: None
) -> Iterator[Document]:
    """Stream the documents of a ``--data`` file: the same formats, rules and errors as passages, and plain text.

    The other columns, a title included, are kept in ``Document.extra``. Text files (``.txt``, ``.tokens``, ``.raw``)
    are read by :func:`~replug_client.corpus.wikitext.text_documents`.

    Raises:
        CorpusError: as :class:`PassageSource`.
    """
    if Path(path).suffix.lower() in TEXT_SUFFIXES:
        yield from text_documents(Path(path), advance)
        return
    for row in open_source(path, text_column=text_column, id_column=id_column, advance=advance):
        title = {} if row.title is None else {"title": row.title}
        yield Document(id=row.id, text=row.text, extra={**title, **row.extra})

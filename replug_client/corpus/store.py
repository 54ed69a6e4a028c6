"""The corpus on disk: every passage by its row, memory-mapped, made once for one content."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from replug_client import __version__
from replug_client.artefacts import MANIFEST_NAME, atomic_write, read_json, sha256_file, write_json
from replug_client.corpus.readers import PassageSource, open_source
from replug_client.corpus.records import Passage
from replug_client.corpus.rows import Place, file_errors
from replug_client.corpus.unique import HashIndex, IdSpool, hash64, refuse_duplicate
from replug_client.errors import ArtefactError, CorpusError
from replug_client.progress import progress

_LOG = logging.getLogger(__name__)
_FORMAT = 1
_ARROW_NAME = "passages.arrow"
_BATCH_ROWS = 4096
_BATCH_CHARACTERS = 1 << 22
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("text", pa.large_string(), nullable=False),
        pa.field("title", pa.large_string()),
        pa.field("extra", pa.map_(pa.string(), pa.large_string()), nullable=False),
    ]
)

Rows = Sequence[int] | npt.NDArray[np.integer[Any]]


class PassageStore:
    """A corpus of passages, named by row: the 0-based position in the files, taken in order.

    The values lie in a memory-mapped Arrow file and are read when asked for, so an open store
    costs no memory to speak of, and processes share its pages. Reading is safe from several threads.

    Attributes:
        sha256: Hash over the sequence of id, title and text: what the content is, whatever file or
            format it came from. Other columns do not count.
        paths: The files it was made of.
    """

    def __init__(self, directory: Path, paths: Sequence[Path] = ()) -> None:
        """Open the store in ``directory``, as :func:`write_store` left it.

        Raises:
            ArtefactError: it is missing, incomplete or damaged.
        """
        mend = "Remove this folder; it is made again from the passages."
        manifest = read_json(directory / MANIFEST_NAME, mend=mend)
        arrow = directory / _ARROW_NAME
        if manifest.get("format") != _FORMAT:
            raise ArtefactError(
                f"{directory}: store format {manifest.get('format')}, expected {_FORMAT}. {mend}"
            )
        if not arrow.is_file() or arrow.stat().st_size != manifest["num_bytes"]:
            raise ArtefactError(f"{arrow}: expected a file of {manifest['num_bytes']} bytes. {mend}")
        with pa.ipc.open_file(pa.memory_map(str(arrow))) as reader:
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._starts = np.concatenate(
            [[0], np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64)]
        )
        self._by_id: HashIndex | None = None
        self.sha256: str = manifest["sha256"]
        self.paths = tuple(paths)

    @classmethod
    def open(
        cls, paths: Sequence[Path], cache_dir: Path, *, text_column: str = "text", id_column: str = "id"
    ) -> PassageStore:
        """The store of these files, in this order: read and checked once, then found again by their bytes.

        Args:
            paths: CSV, TSV, JSONL or Parquet files; ids are unique across all of them.
            cache_dir: The store lies in ``cache_dir/corpus/<sha256>``.
            text_column: The column that holds the text.
            id_column: The column that holds the id.

        Raises:
            CorpusError: a file that cannot be read as asked.
            ArtefactError: the store cannot be written.
        """
        if not paths:
            raise CorpusError("no file of passages was given. Name at least one with --passages.")
        paths = [Path(path) for path in paths]
        for path in paths:
            open_source(path)  # a suffix that nothing reads is refused before gigabytes are hashed
        directory = Path(cache_dir) / "corpus" / _key(paths, (text_column, id_column))
        if (directory / MANIFEST_NAME).exists():
            try:
                return cls(directory, paths)
            except ArtefactError as error:
                _LOG.warning("%s Making it again.", error)
        with progress("Reading passages", _total_bytes(paths), "B") as advance:
            sources = [
                open_source(path, text_column=text_column, id_column=id_column, advance=advance)
                for path in paths
            ]
            write_store(sources, directory, id_column=id_column)
        return cls(directory, paths)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> Passage:
        """The passage at ``row``; ``IndexError`` outside ``0 .. len - 1``, a negative row included."""
        ((batch, offset),) = self._located([row])
        id_, text, title, extra = (column[offset].as_py() for column in batch.columns)
        return Passage(id=id_, text=text, title=title, extra=dict(extra))

    def __iter__(self) -> Iterator[Passage]:
        return (self[row] for row in range(len(self)))

    def texts(self, rows: Rows) -> list[str]:
        """Texts of these rows, ``(n,)``, in their order; ``IndexError`` outside the corpus."""
        return self._values("text", rows)

    def ids(self, rows: Rows) -> list[str]:
        """Ids of these rows, ``(n,)``, in their order; ``IndexError`` outside the corpus."""
        return self._values("id", rows)

    def row_of(self, id_: str) -> int | None:
        """The row with this id, or ``None``. The first call reads all ids (16 bytes of memory each)."""
        if self._by_id is None:
            self._by_id = HashIndex(hash64(found) for found in self._column("id"))
        return next((row for row in self._by_id.rows(hash64(id_)) if self.ids([row]) == [id_]), None)

    def rows_of(self, ids: Iterable[str]) -> list[int]:
        """The rows with these ids, in their order.

        Raises:
            CorpusError: no passage has one of the ids.
        """
        rows = []
        for id_ in ids:
            row = self.row_of(id_)
            if row is None:
                named = ", ".join(str(path) for path in self.paths) or "this corpus"
                raise CorpusError(
                    f"no passage has the id {id_!r} in {named}. Ids are text: '007' is not '7'."
                )
            rows.append(row)
        return rows

    def iter_texts(self) -> Iterator[str]:
        """All texts in row order, streamed."""
        return self._column("text")

    def _column(self, name: str) -> Iterator[str]:
        for batch in self._batches:
            yield from batch.column(name).to_pylist()

    def _values(self, name: str, rows: Rows) -> list[str]:
        return [batch.column(name)[offset].as_py() for batch, offset in self._located(rows)]

    def _located(self, rows: Rows) -> Iterator[tuple[pa.RecordBatch, int]]:
        wanted = np.asarray(rows)
        if wanted.size and wanted.dtype.kind not in "iu":
            raise TypeError(f"rows are integers, found {wanted.dtype}")
        # A row of -1 (FAISS for "nothing found") must never become the last passage.
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(
                f"row {wanted.min()} to {wanted.max()} asked for; the corpus has rows 0 to {len(self) - 1}"
            )
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        offsets = wanted - self._starts[numbers]
        return ((self._batches[n], o) for n, o in zip(numbers.tolist(), offsets.tolist(), strict=True))


def write_store(sources: Sequence[PassageSource], directory: Path, *, id_column: str = "id") -> None:
    """Stream the sources, in order, into a store that ``PassageStore(directory)`` opens.

    Memory: one batch of passages (about 4 MB of text, or one passage where that is more).

    Raises:
        CorpusError: as the sources do, and for an id that stands in two of them.
        ArtefactError: no space left.
    """
    digest = hashlib.sha256()
    rows = 0
    try:
        with (
            atomic_write(directory / _ARROW_NAME) as stream,
            pa.ipc.new_file(stream, _SCHEMA) as writer,
            IdSpool() as ids,
        ):
            for batch in _batches(passage for source in sources for passage in source):
                for passage in batch:
                    digest.update(_identity(passage))
                    if len(sources) > 1:  # a source alone has seen to its own ids
                        ids.add(passage.id)
                rows += len(batch)
                writer.write_batch(_arrow(batch))
            refuse_duplicate(ids.suspects(), _places(sources), id_column)
        write_json(
            directory / MANIFEST_NAME,
            {
                "format": _FORMAT,
                "replug_version": __version__,
                "rows": rows,
                "num_bytes": (directory / _ARROW_NAME).stat().st_size,
                "sha256": digest.hexdigest(),
                "sources": [source.name for source in sources],
            },
        )
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ArtefactError(
            f"{directory}: no space left on the disk. Free some, or name another --cache_dir."
        ) from error


def _batches(passages: Iterator[Passage]) -> Iterator[list[Passage]]:
    batch: list[Passage] = []
    characters = 0
    for passage in passages:
        batch.append(passage)
        characters += len(passage.text)
        if len(batch) == _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _arrow(batch: Sequence[Passage]) -> pa.RecordBatch:
    columns = [
        [passage.id for passage in batch],
        [passage.text for passage in batch],
        [passage.title for passage in batch],
        [list(passage.extra.items()) for passage in batch],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _identity(passage: Passage) -> bytes:
    """Bytes that differ wherever id, title or text differ: each part is preceded by its length."""
    parts = [b"-" if part is None else part.encode() for part in (passage.id, passage.title, passage.text)]
    title = b"0" if passage.title is None else b"1"
    return title + b"".join(len(part).to_bytes(8, "little") + part for part in parts)


def _places(sources: Iterable[PassageSource]) -> Iterator[tuple[Place, str]]:
    for source in sources:
        for record, passage in enumerate(source, 1):
            yield Place(source.name, record), passage.id


def _key(paths: Sequence[Path], columns: tuple[str, str]) -> str:
    """SHA-256 over the files' bytes, their formats and the columns read."""
    parts = []
    with progress("Checking the passages' hash", _total_bytes(paths), "B") as advance:
        for path in paths:
            with file_errors(path):
                parts.append([path.suffix.lower(), sha256_file(path, advance)])
    return hashlib.sha256(json.dumps([_FORMAT, columns, parts]).encode()).hexdigest()


def _total_bytes(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file())

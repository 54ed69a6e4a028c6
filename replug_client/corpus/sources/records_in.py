"""Rows of JSONL, CSV, TSV or Parquet whose columns are called anything, as passages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from replug_client.corpus.readers import open_source
from replug_client.corpus.rows import Place
from replug_client.corpus.sources.conversion import Conversion, Converted
from replug_client.corpus.sources.inputs import COMPRESSIONS, bare_suffix, hashed, json_lines, text_of
from replug_client.corpus.sources.pieces import PieceOptions, WordTokenizer, cut_pieces
from replug_client.corpus.windows import OffsetTokenizer
from replug_client.errors import CorpusError, OptionError
from replug_client.progress import progress


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """Which fields are what, and how texts are cut.

    Attributes:
        pieces: How texts are cut; None leaves each whole.
        text_field: Holds the text.
        id_field: Holds the id; None numbers the rows, file by file.
        title_field: Holds the title; rows without it have none.
        num_rows: Read so many; None for all.
    """

    pieces: PieceOptions | None
    text_field: str = "text"
    id_field: str | None = None
    title_field: str = "title"
    num_rows: int | None = None

    def __post_init__(self) -> None:
        if self.num_rows is not None and self.num_rows < 1:
            raise OptionError(f"--num_rows is {self.num_rows}; expected 1 or more")


@dataclass(frozen=True, slots=True)
class Record:
    """A row: its id, title and text."""

    id: str
    title: str
    text: str


def conversion(
    paths: Sequence[Path], options: RecordOptions, tokenizer: OffsetTokenizer | None
) -> Conversion[Record]:
    """What makes ``passages`` of the rows of these files, in order.

    Args:
        paths: ``.jsonl`` (plain or packed), ``.csv``, ``.tsv``, ``.parquet``.
        options: Fields and lengths.
        tokenizer: Measures passages; None for words.

    Raises:
        CorpusError: a file of another kind, or one that cannot be read.
    """
    for path in paths:
        _check(path, options)

    def items(skip: int) -> Iterator[Record]:
        for number, record in enumerate(_records(paths, options)):
            if options.num_rows is not None and number >= options.num_rows:
                return
            if number >= skip:
                yield record

    return Conversion(
        "jsonl",
        asdict(options),
        hashed(paths),
        {"passages": ("id", "title", "text")},
        items,
        RecordConverter(options, tokenizer or WordTokenizer()),
    )


@dataclass(frozen=True, slots=True)
class RecordConverter:
    """A row to passages."""

    options: RecordOptions
    tokenizer: OffsetTokenizer

    def __call__(self, record: Record) -> Converted:
        """The rows of one row."""
        converted = Converted()
        if not record.text.strip():
            converted.left_out["rows without text"] += 1
        elif self.options.pieces is None:
            converted.add("passages", id=record.id, title=record.title, text=record.text)
        else:
            pieces, short = cut_pieces(record.text, self.tokenizer, self.options.pieces)
            if short:
                converted.left_out["ends of texts below --min_passage_length"] += short
            for number, piece in enumerate(pieces):
                converted.add("passages", id=f"{record.id}#{number}", title=record.title, text=piece.text)
        return converted


def _record(place: Place, row: dict[str, object], options: RecordOptions, prefix: str) -> Record:
    id_ = f"{prefix}{place.record}" if options.id_field is None else text_of(place, row, (options.id_field,))
    if not id_:
        raise place.error("the id is empty. Give each row an id of its own.", column=options.id_field)
    title = text_of(place, row, (options.title_field,)) if options.title_field in row else ""
    return Record(id_, title, text_of(place, row, (options.text_field,)))


def _check(path: Path, options: RecordOptions) -> None:
    if bare_suffix(path) == ".jsonl":
        return
    if path.suffix.lower() in COMPRESSIONS:
        raise CorpusError(f"{path}: of packed files only .jsonl is read. Unpack it first.")
    open_source(path)  # refuses a suffix that nothing reads
    if options.id_field is None:
        raise OptionError(f"{path}: rows of {path.suffix} need --id_field, the column that holds the id")


def _records(paths: Sequence[Path], options: RecordOptions) -> Iterator[Record]:
    for number, path in enumerate(paths):
        prefix = f"{number}-" if len(paths) > 1 else ""
        with progress(f"Reading {path.name}", path.stat().st_size, "B") as advance:
            if bare_suffix(path) == ".jsonl":
                for place, row in json_lines(path, advance):
                    yield _record(place, row, options, prefix)
                continue
            text, id_ = options.text_field, options.id_field or "id"
            for passage in open_source(path, text_column=text, id_column=id_, advance=advance):
                title = passage.title if options.title_field == "title" else None
                yield Record(passage.id, title or passage.extra.get(options.title_field, ""), passage.text)

"""Copies of passage and document files without some of their rows; the rows that stay are as they were."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from replug_client.artefacts import atomic_write, sha256_file
from replug_client.corpus.set_overlap import SetOverlap
from replug_client.corpus.sources.inputs import byte_lines
from replug_client.corpus.sources.rows_out import delimited_line
from replug_client.corpus.text_files import FIELD_LIMIT
from replug_client.corpus.text_runs import TextSet
from replug_client.errors import OptionError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def copy_without(path: Path, copy: Path, dropped: Iterator[bool]) -> tuple[int, int]:
    """Write ``copy`` with the records of ``path`` that are not ``dropped``, in the same format; atomically.

    Lines of JSON stay byte for byte; rows of CSV keep their cells, Parquet its schema.

    Args:
        path: A file that :func:`~replug_client.corpus.readers.open_source` has read.
        copy: The file to write.
        dropped: A flag for each of its records, in order; not one more is taken.

    Returns:
        How many records were written, and how many left out.

    Raises:
        OptionError: a file of another kind.
    """
    suffix = path.suffix.lower()
    with atomic_write(copy) as stream:
        if suffix == ".parquet":
            return _copy_parquet(path, stream, dropped)
        if suffix == ".jsonl":
            return _copy_jsonl(path, stream, dropped)
        if suffix in _DELIMITERS:
            return _copy_delimited(path, stream, dropped, _DELIMITERS[suffix])
        raise OptionError(f"{path}: rows of {suffix} cannot be left out. Convert it to .jsonl first.")


def _copy_parquet(path: Path, stream: IO[bytes], dropped: Iterator[bool]) -> tuple[int, int]:
    written = total = 0
    with (
        pq.ParquetFile(path, pre_buffer=False) as file,
        pq.ParquetWriter(stream, file.schema_arrow) as writer,
    ):
        for batch in file.iter_batches(4096):
            kept = batch.filter(pa.array([not drop for drop in islice(dropped, batch.num_rows)]))
            total += batch.num_rows
            written += kept.num_rows
            if kept.num_rows:
                writer.write_batch(kept)
    return written, total - written


def _copy_jsonl(path: Path, stream: IO[bytes], dropped: Iterator[bool]) -> tuple[int, int]:
    counts = [0, 0]
    for _, line in byte_lines(path):
        if line.strip():
            drop = next(dropped)
            counts[drop] += 1
            if not drop:
                stream.write(line + b"\n")
    return counts[0], counts[1]


def _copy_delimited(
    path: Path, stream: IO[bytes], dropped: Iterator[bool], delimiter: str
) -> tuple[int, int]:
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))
    encode = delimited_line(delimiter)
    counts = [0, 0]
    with path.open(encoding="utf-8-sig", newline="") as text:
        rows = (row for row in csv.reader(text, delimiter=delimiter, strict=True) if row)
        stream.write(encode(next(rows)))
        for row in rows:
            drop = next(dropped)
            counts[drop] += 1
            if not drop:
                stream.write(encode(row))
    return counts[0], counts[1]


def drop_shared(
    report: SetOverlap, sets: Sequence[TextSet], output_dir: Path, cleaned_of: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Write copies of the sets' files without the items that share with other sets.

    Args:
        report: What :func:`~replug_client.corpus.set_overlap.find_set_overlap` found of ``sets``.
        sets: The sets, as they were compared.
        output_dir: The copies' folder; they keep their names.
        cleaned_of: Name of a set to the others of which it is cleaned; a set that is not named is not copied.

    Returns:
        Name of each copy to how many records it has, how many were left out, and its SHA-256.

    Raises:
        OptionError: two files of one name, or a file that would be replaced by its own copy.
    """
    there = {items.name for items in sets}
    chosen = {
        items: others
        for items in sets
        if (others := [name for name in cleaned_of.get(items.name, ()) if name in there])
    }
    paths = [path for items in chosen for path in items.paths]
    for path in paths:
        if [other.name for other in paths].count(
            path.name
        ) > 1 or output_dir.resolve() == path.resolve().parent:
            raise OptionError(
                f"{path}: its copy in {output_dir} would take the place of another file. Name another --output_dir, "
                "or rename it."
            )
    copies: dict[str, Any] = {}
    for items, others in chosen.items():
        flags = iter(report.shares_with_any(items.name, others).tolist())
        for path in items.paths:
            copy = output_dir / path.name
            kept, dropped = copy_without(path, copy, flags)
            copies[path.name] = {"rows": kept, "left_out": {f"shared with {' or '.join(others)}": dropped}}
            copies[path.name]["sha256"] = sha256_file(copy)
    return copies

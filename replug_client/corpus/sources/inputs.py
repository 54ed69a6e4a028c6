"""Files of a data set, plain or compressed, as lines and JSON objects that know where they stand."""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from replug_client.artefacts import sha256_file
from replug_client.corpus.rows import UTF8_MEND, Advance, Place, encodable, file_errors
from replug_client.corpus.text_files import FIELD_LIMIT, CountedFile, json_object
from replug_client.errors import CorpusError
from replug_client.progress import progress

COMPRESSIONS = (".gz", ".bz2", ".zst")


def bare_suffix(path: Path) -> str:
    """The suffix of what is inside: ``.jsonl`` of ``x.jsonl.gz``, in lower case."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if suffix in COMPRESSIONS else suffix


@contextlib.contextmanager
def open_binary(path: Path, advance: Advance = lambda _: None) -> Iterator[IO[bytes]]:
    """Open a file for reading; ``.gz``, ``.bz2`` and ``.zst`` are unpacked on the way.

    Args:
        path: The file.
        advance: Called with the number of bytes taken from the disk (packed ones), as they are read.

    Raises:
        CorpusError: it cannot be opened, or is cut off or damaged.
    """
    with file_errors(path), CountedFile(path, advance) as counted:
        raw = io.BufferedReader(counted, 1 << 16)
        if path.suffix.lower() == ".tar" or ".tar." in path.name.lower():
            raise CorpusError(f"{path}: an archive, expected a file of it. Unpack it first: tar -xf {path}")
        try:
            yield _unpacked(path, raw)
        except (EOFError, gzip.BadGzipFile, zlib.error, pa.ArrowInvalid) as error:
            raise _damaged(path, error) from error
        except OSError as error:
            if path.suffix.lower() not in COMPRESSIONS or isinstance(error, FileNotFoundError):
                raise
            raise _damaged(path, error) from error


def _unpacked(path: Path, raw: io.BufferedReader[CountedFile]) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
        case ".bz2":
            return bz2.BZ2File(raw)
        case ".zst":
            stream = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
            return cast("IO[bytes]", io.BufferedReader(stream, 1 << 16))
        case _:
            return raw


def _damaged(path: Path, error: Exception) -> CorpusError:
    return CorpusError(f"{path}: cut off, or no {path.suffix} file ({error}). Fetch it again.")


def lines(path: Path, advance: Advance = lambda _: None) -> Iterator[tuple[Place, str]]:
    r"""The lines of a UTF-8 file without their ends (``\n`` or ``\r\n``), each with its place.

    Raises:
        CorpusError: bytes that are not UTF-8, or a line of more than 256 MiB.
    """
    for place, line in byte_lines(path, advance):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise place.error(
                f"byte 0x{line[error.start]:02x} (byte {error.start} of the line) is not UTF-8. {UTF8_MEND}"
            ) from None
        yield place, text


def byte_lines(path: Path, advance: Advance = lambda _: None) -> Iterator[tuple[Place, bytes]]:
    """As :func:`lines`, not decoded."""
    with open_binary(path, advance) as stream:
        number = 0
        while line := stream.readline(FIELD_LIMIT):
            number += 1
            place = Place(str(path), number, number)
            if len(line) == FIELD_LIMIT and not line.endswith(b"\n"):
                raise place.error(
                    f"a line of more than {FIELD_LIMIT >> 20} MiB. Is this a text file? Check the path."
                )
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            yield place, line.removesuffix(b"\n").removesuffix(b"\r")


def json_lines(path: Path, advance: Advance = lambda _: None) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The objects of a JSONL file; blank lines are passed over.

    Raises:
        CorpusError: as :func:`lines`; a line that is no JSON object.
    """
    record = 0
    for place, line in byte_lines(path, advance):
        if line.strip():
            record += 1
            yield (here := Place(place.file, record, place.line)), json_object(here, line)


def text_of(place: Place, record: dict[str, Any], names: Sequence[str]) -> str:
    """The first of the fields ``names`` that the record has, as text; a number is written out.

    Raises:
        CorpusError: none of them is there, or its value is neither text nor a number.
    """
    for name in names:
        value = record.get(name)
        if isinstance(value, str):
            return encodable(place, name, value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            raise place.error(
                f"found {type(value).__name__}, expected text. Write it as a string.", column=name
            )
    if not any(name in record for name in names):
        listed = ", ".join(map(repr, list(record)[:20])) or "none"
        raise place.error(
            f"no field {' or '.join(map(repr, names))}; found {listed}. Check what file this is."
        )
    return ""


def hashed(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of each file: what the manifest says of the inputs.

    Raises:
        CorpusError: one of them cannot be read.
    """
    total = sum(path.stat().st_size for path in paths if path.is_file())
    found = []
    with progress("Hashing the input", total, "B") as advance:
        for path in paths:
            with file_errors(path):
                digest = sha256_file(path, advance)
            found.append({"file": path.name, "bytes": path.stat().st_size, "sha256": digest})
    return found

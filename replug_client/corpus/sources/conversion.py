"""A data set turned into files of rows: in bounded memory, going on after an interruption, with a manifest last.

Items are read in a fixed order and each is converted by itself, so what is written depends on the input and the
options alone. Every few seconds the rows so far are put on the disk together with the number of items that they
came of; a conversion that is run again cuts its files back to that point and goes on with the next item.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from replug_client import __version__
from replug_client.artefacts import MANIFEST_NAME, read_json, sha256_file, write_json
from replug_client.corpus.sources.rows_out import FORMATS, Cells, GrowingFile
from replug_client.errors import OptionError

_LOG = logging.getLogger(__name__)
_STATE_NAME = ".conversion.json"
_LOCK_NAME = ".conversion.lock"
_CHECKPOINT_SECONDS = 5.0
_CONVERSION_FORMAT = 1
T = TypeVar("T")


@dataclass(slots=True)
class Converted:
    """What one item became.

    Attributes:
        rows: Name of the output and the cells of its row, in order.
        left_out: Reason to how many things were left out for it.
    """

    rows: list[tuple[str, Cells]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, output: str, **cells: str) -> None:
        """Add a row to an output."""
        self.rows.append((output, cells))


@dataclass(frozen=True)
class Conversion(Generic[T]):
    """What is to be made, and of what.

    Attributes:
        name: The command, for the manifest.
        options: All that, besides the input, decides what is written.
        inputs: What the manifest says of the input: files with their hashes, or a name and a revision.
        outputs: Name of each output to its columns; a name with a suffix (``qrels.tsv``) is written as that,
            whatever format the others have.
        items: ``items(skip)`` reads the input from its ``skip``-th item on.
        convert: One item to its rows; depends on nothing but the item. Sent to other processes where there are
            ``workers``, so it and the items must allow that.
        limits: Name of an output to the most rows that it may have; at the first that is full, reading ends.
        left_out: Reason to how many things were left out before there were items: files that are not read.
        workers: Processes that convert; 0 converts in this one. The result is the same.
    """

    name: str
    options: Mapping[str, Any]
    inputs: Any
    outputs: Mapping[str, tuple[str, ...]]
    items: Callable[[int], Iterator[T]]
    convert: Callable[[T], Converted]
    limits: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    workers: int = 0

    def key(self, format_: str) -> str:
        """Equal for conversions whose results are equal."""
        made_of = [
            _CONVERSION_FORMAT,
            self.name,
            self.options,
            self.inputs,
            self.outputs,
            self.limits,
            format_,
        ]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What stands in the folder now.

    Attributes:
        directory: Where.
        files: Name of each output to its path.
        rows: Name of each output to its number of rows.
        items: How many items of the input were read.
        left_out: Reason to how many things were left out for it.
        stopped_at: The output whose limit ended the reading, or None where the whole input was read.
        unchanged: Whether the folder already held all this.
    """

    directory: Path
    files: dict[str, Path]
    rows: dict[str, int]
    items: int
    left_out: dict[str, int]
    stopped_at: str | None
    unchanged: bool = False

    def __str__(self) -> str:
        made = ", ".join(f"{self.files[name].name} ({count:,} rows)" for name, count in self.rows.items())
        lines = [
            f"{self.directory}: {made}, of {self.items:,} items{' (as it was)' if self.unchanged else ''}"
        ]
        if self.left_out:
            lines.append("left out: " + ", ".join(f"{n:,} {why}" for why, n in sorted(self.left_out.items())))
        if self.stopped_at:
            lines.append(f"ended when {self.stopped_at} was full; the rest of the input was not read")
        return "\n".join(lines)


@dataclass(slots=True)
class _State:
    key: str
    items: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    stopped_at: str | None = None
    complete: bool = False


def convert(
    conversion: Conversion[T], output_dir: Path, format_: str = "csv", *, overwrite: bool = False
) -> ConversionReport:
    """Make the files of ``conversion`` in ``output_dir``, and ``manifest.json`` last.

    Where the folder already holds them, nothing is done; where it holds a part of them, it is gone on with.

    Args:
        conversion: What to make.
        output_dir: Folder to write to.
        format_: One of csv, tsv, jsonl, parquet: the suffix of the files.
        overwrite: Replace what other options, or another input, made here.

    Raises:
        OptionError: the folder holds something else, another process writes to it, or an unknown format.
        CorpusError: as the input's reader; what was converted so far is kept.
    """
    if format_ not in FORMATS:
        raise OptionError(f"--format {format_}: expected one of {', '.join(FORMATS)}")
    output_dir.mkdir(parents=True, exist_ok=True)
    with _alone(output_dir):
        files = {name: output_dir / _file_name(name, format_) for name in conversion.outputs}
        key = conversion.key(format_)
        if (report := _finished(output_dir, files, key)) is not None:
            return report
        state = _begun(output_dir, files, key, overwrite)
        if not state.items:
            state.left_out = Counter(conversion.left_out)
        _sweep(output_dir, [path.name for path in files.values()])
        growing = {name: GrowingFile(path, conversion.outputs[name]) for name, path in files.items()}
        if not state.complete:
            _grow(conversion, growing, state, output_dir / _STATE_NAME)
        for file in growing.values():
            file.finish()
        _write_manifest(conversion, output_dir, files, state)
        (output_dir / _STATE_NAME).unlink()
    return ConversionReport(
        output_dir, files, dict(state.rows), state.items, dict(state.left_out), state.stopped_at
    )


def _file_name(output: str, format_: str) -> str:
    return output if "." in output else f"{output}.{format_}"


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    path = directory / _LOCK_NAME
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OptionError(
                f"{directory}: another process is writing to it. Wait for it, or name another --output_dir."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _finished(directory: Path, files: Mapping[str, Path], key: str) -> ConversionReport | None:
    """The report of a folder that already holds what ``key`` stands for, every byte of it."""
    path = directory / MANIFEST_NAME
    if not path.exists():
        return None
    manifest = read_json(path, mend="Give --overwrite, or another --output_dir.")
    if manifest.get("key") != key:
        return None
    sums = manifest["outputs"]
    for file in files.values():
        if not file.is_file() or sha256_file(file) != sums[file.name]["sha256"]:
            _LOG.warning("%s is not what the manifest beside it says", file)
            return None
    rows = {name: int(sums[file.name]["rows"]) for name, file in files.items()}
    return ConversionReport(
        directory, dict(files), rows, manifest["items"], manifest["left_out"], manifest["stopped_at"], True
    )


def _begun(directory: Path, files: Mapping[str, Path], key: str, overwrite: bool) -> _State:
    """The state to go on from; a new one in a folder that holds none of this, or where it may be replaced."""
    state_path = directory / _STATE_NAME
    if state_path.exists():
        found = read_json(state_path, mend="Give --overwrite to begin anew.") if not overwrite else {}
        if found.get("key") == key:
            state = _State(**{**found, "left_out": Counter(found["left_out"])})
            _LOG.info("going on after item %d", state.items)
            return state
        held = "the beginning of a conversion with other options, or of another input"
    else:
        there = [file.name for file in files.values() if file.exists()]
        there += [MANIFEST_NAME] if (directory / MANIFEST_NAME).exists() else []
        held = f"{' and '.join(there)}, not what this input and these options give" if there else ""
    if held and not overwrite:
        raise OptionError(
            f"{directory} holds {held}. Give --overwrite to replace it, or name another --output_dir."
        )
    for old in (directory / MANIFEST_NAME, state_path, *files.values()):
        old.unlink(missing_ok=True)
    return _State(key, rows=dict.fromkeys(files, 0))


def _sweep(directory: Path, names: Sequence[str]) -> None:
    """Remove what a killed process left of atomic writes; nobody else writes here, the lock sees to that."""
    for name in (*names, MANIFEST_NAME, _STATE_NAME):
        for temporary in directory.glob(f".{name}.*.tmp"):
            temporary.unlink()


def _grow(
    conversion: Conversion[T], files: Mapping[str, GrowingFile], state: _State, state_path: Path
) -> None:
    for name, file in files.items():
        file.open(state.sizes.get(name, 0))

    def save() -> None:
        state.sizes = {name: file.checkpoint() for name, file in files.items()}
        write_json(state_path, {name: getattr(state, name) for name in _State.__slots__})

    due = time.monotonic() + _CHECKPOINT_SECONDS
    try:
        save()
        for converted in _in_order(conversion, conversion.items(state.items)):
            state.items += 1
            _take(conversion, files, state, converted)
            if state.stopped_at:
                break
            if time.monotonic() >= due:
                save()
                due = time.monotonic() + _CHECKPOINT_SECONDS
        state.complete = True
        save()
    finally:
        for file in files.values():
            file.close()


def _take(
    conversion: Conversion[T], files: Mapping[str, GrowingFile], state: _State, converted: Converted
) -> None:
    state.left_out.update(converted.left_out)
    for output, cells in converted.rows:
        limit = conversion.limits.get(output)
        if limit is not None and state.rows[output] >= limit:
            state.left_out[f"above the limit of {output}"] += 1
            continue
        files[output].write(cells)
        state.rows[output] += 1
    for output, limit in conversion.limits.items():
        if state.rows[output] >= limit:
            state.stopped_at = output


def _in_order(conversion: Conversion[T], items: Iterator[T]) -> Iterator[Converted]:
    if not conversion.workers:
        yield from map(conversion.convert, items)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Not forked: the threads of Arrow and tokenizers do not survive that.
    with ProcessPoolExecutor(conversion.workers, get_context("spawn")) as pool:
        waiting: list[Future[Converted]] = []
        try:
            for item in items:
                waiting.append(pool.submit(conversion.convert, item))
                if len(waiting) >= 16 * conversion.workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _write_manifest(
    conversion: Conversion[T], directory: Path, files: Mapping[str, Path], state: _State
) -> None:
    write_json(
        directory / MANIFEST_NAME,
        {
            "format": _CONVERSION_FORMAT,
            "replug_version": __version__,
            "made_by": f"replug data {conversion.name}",
            "key": state.key,
            "options": dict(conversion.options),
            "inputs": conversion.inputs,
            "items": state.items,
            "outputs": {
                file.name: {
                    "rows": state.rows[name],
                    "bytes": file.stat().st_size,
                    "sha256": sha256_file(file),
                }
                for name, file in files.items()
            },
            "left_out": dict(sorted(state.left_out.items())),
            "stopped_at": state.stopped_at,
        },
    )


def skipping(items: Iterator[T], skip: int) -> Iterator[T]:
    """``items`` without the first ``skip``, which are read and thrown away."""
    return islice(items, skip, None)

"""A folder of text or code, as passages: by tokens, by lines, or by function."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from replug_client.corpus.sources.conversion import Conversion, Converted, skipping
from replug_client.corpus.sources.functions import LANGUAGE_OF_SUFFIX, cut_functions
from replug_client.corpus.sources.inputs import hashed
from replug_client.corpus.sources.pieces import PieceOptions, WordTokenizer, cut_pieces
from replug_client.corpus.windows import OffsetTokenizer
from replug_client.errors import CorpusError, OptionError
from replug_client.progress import progress

_LOG = logging.getLogger(__name__)
By = Literal["tokens", "lines", "functions"]
# What a checkout holds that nobody wrote in it.
_NEVER = frozenset({"node_modules", "__pycache__", "site-packages", "venv", "vendor", "bower_components"})
_LOOK = 8192


@dataclass(frozen=True, slots=True)
class FolderOptions:
    """Which files, and how they are cut.

    Attributes:
        pieces: For ``tokens``, in tokens; for ``lines``, and for files that ``functions`` cannot parse, in lines.
        by: What a passage is.
        include: Patterns of paths below the folder (``*.py``, ``docs/*``); none means every file.
        exclude: Patterns of paths that are left out.
        max_file_bytes: Larger files are left out.
    """

    pieces: PieceOptions
    by: By = "tokens"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_file_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        if self.max_file_bytes < 1:
            raise OptionError(f"--max_file_bytes is {self.max_file_bytes}; expected 1 or more")


@dataclass(frozen=True, slots=True)
class SourceText:
    """A file to be cut, and its path below the folder."""

    path: Path
    name: str


def conversion(
    folder: Path,
    options: FolderOptions,
    tokenizer: OffsetTokenizer | None,
    *,
    leave: Sequence[Path] = (),
    workers: int = 0,
) -> Conversion[SourceText]:
    """What makes ``passages`` of a folder, or of one file.

    Args:
        folder: Where to look, in all folders below; hidden ones, and those of fetched packages, are left out.
        options: Which files, and how they are cut.
        tokenizer: Measures passages by tokens; None for words.
        leave: Folders that are not looked into: where the output goes.
        workers: Processes that cut; 0 does it in this one.

    Raises:
        CorpusError: no such folder, or no file in it that is to be read.
    """
    chosen, left_out = choose_files(folder, options, leave)
    if not chosen:
        reasons = ", ".join(f"{n} {why}" for why, n in left_out.items()) or "it is empty"
        raise CorpusError(f"{folder}: no file to read ({reasons}). Check the path, --include and --exclude.")
    described = hashed([source.path for source in chosen])
    inputs = [{**file, "file": source.name} for source, file in zip(chosen, described, strict=True)]

    def items(skip: int) -> Iterator[SourceText]:
        def all_of_them() -> Iterator[SourceText]:
            with progress("Cutting files", len(chosen), "files") as advance:
                for source in chosen:
                    yield source
                    advance(1)

        return skipping(all_of_them(), skip)

    return Conversion(
        "folder",
        asdict(options),
        inputs,
        {"passages": ("id", "title", "text", "file", "line", "name", "language")},
        items,
        FolderConverter(options, tokenizer or WordTokenizer()),
        left_out=left_out,
        workers=workers,
    )


def choose_files(
    folder: Path, options: FolderOptions, leave: Sequence[Path] = ()
) -> tuple[list[SourceText], Counter[str]]:
    """The files to be read, in the order of their paths, and how many others there are and why."""
    left_out: Counter[str] = Counter()
    if folder.is_file():
        if reason := _reason(folder, folder.name, options):
            raise CorpusError(f"{folder}: left out, as one of the {reason}. Check the path and these flags.")
        return [SourceText(folder, folder.name)], left_out
    if not folder.is_dir():
        raise CorpusError(f"{folder}: no such folder. Check the path.")
    chosen = []
    spared = {path.resolve() for path in leave}
    for path in _walk(folder, spared, left_out):
        name = path.relative_to(folder).as_posix()
        reason = _reason(path, name, options)
        if reason:
            left_out[reason] += 1
            _LOG.debug("left out: %s (%s)", name, reason)
        else:
            chosen.append(SourceText(path, name))
    return chosen, left_out


def _walk(folder: Path, spared: set[Path], left_out: Counter[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_symlink():
            left_out["symbolic links"] += 1
        elif path.is_dir():
            if path.name.startswith(".") or path.name in _NEVER:
                left_out["folders, hidden or of fetched packages"] += 1
            elif path.resolve() not in spared:
                yield from _walk(path, spared, left_out)
        elif path.is_file():
            yield path


def _reason(path: Path, name: str, options: FolderOptions) -> str | None:
    if path.name.startswith("."):
        return "hidden files"
    if options.include and not _matches(name, options.include):
        return "files outside --include"
    if _matches(name, options.exclude):
        return "files in --exclude"
    size = path.stat().st_size
    if size > options.max_file_bytes:
        return "files above --max_file_bytes"
    if not size:
        return "empty files"
    with path.open("rb") as stream:
        return "binary files" if b"\0" in stream.read(_LOOK) else None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether the path, or where the pattern has no slash its last part, fits one of the patterns."""
    return any(fnmatchcase(name if "/" in p else name.rsplit("/", 1)[-1], p) for p in patterns)


@dataclass(frozen=True, slots=True)
class FolderConverter:
    """A file to passages."""

    options: FolderOptions
    tokenizer: OffsetTokenizer

    def __call__(self, item: SourceText) -> Converted:
        """The rows of one file."""
        converted = Converted()
        try:
            text = item.path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            converted.left_out["files that are not UTF-8"] += 1
            return converted
        language = LANGUAGE_OF_SUFFIX.get(item.path.suffix.lower(), "")
        for number, (piece, line, name) in enumerate(self._pieces(text, language, converted.left_out)):
            converted.add(
                "passages",
                id=f"{item.name}#{number}",
                title=f"{item.name}: {name}" if name else item.name,
                text=piece,
                file=item.name,
                line=str(line),
                name=name,
                language=language,
            )
        return converted

    def _pieces(self, text: str, language: str, left_out: Counter[str]) -> Iterator[tuple[str, int, str]]:
        if self.options.by == "functions":
            if not language:
                left_out["files in a language that is not cut at functions (cut by lines)"] += 1
            elif (pieces := cut_functions(text, language)) is None:
                left_out["files that do not parse (cut by lines)"] += 1
            else:
                yield from ((piece.text, piece.line, piece.name) for piece in pieces)
                return
        if self.options.by == "tokens":
            cut, short = cut_pieces(text, self.tokenizer, self.options.pieces)
            if short:
                left_out["ends of files below --min_passage_length"] += short
            line, reached = 1, 0
            for token_piece in cut:
                line += text.count("\n", reached, token_piece.start)
                reached = token_piece.start
                yield token_piece.text, line, ""
            return
        yield from _by_lines(text, self.options.pieces, left_out)


def _by_lines(text: str, options: PieceOptions, left_out: Counter[str]) -> Iterator[tuple[str, int, str]]:
    lines = re.findall(
        r"[^\n]*\n|[^\n]+", text
    )  # an editor's lines; str.splitlines ends them at a form feed, too
    for start in range(0, len(lines), options.length - options.overlap):
        piece = lines[start : start + options.length]
        if len(piece) < options.min_length:
            left_out["ends of files below --min_passage_length"] += 1
        elif "".join(piece).strip():
            yield "".join(piece), start + 1, ""
        if start + options.length >= len(lines):
            return

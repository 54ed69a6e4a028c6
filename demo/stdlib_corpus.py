"""Build the demo's data from the standard library of the interpreter that runs this.

Real code, nothing fetched. A retriever for a repository is tuned on the code that is there, and serves the code that
is written next; so each file is cut in that order. Its first part becomes passages of the corpus, its middle a
document to train on, and its end a document to be held out: what stands in the library, the earlier part of the same
file included, must help to predict what comes next. Every eighth file in the order of their paths is not trained on
at all; its end is the measure for files that are new to the retriever, and each package of the library has its share
of them. Split, order and content depend on the library's files alone.

    python -m demo.stdlib_corpus --output_dir demo/out/data --files 120
"""

from __future__ import annotations

import csv
import hashlib
import platform
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from tokenizers import Tokenizer

from replug_client.artefacts import MANIFEST_NAME, atomic_write, sha256_file, write_json
from replug_client.errors import CorpusError, OptionError

LM_DIR = Path(__file__).parent / "lm"
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class CorpusOptions:
    """How the library is cut.

    Attributes:
        files: How many files to use, chosen by a hash of their names; None for all.
        passage_fraction: The part of each file, in characters and cut at a line, that becomes passages.
        train_fraction: The part behind it that is trained on; what is left, the file's end, is held out.
        passage_tokens: Tokens of a passage, counted by the supervisor's tokenizer.
        min_passage_tokens: A file's last piece is left out when it is shorter.
        new_every: One file in so many, in the order of their paths, is new to the retriever: not trained on.
        min_file_bytes: Smaller files are left out.
        tests: Whether the library's own tests are part of it, as far as the interpreter comes with them.
    """

    files: int | None = None
    passage_fraction: float = 0.5
    train_fraction: float = 0.3
    passage_tokens: int = 128
    min_passage_tokens: int = 64
    new_every: int = 8
    min_file_bytes: int = 2000
    tests: bool = False

    def __post_init__(self) -> None:
        for name in ("passage_fraction", "train_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise OptionError(f"--{name} is {getattr(self, name)}; expected above 0 and below 1")
        if not self.passage_fraction + self.train_fraction < 1:
            raise OptionError(
                f"--passage_fraction {self.passage_fraction} and --train_fraction {self.train_fraction} leave "
                "nothing of a file to hold out; expected a sum below 1"
            )
        if not 1 <= self.min_passage_tokens <= self.passage_tokens:
            raise OptionError(
                f"--min_passage_tokens is {self.min_passage_tokens}; expected 1 to {self.passage_tokens} "
                "(--passage_tokens)"
            )
        if self.new_every < 2:
            raise OptionError(f"--new_every is {self.new_every}; expected 2 or more")
        if self.files is not None and self.files < 1:
            raise OptionError(f"--files is {self.files}; expected 1 or more, or all")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the library: its path below the root, with forward slashes, and its text."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class CorpusReport:
    """What was built: paths, counts, and what was left out and why."""

    passages: Path
    train: Path
    held_out: Path
    new_files: Path
    num_files: int
    num_passages: int
    num_train: int
    num_held_out: int
    num_new_files: int
    left_out: Mapping[str, int]


def build(
    output_dir: Path, options: CorpusOptions, *, root: Path | None = None, lm: Path = LM_DIR
) -> CorpusReport:
    """Write ``passages.csv``, ``train.csv``, ``held_out.csv``, ``new_files.csv`` and, last, ``manifest.json``.

    Args:
        output_dir: Folder to write to; files of the same names are replaced.
        options: How the library is cut.
        root: Folder of the library; the running interpreter's when None.
        lm: Folder of the supervisor, whose tokenizer measures the passages.

    Raises:
        CorpusError: no usable file below ``root``, or nothing to train on, or nothing held out.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    tokenizer = Tokenizer.from_file(str(lm / "tokenizer.json"))
    sources, left_out = read_library(root, options.min_file_bytes, tests=options.tests)
    chosen = choose(sources, options.files)
    manifest = output_dir / MANIFEST_NAME
    manifest.unlink(missing_ok=True)
    passages, train, held_out, new_files = (
        output_dir / f"{name}.csv" for name in ("passages", "train", "held_out", "new_files")
    )
    new = new_names(sources, options.new_every)
    parts: dict[str, list[dict[str, str]]] = {"train": [], "held_out": [], "new_files": []}
    for source in chosen:
        middle, end = _documents(source, options)
        if source.name in new:
            parts["new_files"].extend(end)
        else:
            parts["train"].extend(middle)
            parts["held_out"].extend(end)
    if not all(parts.values()):
        counts = ", ".join(f"{len(documents)} {name}" for name, documents in parts.items())
        raise CorpusError(
            f"{root}: {len(chosen)} files give these documents: {counts}; expected at least one of each. "
            "Use more --files."
        )
    columns = ("id", "text", "file")
    rows = (row for source in chosen for row in cut_passages(source, tokenizer, options))
    report = CorpusReport(
        passages=passages,
        train=train,
        held_out=held_out,
        new_files=new_files,
        num_files=len(chosen),
        num_passages=_write_csv(passages, (*columns, "line"), rows),
        num_train=_write_csv(train, columns, parts["train"]),
        num_held_out=_write_csv(held_out, columns, parts["held_out"]),
        num_new_files=_write_csv(new_files, columns, parts["new_files"]),
        left_out=left_out,
    )
    write_json(manifest, _manifest(report, options))
    return report


def read_library(
    root: Path, min_file_bytes: int, *, tests: bool = False
) -> tuple[list[SourceFile], dict[str, int]]:
    """The library's files in order of their names, and how many were left out for each reason.

    Installed packages are not part of the library, and are not counted; nor are its tests, unless asked for.
    """
    strangers = _NOT_LIBRARY if tests else _NOT_LIBRARY | _TEST_FOLDERS
    sources: list[SourceFile] = []
    left_out = {"too small": 0, "not UTF-8": 0, "the same as another file": 0}
    seen: set[bytes] = set()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        relative = path.relative_to(root)
        if strangers.intersection(relative.parts[:-1]):
            continue
        content = path.read_bytes()
        digest = hashlib.sha256(content).digest()
        if len(content) < min_file_bytes:
            left_out["too small"] += 1
        elif digest in seen:
            left_out["the same as another file"] += 1
        elif (text := _decode(content)) is None:
            left_out["not UTF-8"] += 1
        else:
            seen.add(digest)
            sources.append(SourceFile(relative.as_posix(), text))
    if not sources:
        raise CorpusError(
            f"{root}: no Python file of {min_file_bytes} bytes or more. This interpreter comes without the "
            "library's sources; run the demo with another (make demo PYTHON=...)."
        )
    return sources, left_out


def choose(sources: Sequence[SourceFile], count: int | None) -> list[SourceFile]:
    """The ``count`` files whose names have the lowest hashes, in their old order; all when None."""
    if count is None or count >= len(sources):
        return list(sources)
    names = {
        source.name for source in sorted(sources, key=lambda source: _hash("choose", source.name))[:count]
    }
    return [source for source in sources if source.name in names]


def new_names(sources: Sequence[SourceFile], every: int) -> frozenset[str]:
    """The last of each ``every`` files of the whole library, in the order of paths, whichever are chosen later.

    By order, not by chance: packages differ widely in what retrieval gives (the tables of ``encodings`` gain many
    times what other code does), and 70 files drawn by a hash may hold half or twice a package's share.
    """
    return frozenset(source.name for source in sources[every - 1 :: every])


def split_at_line(text: str, fraction: float) -> int:
    """The last beginning of a line at or before ``fraction`` of the text, in characters."""
    return text.rfind("\n", 0, int(len(text) * fraction)) + 1


def cut_passages(
    source: SourceFile, tokenizer: Tokenizer, options: CorpusOptions
) -> Iterator[dict[str, Any]]:
    """Pieces of ``passage_tokens`` tokens of the file's first part, one after the other.

    They end at whole characters. ``line`` is where a piece begins, counted from 1.
    """
    part = source.text[: split_at_line(source.text, options.passage_fraction)]
    offsets = tokenizer.encode(part, add_special_tokens=False).offsets
    start, line = 0, 1
    while len(offsets) - start >= options.min_passage_tokens:
        stop = _whole_characters(offsets, min(start + options.passage_tokens, len(offsets)), start)
        first, last = offsets[start][0], offsets[stop - 1][1]
        text = part[first:last]
        if text.strip():
            yield {"id": f"{source.name}#{start}", "text": text, "file": source.name, "line": line}
        line += text.count("\n")
        start = stop


def _whole_characters(offsets: Sequence[tuple[int, int]], stop: int, start: int) -> int:
    """The nearest boundary at or before ``stop`` that is not inside a character; after it when there is none.

    A byte-level tokenizer may give one character several tokens: these have the same offsets.
    """
    for boundary in range(stop, start, -1):
        if boundary == len(offsets) or offsets[boundary][0] >= offsets[boundary - 1][1]:
            return boundary
    return next(
        (b for b in range(stop, len(offsets)) if offsets[b][0] >= offsets[b - 1][1]),
        len(offsets),
    )


def _documents(
    source: SourceFile, options: CorpusOptions
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The file's middle and its end, each a document, or none where nothing but space is left for it."""
    fractions = (options.passage_fraction, options.passage_fraction + options.train_fraction)
    first, second = (split_at_line(source.text, fraction) for fraction in fractions)
    middle, end = (
        [{"id": source.name, "text": text, "file": source.name}] if text.strip() else []
        for text in (source.text[first:second], source.text[second:])
    )
    return middle, end


def _decode(content: bytes) -> str | None:
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        return None


def _hash(salt: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}\0{name}".encode()).digest()[:8], "big")


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with atomic_write(path, "w") as stream:
        writer = csv.DictWriter(stream, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def _manifest(report: CorpusReport, options: CorpusOptions) -> dict[str, Any]:
    files = (report.passages, report.train, report.held_out, report.new_files)
    return {
        "python": platform.python_version(),
        "options": asdict(options),
        "num_files": report.num_files,
        "num_passages": report.num_passages,
        "num_train": report.num_train,
        "num_held_out": report.num_held_out,
        "num_new_files": report.num_new_files,
        "left_out": dict(report.left_out),
        "sha256": {path.name: sha256_file(path) for path in files},
    }


def main(
    output_dir: Annotated[Path, typer.Option("--output_dir", help="Folder to write to.")] = Path(
        "demo/out/data"
    ),
    files: Annotated[str, typer.Option("--files", help="How many files of the library, or all.")] = "all",
    passage_fraction: Annotated[
        float, typer.Option("--passage_fraction", help="The part of each file that becomes passages.")
    ] = CorpusOptions.passage_fraction,
    train_fraction: Annotated[
        float,
        typer.Option("--train_fraction", help="The part behind it that is trained on; the end is held out."),
    ] = CorpusOptions.train_fraction,
    new_every: Annotated[
        int, typer.Option("--new_every", help="One file in so many is not trained on at all.")
    ] = CorpusOptions.new_every,
    tests: Annotated[
        bool, typer.Option("--tests", help="The library's own tests, too, where they are installed.")
    ] = False,
) -> None:
    """Cut the standard library of this interpreter into passages, training and held-out documents."""
    if files != "all" and not files.isdecimal():
        raise typer.BadParameter(f"{files!r}; expected a number or all", param_hint="--files")
    options = CorpusOptions(
        files=None if files == "all" else int(files),
        passage_fraction=passage_fraction,
        train_fraction=train_fraction,
        new_every=new_every,
        tests=tests,
    )
    report = build(output_dir, options)
    print(
        f"Python {platform.python_version()}: {report.num_files} files, {report.num_passages} passages, "
        f"{report.num_train} training, {report.num_held_out} held-out and {report.num_new_files} new documents "
        f"in {output_dir}"
    )
    print("left out: " + ", ".join(f"{count} {reason}" for reason, count in report.left_out.items()))


if __name__ == "__main__":
    typer.run(main)

"""A folder as passages: which files, why not the others, and the three ways to cut."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from replug_client.corpus.readers import open_source
from replug_client.corpus.sources.conversion import ConversionReport, convert
from replug_client.corpus.sources.folder import FolderOptions, conversion
from replug_client.corpus.sources.pieces import PieceOptions
from replug_client.errors import CorpusError
from replug_client.supervisor.tokenizer import FolderTokenizer

LM = Path(__file__).parents[3] / "demo" / "lm"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "in"
    for name, content in {
        "b/code.py": b"import os\n\ndef f():\n    return 1\n",
        "a.txt": b"one two three four five\n",
        "bad.py": b"def ((\nx\ny\n",
        "latin.txt": b"caf\xe9",
        "nul.bin": b"a\0b",
        "empty.txt": b"",
        "big.txt": b"x " * 600,
        ".hidden": b"x",
        ".git/config": b"x",
        "node_modules/x.js": b"x",
        "b/skip.log": b"x",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (root / "link.txt").symlink_to(root / "a.txt")
    (root / "loop").symlink_to(root)
    return root


def make(folder: Path, *, length: int = 2, **changes: object) -> ConversionReport:
    options = FolderOptions(PieceOptions(length), max_file_bytes=1000, exclude=("*.log",), **changes)  # type: ignore[arg-type]
    output = folder.parent / f"out{len(list(folder.parent.iterdir()))}"
    return convert(conversion(folder, options, None, leave=[output]), output)


def rows(report: ConversionReport) -> list[tuple[str, str]]:
    return [(p.id, p.text) for p in open_source(report.files["passages"])]


def test_files_are_read_in_order_and_all_others_counted(folder: Path) -> None:
    report = make(folder, include=("*.txt",))
    assert rows(report) == [("a.txt#0", "one two"), ("a.txt#1", " three four"), ("a.txt#2", " five\n")]
    # nul.bin, bad.py, b/code.py and b/skip.log are no .txt.
    assert report.left_out == {
        "empty files": 1,
        "files above --max_file_bytes": 1,
        "files outside --include": 4,
        "files that are not UTF-8": 1,
        "folders, hidden or of fetched packages": 2,
        "hidden files": 1,
        "symbolic links": 2,
    }


def test_functions_are_passages_and_other_files_are_cut_by_lines(folder: Path) -> None:
    report = make(folder, by="functions", include=("*.py", "a.txt"))
    found = list(open_source(report.files["passages"]))
    assert [(p.id, p.title, p.text) for p in found] == [
        ("a.txt#0", "a.txt", "one two three four five\n"),
        ("b/code.py#0", "b/code.py", "import os\n\n"),
        ("b/code.py#1", "b/code.py: f", "def f():\n    return 1\n"),
        ("bad.py#0", "bad.py", "def ((\nx\n"),
        ("bad.py#1", "bad.py", "y\n"),
    ]
    assert dict(found[2].extra) == {"file": "b/code.py", "line": "3", "name": "f", "language": "python"}
    assert report.left_out["files that do not parse (cut by lines)"] == 1
    assert report.left_out["files in a language that is not cut at functions (cut by lines)"] == 1


def test_lines_may_overlap_and_know_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.txt").write_bytes(b"a\x0ca\nb\r\nc\nd\ne")
    options = FolderOptions(PieceOptions(3, overlap=1), by="lines")
    report = convert(conversion(tmp_path / "in", options, None), tmp_path / "out")
    found = [(p.text, p.extra["line"]) for p in open_source(report.files["passages"])]
    assert found == [("a\x0ca\nb\r\nc\n", "1"), ("c\nd\ne", "3")]


def test_binary_and_log_files_are_counted(folder: Path) -> None:
    left_out = make(folder).left_out
    assert left_out["binary files"] == 1
    assert left_out["files in --exclude"] == 1


def test_tokens_are_counted_by_a_tokenizer_and_lines_by_their_ends(folder: Path) -> None:
    tokenizer = FolderTokenizer(Tokenizer.from_file(str(LM / "tokenizer.json")), None)
    options = FolderOptions(PieceOptions(4), include=("*.py",))
    report = convert(conversion(folder / "b" / "code.py", options, tokenizer), folder.parent / "out")
    found = list(open_source(report.files["passages"]))
    assert "".join(p.text for p in found) == "import os\n\ndef f():\n    return 1\n"
    assert all(len(tokenizer.encode(p.text)) <= 4 for p in found)
    assert [p.extra["line"] for p in found] == sorted(p.extra["line"] for p in found)
    assert found[-1].extra["line"] in "34"


def test_the_output_inside_the_folder_is_not_read(folder: Path) -> None:
    options = FolderOptions(PieceOptions(9), include=("a.txt", "*.csv"))
    for _ in range(2):
        report = convert(conversion(folder, options, None, leave=[folder / "out"]), folder / "out")
        assert rows(report) == [("a.txt#0", "one two three four five\n")]


def test_nothing_to_read_says_why(folder: Path) -> None:
    with pytest.raises(CorpusError, match=r"no file to read \(.*outside --include"):
        make(folder, include=("*.rs",))
    with pytest.raises(CorpusError, match="no such folder"):
        make(folder / "nowhere")
    with pytest.raises(CorpusError, match=r"nul\.bin: left out, as one of the binary files"):
        make(folder / "nul.bin")

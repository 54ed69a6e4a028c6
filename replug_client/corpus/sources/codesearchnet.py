"""CodeSearchNet (Husain et al. 2019): functions as passages, their documentation as queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from replug_client.corpus.rows import Place
from replug_client.corpus.sources.conversion import Conversion, Converted
from replug_client.corpus.sources.functions import without_python_docstring
from replug_client.corpus.sources.hub import HubData
from replug_client.corpus.sources.inputs import COMPRESSIONS, bare_suffix, hashed, json_lines, text_of
from replug_client.corpus.sources.judged import DOCUMENT_COLUMNS, QREL_COLUMNS, document_text
from replug_client.errors import CorpusError, OptionError
from replug_client.progress import progress

HUB_NAME = "code-search-net/code_search_net"
LANGUAGES = ("python", "javascript", "java", "go", "ruby", "php")
PARTITIONS = {"train": "train", "valid": "validation", "validation": "validation", "test": "test"}
_ADVICE = (
    "Give the folder of its files (python/final/jsonl/train/*.jsonl.gz ...), or of the hub's Parquet files, with "
    f"--input; on a machine with a network: hf download --repo-type dataset {HUB_NAME}."
)
# Names in the published files, then the hub's.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "code": ("code", "func_code_string", "whole_func_string", "original_string"),
    "docstring": ("docstring", "func_documentation_string"),
    "name": ("func_name",),
    "repo": ("repo", "repository_name"),
    "path": ("path", "func_path_in_repository"),
    "language": ("language",),
    "partition": ("partition", "split_name"),
}


@dataclass(frozen=True, slots=True)
class CodeSearchNetOptions:
    """Which functions, and what of them.

    Attributes:
        language: Of which language; None for all.
        num_functions: Read so many; None for all.
        keep_docstrings: A Python function holds its documentation, which is also its query: so retrieval by the
            documentation would be trivial. Unless this is set, it is taken out of the passage.
        min_docstring_words: Functions with a shorter documentation are passages, but no queries.
    """

    language: str | None = None
    num_functions: int | None = None
    keep_docstrings: bool = False
    min_docstring_words: int = 3

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in LANGUAGES:
            raise OptionError(f"--language {self.language}: expected one of {', '.join(LANGUAGES)}")
        if self.num_functions is not None and self.num_functions < 1:
            raise OptionError(f"--num_functions is {self.num_functions}; expected 1 or more")


Item = tuple[int, Place, dict[str, Any]]


def conversion(source: str, options: CodeSearchNetOptions) -> Conversion[Item]:
    """What makes ``passages``, ``queries`` and ``qrels.tsv``, and by partition ``train``, ``validation``, ``test``.

    Args:
        source: A file, a folder of files, or a name on the hub.
        options: Which functions.

    Raises:
        CorpusError: nothing there to read.
    """
    path = Path(source)
    files = _files(path, options.language)
    hubs: list[HubData] = []
    if files:
        inputs: Any = hashed(files)
    else:
        config = None if path.is_dir() else (options.language or "all")
        hubs = [HubData(source, config, split).pinned(_ADVICE) for split in ("train", "validation", "test")]
        inputs = [hub.describe() for hub in hubs]

    def items(skip: int) -> Iterator[Item]:
        def rows() -> Iterator[tuple[Place, dict[str, Any]]]:
            if files:
                with progress("Reading functions", sum(f.stat().st_size for f in files), "B") as advance:
                    for file in files:
                        yield from json_lines(file, advance)
            for hub in hubs:
                yield from hub.rows()

        for number, (place, row) in enumerate(rows()):
            if options.num_functions is not None and number >= options.num_functions:
                return
            if number >= skip:
                yield number, place, row

    documents = dict.fromkeys(("train", "validation", "test"), DOCUMENT_COLUMNS)
    return Conversion(
        "codesearchnet",
        asdict(options),
        inputs,
        {
            "passages": ("id", "title", "text", "language", "repo", "path", "partition"),
            "queries": ("id", "text", "partition"),
            "qrels.tsv": QREL_COLUMNS,
            **documents,
        },
        items,
        CodeSearchNetConverter(options),
    )


@dataclass(frozen=True, slots=True)
class CodeSearchNetConverter:
    """A function to its rows."""

    options: CodeSearchNetOptions

    def __call__(self, item: Item) -> Converted:
        """The rows of one function."""
        number, place, record = item
        cells = {name: text_of(place, record, fields) for name, fields in _FIELDS.items()}
        converted = Converted()
        partition = PARTITIONS.get(cells["partition"])
        if partition is None:
            raise place.error(
                f"partition {cells['partition']!r}, expected one of {', '.join(PARTITIONS)}",
                column="partition",
            )
        if self.options.language not in (None, cells["language"]):
            converted.left_out["functions in other languages"] += 1
            return converted
        code = self._code(cells, converted)
        if code is None:
            return converted
        id_ = f"{cells['language']}-{partition}-{number}"
        converted.add(
            "passages",
            id=id_,
            title=cells["name"],
            text=code,
            language=cells["language"],
            repo=cells["repo"],
            path=cells["path"],
            partition=partition,
        )
        query = " ".join(cells["docstring"].split("\n\n", 1)[0].split())
        if len(query.split()) < self.options.min_docstring_words:
            converted.left_out["queries below --min_docstring_words"] += 1
            return converted
        query_id = f"q-{id_}"
        converted.add("queries", id=query_id, text=query, partition=partition)
        converted.add("qrels.tsv", **dict(zip(QREL_COLUMNS, (query_id, id_, "1"), strict=True)))
        text = document_text(query, code)
        converted.add(partition, id=f"{query_id}-{id_}", text=text, query_id=query_id, passage_id=id_)
        return converted

    def _code(self, cells: Mapping[str, str], converted: Converted) -> str | None:
        code: str | None = cells["code"]
        if cells["language"] == "python" and cells["docstring"].strip() and not self.options.keep_docstrings:
            code = without_python_docstring(cells["code"])
            if code is None:
                converted.left_out["Python functions that do not parse, or hold nothing but a docstring"] += 1
                return None
        if not code or not code.strip():
            converted.left_out["functions without code"] += 1
            return None
        return code


def _files(path: Path, language: str | None) -> list[Path]:
    """The JSONL files below a folder, training ones first; none where it is a hub's name or a folder of Parquet."""
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and _is_jsonl(file))
        if not found and not any(path.rglob("*.parquet")):
            raise CorpusError(f"{path}: no .jsonl or .jsonl.gz file below it. {_ADVICE}")
    else:
        return []
    of_language = [file for file in found if language in file.relative_to(path).parts] if language else []
    order = {"train": 0, "valid": 1, "test": 2}

    def place(file: Path) -> tuple[int, str]:
        return min(
            (order[word] for word in order if word in file.as_posix().lower()), default=3
        ), file.as_posix()

    return sorted(of_language or found, key=place)


def _is_jsonl(file: Path) -> bool:
    return bare_suffix(file) == ".jsonl" and (file.suffix in COMPRESSIONS or file.suffix == ".jsonl")

"""What a comparison works on: a finished run's record, what overrides it, and the queries."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from replug_client.artefacts import read_json
from replug_client.errors import ArtefactError, CorpusError, OptionError
from replug_client.retriever.encoder import EncoderOptions

RUN_NAME = "run.json"
_N_DOCS = 10
_MEND = "Train first (`replug train`), or name the folder of a finished run with --run."
_WITHOUT_RUN = "Without a run, --base, --tuned, --passages and --query or --query_file are all needed."


@dataclass(frozen=True, slots=True)
class TunedRun:
    """What `run.json` says about a tuned retriever.

    Attributes:
        folder: Where the record lies; the tuned model itself.
        base: The encoder that training started from, with the options it was loaded with.
        passages: The corpus files.
        shards: The base's passage vectors: shards or globs.
        n_docs: K of the training.
        held_out: The queries that took no part in training; None where none were kept.
    """

    folder: Path
    base: EncoderOptions
    passages: tuple[Path, ...]
    shards: tuple[str, ...]
    n_docs: int
    held_out: Path | None

    @classmethod
    def read(cls, folder: Path) -> TunedRun:
        """Read ``folder/run.json``. Files that have moved with the folder are looked for beside it.

        Raises:
            ArtefactError: no such record, an unfinished one, or a field missing or of another kind.
        """
        path = folder / RUN_NAME
        value = read_json(path, mend=_MEND)
        if value.get("status") != "complete":
            raise ArtefactError(f"{path}: the run is not complete (status {value.get('status')!r}). {_MEND}")
        base = _field(path, value, "base_model", str)
        encoder = {**_field(path, value, "encoder", dict), "model_name_or_path": moved(folder, base)}
        try:
            options = EncoderOptions(**encoder)
        except TypeError as error:
            raise ArtefactError(f"{path}: the encoder's options cannot be read ({error}). {_MEND}") from error
        held_out = value.get("held_out")
        return cls(
            folder=folder,
            base=options,
            passages=tuple(Path(moved(folder, item)) for item in _field(path, value, "passages", list)),
            shards=tuple(moved(folder, item) for item in _field(path, value, "passages_embeddings", list)),
            n_docs=_field(path, value, "n_docs", int),
            held_out=None if held_out is None else Path(moved(folder, str(held_out))),
        )


def _field(path: Path, value: dict[str, Any], name: str, kind: type) -> Any:
    if not isinstance(value.get(name), kind):
        raise ArtefactError(f"{path}: {name!r} should be {kind.__name__}, found {value.get(name)!r}. {_MEND}")
    return value[name]


def moved(folder: Path, name: str) -> str:
    """A path of the record: where it exists; else relative to the record, beside it, or under the working directory."""
    path = Path(name)
    candidates = [folder / path, path]
    if path.is_absolute():
        # A project that was moved as a whole is looked at from its own folder: the longest end that is there.
        ends = [Path(*path.parts[start:]) for start in range(1, len(path.parts) - 1)]
        candidates = [path, folder / path.name, *ends]
    return next((str(candidate) for candidate in candidates if candidate.exists()), name)


@dataclass(frozen=True, slots=True)
class Query:
    """One query to compare on; ``continuation`` and ``document_id`` where they are known."""

    text: str
    continuation: str | None = None
    document_id: str | None = None


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What the flags of a comparison say; what they leave open comes from a run's record.

    Attributes:
        run: Folder of a finished run; None takes ``tuned`` where that is one, else ``default_run``.
        base: The base encoder's folder or name.
        tuned: The tuned encoder's.
        passages: The corpus files.
        queries: Texts to retrieve for.
        query_file: More of them, see :func:`read_queries`.
        n_docs: Passages shown and compared for each query.
        device: Of both encoders; None takes a GPU where there is one.
        default_run: Where a run is looked for when nothing else names one.
        queries_later: Queries need not be known now; a run's held-out ones are taken where there are some.
    """

    run: Path | None = None
    base: str | None = None
    tuned: str | None = None
    passages: tuple[Path, ...] = ()
    queries: tuple[str, ...] = ()
    query_file: Path | None = None
    n_docs: int | None = None
    device: str | None = None
    default_run: Path = Path("output_finetuned_retriever")
    queries_later: bool = False

    def __post_init__(self) -> None:
        if self.n_docs is not None and self.n_docs < 1:
            raise OptionError(f"--n_docs {self.n_docs}: expected at least 1.")
        if any(not text.strip() for text in self.queries):
            raise OptionError("--query is empty: expected the text to retrieve for.")


@dataclass(frozen=True, slots=True)
class Compared:
    """What is compared, on what: :class:`CompareOptions` with nothing left open.

    ``held_out`` says whether the queries are the run's own held-out ones.
    """

    base: EncoderOptions
    tuned: EncoderOptions
    passages: tuple[Path, ...]
    shards: tuple[str, ...]
    n_docs: int
    queries: tuple[Query, ...]
    held_out: bool


def resolve(options: CompareOptions) -> Compared:
    """Take each thing from its flag, and what no flag gives from the run's record.

    Raises:
        ArtefactError: the record is needed and missing, incomplete or damaged.
        CorpusError: a query file that cannot be read.
    """
    queries = [Query(text) for text in options.queries]
    if options.query_file is not None:
        queries.extend(read_queries(options.query_file))
    run = _run(options, bool(queries) or options.queries_later)
    held_out = not queries
    if held_out and not (options.queries_later and run.held_out is None):
        queries = _held_out(run)
    base = run.base if options.base is None else EncoderOptions(options.base)
    return Compared(
        base=replace(base, device=options.device),
        tuned=EncoderOptions(options.tuned or str(run.folder), device=options.device),
        passages=options.passages or run.passages,
        shards=run.shards,
        n_docs=options.n_docs or run.n_docs,
        queries=tuple(queries),
        held_out=held_out,
    )


def _run(options: CompareOptions, has_queries: bool) -> TunedRun:
    base, tuned = options.base, options.tuned
    if options.run is not None:
        return TunedRun.read(options.run)
    if tuned is not None and (Path(tuned) / RUN_NAME).exists():
        return TunedRun.read(Path(tuned))
    if base is not None and tuned is not None and options.passages and has_queries:
        return TunedRun(Path(tuned), EncoderOptions(base), options.passages, (), _N_DOCS, None)
    try:
        return TunedRun.read(options.default_run)
    except ArtefactError as error:
        raise ArtefactError(f"{error} {_WITHOUT_RUN}") from error


def _held_out(run: TunedRun) -> list[Query]:
    if run.held_out is None:
        raise ArtefactError(
            f"{run.folder / RUN_NAME} names no held-out queries. Give some with --query or --query_file."
        )
    return read_queries(run.held_out)


def read_queries(path: Path) -> list[Query]:
    """Queries of a file: JSON lines with ``query`` (a ``.jsonl`` file), else one query a line.

    Of JSON lines, ``continuation`` and ``document_id`` are kept where they are there. Blank queries
    are passed over.

    Raises:
        CorpusError: no such file, no query in it, undecodable bytes, or a line that is not as above;
            names file and line.
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            lines = [(number, line.rstrip("\n")) for number, line in enumerate(stream, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(
            f"{path}: cannot be read ({error}). Expected queries in UTF-8, one a line."
        ) from error
    if path.suffix == ".jsonl":
        queries = [_json_query(f"{path}, line {number}", line) for number, line in lines]
    else:
        queries = [Query(line) for _, line in lines]
    queries = [query for query in queries if query.text.strip()]
    if not queries:
        raise CorpusError(f"{path}: no query in it. Expected one a line.")
    return queries


def _json_query(place: str, line: str) -> Query:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{place}: not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CorpusError(f"{place}: expected an object, found {type(value).__name__}.")
    query, continuation, document_id = (value.get(name) for name in ("query", "continuation", "document_id"))
    if not isinstance(query, str):
        raise CorpusError(f"{place}: 'query' should be a text, found {query!r}.")
    for name, other in (("continuation", continuation), ("document_id", document_id)):
        if not isinstance(other, str | None):
            raise CorpusError(f"{place}: {name!r} should be a text, found {other!r}.")
    return Query(query, continuation, document_id)

"""Test collections: a corpus, queries and judgements, out of folders in BEIR's form or published data sets.

One data set may be several collections, each with a corpus of its own: CQADupStack's forums, and the repository
tasks of CodeRAG-Bench (Wang et al. 2024). Their figures are means over the collections, as both benchmarks report.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from replug_client.artefacts import MANIFEST_NAME, read_json, sha256_file, write_json
from replug_client.corpus.beir import (
    BEIR_MD5,
    CORPUS_NAME,
    QRELS_NAME,
    QUERIES_NAME,
    BeirSource,
    Qrels,
    default_split,
    fetch_beir,
    is_beir_folder,
    read_beir_queries,
    read_qrels,
)
from replug_client.corpus.hub import HUB_NAME, fetch_hub
from replug_client.corpus.rows import file_errors
from replug_client.corpus.store import PassageStore, write_store
from replug_client.errors import ArtefactError, CorpusError, OptionError
from replug_client.progress import progress

_LOG = logging.getLogger(__name__)
_FORMAT = "beir-1"
_EMPTY_NAME = "left_out.json"
_NANO = re.compile(r"Nano[A-Za-z0-9]+")
_NANO_OWNER = "zeta-alpha-ai"
# CodeRAG-Bench writes repoeval__<repository> and swe-bench-lite_<instance>; `__` does for one's own tasks.
_OF_A_TASK = re.compile(r"(?P<task>repoeval|swe-bench(?:-lite)?)_.+|(?P<other>[^_].*?)__.+")
_FORUMS = "cqadupstack"


@dataclass(frozen=True, slots=True)
class Collection:
    """One corpus with its queries and judgements.

    Attributes:
        name: What tables call it.
        open: Makes or finds the corpus under a cache folder: the store, and how many empty passages it lacks.
        queries: Query id to text: the judged ones.
        qrels: Their judgements.
        clusters: Query id to what it was cut from, where queries are not independent; None: they are.
        left_out: Reason to the number of queries or passages that do not take part.
        notes: What else a reader of the figures should know.
    """

    name: str
    open: Callable[[Path], tuple[PassageStore, int]]
    queries: Mapping[str, str]
    qrels: Qrels
    clusters: Mapping[str, str] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataSet:
    """What one table is about: a collection, or several whose figures are averaged.

    Attributes:
        name: What tables call it.
        collections: At least one.
        parts: What several collections are: ``repositories``, ``forums``.
    """

    name: str
    collections: tuple[Collection, ...]
    parts: str = "collections"


def open_data_sets(name: str, cache_dir: Path, *, split: str | None = None) -> list[DataSet]:
    """The data sets under one name, fetched where they are not on this machine.

    Args:
        name: A folder in BEIR's form, or of such folders; the name of one of BEIR's data sets (``scifact``), of
            one of NanoBEIR's (``NanoSciFact``), or of a data set on the hub (``owner/name``).
        cache_dir: Where what is fetched is kept.
        split: Of the judgements; None: the one that the benchmark reports.

    Raises:
        OptionError: none of these.
        CorpusError: a file that cannot be read, or a split that is not there.
        DownloadError, ArtefactError: it cannot be fetched or unpacked; says what to put where.
    """
    if Path(name).is_dir():
        return folder_data_sets(Path(name), split)
    if name in BEIR_MD5:
        return folder_data_sets(fetch_beir(name, cache_dir), split)
    hub = f"{_NANO_OWNER}/{name}" if _NANO.fullmatch(name) else name
    if HUB_NAME.fullmatch(hub):
        folder, found = fetch_hub(hub, cache_dir, split=split)
        return [DataSet(name.rsplit("/", 1)[-1], (beir_collection(folder, found),))]
    raise OptionError(
        f"--datasets {name}: no such folder, and not the name of a data set. Expected a folder with {CORPUS_NAME}, "
        f"{QUERIES_NAME} and {QRELS_NAME}/, one of {', '.join(sorted(BEIR_MD5))}, a NanoBEIR name such as "
        "NanoSciFact, or owner/name on the hub."
    )


def folder_data_sets(folder: Path, split: str | None = None) -> list[DataSet]:
    """The data sets of a folder in BEIR's form, or of all such folders right below it.

    Below it, those of one task (``repoeval__<repository>``, ``swe-bench-lite_<instance>``, ``<task>__<part>``) make
    one data set, and so do all of CQADupStack; every other one stands for itself.

    Raises:
        CorpusError: no such folder below it, or a file that cannot be read.
    """
    if is_beir_folder(folder):
        return [DataSet(folder.name, (beir_collection(folder, split),))]
    tasks: dict[str, list[Path]] = {}
    for child in sorted(child for child in folder.iterdir() if child.is_dir() and is_beir_folder(child)):
        found = _OF_A_TASK.fullmatch(child.name)
        task = (found["task"] or found["other"]) if found else child.name
        tasks.setdefault(_FORUMS if folder.name == _FORUMS else task, []).append(child)
    if not tasks:
        raise CorpusError(
            f"{folder}: no data set there. Expected {CORPUS_NAME}, {QUERIES_NAME} and {QRELS_NAME}/<split>.tsv, in it "
            "or in the folders right below it."
        )
    parts = "forums" if folder.name == _FORUMS else "repositories"
    return [
        DataSet(task, tuple(beir_collection(child, split) for child in children), parts)
        for task, children in tasks.items()
    ]


def beir_collection(folder: Path, split: str | None = None) -> Collection:
    """The collection of one folder in BEIR's form.

    Raises:
        CorpusError: no judgements of this split, or a file that cannot be read.
    """
    split = split or default_split(folder.name)
    path = folder / QRELS_NAME / f"{split}.tsv"
    if not path.is_file():
        found = ", ".join(sorted(other.stem for other in path.parent.glob("*.tsv"))) or "none"
        raise CorpusError(
            f"{path}: no judgements of the split {split!r}; found {found}. Choose with --split."
        )
    qrels = read_qrels(path)
    queries = read_beir_queries(folder / QUERIES_NAME)
    return judged_collection(
        folder.name, lambda cache: beir_store(folder / CORPUS_NAME, cache), queries, qrels
    )


def judged_collection(
    name: str,
    open_store: Callable[[Path], tuple[PassageStore, int]],
    queries: Mapping[str, str],
    qrels: Qrels,
    **others: object,
) -> Collection:
    """A collection of the queries that have a text and judgements; the others are counted.

    Raises:
        CorpusError: no query is left.
    """
    left_out = {
        "queries without judgements in this split": sum(id_ not in qrels for id_ in queries),
        "judged queries that the queries lack": sum(id_ not in queries for id_ in qrels),
        "queries without text": sum(not text.strip() for id_, text in queries.items() if id_ in qrels),
    }
    kept = {id_: queries[id_] for id_ in qrels if queries.get(id_, "").strip()}
    if not kept:
        raise CorpusError(
            f"{name}: no query with a text has judgements ({_counts(left_out)}). Are ids the same?"
        )
    counted = {reason: count for reason, count in left_out.items() if count}
    return Collection(
        name,
        open_store,
        kept,
        {id_: qrels[id_] for id_ in kept},
        left_out=counted,
        **others,  # type: ignore[arg-type]
    )


def _counts(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items())


def beir_store(path: Path, cache_dir: Path) -> tuple[PassageStore, int]:
    """The passages of a ``corpus.jsonl``, title and text joined, and how many were empty.

    Read and checked once, then found again by the file's bytes.

    Raises:
        CorpusError: the file cannot be read.
        ArtefactError: the store cannot be written.
    """
    with file_errors(path), progress("Checking the passages' hash", path.stat().st_size, "B") as advance:
        digest = sha256_file(path, advance)
    key = hashlib.sha256(json.dumps([_FORMAT, digest]).encode()).hexdigest()
    directory = cache_dir / "corpus" / key
    if (directory / MANIFEST_NAME).exists():
        try:
            empty = read_json(directory / _EMPTY_NAME, mend="Making it again.")["empty"]
            return PassageStore(directory, [path]), int(empty)
        except ArtefactError as error:
            _LOG.warning("%s Making it again.", error)
    with progress("Reading passages", path.stat().st_size, "B") as advance:
        source = BeirSource(path, advance=advance)
        write_store([source], directory)
    write_json(directory / _EMPTY_NAME, {"empty": source.empty})
    return PassageStore(directory, [path]), source.empty

"""Data sets and retrievers in, the figures of every query out."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from replug_client.artefacts import atomic_write
from replug_client.corpus.collections import Collection, DataSet
from replug_client.corpus.store import PassageStore
from replug_client.evaluation.ranking.measures import Floats, Ranked, per_query
from replug_client.evaluation.ranking.search import Search
from replug_client.evaluation.ranking.trec import id_writer, write_qrels, write_run

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Figures:
    """The figures of one data set, query by query.

    Attributes:
        name: The data set.
        queries: n pairs of collection and query id.
        values: Retriever to measure to ``(n,)``.
        weights: ``(n,)`` what each query counts in the mean: 1, or 1 / (queries of its collection) where the mean
            is over collections.
        units: What is independent, and so resampled: ``queries``, ``documents``, ``repositories``.
        clusters: ``n`` names of them; None: the queries themselves.
        parts: How many collections were averaged, and what they are; ``""`` for one.
        left_out: Reason to number.
        notes: What else to say below the table.
        corpora: Collection to the hash of its passages.
        seconds: Stage to wall time.
    """

    name: str
    queries: Sequence[tuple[str, str]]
    values: Mapping[str, Mapping[str, Floats]]
    weights: Floats
    units: str = "queries"
    clusters: Sequence[str] | None = None
    parts: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    corpora: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def mean(self, retriever: str, measure: str) -> float:
        """The weighted mean of a measure."""
        return float(np.average(self.values[retriever][measure], weights=self.weights))


def evaluate_data_set(
    data_set: DataSet,
    search: Search,
    measures: Sequence[str],
    cache_dir: Path,
    run_dir: Path | None = None,
) -> Figures:
    """Search every collection of a data set with every retriever, and measure.

    With ``run_dir``, each collection's rankings, judgements and figures are written there, under
    ``<data set>/`` or ``<data set>/<collection>/``: ``<retriever>.run`` and ``qrels.txt`` in TREC's format, and
    ``per_query.jsonl``.

    Raises:
        CorpusError: passages that cannot be read.
        OptionError, ArtefactError: as :meth:`Search.run`.
    """
    began = time.monotonic()
    several = len(data_set.collections) > 1
    found = []
    for number, collection in enumerate(data_set.collections, 1):
        if several:
            _LOG.info("%s, %d of %d: %s", data_set.name, number, len(data_set.collections), collection.name)
        folder = None
        if run_dir is not None:
            folder = run_dir / data_set.name / collection.name if several else run_dir / data_set.name
        found.append(_evaluate(collection, search, measures, cache_dir, folder))
    queries = [(one.name, id_) for one in data_set.collections for id_ in one.queries]
    sizes = [len(one.queries) for one in data_set.collections]
    single = data_set.collections[0]
    clusters = [name for name, _ in queries] if several else None
    units = data_set.parts if several else "queries"
    if not several and single.clusters is not None:
        clusters, units = [single.clusters[id_] for id_ in single.queries], "documents"
    return Figures(
        name=data_set.name,
        queries=queries,
        values={
            name: {
                measure: np.concatenate([one.values[name][measure] for one in found]) for measure in measures
            }
            for name in search.names
        },
        weights=np.concatenate([np.full(size, 1.0 / size if several else 1.0) for size in sizes]),
        units=units,
        clusters=clusters,
        parts=f"{len(sizes)} {data_set.parts}" if several else "",
        left_out=dict(sum((Counter(one.left_out) for one in found), Counter())),
        notes=list(dict.fromkeys(note for one in found for note in one.notes)),
        corpora={one.name: result.corpus for one, result in zip(data_set.collections, found, strict=True)},
        seconds={"all": round(time.monotonic() - began, 3)},
    )


@dataclass(frozen=True, slots=True)
class _Result:
    values: dict[str, dict[str, Floats]]
    corpus: str
    left_out: dict[str, int]
    notes: list[str]


def _evaluate(
    collection: Collection, search: Search, measures: Sequence[str], cache_dir: Path, folder: Path | None
) -> _Result:
    store, empty = collection.open(cache_dir)
    runs = search.run(store, collection.queries)
    values = {name: per_query(measures, collection.qrels, run) for name, run in runs.items()}
    if folder is not None:
        _write(folder, collection, runs, values)
    left_out = {**collection.left_out, **({"passages without text": empty} if empty else {})}
    return _Result(values, store.sha256, left_out, [*collection.notes, *_notes(collection, store, runs)])


def _notes(collection: Collection, store: PassageStore, runs: Mapping[str, Ranked]) -> list[str]:
    """What counts in the figures though it may surprise."""
    judged = {id_ for gains in collection.qrels.values() for id_ in gains}
    absent = sum(store.row_of(id_) is None for id_ in judged)
    hopeless = sum(all(gain <= 0 for gain in gains.values()) for gains in collection.qrels.values())
    notes = []
    if absent:
        notes.append(
            f"{absent:,} of {len(judged):,} judged passages are not in the corpus: nobody can find them."
        )
    if hopeless:
        notes.append(f"{hopeless:,} queries have no relevant passage: they count 0 for every retriever.")
    for name, run in runs.items():
        empty = sum(not found for found in run.values())
        if empty:
            notes.append(f"{name} found nothing for {empty:,} of {len(run):,} queries: they count 0.")
    return notes


def _write(
    folder: Path,
    collection: Collection,
    runs: Mapping[str, Ranked],
    values: Mapping[str, Mapping[str, Floats]],
) -> None:
    ids = [id_ for gains in collection.qrels.values() for id_ in gains]
    ids += [id_ for run in runs.values() for found in run.values() for id_, _ in found]
    written = id_writer([*collection.queries, *ids])
    for name, run in runs.items():
        write_run(folder / f"{name}.run", run, name, written)
    write_qrels(folder / "qrels.txt", collection.qrels, written)
    with atomic_write(folder / "per_query.jsonl", "w") as stream:
        for place, id_ in enumerate(collection.queries):
            figures = {
                name: {measure: float(array[place]) for measure, array in of_name.items()}
                for name, of_name in values.items()
            }
            stream.write(json.dumps({"query_id": id_, **figures}, ensure_ascii=False) + "\n")

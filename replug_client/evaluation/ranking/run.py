"""`replug evaluate retrieval`, as a function: options in, an :class:`EvaluationResult` out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from replug_client.artefacts import sha256_file
from replug_client.corpus.beir import read_beir_queries, read_qrels
from replug_client.corpus.collections import DataSet, judged_collection, open_data_sets
from replug_client.corpus.store import PassageStore
from replug_client.errors import ArtefactError, OptionError
from replug_client.evaluation.ranking.evaluate import Figures, evaluate_data_set
from replug_client.evaluation.ranking.fusion import Fusion
from replug_client.evaluation.ranking.lm_relevance import LmRelevance, lm_data_set, write_pool
from replug_client.evaluation.ranking.measures import DEFAULT_MEASURES, depth_needed, measure_name
from replug_client.evaluation.ranking.search import (
    BASE,
    BM25,
    TUNED,
    Encoder,
    Search,
    retriever_name,
)
from replug_client.evaluation.ranking.tables import (
    Comparing,
    data_set_tables,
    details,
    over_data_sets,
    verdict,
)
from replug_client.evaluation.results import EvaluationResult
from replug_client.evaluation.tuned_run import TunedRun, read_queries
from replug_client.retriever.build import usable_shards
from replug_client.retriever.encoder import ComputeDtype, EncoderOptions
from replug_client.retriever.fingerprint import identity

_TOP_K = 100
_JUDGED = "Judged@10"


@dataclass(frozen=True, slots=True)
class RankingOptions:
    """What is evaluated, on what, and how.

    Attributes:
        run: Folder of a finished run: its base, its tuned retriever, its passages.
        base: Base encoder, not the run's.
        tuned: Tuned encoder, not the run's.
        data_sets: Names and folders, see :func:`~replug_client.corpus.collections.open_data_sets`.
        split: Of the judgements; None: the one that each benchmark reports.
        passages: A corpus of one's own: the project's files.
        queries: Its queries: JSON lines of ``_id`` and ``text``.
        qrels: Its judgements.
        scores: Scored triples instead of ``queries`` and ``qrels``.
        relevance: How scores become judgements.
        retrievers: Names; () takes what there is: base, tuned, BM25, and each encoder fused with BM25.
        measures: Names.
        top_k: Passages retrieved for each query; None: 100, or as many as the measures need.
        fusion: How lists are fused.
        keep_identical: A passage with the query's own id counts as a result.
        resamples: Of bootstrap and randomisation test.
        seed: Of both.
        device: Of the encoders; None takes a GPU where there is one.
        compute_dtype: Precision of the encoders' matrix products when passages are embedded; None: over the run's
            corpus that of its passage vectors, else float32.
        batch_size: Passages a forward pass.
        cache_dir: Where data sets, corpora and passage vectors are kept.
        run_dir: Where rankings, judgements and figures of each query are written; None: nowhere.
    """

    cache_dir: Path
    run: Path | None = None
    base: str | None = None
    tuned: str | None = None
    data_sets: tuple[str, ...] = ()
    split: str | None = None
    passages: tuple[Path, ...] = ()
    queries: Path | None = None
    qrels: Path | None = None
    scores: Path | None = None
    relevance: LmRelevance = field(default_factory=LmRelevance)
    retrievers: tuple[str, ...] = ()
    measures: tuple[str, ...] = DEFAULT_MEASURES
    top_k: int | None = None
    fusion: Fusion = "rrf"
    keep_identical: bool = False
    resamples: int = 10_000
    seed: int = 0
    device: str | None = None
    compute_dtype: ComputeDtype | None = None
    batch_size: int = 64
    run_dir: Path | None = None

    def __post_init__(self) -> None:
        if (self.queries is None) != (self.qrels is None):
            raise OptionError("--queries and --qrels go together: give both, or --scores instead.")
        if self.queries is not None and self.scores is not None:
            raise OptionError(
                "--queries with --qrels and --scores are two sets of judgements: give one of them."
            )
        if self.queries is not None and not self.passages and self.run is None:
            raise OptionError(
                "--queries and --qrels need the corpus that they are about: name it with --passages."
            )
        if not self.measures:
            raise OptionError("--metrics: expected at least one.")
        if self.top_k is not None and self.top_k < max(1, depth_needed(self._measures)):
            raise OptionError(
                f"--top_k {self.top_k}: {', '.join(self._measures)} look further down. Give at least "
                f"{max(1, depth_needed(self._measures))}, or fewer --metrics."
            )

    @property
    def _measures(self) -> list[str]:
        return list(dict.fromkeys(measure_name(text) for text in self.measures))

    def chosen_measures(self) -> list[str]:
        """Their canonical names, each once; where the LM judged, also which share of what is returned it did."""
        return list(dict.fromkeys([*self._measures, *([_JUDGED] if self.scores is not None else [])]))

    def depth(self) -> int:
        """How many passages are retrieved for each query."""
        return self.top_k or max(_TOP_K, depth_needed(self._measures))


def evaluate_retrieval(options: RankingOptions) -> EvaluationResult:
    """Run the whole evaluation.

    Raises:
        OptionError: options that do not fit each other, or nothing to evaluate.
        CorpusError: data that cannot be read.
        DownloadError: a data set that cannot be fetched; says what to put where.
        ArtefactError: a run, an index or a cache that cannot be used.
    """
    run = _read_run(options)
    names = _names(options, run)
    data_sets = _data_sets(options, run)
    search = _search(options, run, names)
    how = Comparing(names, options.chosen_measures(), options.fusion, options.resamples, options.seed)
    figures = [
        evaluate_data_set(one, search, how.measures, options.cache_dir, options.run_dir) for one in data_sets
    ]
    several = len(figures) > 1
    main = over_data_sets(figures, how) if several else figures[0]
    tables = [
        table
        for one in ([main, *figures] if several else [main])
        for table in data_set_tables(one, how, of_several=several)
    ]
    return EvaluationResult(
        kind="retrieval",
        tables=tables,
        options=_as_json(options, how, search.top_k),
        inputs=_inputs(options, search, figures),
        left_out=dict(sum((Counter(one.left_out) for one in figures), Counter())),
        verdict=verdict(main, tables, how),
        details=details(figures),
    )


def _read_run(options: RankingOptions) -> TunedRun | None:
    if options.run is None:
        return None
    return TunedRun.read(options.run)


def _names(options: RankingOptions, run: TunedRun | None) -> list[str]:
    """The retrievers asked for; by default all that there are, and each encoder fused with BM25."""
    if options.retrievers:
        return list(dict.fromkeys(retriever_name(text) for text in options.retrievers))
    there = [
        name
        for name, given in ((BASE, options.base), (TUNED, options.tuned))
        if given is not None or run is not None
    ]
    return [*there, BM25, *(f"{name}+{BM25}" for name in there)]


def _data_sets(options: RankingOptions, run: TunedRun | None) -> list[DataSet]:
    found = [
        one
        for name in options.data_sets
        for one in open_data_sets(name, options.cache_dir, split=options.split)
    ]
    passages = options.passages or (run.passages if run is not None else ())
    if options.scores is not None:
        found.append(lm_data_set(options.scores, passages, options.relevance, options.cache_dir))
    if options.queries is not None and options.qrels is not None:
        collection = judged_collection(
            options.queries.stem,
            lambda cache: (PassageStore.open(passages, cache), 0),
            read_beir_queries(options.queries),
            read_qrels(options.qrels),
        )
        found.append(DataSet(collection.name, (collection,)))
    if not found:
        raise OptionError(
            "nothing to evaluate on. Name data sets with --datasets (a folder in BEIR's form, scifact, NanoSciFact, "
            "owner/name), or a corpus of your own with --passages and --queries with --qrels, or --scores."
        )
    return _numbered(found)


def _numbered(data_sets: Sequence[DataSet]) -> list[DataSet]:
    """Data sets of one name get numbers, so that tables and folders can tell them apart."""
    seen: Counter[str] = Counter()
    result = []
    for one in data_sets:
        seen[one.name] += 1
        result.append(one if seen[one.name] == 1 else replace(one, name=f"{one.name}-{seen[one.name]}"))
    return result


def _search(options: RankingOptions, run: TunedRun | None, names: Sequence[str]) -> Search:
    wanted = {part for name in names for part in name.split("+")}
    asked = {BASE: _base(options, run), TUNED: _tuned(options, run)}
    encoders = {
        name: Encoder.load(replace(encoder, device=options.device))
        for name, encoder in asked.items()
        if encoder is not None and name in wanted
    }
    for name in wanted - {BM25} - encoders.keys():
        raise OptionError(f"--retrievers: {name} was not given; name it with --{name}, or a run with --run.")
    return Search(
        encoders=encoders,
        names=names,
        top_k=options.depth(),
        fusion=options.fusion,
        cache_dir=options.cache_dir,
        shards=usable_shards(run.shards) if run is not None and options.base is None else (),
        compute_dtype=options.compute_dtype,
        batch_size=options.batch_size,
        drop_identical=not options.keep_identical,
    )


def _base(options: RankingOptions, run: TunedRun | None) -> EncoderOptions | None:
    if options.base is not None:
        return EncoderOptions(options.base)
    return run.base if run is not None else None


def _tuned(options: RankingOptions, run: TunedRun | None) -> EncoderOptions | None:
    if options.tuned is not None:
        return EncoderOptions(options.tuned)
    return EncoderOptions(str(run.folder)) if run is not None else None


def _as_json(options: RankingOptions, how: Comparing, top_k: int) -> dict[str, Any]:
    plain = {
        name: [str(item) for item in value]
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in asdict(options).items()
    }
    return {**plain, "retrievers": list(how.names), "measures": list(how.measures), "top_k": top_k}


def _inputs(options: RankingOptions, search: Search, figures: Sequence[Figures]) -> dict[str, str]:
    files = [path for path in (options.scores, options.queries, options.qrels) if path is not None]
    return {
        **{f"{name} encoder": identity(encoder.model, "query") for name, encoder in search.encoders.items()},
        **{f"passages of {name}": sha for one in figures for name, sha in one.corpora.items()},
        **{str(path): sha256_file(path) for path in files},
    }


def pool_held_out(options: RankingOptions, path: Path, depth: int) -> tuple[int, int]:
    """Triples of a run's held-out queries with what each retriever finds first, for `replug score`.

    Returns:
        Number of queries, and of pairs to score.

    Raises:
        OptionError: no run.
        ArtefactError: the run kept no held-out queries.
    """
    run = _read_run(options)
    if run is None:
        raise OptionError("--pool: the held-out queries are a run's; name it with --run.")
    if run.held_out is None:
        raise ArtefactError(f"{run.folder}: the run kept no held-out queries. Train with a validation share.")
    held_out = [query for query in read_queries(run.held_out) if query.continuation]
    store = PassageStore.open(options.passages or run.passages, options.cache_dir)
    names = [name for name in _names(options, run) if "+" not in name]
    search = replace(_search(options, run, names), top_k=depth, drop_identical=False)
    queries = {str(number): query.text for number, query in enumerate(held_out)}
    lists = [
        [[id_ for id_, _ in found] for found in ranking.values()]
        for ranking in search.run(store, queries).values()
    ]
    return len(held_out), write_pool(path, held_out, store, lists)

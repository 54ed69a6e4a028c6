"""MS MARCO passage ranking (Bajaj et al. 2016): collection, queries, judgements and triples, whole or a subset."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from replug_client.corpus.rows import Place
from replug_client.corpus.sources.conversion import Conversion, Converted, skipping
from replug_client.corpus.sources.inputs import bare_suffix, hashed, lines
from replug_client.corpus.sources.judged import (
    DOCUMENT_COLUMNS,
    QREL_COLUMNS,
    document_text,
    is_held_out,
    place_of,
)
from replug_client.errors import CorpusError, OptionError
from replug_client.progress import progress


@dataclass(frozen=True, slots=True)
class MsMarcoFiles:
    """The published files; each may be packed (.gz, .bz2, .zst).

    Attributes:
        collection: ``collection.tsv``: passage id, text.
        queries: ``queries.train.tsv``: query id, text.
        qrels: ``qrels.train.tsv``: query id, 0, passage id, grade (or BEIR's three columns with a header).
        triples: ``triples.train.small.tsv`` (query, relevant text, other text) or ``qidpidtriples...tsv`` (ids).
    """

    collection: Path | None = None
    queries: Path | None = None
    qrels: Path | None = None
    triples: Path | None = None

    def __post_init__(self) -> None:
        if (self.queries is None) != (self.qrels is None):
            raise OptionError("--queries and --qrels go together; give both, or neither")
        if self.collection is None and (self.queries or not self.triples):
            raise OptionError("no --collection; it is needed for all but --triples alone")

    def present(self) -> list[Path]:
        """The files that were named."""
        return [path for path in (self.collection, self.queries, self.qrels, self.triples) if path]


@dataclass(frozen=True, slots=True)
class MsMarcoOptions:
    """How much of it, and how it is divided.

    Attributes:
        num_passages: Keep so many passages: the relevant ones of the queries that are kept and those of the triples
            that are ids, and of the others those whose ids have the lowest hashes. None for all.
        num_queries: Keep so many of the queries with judgements, by hash. None for all.
        num_triples: The first so many triples. None for all.
        held_out_every: About one query in so many is held out, by a hash of its id; 0 for none.
        seed: Of the hashes.
    """

    num_passages: int | None = None
    num_queries: int | None = None
    num_triples: int | None = None
    held_out_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_passages", "num_queries", "num_triples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise OptionError(f"--{name} is {value}; expected 1 or more")
        if self.held_out_every < 0 or self.held_out_every == 1:
            raise OptionError(
                f"--held_out_every is {self.held_out_every}; expected 2 or more, or 0 to hold none out"
            )


@dataclass(slots=True)
class _Choice:
    """What is kept. Memory: the queries kept and their judgements, and 8 bytes a passage while choosing."""

    queries: dict[str, str] = field(default_factory=dict)
    relevant: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # query to (passage, grade)
    asked_by: dict[str, list[str]] = field(default_factory=dict)  # passage to queries
    needed: set[str] = field(default_factory=set)
    threshold: int | None = None
    found: set[str] = field(default_factory=set)
    left_out: Counter[str] = field(default_factory=Counter)


Item = tuple[str, Place, tuple[str, ...]]


def conversion(files: MsMarcoFiles, options: MsMarcoOptions) -> Conversion[Item]:
    """What makes ``passages``, ``queries``, ``qrels.tsv``, ``train``, ``held_out`` and ``triplets`` of the files.

    Raises:
        CorpusError: a file cannot be read, or --num_passages is below what must be kept.
    """
    inputs = hashed(files.present())
    by_id = files.triples is not None and _are_ids(files.triples)
    choice = _choose(files, options, by_id)
    outputs: dict[str, tuple[str, ...]] = {}
    if files.collection:
        outputs["passages"] = ("id", "text")
    if files.queries:
        outputs["queries"] = ("id", "text", "part")
        outputs["qrels.tsv"] = QREL_COLUMNS
        outputs["train"] = DOCUMENT_COLUMNS
        if options.held_out_every:
            outputs["held_out"] = DOCUMENT_COLUMNS
    if files.triples:
        ids = ("id", "query_id", "positive_id", "negative_id")
        outputs["triplets"] = ids if by_id else ("id", "query", "positive", "negative")
    return Conversion(
        "msmarco",
        asdict(options),
        inputs,
        outputs,
        lambda skip: skipping(_items(files, options), skip),
        MsMarcoConverter(choice, options, by_id),
        left_out=choice.left_out,
    )


@dataclass(frozen=True, slots=True)
class MsMarcoConverter:
    """A line of one of the files to its rows."""

    choice: _Choice
    options: MsMarcoOptions
    triples_are_ids: bool

    def __call__(self, item: Item) -> Converted:
        """The rows of one line."""
        kind, place, cells = item
        converted = Converted()
        match kind:
            case "passage":
                self._passage(converted, *cells)
            case "query":
                self._query(converted, *cells)
            case _:
                names = (
                    ("query_id", "positive_id", "negative_id")
                    if self.triples_are_ids
                    else ("query", "positive", "negative")
                )
                converted.add("triplets", id=str(place.record), **dict(zip(names, cells, strict=True)))
        return converted

    def _passage(self, converted: Converted, id_: str, text: str) -> None:
        choice = self.choice
        if id_ not in choice.needed and not self._is_drawn(id_):
            converted.left_out["passages beyond --num_passages"] += 1
            return
        if not text.strip():
            converted.left_out["empty passages"] += 1
            return
        converted.add("passages", id=id_, text=text)
        for query in choice.asked_by.get(id_, ()):
            held = is_held_out(query, self.options.seed, self.options.held_out_every)
            converted.add(
                "held_out" if held else "train",
                id=f"{query}-{id_}",
                text=document_text(choice.queries[query], text),
                query_id=query,
                passage_id=id_,
            )

    def _is_drawn(self, id_: str) -> bool:
        threshold = self.choice.threshold
        return threshold is None or place_of(id_, self.options.seed, "passage") <= threshold

    def _query(self, converted: Converted, id_: str, text: str) -> None:
        if id_ not in self.choice.queries:
            return  # counted when the choice was made
        held = is_held_out(id_, self.options.seed, self.options.held_out_every)
        converted.add("queries", id=id_, text=text, part="held_out" if held else "train")
        for passage, grade in self.choice.relevant[id_]:
            converted.add("qrels.tsv", **dict(zip(QREL_COLUMNS, (id_, passage, grade), strict=True)))


def _items(files: MsMarcoFiles, options: MsMarcoOptions) -> Iterator[Item]:
    if files.collection:
        for place, cells in _columns(files.collection, 2, "Reading passages"):
            yield "passage", place, cells
    if files.queries:
        for place, cells in _columns(files.queries, 2, "Reading queries"):
            yield "query", place, cells
    if files.triples:
        for place, cells in _columns(files.triples, 3, "Reading triples"):
            if options.num_triples is not None and place.record > options.num_triples:
                break
            yield "triple", place, cells


def _columns(path: Path, count: int, what: str) -> Iterator[tuple[Place, tuple[str, ...]]]:
    """Lines of tab-separated columns without header or quotes: MS MARCO's quotation marks are text."""
    with progress(what, path.stat().st_size, "B") as advance:
        for place, line in lines(path, advance):
            if not line:
                continue
            cells = tuple(line.split("\t"))
            if len(cells) != count or not cells[0]:
                raise place.error(
                    f"found {len(cells)} columns, expected {count}, separated by tabs"
                    f"{'' if cells[0] else '; the first is empty'}. Is this the file that the flag names?"
                )
            yield place, cells


def _are_ids(path: Path) -> bool:
    if bare_suffix(path) not in {".tsv", ".txt"}:
        raise CorpusError(f"{path}: expected a .tsv file of triples, plain or packed (.gz, .bz2, .zst)")
    _, cells = next(_columns(path, 3, "Reading triples"), (None, ()))
    return bool(cells) and all(cell.isdecimal() for cell in cells)


def _choose(files: MsMarcoFiles, options: MsMarcoOptions, by_id: bool) -> _Choice:
    choice = _Choice()
    if files.queries and files.qrels:
        _choose_queries(choice, files.queries, files.qrels, options)
    if by_id and files.triples and files.collection and options.num_passages is not None:
        for place, (_, positive, negative) in _columns(files.triples, 3, "Reading triples"):
            if options.num_triples is not None and place.record > options.num_triples:
                break
            choice.needed.update((positive, negative))
    if files.collection:
        _choose_passages(choice, files.collection, options)
    return choice


def _choose_queries(choice: _Choice, queries: Path, qrels: Path, options: MsMarcoOptions) -> None:
    judged: dict[str, list[tuple[str, str]]] = {}
    for query, passage, grade in _judgements(qrels):
        if float(grade) > 0:
            judged.setdefault(query, []).append((passage, grade))
    texts: dict[str, str] = {}
    for place, (id_, text) in _columns(queries, 2, "Choosing queries"):
        if id_ in texts:
            raise place.error(f"the query id {id_!r} stands there twice. Leave one of them out.")
        if id_ not in judged:
            choice.left_out["queries without judgement"] += 1
        elif text.strip():
            texts[id_] = text
    choice.left_out["judged queries without text"] += len(judged.keys() - texts.keys())
    kept = sorted(texts, key=lambda id_: (place_of(id_, options.seed, "query"), id_))[: options.num_queries]
    choice.left_out["queries beyond --num_queries"] += len(texts) - len(kept)
    chosen = frozenset(kept)
    choice.queries = {id_: text for id_, text in texts.items() if id_ in chosen}
    choice.relevant = {id_: judged[id_] for id_ in choice.queries}
    choice.needed = {passage for pairs in choice.relevant.values() for passage, _ in pairs}


def _judgements(path: Path) -> Iterator[tuple[str, str, str]]:
    with progress("Reading judgements", path.stat().st_size, "B") as advance:
        for place, line in lines(path, advance):
            cells = line.split()
            if not cells or (place.line == 1 and not cells[-1].lstrip("-").isdecimal()):
                continue  # BEIR's header
            if len(cells) not in (3, 4) or not cells[-1].lstrip("-").isdecimal():
                raise place.error(
                    f"found {len(cells)} columns, expected query id, 0, passage id and a whole number (TREC), or "
                    "query id, passage id and a whole number (BEIR). Is this the file of judgements?"
                )
            yield cells[0], cells[-2], cells[-1]


def _choose_passages(choice: _Choice, collection: Path, options: MsMarcoOptions) -> None:
    """Which passages are drawn besides those that are needed; judgements of what is not there are put out."""
    hashes = array("Q")
    for _, (id_, _) in _columns(collection, 2, "Choosing passages"):
        if id_ in choice.needed:
            choice.found.add(id_)
        elif options.num_passages is not None:
            hashes.append(place_of(id_, options.seed, "passage"))
    _put_out_unknown(choice)
    if options.num_passages is not None:
        others = options.num_passages - len(choice.found)
        if others < 0:
            raise OptionError(
                f"--num_passages is {options.num_passages:,}, but {len(choice.found):,} passages are relevant or "
                "stand in triples. Raise it, or lower --num_queries or --num_triples."
            )
        words = np.frombuffer(hashes, dtype=np.uint64)
        if others == 0:
            choice.threshold = -1
        elif others < len(words):
            choice.threshold = int(np.partition(words, others - 1)[others - 1])


def _put_out_unknown(choice: _Choice) -> None:
    for query, pairs in choice.relevant.items():
        there = [pair for pair in pairs if pair[0] in choice.found]
        choice.left_out["judgements of passages that are not in the collection"] += len(pairs) - len(there)
        choice.relevant[query] = there
        for passage, _ in there:
            choice.asked_by.setdefault(passage, []).append(query)
    without = [query for query, pairs in choice.relevant.items() if not pairs]
    choice.left_out["queries whose relevant passages are not in the collection"] += len(without)
    for query in without:
        del choice.queries[query], choice.relevant[query]
    choice.left_out = +choice.left_out

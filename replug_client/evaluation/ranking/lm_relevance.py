"""Relevance as the LM sees it: a passage is relevant to a query if it makes the continuation more likely.

Judgements come from a file of scored triples, as `replug score` writes it. The gain of a passage is
``(log p(y | d, x) - log p(y | x)) / T`` in nats per token of the continuation, the second term being the score of
the passage ``""`` where the line has it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from replug_client.artefacts import atomic_write, sha256_file
from replug_client.corpus.collections import DataSet, judged_collection
from replug_client.corpus.readers import MemorySource
from replug_client.corpus.records import Passage
from replug_client.corpus.store import PassageStore, write_store
from replug_client.corpus.unique import HashIndex, hash64
from replug_client.errors import CorpusError, OptionError
from replug_client.evaluation.tuned_run import Query
from replug_client.supervisor.triples import Triple, read_triples

Rule = Literal["best", "better", "graded"]
# Scores of one pair differ by this much between batches of a server.
_TIE_NATS_PER_TOKEN = 1e-5


@dataclass(frozen=True, slots=True)
class LmRelevance:
    """How scores become judgements.

    Attributes:
        rule: ``best``: the passage with the highest score is relevant, unless none is better than no passage, where
            that score is there. ``better``: every passage that beats no passage by ``margin``. ``graded``: the same
            with gain 1, and the best of them with gain 2.
        margin: Nats per token by which a passage must beat no passage, for ``better`` and ``graded``.
    """

    rule: Rule = "best"
    margin: float = 0.05

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise OptionError(f"--relevance {self.rule}: expected one of {', '.join(get_args(Rule))}.")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise OptionError(f"--margin {self.margin}: expected nats per token, at least 0.")


def gains(scores: Sequence[float], none: float | None, num_tokens: int, how: LmRelevance) -> list[int]:
    """A query's passages as gains 0, 1 or 2.

    Args:
        scores: Log-likelihood of the continuation after each passage, summed, in nats.
        none: After no passage; None where it was not scored.
        num_tokens: Of the continuation.
        how: The rule.

    Raises:
        ValueError: the rule compares with no passage, and ``none`` is None.
    """
    if how.rule != "best" and none is None:
        raise ValueError('the rule needs the score of the passage ""')
    best = max(scores)
    floor = -math.inf if none is None else none + (how.margin * num_tokens if how.rule != "best" else 0.0)
    tie = _TIE_NATS_PER_TOKEN * num_tokens
    found = []
    for score in scores:
        is_best, is_better = score >= best - tie, score > floor
        if how.rule == "graded":
            found.append((2 if is_best else 1) if is_better else 0)
        else:
            found.append(int(is_better and (is_best or how.rule == "better")))
    return found


def lm_data_set(path: Path, passages: Sequence[Path], how: LmRelevance, cache_dir: Path) -> DataSet:
    """The collection that a file of scored triples makes.

    Args:
        path: JSON lines of ``query``, ``passages``, ``log_likelihoods`` and ``num_tokens``; ``document_id``, where
            it is there, says which queries are not independent.
        passages: The corpus; scored passages that are not in it are counted and left out. Without any, the corpus
            is the scored passages.
        how: Scores to judgements.
        cache_dir: Where the corpus is kept.

    Raises:
        CorpusError: a line that is none, or has no scores, or lacks the passage ``""`` where the rule needs it.
    """
    lines = [_scored(triple) for triple in read_triples(path)]
    store = PassageStore.open(passages, cache_dir) if passages else _pooled(path, lines, cache_dir)
    ids = _ids_by_text(store, {text for line in lines for text in line.scores})
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines, 1):
        found = dict(zip(line.scores, _gains(line, how), strict=True))
        judged = {ids[text]: gain for text, gain in found.items() if text in ids}
        if any(judged.values()):
            qrels[f"q{number}"] = judged
    queries = {f"q{number}": line.query for number, line in enumerate(lines, 1)}
    made = judged_collection(path.stem, lambda _: (store, 0), queries, qrels)
    left_out = {
        "queries for which no scored passage is relevant": len(lines) - len(qrels),
        "scored passages that the corpus lacks": sum(
            text not in ids for line in lines for text in line.scores
        ),
    }
    clusters = {f"q{number}": line.document or f"q{number}" for number, line in enumerate(lines, 1)}
    return DataSet(
        path.stem,
        (
            replace(
                made,
                clusters=clusters if any(line.document for line in lines) else None,
                left_out={reason: count for reason, count in left_out.items() if count},
                notes=(_note(how),),
            ),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Line:
    place: str
    query: str
    document: str | None
    scores: dict[str, float]
    none: float | None
    num_tokens: int


def _scored(triple: Triple) -> _Line:
    found: Any = triple.record.get("log_likelihoods")
    tokens: Any = triple.record.get("num_tokens")
    if (
        not isinstance(found, list)
        or len(found) != len(triple.passages)
        or not isinstance(tokens, int)
        or tokens < 1
    ):
        raise CorpusError(
            f"{triple.place}: no scores. Expected log_likelihoods, as many as passages, and num_tokens, as "
            "`replug score` writes them."
        )
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in found):
        raise CorpusError(f"{triple.place}: a log-likelihood that is no finite number.")
    scores = dict(zip(triple.passages, map(float, found), strict=True))
    none = scores.pop("", None)
    if not scores:
        raise CorpusError(f"{triple.place}: no passage was scored but the empty one.")
    document = triple.record.get("document_id")
    return _Line(
        triple.place, triple.query, None if document is None else str(document), scores, none, tokens
    )


def _gains(line: _Line, how: LmRelevance) -> list[int]:
    try:
        return gains(list(line.scores.values()), line.none, line.num_tokens, how)
    except ValueError as error:
        raise CorpusError(
            f'{line.place}: --relevance {how.rule}: {error}. Score the triples again with "" among the passages, or '
            "take --relevance best."
        ) from error


def _pooled(path: Path, lines: Sequence[_Line], cache_dir: Path) -> PassageStore:
    texts = dict.fromkeys(text for line in lines for text in line.scores if text.strip())
    source = MemorySource((Passage(f"p{number}", text) for number, text in enumerate(texts, 1)), str(path))
    key = hashlib.sha256(json.dumps(["pool-1", sha256_file(path)]).encode()).hexdigest()
    directory = cache_dir / "corpus" / key
    write_store([source], directory)
    return PassageStore(directory, [path])


def _ids_by_text(store: PassageStore, texts: set[str]) -> dict[str, str]:
    """Those of the texts that are passages, to the id of the first such passage."""
    index = HashIndex(hash64(text) for text in store.iter_texts())
    found = {}
    for text in texts:
        row = next((row for row in index.rows(hash64(text)) if store.texts([row]) == [text]), None)
        if row is not None:
            found[text] = store.ids([row])[0]
    return found


def _note(how: LmRelevance) -> str:
    rules = {
        "best": "the passage under which the LM finds the continuation likeliest",
        "better": f"each passage that beats no passage by more than {how.margin:g} nats per token",
        "graded": f"each passage that beats no passage by more than {how.margin:g} nats per token (1), the best (2)",
    }
    return (
        f"Relevant: {rules[how.rule]}. A passage that the LM did not score counts as not relevant: "
        "Judged@10 is the share that it did."
    )


def write_pool(
    path: Path, queries: Sequence[Query], store: PassageStore, lists: Sequence[Sequence[Sequence[str]]]
) -> int:
    """Triples for `replug score`: each query with no passage and the passages that any retriever found.

    What no retriever finds is not judged: pooling, as TREC does it (Spärck Jones & van Rijsbergen 1975).

    Args:
        path: The file.
        queries: n queries with their continuations.
        store: The corpus.
        lists: For each retriever, n lists of passage ids.

    Returns:
        Number of pairs to score.
    """
    pairs = 0
    with atomic_write(path, "w") as stream:
        for number, query in enumerate(queries):
            ids = dict.fromkeys(id_ for found in lists for id_ in found[number])
            texts = dict.fromkeys(["", *store.texts(store.rows_of(ids))])
            line = {"query": query.text, "continuation": query.continuation, "passages": list(texts)}
            if query.document_id is not None:
                line["document_id"] = query.document_id
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            pairs += len(texts)
    return pairs

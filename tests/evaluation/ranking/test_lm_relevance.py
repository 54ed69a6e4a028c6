from __future__ import annotations

import json
from pathlib import Path

import pytest

from replug_client.corpus.readers import MemorySource
from replug_client.corpus.records import Passage
from replug_client.corpus.store import PassageStore, write_store
from replug_client.errors import CorpusError, OptionError
from replug_client.evaluation.ranking.lm_relevance import LmRelevance, gains, lm_data_set, write_pool
from replug_client.evaluation.tuned_run import Query

# Ten tokens; no passage gives -20. Nats per token that each passage gains: 1.0, 0.04, -0.5, 0.5.
SCORES = [-10.0, -19.6, -25.0, -15.0]


@pytest.mark.parametrize(
    ("rule", "margin", "expected"),
    [
        ("best", 0.05, [1, 0, 0, 0]),
        ("better", 0.05, [1, 0, 0, 1]),
        ("better", 0.0, [1, 1, 0, 1]),
        ("graded", 0.05, [2, 0, 0, 1]),
    ],
)
def test_gains_by_hand(rule: str, margin: float, expected: list[int]) -> None:
    assert gains(SCORES, -20.0, 10, LmRelevance(rule, margin)) == expected  # type: ignore[arg-type]


def test_where_nothing_beats_no_passage_nothing_is_relevant() -> None:
    for rule in ("best", "better", "graded"):
        assert gains(SCORES, -5.0, 10, LmRelevance(rule)) == [0, 0, 0, 0]
    assert gains(SCORES, None, 10, LmRelevance("best")) == [1, 0, 0, 0]
    with pytest.raises(ValueError, match='passage ""'):
        gains(SCORES, None, 10, LmRelevance("graded"))


def test_scores_that_differ_by_a_servers_rounding_are_tied() -> None:
    assert gains([-10.0, -10.00005], -20.0, 10, LmRelevance()) == [1, 1]
    assert gains([-10.0, -10.001], -20.0, 10, LmRelevance()) == [1, 0]


def triples(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text(
        "".join(json.dumps({"continuation": "y", "num_tokens": 10, **line}) + "\n" for line in lines)
    )
    return path


def test_scored_triples_become_a_collection(tmp_path: Path) -> None:
    path = triples(
        tmp_path / "scores.jsonl",
        {"query": "x1", "passages": ["", "A", "B"], "log_likelihoods": [-9, -5, -7], "document_id": "d1"},
        {"query": "x2", "passages": ["", "C", "A"], "log_likelihoods": [-3, -5, -7], "document_id": "d1"},
        {"query": "x3", "passages": ["B", "C"], "log_likelihoods": [-5, -4], "document_id": "d2"},
    )
    corpus = tmp_path / "corpus.csv"
    corpus.write_text("id,text\n1,A\n2,B\n3,other\n")
    (own,) = lm_data_set(path, [], LmRelevance(), tmp_path / "cache").collections
    store, _ = own.open(tmp_path)
    assert store.texts([0, 1, 2]) == ["A", "B", "C"]
    assert own.qrels == {"q1": {"p1": 1, "p2": 0}, "q3": {"p2": 0, "p3": 1}}
    assert own.clusters is not None and [own.clusters[query] for query in own.queries] == ["d1", "d2"]
    assert own.left_out == {"queries for which no scored passage is relevant": 1}
    (given,) = lm_data_set(path, [corpus], LmRelevance(), tmp_path / "cache").collections
    assert given.qrels == {"q1": {"1": 1, "2": 0}}  # q3's best, C, is not in the corpus
    assert given.left_out == {
        "queries for which no scored passage is relevant": 2,
        "scored passages that the corpus lacks": 2,
    }


@pytest.mark.parametrize(
    ("line", "rule", "said"),
    [
        ({"query": "x", "passages": ["A"]}, "best", "no scores"),
        ({"query": "x", "passages": ["A", "B"], "log_likelihoods": [-1.0]}, "best", "as many as passages"),
        ({"query": "x", "passages": [""], "log_likelihoods": [-1.0]}, "best", "but the empty one"),
        (
            {"query": "x", "passages": ["A"], "log_likelihoods": [-1.0]},
            "better",
            '--relevance better: .*passage ""',
        ),
        ({"query": "x", "passages": ["A"], "log_likelihoods": [None]}, "best", "no finite number"),
    ],
)
def test_a_line_without_what_is_needed_is_named(
    tmp_path: Path, line: dict[str, object], rule: str, said: str
) -> None:
    path = triples(tmp_path / "scores.jsonl", line)
    with pytest.raises(CorpusError, match=f"line 1: .*{said}"):
        lm_data_set(path, [], LmRelevance(rule), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize(("rule", "margin"), [("worst", 0.1), ("best", -0.1), ("best", float("nan"))])
def test_impossible_rules_are_refused(rule: str, margin: float) -> None:
    with pytest.raises(OptionError):
        LmRelevance(rule, margin)  # type: ignore[arg-type]


def test_a_pool_holds_what_any_retriever_found_once_and_no_passage(tmp_path: Path) -> None:
    write_store([MemorySource([Passage(id_, f"text {id_}") for id_ in "abc"])], tmp_path / "store")
    queries = [Query("x1", "y1", "d1"), Query("x2", "y2")]
    pairs = write_pool(
        tmp_path / "pool.jsonl",
        queries,
        PassageStore(tmp_path / "store"),
        [[["a", "b"], ["c"]], [["b", "c"], []]],
    )
    lines = [json.loads(line) for line in (tmp_path / "pool.jsonl").read_text().splitlines()]
    assert lines == [
        {
            "query": "x1",
            "continuation": "y1",
            "passages": ["", "text a", "text b", "text c"],
            "document_id": "d1",
        },
        {"query": "x2", "continuation": "y2", "passages": ["", "text c"]},
    ]
    assert pairs == 6

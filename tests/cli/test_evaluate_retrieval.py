"""`replug evaluate retrieval` from its flags to what it prints and writes, with all-MiniLM-L6-v2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
import torch
from sentence_transformers import SentenceTransformer

from replug_client.cli.app import main
from replug_client.evaluation.results import EvaluationResult
from replug_client.retriever.encoder import EncoderOptions
from tests.evaluation.ranking.recorded.record import read_qrels, read_run
from tests.retriever.tiny import minilm

RANKING = Path(__file__).parents[1] / "evaluation" / "ranking"
SMALL = RANKING / "small"
Evaluate = Callable[..., str]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: passages are embedded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def evaluate(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Evaluate:
    """Runs the command; gives what it printed, or the error where ``fails``."""

    def call(*arguments: object, fails: bool = False) -> str:
        words = ["evaluate", "retrieval", *map(str, arguments), "--cache_dir", str(cache), "--device", "cpu"]
        with pytest.raises(SystemExit) as caught:
            main([*words, "--log_level", "warning"])
        captured = capsys.readouterr()
        assert bool(caught.value.code) == fails, captured.err
        return captured.err if fails else captured.out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return call


def test_one_retriever_alone_equals_pytrec_eval_and_beir(evaluate: Evaluate, tmp_path: Path) -> None:
    out = evaluate(
        *(
            "--base",
            minilm(),
            "--datasets",
            SMALL,
            "--retrievers",
            "base",
            "--metrics",
            "nDCG@10",
            "MRR@10",
            "MAP@10",
        ),
        *("--run_dir", "runs", "--output", "result.json", "--markdown", "result.md"),
    )
    result = EvaluationResult.read(tmp_path / "result.json")
    (table,) = result.tables
    (row,) = table.rows
    qrels, run = read_qrels(tmp_path / "runs/small/qrels.txt"), read_run(tmp_path / "runs/small/base.run")
    found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "map_cut.10", "recip_rank"}).evaluate(run)
    for ours, theirs in (("nDCG@10", "ndcg_cut_10"), ("AP@10", "map_cut_10")):
        expected = sum(found[query][theirs] for query in qrels) / len(qrels)
        assert row.values[ours] == pytest.approx(expected, abs=1e-9)
    beir = json.loads((RANKING / "recorded" / "beir.json").read_text())["minilm"]
    assert row.values["nDCG@10"] == pytest.approx(beir["NDCG@10"], abs=1e-5)
    assert row.values["RR@10"] == pytest.approx(beir["MRR@10"], abs=1e-5)
    assert row.n == 7 and not row.differences and result.verdict == ""
    assert result.left_out == {
        "queries without judgements in this split": 1,
        "judged queries that the queries lack": 1,
        "queries without text": 1,
        "passages without text": 1,
    }
    assert "0.7848" in out and "| base | 7 | 0.7848 |" in (tmp_path / "result.md").read_text()
    lines = (tmp_path / "runs/small/per_query.jsonl").read_text().splitlines()
    assert [json.loads(line)["base"]["nDCG@10"] for line in lines] == pytest.approx(
        [found[query]["ndcg_cut_10"] for query in qrels], abs=1e-9
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, as training leaves it; its tuned retriever has lost its way."""
    folder = tmp_path_factory.mktemp("run")
    model = SentenceTransformer(str(minilm()), device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + torch.randn_like(parameter) * 0.3)
    model.save_pretrained(str(folder))
    texts = ["Sort a list.", "Bake bread.", "The moon and the tides."]
    rows = [{"id": str(number), "text": text} for number, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [{"document_id": "d", "query": text.lower(), "continuation": "so"} for text in texts]
    (folder / "held_out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in held_out))
    record = {
        "status": "complete",
        "base_model": str(minilm()),
        "encoder": EncoderOptions(str(minilm())).to_json(),
        "passages": [str(folder / "corpus.jsonl")],
        "passages_embeddings": [],
        "n_docs": 3,
        "held_out": "held_out.jsonl",
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_run_is_compared_on_several_data_sets(evaluate: Evaluate, run: Path, tmp_path: Path) -> None:
    shutil.copytree(SMALL, tmp_path / "again")
    out = evaluate("--run", run, "--datasets", SMALL, "again", "--json", "--resamples", "500")
    result = EvaluationResult.from_json(json.loads(out))
    assert [table.name for table in result.tables] == [
        *("all data sets", "all data sets.certainty"),
        *("small", "small.certainty", "again", "again.certainty"),
    ]
    overall, _, small, certain, again, _ = result.tables
    assert [row.name for row in small.rows] == ["base", "tuned", "bm25", "base+bm25", "tuned+bm25"]
    assert [metric.name for metric in small.metrics] == ["nDCG@10", "RR@10", "R@100", "AP@100"]
    values = {row.name: row.values["nDCG@10"] for row in small.rows}
    assert {row.name: row.values["nDCG@10"] for row in again.rows} == values
    assert {row.name: row.values["nDCG@10"] for row in overall.rows} == pytest.approx(values)
    assert overall.rows[0].n == 14 and overall.title == "all data sets, mean over 2 data sets"
    tuned = small.rows[1].differences["nDCG@10"]
    assert tuned.mean == pytest.approx(values["tuned"] - values["base"])
    assert len(certain.rows) == 4 * 4
    assert "tuned - base" in result.verdict
    assert result.left_out["queries without text"] == 2
    assert any(note.startswith("Left out: 1 queries without") for note in small.notes)


def test_held_out_queries_are_pooled_for_the_lm_and_judged_by_its_scores(
    evaluate: Evaluate, run: Path, tmp_path: Path
) -> None:
    said = evaluate("--run", run, "--pool", "pool.jsonl", "--pool_depth", "1")
    lines = [json.loads(line) for line in (tmp_path / "pool.jsonl").read_text().splitlines()]
    assert f"3 queries, {sum(len(line['passages']) for line in lines)} pairs" in said
    assert all(line["passages"][0] == "" and len(line["passages"]) >= 2 for line in lines)
    # As an LM would that likes the passage with the query's own words.
    for line in lines:
        liked = [text.lower() == line["query"] for text in line["passages"]]
        line |= {"log_likelihoods": np.where(liked, -1.0, -3.0).tolist(), "num_tokens": 2}
    (tmp_path / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = evaluate("--run", run, "--scores", "scores.jsonl", "--metrics", "RR@10", "--json")
    result = EvaluationResult.from_json(json.loads(out))
    base = result.tables[0].rows[0]
    assert (base.name, base.n, base.values["RR@10"]) == ("base", 3, 1.0)
    assert [metric.name for metric in result.tables[0].metrics] == ["RR@10", "Judged@10"]
    assert any("Relevant: the passage under which" in note for note in result.tables[0].notes)


def test_a_corpus_of_ones_own_with_queries_and_qrels(evaluate: Evaluate, run: Path, tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "how to bake"}\n')
    (tmp_path / "qrels.tsv").write_text("q\t1\t1\n")
    out = evaluate(
        *("--base", minilm(), "--passages", run / "corpus.jsonl", "--queries", "queries.jsonl"),
        *("--qrels", "qrels.tsv", "--metrics", "RR@10", "--retrievers", "base", "bm25", "--json"),
    )
    (table, _) = EvaluationResult.from_json(json.loads(out)).tables
    assert [(row.name, row.values["RR@10"]) for row in table.rows] == [("base", 1.0), ("bm25", 1.0)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--retrievers", "bm25"], "nothing to evaluate on"),
        (["--datasets", "no/such/folder"], "no such folder"),
        (["--datasets", str(SMALL), "--retrievers", "tuned"], "tuned was not given; name it with --tuned"),
        (["--datasets", str(SMALL), "--metrics", "F1"], "--metrics F1"),
        (
            ["--datasets", str(SMALL), "--metrics", "R@50", "--top_k", "10"],
            "--top_k 10: R@50 look further down",
        ),
        (["--datasets", str(SMALL), "--split", "dev"], "no judgements of the split 'dev'; found test"),
        (["--queries", "q.jsonl"], "--queries and --qrels go together"),
        (["--pool", "x.jsonl"], "name it with --run"),
    ],
)
def test_what_cannot_work_is_said_with_what_mends_it(
    evaluate: Evaluate, arguments: list[str], said: str
) -> None:
    assert said in evaluate(*arguments, fails=True)

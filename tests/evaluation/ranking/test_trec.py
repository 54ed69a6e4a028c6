from __future__ import annotations

from pathlib import Path

import ir_measures
import pytest
from ir_measures import nDCG

from replug_client.evaluation.ranking.measures import per_query, ranked
from replug_client.evaluation.ranking.trec import id_writer, write_qrels, write_run


def test_files_that_other_tools_read_give_the_same_figures(tmp_path: Path) -> None:
    qrels = {"q1": {"a": 2, "b": 1, "c": 0}, "q2": {"a": 1}}
    run = {"q1": ranked({"b": 1 / 3, "a": 0.25, "x": 1 / 3}), "q2": ranked({"z": 1e-12, "a": -1.5})}
    write_qrels(tmp_path / "qrels.txt", qrels)
    write_run(tmp_path / "base.run", run, "base")
    found = ir_measures.calc_aggregate(
        [nDCG @ 10],
        ir_measures.read_trec_qrels(str(tmp_path / "qrels.txt")),
        ir_measures.read_trec_run(str(tmp_path / "base.run")),
    )
    assert found[nDCG @ 10] == pytest.approx(per_query(["nDCG@10"], qrels, run)["nDCG@10"].mean(), abs=1e-12)


def test_ranks_begin_at_one_and_scores_lose_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "r", {"q": [("a", 0.1), ("b", 1 / 30)]}, "tag")
    assert (tmp_path / "r").read_text() == f"q Q0 a 1 0.1 tag\nq Q0 b 2 {1 / 30!r} tag\n"


def test_white_space_in_an_id_does_not_make_two_columns() -> None:
    written = id_writer(["a b", "c%20d", "é\u00a0f"])
    assert [written(id_) for id_ in ("a b", "c%20d", "é\u00a0f")] == ["a%20b", "c%2520d", "é%C2%A0f"]
    assert id_writer(["c%20d", "é"])("c%20d") == "c%20d"

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
import pytrec_eval

from replug_client.errors import OptionError
from replug_client.evaluation.ranking.measures import depth_needed, measure_name, per_query, ranked
from tests.evaluation.ranking.recorded.record import K_VALUES, read_qrels, read_run

RECORDED = Path(__file__).parent / "recorded"
# trec_eval's names of the measures, and ours.
TREC = {
    **{f"ndcg_cut_{k}": f"nDCG@{k}" for k in K_VALUES},
    **{f"map_cut_{k}": f"AP@{k}" for k in K_VALUES},
    **{f"recall_{k}": f"R@{k}" for k in K_VALUES},
    **{f"P_{k}": f"P@{k}" for k in K_VALUES},
    **{f"success_{k}": f"Success@{k}" for k in (1, 5, 10)},
    "recip_rank": "RR",
    "map": "AP",
    "ndcg": "nDCG",
    "Rprec": "Rprec",
}
BEIR = {
    **{f"NDCG@{k}": f"nDCG@{k}" for k in K_VALUES},
    **{f"MAP@{k}": f"AP@{k}" for k in K_VALUES},
    **{f"Recall@{k}": f"R@{k}" for k in K_VALUES},
    **{f"P@{k}": f"P@{k}" for k in K_VALUES},
    **{f"MRR@{k}": f"RR@{k}" for k in K_VALUES},
}


def test_ndcg_of_graded_judgements_by_hand() -> None:
    qrels = {"q": {"a": 3, "b": 2, "c": 1, "d": 0}}
    run = {"q": [("b", 0.9), ("x", 0.8), ("a", 0.7), ("d", 0.6), ("c", 0.5)]}
    dcg = 2 / math.log2(2) + 3 / math.log2(4) + 1 / math.log2(6)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    values = per_query(["nDCG@10", "nDCG@2"], qrels, run)
    assert values["nDCG@10"][0] == pytest.approx(dcg / ideal, abs=1e-12)
    assert values["nDCG@2"][0] == pytest.approx(2 / (3 + 2 / math.log2(3)), abs=1e-12)


def test_reciprocal_rank_recall_precision_and_hit_by_hand() -> None:
    qrels = {"one": {"a": 1, "b": 1, "c": 0}, "two": {"z": 2}, "none": {"a": 1}, "zero": {"a": 0}}
    run = {
        "one": [("x", 4.0), ("c", 3.0), ("b", 2.0), ("a", 1.0)],
        "two": [("z", 1.0)],
        "none": [],
        "zero": [("a", 1.0)],
    }
    values = per_query(["RR@10", "RR@2", "R@3", "P@2", "Success@3", "AP", "Judged@2"], qrels, run)
    assert values["RR@10"].tolist() == pytest.approx([1 / 3, 1.0, 0.0, 0.0])
    assert values["RR@2"].tolist() == [0.0, 1.0, 0.0, 0.0]
    assert values["R@3"].tolist() == [0.5, 1.0, 0.0, 0.0]
    assert values["P@2"].tolist() == [0.0, 0.5, 0.0, 0.0]
    assert values["Success@3"].tolist() == [1.0, 1.0, 0.0, 0.0]
    assert values["AP"].tolist() == pytest.approx([(1 / 3 + 2 / 4) / 2, 1.0, 0.0, 0.0])
    assert values["Judged@2"].tolist() == [0.5, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", ["minilm", "ties"])
def test_every_query_has_pytrec_evals_figures(name: str) -> None:
    qrels, run = read_qrels(RECORDED / "qrels.txt"), read_run(RECORDED / f"{name}.run")
    asked = {
        f"{theirs[::-1].replace('_', '.', 1)[::-1]}" if theirs[-1].isdigit() else theirs for theirs in TREC
    }
    reference = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run)
    ours = per_query(list(TREC.values()), qrels, {query: ranked(found) for query, found in run.items()})
    assert (
        len(qrels) == 7 and len(reference) == {"minilm": 7, "ties": 6}[name]
    )  # q05 has no results in `ties`
    for place, query in enumerate(qrels):
        for theirs, measure in TREC.items():
            expected = reference[query][theirs] if query in reference else 0.0
            assert ours[measure][place] == pytest.approx(expected, abs=1e-9), (query, measure)


def test_any_ties_are_broken_as_trec_eval_breaks_them() -> None:
    drawn = random.Random(0)
    for _ in range(100):
        passages = [f"{drawn.choice(['d', 'D', 'é', '9', '10'])}{number}" for number in range(30)]
        # The second and the third differ as doubles, and are equal as trec_eval's floats.
        run = {"q": {passage: drawn.choice([0.5, 0.5 + 1e-9, 0.7, -3.0]) for passage in passages}}
        qrels = {"q": {passage: drawn.choice([0, 1, 2, 3]) for passage in drawn.sample(passages, 8)}}
        reference = pytrec_eval.RelevanceEvaluator(
            qrels, {"ndcg_cut.5", "map_cut.10", "recip_rank"}
        ).evaluate(run)
        ours = per_query(["nDCG@5", "AP@10", "RR", "RR@5"], qrels, {"q": ranked(run["q"])})
        rr = reference["q"]["recip_rank"]
        expected = [reference["q"]["ndcg_cut_5"], reference["q"]["map_cut_10"], rr, rr if rr > 0.19 else 0.0]
        assert [float(values[0]) for values in ours.values()] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["minilm", "ties"])
def test_means_are_beirs_own_figures(name: str) -> None:
    recorded = json.loads((RECORDED / "beir.json").read_text())[name]
    qrels, run = read_qrels(RECORDED / "qrels.txt"), read_run(RECORDED / f"{name}.run")
    without_itself = {
        query: ranked({passage: score for passage, score in found.items() if passage != query})
        for query, found in run.items()
    }
    ours = per_query(list(BEIR.values()), qrels, without_itself)
    for theirs, measure in BEIR.items():
        # BEIR's own MRR keeps ties in the order of retrieval; everything else goes through pytrec_eval.
        if name == "ties" and theirs.startswith("MRR"):
            continue
        assert round(float(ours[measure].mean()), 5) == recorded[theirs], measure


def test_where_scores_are_tied_beirs_mrr_depends_on_the_order_of_retrieval_and_ours_does_not() -> None:
    # q02: d06 (relevant) and d08 are tied; trec_eval puts d08 first.
    qrels, run = read_qrels(RECORDED / "qrels.txt"), read_run(RECORDED / "ties.run")
    found = ranked(run["q02"])
    assert [passage for passage, _ in found] == ["d08", "d06", "d07"]
    assert per_query(["RR@10"], {"q02": qrels["q02"]}, {"q02": found})["RR@10"].tolist() == [0.5]
    assert (
        json.loads((RECORDED / "beir.json").read_text())["ties"]["MRR@1"] == 0.42857
    )  # three of seven, with q02


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ndcg@10", "nDCG@10"),
        ("MRR@10", "RR@10"),
        ("mrr", "RR"),
        ("Recall@100", "R@100"),
        ("MAP", "AP"),
        ("Hit@5", "Success@5"),
        ("precision@1", "P@1"),
        ("Rprec", "Rprec"),
    ],
)
def test_the_fields_other_names_are_understood(text: str, name: str) -> None:
    assert measure_name(text) == name


@pytest.mark.parametrize(
    "text", ["", "nDCG@", "nDCG@0", "R", "P", "Rprec@5", "ERR@10", "nDCG@ten", "nDCG(gains={})@3"]
)
def test_other_names_are_refused_with_those_that_are_known(text: str) -> None:
    with pytest.raises(OptionError, match="--metrics"):
        measure_name(text)


def test_the_depth_is_that_of_the_deepest_measure() -> None:
    assert depth_needed(["nDCG@10", "R@100", "RR"]) == 100
    assert depth_needed(["RR"]) == 0

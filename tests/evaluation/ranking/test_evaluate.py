from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from replug_client.corpus.collections import Collection, DataSet, folder_data_sets
from replug_client.corpus.readers import MemorySource
from replug_client.corpus.records import Passage
from replug_client.corpus.store import PassageStore, write_store
from replug_client.errors import OptionError
from replug_client.evaluation.ranking.evaluate import Figures, evaluate_data_set
from replug_client.evaluation.ranking.search import Search, label_of, retriever_name
from replug_client.evaluation.ranking.tables import Comparing, data_set_tables, over_data_sets, verdict

SMALL = Path(__file__).parent / "small"


def bm25(cache_dir: Path, **changes: object) -> Search:
    options = {
        "encoders": {},
        "names": ["bm25"],
        "top_k": 10,
        "fusion": "rrf",
        "cache_dir": cache_dir,
    } | changes
    return Search(**options)  # type: ignore[arg-type]


def collection(folder: Path, name: str, relevant: dict[str, str]) -> Collection:
    """Passages `apple`, `pear` and `plum`; queries are their words, and ``relevant`` says what is right for each."""
    passages = [Passage(text, f"{text} {text}") for text in ("apple", "pear", "plum")]
    write_store([MemorySource(passages)], folder / name)
    return Collection(
        name=name,
        open=lambda _: (PassageStore(folder / name), 0),
        queries={f"{name}-{number}": word for number, word in enumerate(relevant)},
        qrels={f"{name}-{number}": {passage: 1} for number, passage in enumerate(relevant.values())},
    )


def test_a_task_of_several_repositories_is_the_mean_of_their_means(tmp_path: Path) -> None:
    big = collection(tmp_path, "big", {"apple": "apple", "pear": "pear", "plum": "apple"})  # 2 of 3 right
    small = collection(tmp_path, "small", {"plum": "pear"})  # 0 of 1
    task = DataSet("task", (big, small), "repositories")
    figures = evaluate_data_set(task, bm25(tmp_path), ["Success@1"], tmp_path)
    assert figures.values["bm25"]["Success@1"].tolist() == [1.0, 1.0, 0.0, 0.0]
    # As CodeRAG-Bench: (2/3 + 0) / 2. Over queries it would be 2/4.
    assert figures.mean("bm25", "Success@1") == pytest.approx(1 / 3)
    assert figures.clusters == ["big", "big", "big", "small"]
    assert figures.parts == "2 repositories" and figures.units == "repositories"


def test_data_sets_count_the_same_whatever_their_size() -> None:
    one = Figures(
        "one", [("one", str(n)) for n in range(4)], {"base": {"P@1": np.array([1.0, 1, 1, 0])}}, np.ones(4)
    )
    two = Figures("two", [("two", "0")], {"base": {"P@1": np.array([0.0])}}, np.ones(1))
    both = over_data_sets([one, two], Comparing(["base"], ["P@1"], "rrf"))
    assert both.mean("base", "P@1") == pytest.approx((0.75 + 0.0) / 2)
    assert both.parts == "2 data sets"


def test_the_passage_with_the_querys_own_id_is_no_result_unless_it_is_kept(tmp_path: Path) -> None:
    (small,) = folder_data_sets(SMALL)
    store, _ = small.collections[0].open(tmp_path)
    queries = {"q06": small.collections[0].queries["q06"]}
    kept = bm25(tmp_path, drop_identical=False, top_k=3).run(store, queries)["bm25"]["q06"]
    dropped = bm25(tmp_path, top_k=3).run(store, queries)["bm25"]["q06"]
    assert kept[0][0] == "q06"
    assert "q06" not in [passage for passage, _ in dropped]
    assert len(dropped) == 3  # one more was fetched in its place
    assert [passage for passage, _ in kept[1:]] == [passage for passage, _ in dropped[:2]]


def test_what_counts_though_it_may_surprise_is_said(tmp_path: Path) -> None:
    (small,) = folder_data_sets(SMALL)
    figures = evaluate_data_set(small, bm25(tmp_path), ["nDCG@10"], tmp_path)
    assert figures.left_out["passages without text"] == 1
    assert any("1 of 16 judged passages are not in the corpus" in note for note in figures.notes)
    assert any("bm25 found nothing for 1 of 7 queries: they count 0" in note for note in figures.notes)
    assert figures.values["bm25"]["nDCG@10"][4] == 0.0


def test_files_of_each_query_lie_by_data_set_and_collection(tmp_path: Path) -> None:
    one = collection(tmp_path, "one", {"apple": "apple"})
    two = collection(tmp_path, "two", {"pear": "plum"})
    evaluate_data_set(DataSet("task", (one, two)), bm25(tmp_path), ["RR@10"], tmp_path, tmp_path / "out")
    assert (tmp_path / "out/task/one/qrels.txt").read_text() == "one-0 0 apple 1\n"
    assert (tmp_path / "out/task/one/bm25.run").read_text().startswith("one-0 Q0 apple 1 ")
    line = json.loads((tmp_path / "out/task/two/per_query.jsonl").read_text())
    assert line == {"query_id": "two-0", "bm25": {"RR@10": 0.0}}


def figures_of(base: list[float], tuned: list[float]) -> Figures:
    values = {"base": {"RR@10": np.array(base)}, "tuned": {"RR@10": np.array(tuned)}}
    return Figures("mine", [("mine", str(number)) for number in range(len(base))], values, np.ones(len(base)))


def test_tables_say_the_difference_its_interval_and_p() -> None:
    how = Comparing(["base", "tuned"], ["RR@10"], "rrf")
    figures = figures_of([0.0] * 30, [0.5] * 30)
    table, certain = data_set_tables(figures, how)
    assert table.rows[1].values["RR@10"] == 0.5
    difference = table.rows[1].differences["RR@10"]
    assert (difference.mean, difference.low, difference.high, difference.units) == (0.5, 0.5, 0.5, "queries")
    assert certain.rows[0].values["p"] == pytest.approx(1 / 10_001)
    assert "Intervals: paired percentile bootstrap over 30 queries" in certain.notes[0]
    assert "too narrow" not in certain.notes[0]
    assert verdict(figures, [table, certain], how) == (
        "mine, RR@10: tuned - base +0.5000 [+0.5000, +0.5000], p = 0.0001: the tuned retriever ranks better."
    )
    swapped = figures_of([0.5] * 30, [0.0] * 30)
    assert verdict(swapped, data_set_tables(swapped, how), how).endswith("the tuned retriever ranks worse.")


def test_a_difference_that_may_be_chance_is_called_that() -> None:
    how = Comparing(["base", "tuned"], ["RR@10"], "rrf")
    figures = figures_of([0.5, 1.0, 0.0, 0.25], [1.0, 0.5, 0.25, 0.0])
    table, certain = data_set_tables(figures, how)
    assert verdict(figures, [table, certain], how).endswith("no clear difference.")
    assert "too narrow" in certain.notes[0]


def test_an_interval_over_too_few_queries_is_not_enough_for_a_verdict() -> None:
    how = Comparing(["base", "tuned"], ["RR@10"], "rrf")
    figures = figures_of([0.0, 0.0, 0.0], [0.5, 0.5, 0.5])
    tables = data_set_tables(figures, how)
    assert tables[0].rows[1].differences["RR@10"].excludes_zero
    assert tables[1].rows[0].values["p"] == 2 / 8
    assert verdict(figures, tables, how).endswith("no clear difference.")


def test_the_share_that_was_judged_is_shown_and_not_compared() -> None:
    values = {name: {"RR@10": np.array([1.0]), "Judged@10": np.array([0.5])} for name in ("base", "tuned")}
    figures = Figures("mine", [("mine", "0")], values, np.ones(1))
    table, certain = data_set_tables(figures, Comparing(["base", "tuned"], ["RR@10", "Judged@10"], "rrf"))
    assert table.rows[0].values["Judged@10"] == 0.5
    assert [row.name for row in certain.rows] == ["tuned.RR@10"]


def test_one_retriever_has_nothing_to_be_compared_with() -> None:
    tables = data_set_tables(figures_of([0.5], [1.0]), Comparing(["base"], ["RR@10"], "rrf"))
    assert len(tables) == 1 and not tables[0].rows[0].differences


@pytest.mark.parametrize(
    ("text", "name"), [("BM25+tuned", "tuned+bm25"), ("base", "base"), ("tuned+base", "base+tuned")]
)
def test_fusions_have_one_name_whatever_the_order(text: str, name: str) -> None:
    assert retriever_name(text) == name
    assert label_of("tuned+bm25", "minmax") == "tuned + BM25 (scores)"


@pytest.mark.parametrize("text", ["", "dense", "base+base", "base+"])
def test_unknown_retrievers_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--retrievers"):
        retriever_name(text)


def test_an_encoder_that_was_not_given_is_named(tmp_path: Path) -> None:
    (small,) = folder_data_sets(SMALL)
    with pytest.raises(OptionError, match="base was not given"):
        evaluate_data_set(small, bm25(tmp_path, names=["base"]), ["RR@10"], tmp_path)

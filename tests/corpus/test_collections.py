from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from replug_client.corpus.collections import beir_store, folder_data_sets, open_data_sets
from replug_client.corpus.hub import fetch_hub
from replug_client.errors import CorpusError, DownloadError, OptionError

SMALL = Path(__file__).parents[1] / "evaluation" / "ranking" / "small"


def data_set(folder: Path, queries: dict[str, str] | None = None, split: str = "test") -> Path:
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d", "title": "", "text": "text"}\n')
    texts = queries or {"q": "query"}
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": id_, "text": text}) + "\n" for id_, text in texts.items())
    )
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    return folder


def test_the_small_set_says_what_does_not_take_part(tmp_path: Path) -> None:
    (found,) = folder_data_sets(SMALL)
    (collection,) = found.collections
    assert found.name == "small"
    assert list(collection.queries) == ["q01", "q02", "q03", "q04", "q05", "q06", "q07"]
    assert collection.qrels.keys() == collection.queries.keys()
    assert collection.left_out == {
        "queries without judgements in this split": 1,  # q08
        "judged queries that the queries lack": 1,  # q10
        "queries without text": 1,  # q09
    }
    store, empty = collection.open(tmp_path)
    assert (len(store), empty) == (21, 1)
    assert store[0].text.startswith("Binary search Halve a sorted list")
    assert beir_store(SMALL / "corpus.jsonl", tmp_path)[1] == 1  # found again, and still counted


def test_repository_tasks_of_coderag_bench_are_one_data_set_each(tmp_path: Path) -> None:
    for name in (
        "repoeval__google_vizier",
        "repoeval__pytorch_rl",
        "swe-bench-lite_a__b-1",
        "swe-bench-lite_a__b-2",
    ):
        data_set(tmp_path / name)
    for name in ("mbpp", "humaneval", "mine__one", "mine__two"):
        data_set(tmp_path / name)
    (tmp_path / "canonical").mkdir()  # no data set, but CodeRAG-Bench has it there
    found = {one.name: [part.name for part in one.collections] for one in folder_data_sets(tmp_path)}
    assert found == {
        "humaneval": ["humaneval"],
        "mbpp": ["mbpp"],
        "mine": ["mine__one", "mine__two"],
        "repoeval": ["repoeval__google_vizier", "repoeval__pytorch_rl"],
        "swe-bench-lite": ["swe-bench-lite_a__b-1", "swe-bench-lite_a__b-2"],
    }
    assert {one.parts for one in folder_data_sets(tmp_path) if len(one.collections) > 1} == {"repositories"}


def test_the_forums_of_cqadupstack_are_one_data_set(tmp_path: Path) -> None:
    for name in ("android", "english"):
        data_set(tmp_path / "cqadupstack" / name)
    (found,) = open_data_sets(str(tmp_path / "cqadupstack"), tmp_path)
    assert (found.name, found.parts, len(found.collections)) == ("cqadupstack", "forums", 2)


def test_another_split_is_named_and_a_missing_one_lists_those_there(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "mine", split="dev")
    assert folder_data_sets(folder, "dev")[0].name == "mine"
    with pytest.raises(CorpusError, match="no judgements of the split 'test'; found dev"):
        folder_data_sets(folder)


def test_ms_marco_is_evaluated_on_dev_as_beir_does(tmp_path: Path) -> None:
    data_set(tmp_path / "beir" / "msmarco", split="dev")
    (found,) = open_data_sets("msmarco", tmp_path)
    assert list(found.collections[0].queries) == ["q"]


def test_ids_that_never_meet_are_an_error(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "mine", {"other": "query"})
    with pytest.raises(CorpusError, match=r"no query with a text has judgements.*1 judged queries that"):
        folder_data_sets(folder)


def test_a_folder_without_data_sets_and_an_unknown_name_are_explained(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no data set there. Expected corpus.jsonl"):
        open_data_sets(str(tmp_path), tmp_path)
    with pytest.raises(OptionError, match=r"no such folder.*scifact.*NanoSciFact"):
        open_data_sets("no-such-set", tmp_path)


def on_the_hub(folder: Path, judgements: str, splits: dict[str, str], scores: bool) -> Path:
    """A folder that ``datasets`` loads as it loads a hub data set of this layout."""
    rows = {
        "corpus": [{"_id": "d1", "text": "Text one."}, {"_id": "d2", "text": "Text two."}],
        "queries": [{"_id": "q1", "text": "one?"}, {"_id": "q2", "text": "two?"}],
        judgements: [{"query-id": "q1", "corpus-id": "d1", **({"score": 2} if scores else {})}],
    }
    configs = []
    for config, values in rows.items():
        (folder / config).mkdir(parents=True)
        split = splits[config]
        datasets.Dataset.from_list(values).to_parquet(folder / config / f"{split}-00000-of-00001.parquet")
        configs.append(
            f"- config_name: {config}\n  data_files:\n  - split: {split}\n    path: {config}/{split}-*\n"
        )
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    return folder


@pytest.mark.parametrize(
    ("judgements", "splits", "scores", "split", "gain"),
    [
        ("qrels", {"corpus": "train", "queries": "train", "qrels": "train"}, False, "train", 1),  # NanoBEIR
        ("default", {"corpus": "corpus", "queries": "queries", "default": "test"}, True, "test", 2),  # MTEB
    ],
    ids=["nanobeir", "mteb"],
)
def test_a_hub_data_set_becomes_a_folder_in_beirs_form(
    tmp_path: Path, judgements: str, splits: dict[str, str], scores: bool, split: str, gain: int
) -> None:
    source = on_the_hub(tmp_path / "source", judgements, splits, scores)
    folder, found = fetch_hub("owner/name", tmp_path / "cache", source=str(source))
    assert found == split
    (one,) = folder_data_sets(folder, found)
    assert one.collections[0].qrels == {"q1": {"d1": gain}}
    assert dict(one.collections[0].queries) == {"q1": "one?"}
    store, _ = one.collections[0].open(tmp_path / "cache")
    assert store.texts([0, 1]) == ["Text one.", "Text two."]
    # It is there now: no hub is asked again.
    assert fetch_hub("owner/name", tmp_path / "cache", source="/no/such/folder")[0] == folder


def test_a_hub_data_set_of_another_form_is_explained(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    datasets.Dataset.from_list([{"text": "x"}]).to_parquet(source / "train.parquet")
    with pytest.raises(CorpusError, match="no configuration corpus, queries; found default"):
        fetch_hub("owner/name", tmp_path / "cache", source=str(source))
    assert not any((tmp_path / "cache").rglob("*.jsonl"))


def test_without_a_hub_it_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> list[str]:
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "get_dataset_config_names", offline)
    with pytest.raises(DownloadError) as caught:
        open_data_sets("NanoSciFact", tmp_path)
    assert f"into the folder {tmp_path}/hub/zeta-alpha-ai--NanoSciFact--default" in str(caught.value)
    # ... and what it says works.
    data_set(tmp_path / "hub" / "zeta-alpha-ai--NanoSciFact--default")
    (found,) = open_data_sets("NanoSciFact", tmp_path)
    assert found.name == "NanoSciFact"

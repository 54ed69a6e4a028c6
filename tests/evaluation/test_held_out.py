"""The examples of an evaluation, and what is left out on the way; one token a letter here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replug_client.corpus.store import PassageStore
from replug_client.corpus.windows import WindowOptions
from replug_client.errors import ArtefactError, CorpusError, OptionError
from replug_client.evaluation.held_out import ExampleOptions, HeldOut, held_out_examples
from replug_client.evaluation.run_settings import RunSettings
from tests.cli.test_evaluate_lm import record
from tests.retriever.tiny import store_of
from tests.supervisor.test_prompts import Letters


@pytest.fixture
def store(tmp_path: Path) -> PassageStore:
    return store_of(tmp_path / "corpus", ["a passage of its own", "abcdefgh stands here"])


def file_of(path: Path, *texts: str) -> Path:
    path.write_text("\n".join(json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)))
    return path


def cut(store: PassageStore, *data: Path, **options: object) -> HeldOut:
    windows = WindowOptions(4, 4, 4)
    return held_out_examples(ExampleOptions(data, windows=windows, **options), store, Letters())  # type: ignore[arg-type]


def test_documents_of_the_corpus_or_of_the_training_are_left_out_whatever_their_white_space(
    tmp_path: Path, store: PassageStore
) -> None:
    data = file_of(tmp_path / "a.jsonl", "a  passage of its\nown", "trained on this", "12345678", "xy")
    trained = file_of(tmp_path / "t.jsonl", "trained  on\nthis")
    found = cut(store, data, trained_on=(trained,))
    assert [(e.document_id, e.query, e.continuation) for e in found.examples] == [("2", "1234", "5678")]
    assert found.left_out == {
        "documents that stand in the corpus themselves": 1,
        "documents that the run trained or validated on": 1,
        "documents too short for a window": 1,
        "windows at a document's end with too short a continuation": 1,
    }


def test_equal_ids_of_two_files_are_two_documents(tmp_path: Path, store: PassageStore) -> None:
    files = [file_of(tmp_path / "a.jsonl", "12345678"), file_of(tmp_path / "b.jsonl", "87654321")]
    assert [e.document_id for e in cut(store, *files).examples] == ["a.jsonl: 0", "b.jsonl: 0"]


def test_examples_that_share_a_run_with_a_passage_are_left_out(tmp_path: Path, store: PassageStore) -> None:
    data = file_of(tmp_path / "a.jsonl", "zbcdefgz12345678")
    found = cut(store, data, ngram_guard=6)
    assert [e.query for e in found.examples] == ["1234"]
    assert found.left_out == {"examples that share a run of 6 tokens with a passage": 1}
    assert len(cut(store, data, ngram_guard=7).examples) == 2


def test_at_most_so_many_are_taken_spread_evenly_and_the_rest_counted(
    tmp_path: Path, store: PassageStore
) -> None:
    found = cut(
        store, file_of(tmp_path / "a.jsonl", *(f"{n}{n}{n}{n}abcd" for n in range(9))), max_examples=3
    )
    assert [e.query for e in found.examples] == ["1111", "4444", "7777"]
    assert found.left_out == {"examples beyond --max_examples 3": 6}


def test_where_nothing_is_left_the_reasons_are_named(tmp_path: Path, store: PassageStore) -> None:
    with pytest.raises(CorpusError, match=r"no example is left.*too short for a window': 1"):
        cut(store, file_of(tmp_path / "a.jsonl", "xy"))


def test_a_missing_training_file_is_said(
    tmp_path: Path, store: PassageStore, caplog: pytest.LogCaptureFixture
) -> None:
    cut(store, file_of(tmp_path / "a.jsonl", "12345678"), trained_on=(tmp_path / "gone.csv",))
    assert "gone.csv: no such file" in caplog.text


class Pairs(Letters):
    """Two letters a token."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        offsets = [(at, min(at + 2, len(text))) for at in range(0, len(text), 2)]
        return [sum(map(ord, text[a:b])) for a, b in offsets], offsets

    def encode(self, text: str) -> list[int]:
        return self.encode_with_offsets(text)[0]


def test_a_run_s_examples_are_cut_where_the_continuation_begins_or_tokenised_apart(
    tmp_path: Path, store: PassageStore
) -> None:
    path = tmp_path / "held_out.jsonl"
    lines = [("abcd", "efg"), ("abc", "defg")]
    path.write_text("\n".join(json.dumps({"query": q, "continuation": c}) for q, c in lines))
    even, odd = held_out_examples(ExampleOptions(held_out=path), store, Pairs()).examples
    pairs = Pairs()
    assert (list(even.query_ids), list(even.continuation_ids)) == (pairs.encode("abcd"), pairs.encode("efg"))
    assert (list(odd.query_ids), list(odd.continuation_ids)) == (pairs.encode("abc"), pairs.encode("defg"))
    assert (even.num_bytes, odd.num_bytes) == (3, 4)


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(OptionError, match="--data"):
        ExampleOptions()
    with pytest.raises(OptionError, match="--sliding needs"):
        ExampleOptions(held_out=Path("x"), windows=WindowOptions(sliding=True))
    with pytest.raises(OptionError, match="--ngram_guard"):
        ExampleOptions((Path("x"),), ngram_guard=-1)


def test_a_run_s_settings_come_with_it_wherever_it_has_moved(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lm").mkdir()
    value = record(tmp_path)
    value["options"]["supervisor"]["model"] = str(tmp_path / "gone" / "lm")
    (tmp_path / "run" / "run.json").write_text(json.dumps(value))
    settings = RunSettings.read(tmp_path / "run")
    assert settings.supervisor.model == str(tmp_path / "run" / "lm")
    assert settings.supervisor.local.dtype == "float32"
    assert (settings.windows.context_len, settings.temperature, settings.kept_best) == (6, 0.3, True)
    del value["options"]["separator"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(value))
    with pytest.raises(ArtefactError, match=r"run\.json: the run's options cannot be read.*separator"):
        RunSettings.read(tmp_path / "run")

"""The corpus on disk, by row."""

from __future__ import annotations

import json
import random
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replug_client.artefacts import MANIFEST_NAME
from replug_client.corpus import store as store_module
from replug_client.corpus.readers import MemorySource, PassageSource
from replug_client.corpus.records import Passage
from replug_client.corpus.store import PassageStore, write_store
from replug_client.errors import ArtefactError, CorpusError
from tests.corpus.writers import WRITERS

Character = st.characters(exclude_categories=["Cs"])
Text = st.text(Character, min_size=1, max_size=40)
Rows = st.lists(
    st.builds(
        Passage,
        id=Text,
        text=Text.filter(lambda text: bool(text.strip())),
        title=st.none() | Text,
        extra=st.fixed_dictionaries({"path": Text}),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda row: row.id,
)


def passages(count: int) -> list[Passage]:
    return [
        Passage(id=f"{n:03}", text=f"text {n}\n", title=None, extra={"path": f"{n}.py"}) for n in range(count)
    ]


def written(tmp_path: Path, rows: list[Passage], suffix: str = ".csv") -> Path:
    path = tmp_path / f"passages{suffix}"
    WRITERS[suffix](path, rows)
    return path


@given(Rows, st.sampled_from(sorted(WRITERS)))
@settings(max_examples=60, deadline=None)
def test_any_passages_in_any_format_come_back_exactly(rows: list[Passage], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), rows, suffix)
        store = PassageStore.open([path], Path(folder) / "cache")
        assert list(store) == rows
        assert len(store) == len(rows)


def test_rows_are_found_by_number_and_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BATCH_ROWS", 7)  # so that rows lie in several batches
    rows = passages(50)
    store = PassageStore.open([written(tmp_path, rows)], tmp_path / "cache")
    order = random.Random(0).sample(range(50), 50)
    assert store.texts(order) == [rows[row].text for row in order]
    assert store.ids(np.array(order)) == [rows[row].id for row in order]
    assert store.rows_of([rows[row].id for row in order]) == order
    assert [store[row] for row in order] == [rows[row] for row in order]
    assert list(store.iter_texts()) == [row.text for row in rows]
    assert store.texts([]) == []
    assert store.texts([3, 3]) == [rows[3].text] * 2


@pytest.mark.parametrize("row", [-1, 5, 2**40])
def test_a_row_outside_the_corpus_is_never_another_passage(tmp_path: Path, row: int) -> None:
    store = PassageStore.open([written(tmp_path, passages(5))], tmp_path / "cache")
    with pytest.raises(IndexError):
        store[row]
    with pytest.raises(IndexError):
        store.texts([0, row])
    with pytest.raises(TypeError, match="rows are integers"):
        store.texts(np.array([1.0]))


def test_an_unknown_id_is_named(tmp_path: Path) -> None:
    store = PassageStore.open([written(tmp_path, passages(8))], tmp_path / "cache")
    assert store.row_of("007") == 7
    assert store.row_of("7") is None
    with pytest.raises(CorpusError, match="no passage has the id '7'"):
        store.rows_of(["001", "7"])


def test_it_is_made_once_and_then_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, passages(5))
    first = PassageStore.open([path], tmp_path / "cache")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made a second time")

    monkeypatch.setattr(store_module, "write_store", never)
    copy = path.rename(tmp_path / "renamed.csv")
    again = PassageStore.open([copy], tmp_path / "cache")
    assert list(again) == list(first)
    assert (again.sha256, again.paths) == (first.sha256, (copy,))


def test_other_bytes_make_another_store(tmp_path: Path) -> None:
    rows = passages(5)
    path = written(tmp_path, rows)
    first = PassageStore.open([path], tmp_path / "cache")
    written(tmp_path, [*rows[:4], Passage(id="004", text="changed", extra={"path": "p"})])
    second = PassageStore.open([path], tmp_path / "cache")
    assert second.texts([4]) == ["changed"]
    assert first.texts([4]) == ["text 4\n"]
    assert first.sha256 != second.sha256


def test_the_hash_names_the_content_whatever_the_format(tmp_path: Path) -> None:
    hashes = {
        PassageStore.open([written(tmp_path, passages(5), suffix)], tmp_path / "cache").sha256
        for suffix in WRITERS
    }
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [Passage("a", "x"), Passage("b", "y")],
        [Passage("b", "y"), Passage("a", "x")],
        [Passage("a", "xb"), Passage("b", "y")],
        [Passage("a", "x"), Passage("by", "y")],
        [Passage("a", "x", "t"), Passage("b", "y")],
        [Passage("at", "x"), Passage("b", "y")],
        [Passage("a", "x")],
    ],
)
def test_the_hash_differs_where_ids_titles_texts_or_their_order_differ(
    tmp_path: Path, rows: list[Passage]
) -> None:
    write_store([MemorySource([Passage("a", "x"), Passage("b", "y", "")])], tmp_path / "one")
    write_store([MemorySource(rows)], tmp_path / "two")
    assert PassageStore(tmp_path / "one").sha256 != PassageStore(tmp_path / "two").sha256


def test_several_files_follow_each_other(tmp_path: Path) -> None:
    rows = passages(9)
    first, second = written(tmp_path, rows[:4]), written(tmp_path, rows[4:], ".jsonl")
    store = PassageStore.open([first, second], tmp_path / "cache")
    assert list(store) == rows
    assert PassageStore.open([second, first], tmp_path / "cache").ids([0]) == ["004"]


def test_an_id_in_two_files_is_refused_with_both_places(tmp_path: Path) -> None:
    first, second = written(tmp_path, passages(4)), written(tmp_path, passages(9)[3:], ".jsonl")
    with pytest.raises(
        CorpusError, match=r"passages\.jsonl, record 1, column 'id': duplicate id '003'"
    ) as caught:
        PassageStore.open([first, second], tmp_path / "cache")
    assert "passages.csv, record 4" in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.json"))
    assert not list((tmp_path / "cache").rglob("*.arrow*"))


def test_a_bad_file_leaves_nothing_that_could_be_taken_for_a_store(tmp_path: Path) -> None:
    path = written(tmp_path, [*passages(3), Passage(id="x", text=" ", extra={"path": ""})])
    for _ in range(2):
        with pytest.raises(CorpusError, match="empty text"):
            PassageStore.open([path], tmp_path / "cache")
    assert not [found for found in (tmp_path / "cache").rglob("*") if found.is_file()]


@pytest.mark.parametrize("damage", ["cut", "gone", "no manifest", "other format", "manifest cut"])
def test_a_damaged_store_is_made_again(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path, passages(5))
    PassageStore.open([path], tmp_path / "cache")
    (folder,) = (tmp_path / "cache" / "corpus").iterdir()
    arrow, manifest = folder / "passages.arrow", folder / MANIFEST_NAME
    if damage == "cut":
        arrow.write_bytes(arrow.read_bytes()[:-9])
    elif damage == "gone":
        arrow.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "other format":
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 0}))
    else:
        manifest.write_text(manifest.read_text()[:20])
    with pytest.raises(ArtefactError):
        PassageStore(folder)
    assert list(PassageStore.open([path], tmp_path / "cache")) == passages(5)
    PassageStore(folder)


def test_a_full_disk_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        name = "full"

        def __iter__(self) -> None:
            raise OSError(28, "No space left on device")

    full: PassageSource = Full()  # type: ignore[assignment]
    with pytest.raises(ArtefactError, match=r"no space left.*--cache_dir"):
        write_store([full], tmp_path / "store")


def test_no_files_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="--passages"):
        PassageStore.open([], tmp_path)


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    rows = passages(200)
    store = PassageStore.open([written(tmp_path, rows)], tmp_path / "cache")
    wrong: list[int] = []

    def read(seed: int) -> None:
        order = random.Random(seed).sample(range(200), 200)
        if store.rows_of(store.ids(order)) != order or store.texts(order) != [
            rows[row].text for row in order
        ]:
            wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

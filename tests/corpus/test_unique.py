"""Duplicate ids, found without holding the ids."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replug_client.corpus import unique
from replug_client.corpus.rows import Place
from replug_client.corpus.unique import HashIndex, IdSpool, hash64, refuse_duplicate
from replug_client.errors import CorpusError


def suspects(ids: Iterable[str], run_length: int) -> set[int]:
    with IdSpool(run_length) as spool:
        for id_ in ids:
            spool.add(id_)
        return spool.suspects()


@given(st.lists(st.integers(0, 60).map(str), max_size=120), st.integers(1, 20))
def test_suspects_are_the_hashes_of_repeated_ids_however_often_it_spools(
    ids: list[str], run_length: int
) -> None:
    repeated = {hash64(id_) for id_ in ids if ids.count(id_) > 1}
    assert suspects(ids, run_length) == repeated


@pytest.mark.parametrize("position", [0, 1, 999, 1000, 4999])
def test_one_repeat_among_many_is_found_wherever_it_stands(position: int) -> None:
    ids = [str(number) for number in range(5000)]
    assert suspects([*ids, ids[position]], 1000) == {hash64(ids[position])}


def test_many_repeats_give_some_of_them() -> None:
    ids = [str(number) for number in range(5000)]
    found = suspects(ids + ids, 700)
    assert 0 < len(found) < 1000
    assert found <= {hash64(id_) for id_ in ids}


def test_memory_is_bounded_by_the_run_length() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        assert not suspects((f"id-{number}" for number in range(count)), 2000)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(100_000) - peak(25_000) < 300_000  # their hashes alone would be 600,000 bytes


def test_equal_hashes_of_different_ids_are_no_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unique, "hash64", lambda text: len(text))
    places = [(Place("f", number, number), id_) for number, id_ in enumerate(["ab", "cd", "x", "ef"], 1)]
    refuse_duplicate({2}, places, "id")
    with pytest.raises(
        CorpusError, match=r"f, line 5 \(record 5\), column 'id'.*'cd'.*f, line 2 \(record 2\)"
    ):
        refuse_duplicate({2}, [*places, (Place("f", 5, 5), "cd")], "id")


def test_nothing_is_read_again_without_a_suspect() -> None:
    second_look = iter([(Place("f", 1), "a")])
    refuse_duplicate(set(), second_look, "id")
    assert len(list(second_look)) == 1


def test_the_hash_index_gives_every_row_of_a_hash() -> None:
    hashes = [random.Random(1).randrange(2**64) for _ in range(5)] + [2**64 - 1, 0]
    index = HashIndex([*hashes, hashes[2], 0])
    assert index.rows(0) == [6, 8]
    assert index.rows(2**64 - 1) == [5]
    assert index.rows(12345) == []

"""The overlap guard across sets, and copies without what is shared."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from replug_client.corpus import text_runs
from replug_client.corpus.copies import drop_shared
from replug_client.corpus.overlap import ngram_hashes
from replug_client.corpus.readers import open_source
from replug_client.corpus.records import Passage
from replug_client.corpus.set_overlap import PairOverlap, SetOverlap, find_set_overlap
from replug_client.corpus.text_runs import PlainWords, TextSet
from replug_client.errors import OptionError
from tests.corpus.writers import WRITERS


def write(path: Path, texts: dict[str, str]) -> Path:
    WRITERS[path.suffix](path, [Passage(id_, text, extra={"path": "p"}) for id_, text in texts.items()])
    return path


CORPUS = {"c0": "Nothing of this.", "c1": "zero ONE, two (three) four five six", "c2": "e1 e2 e3 e4 common"}
DATA = {"d0": "x y one two three y", "d1": "all of its own words", "c1": "short one"}
EVALUATION = {"v0": "e1; e2 e3 e4", "v1": "Short, one!", "v2": "one two nothing"}


@pytest.fixture
def sets(tmp_path: Path) -> list[TextSet]:
    return [
        TextSet("passages", (write(tmp_path / "c.csv", CORPUS),)),
        TextSet("data", (write(tmp_path / "d.jsonl", DATA),)),
        TextSet("evaluation", (write(tmp_path / "e.parquet", EVALUATION),)),
    ]


def pair(report: SetOverlap, name: str, other: str) -> PairOverlap:
    return next(found for found in report.pairs if (found.name, found.other) == (name, other))


def test_each_pair_is_counted_in_both_directions(sets: list[TextSet]) -> None:
    report = find_set_overlap(sets, n=3)
    counts = {(p.name, p.other): (p.sharing, p.items, p.same_id) for p in report.pairs}
    assert counts == {
        ("passages", "data"): (1, 3, 1),  # c1 and d0: one two three
        ("data", "passages"): (1, 3, 1),
        ("passages", "evaluation"): (1, 3, 0),  # c2 and v0
        ("evaluation", "passages"): (1, 3, 0),
        ("data", "evaluation"): (1, 3, 0),  # "short one", shorter than a run, as a whole
        ("evaluation", "data"): (1, 3, 0),
    }
    assert report.sharing["data"]["passages"].tolist() == [True, False, False]
    assert report.sharing["evaluation"]["data"].tolist() == [False, True, False]


def test_the_worst_items_are_shown_with_what_they_share(sets: list[TextSet]) -> None:
    report = find_set_overlap(sets, n=3)
    (shown,) = pair(report, "passages", "data").worst
    # c1 has the runs 012 123 234 345 456, and shares 123.
    assert (shown.id, shown.shared, shown.runs, shown.other_id) == ("c1", 1, 5, "d0")
    assert shown.text == "ONE, two (three"
    (shown,) = pair(report, "evaluation", "passages").worst
    assert (shown.id, shown.shared, shown.runs, shown.text) == ("v0", 2, 2, "e1; e2 e3")
    assert json.loads(json.dumps(report.to_json()))["pairs"][0]["worst"][0]["id"] == "c1"


def test_a_share_may_be_allowed(sets: list[TextSet]) -> None:
    report = find_set_overlap(sets, n=3, min_share=0.5)
    assert pair(report, "passages", "data").sharing == 0  # one of five
    assert pair(report, "passages", "evaluation").sharing == 1  # c2: two of three
    assert pair(report, "evaluation", "passages").sharing == 1  # all
    assert pair(find_set_overlap(sets, n=3, min_share=2 / 3), "passages", "evaluation").sharing == 0


def brute_force(one: dict[str, str], other: dict[str, str], n: int) -> list[bool]:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.split()
        if len(words) < n:
            return {tuple(words)}
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    theirs = set().union(*map(runs, other.values()))
    return [bool(runs(text) & theirs) for text in one.values()]


@pytest.mark.parametrize(("n", "vocabulary"), [(1, 9000), (2, 90), (4, 9)])
def test_it_finds_what_a_search_over_all_runs_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, vocabulary: int
) -> None:
    # Small chunks and spools, so that every path over the disk is taken.
    monkeypatch.setattr(text_runs, "_CHUNK_TOKENS", 40)
    monkeypatch.setattr(text_runs, "_RUN_LENGTH", 64)
    rng = random.Random(n)
    texts = [
        {
            f"{name}{i}": " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(rng.randint(1, 30)))
            for i in range(40)
        }
        for name in "abc"
    ]
    for number in range(5):  # some of each stand in another
        texts[1][f"b{number}"] = texts[0][f"a{number}"]
        texts[2][f"c{number}"] = "new " + texts[1][f"b{number + 10}"]
    sets = [
        TextSet(name, (write(tmp_path / f"{name}.csv", t),)) for name, t in zip("abc", texts, strict=True)
    ]
    report = find_set_overlap(sets, n=n)
    for i, one in enumerate("abc"):
        for j, other in enumerate("abc"):
            if i != j:
                expected = brute_force(texts[i], texts[j], n)
                assert any(expected) and not all(expected)
                assert report.sharing[one][other].tolist() == expected
                assert len(pair(report, one, other).worst) == min(5, sum(expected))


def test_short_texts_do_not_meet_runs_of_longer_ones() -> None:
    words = PlainWords()
    ids = [np.array(words.encode_with_offsets(text)[0]) for text in ("a b", "a b c", "", "a b", "b")]
    hashes, owners, places = ngram_hashes(ids, 3)
    by_owner = dict(zip(owners.tolist(), hashes.tolist(), strict=True))
    assert sorted(owners.tolist()) == [0, 1, 3, 4] and not places.any()
    assert by_owner[0] == by_owner[3]
    assert len({by_owner[0], by_owner[1], by_owner[4]}) == 3


def test_copies_lack_what_is_shared_and_keep_the_rest_as_it_was(sets: list[TextSet], tmp_path: Path) -> None:
    report = find_set_overlap(sets, n=3)
    rules = {"passages": ("evaluation",), "data": ("evaluation", "passages")}
    copies = drop_shared(report, sets, tmp_path / "out", rules)
    assert [p.id for p in open_source(tmp_path / "out" / "c.csv")] == ["c0", "c1"]
    kept = (tmp_path / "out" / "d.jsonl").read_bytes()
    assert kept == (tmp_path / "d.jsonl").read_bytes().splitlines(keepends=True)[1]
    assert copies["d.jsonl"]["rows"] == 1
    assert copies["d.jsonl"]["left_out"] == {"shared with evaluation or passages": 2}
    assert not (tmp_path / "out" / "e.parquet").exists()


def test_parquet_and_several_files_of_a_set_are_copied_in_step(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"{n}.parquet", {f"p{n}{i}": f"text {n} {i}" for i in range(3)}) for n in "ab"]
    held = write(tmp_path / "held.tsv", {"h": "text a 2", "i": "text b 0"})
    sets = [TextSet("passages", tuple(parts)), TextSet("evaluation", (held,))]
    drop_shared(find_set_overlap(sets, n=3), sets, tmp_path / "out", {"passages": ("evaluation",)})
    kept = [[p.id for p in open_source(tmp_path / "out" / f"{n}.parquet")] for n in "ab"]
    assert kept == [["pa0", "pa1"], ["pb1", "pb2"]]
    schemas = [pq.read_schema(folder / "a.parquet") for folder in (tmp_path, tmp_path / "out")]
    assert schemas[0].equals(schemas[1])


def test_a_copy_never_takes_the_place_of_a_file(sets: list[TextSet], tmp_path: Path) -> None:
    report = find_set_overlap(sets, n=3)
    with pytest.raises(OptionError, match="take the place of another file"):
        drop_shared(report, sets, tmp_path, {"passages": ("evaluation",)})


def test_options_that_mean_nothing_are_refused(sets: list[TextSet]) -> None:
    for options in ({"n": 0}, {"min_share": 1.0}, {"min_share": -0.1}):
        with pytest.raises(ValueError, match="expected n >= 1"):
            find_set_overlap(sets, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="two sets"):
        find_set_overlap(sets[:1])

"""What every passage source promises; each implementation runs through all of it."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pytest

from replug_client.corpus.readers import MemorySource, PassageSource, open_source
from replug_client.corpus.records import Passage
from replug_client.errors import CorpusError
from tests.corpus.writers import WRITERS

MakeSource = Callable[[Iterable[Passage]], PassageSource]


@pytest.fixture(params=["memory", *WRITERS])
def make_source(request: pytest.FixtureRequest, tmp_path: Path) -> MakeSource:
    names = itertools.count()

    def make(passages: Iterable[Passage]) -> PassageSource:
        if request.param == "memory":
            return MemorySource(passages)
        path = tmp_path / f"passages{next(names)}{request.param}"
        WRITERS[request.param](path, passages)
        return open_source(path)

    return make


def passage(id_: str, text: str = "some text", title: str | None = None) -> Passage:
    return Passage(id=id_, text=text, title=title, extra={"path": f"{id_}.py"})


def test_it_is_a_passage_source_with_a_name(make_source: MakeSource) -> None:
    source = make_source([passage("a")])
    assert isinstance(source, PassageSource)
    assert source.name


def test_it_gives_every_row_in_order_with_title_and_other_columns(make_source: MakeSource) -> None:
    rows = [passage("b", "second", "A title"), passage("a", "first"), passage("c", "third")]
    assert list(make_source(rows)) == rows


def test_each_iteration_starts_afresh_even_side_by_side(make_source: MakeSource) -> None:
    rows = [passage(str(number)) for number in range(20)]
    source = make_source(rows)
    first = iter(source)
    next(first)
    assert list(source) == rows
    assert list(first) == rows[1:]


@pytest.mark.parametrize("id_", ["007", "7", "7.0", "1e3", " 7 ", "NaN", "null", "-0", "日本", "x\ny"])
def test_ids_stay_the_text_that_they_are(make_source: MakeSource, id_: str) -> None:
    assert [row.id for row in make_source([passage("first"), passage(id_)])] == ["first", id_]


@pytest.mark.parametrize(
    "text",
    [
        "two\nlines",
        "DOS\r\nlines\r\n",
        "old Mac\rlines",
        "\n\n  indented and ended\n\n",
        'quotes " and "" more, and, commas;\tand tabs',
        '"',
        "NUL \x00 inside",
        "\x00",
        "\ufeffa BOM that is content",
        "line\u2028separators\u2029and\x85more\x0b\x0c\x1c",
        "emoji \U0001f600, combining e\u0301, right-to-left \u202e",
        "x" * 300_000,
        "\\n is not a newline; \\",
    ],
)
def test_texts_come_out_exactly_as_they_were(make_source: MakeSource, text: str) -> None:
    rows = [passage("a"), passage("b", text), passage("c")]
    assert list(make_source(rows)) == rows


def test_a_duplicate_id_is_refused_with_both_places(make_source: MakeSource) -> None:
    source = make_source([passage("a"), passage("b"), passage("c"), passage("b", "other text")])
    with pytest.raises(CorpusError, match=r"record 4.*column 'id'.*duplicate id 'b'.*record 2") as caught:
        list(source)
    assert source.name in str(caught.value)


def test_ids_that_differ_only_as_text_are_no_duplicates(make_source: MakeSource) -> None:
    rows = [passage("7"), passage("007"), passage("7.0"), passage("7 ")]
    assert list(make_source(rows)) == rows


@pytest.mark.parametrize("text", ["", "  \t\n "])
def test_an_empty_text_is_refused(make_source: MakeSource, text: str) -> None:
    source = make_source([passage("a"), passage("b"), passage("c", text)])
    with pytest.raises(CorpusError, match=r"record 3.*column 'text'.*empty text"):
        list(source)


def test_an_empty_id_is_refused(make_source: MakeSource) -> None:
    with pytest.raises(CorpusError, match=r"record 2.*column 'id'.*empty"):
        list(make_source([passage("a"), passage("")]))


def test_a_source_without_passages_is_refused(make_source: MakeSource) -> None:
    source = make_source([])
    with pytest.raises(CorpusError, match="empty file"):
        list(source)


def _peak_bytes(source: PassageSource, take: Callable[[Iterable[Passage]], object]) -> int:
    """Most memory held while the source is consumed: Python's, and Arrow's, which tracemalloc cannot see."""
    arrow = 0
    before = pa.total_allocated_bytes()

    def watched() -> Iterable[Passage]:
        nonlocal arrow
        for row in source:
            arrow = max(arrow, pa.total_allocated_bytes() - before)
            yield row

    tracemalloc.start()
    try:
        take(watched())
        return tracemalloc.get_traced_memory()[1] + arrow
    finally:
        tracemalloc.stop()


def _count(rows: Iterable[Passage]) -> int:
    return sum(1 for _ in rows)


def test_memory_does_not_grow_with_the_number_of_passages(make_source: MakeSource) -> None:
    def rows(count: int) -> list[Passage]:
        return [passage(str(number), f"{number} " + "words " * 400) for number in range(count)]

    small, large = make_source(rows(1_500)), make_source(rows(6_000))
    _peak_bytes(small, _count)  # what is imported or cached on first use is no part of it
    growth = _peak_bytes(large, _count) - _peak_bytes(small, _count)
    held = _peak_bytes(large, list) - _peak_bytes(small, list)
    assert growth < 1_000_000  # the files differ by 11 MB
    if not isinstance(large, MemorySource):
        assert held > 8_000_000, "the measure itself must see memory that is held"

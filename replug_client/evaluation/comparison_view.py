"""A comparison as the values that its page draws: both lists, what joins them, and each passage's text in pieces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from replug_client.corpus.records import Passage
from replug_client.evaluation.comparison import Comparison, Place, QueryComparison, movement
from replug_client.evaluation.highlight import segments
from replug_client.pages.markup import clean

_CODE_MARKS = re.compile(r"[{}\[\];=<>_]|\w\(|^\s{2,}\S", re.MULTILINE)
_CODE_SHARE = 0.03


class Join(NamedTuple):
    """A passage that stands in both lists: its positions there, from 0, and whether it went ``up``, ``down`` or not."""

    base: int
    tuned: int
    kind: str


def joins(comparison: QueryComparison) -> list[Join]:
    """The passages in both lists, in the base's order: a line each."""
    places = {place.row: number for number, place in enumerate(comparison.tuned)}
    found = []
    for number, place in enumerate(comparison.base):
        if place.row in places:
            other = places[place.row]
            kind = "same" if number == other else "up" if other < number else "down"
            found.append(Join(number, other, kind))
    return found


def looks_like_code(text: str) -> bool:
    """Whether a text is better read in letters of one width: brackets, calls, operators and indents are many."""
    return len(_CODE_MARKS.findall(text)) > _CODE_SHARE * len(text)


def page_data(comparison: Comparison, common: frozenset[str] = frozenset()) -> dict[str, Any]:
    """All that the page of a comparison shows; ``common`` are words that are not marked."""
    gains = comparison.first_gains
    value = comparison.agreement
    return {
        "base": comparison.base,
        "tuned": comparison.tuned,
        "held_out": comparison.held_out,
        "supervisor": comparison.supervisor,
        "agreement": {
            "n": value.n,
            "k": value.k,
            "overlap": value.overlap,
            "rbo": value.rbo,
            "tau": value.kendall_tau,
            "first_kept": value.first_kept,
        },
        "gain": {
            "n": len(gains),
            "mean": sum(gains) / len(gains) if gains else None,
            "better": sum(gain > 0 for gain in gains),
            "worse": sum(gain < 0 for gain in gains),
        },
        "queries": [query_data(item, comparison.passages, common) for item in comparison.shown],
    }


def query_data(
    comparison: QueryComparison, passages: Mapping[int, Passage], common: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """One query as the page draws it; a passage that stands in both lists is said once."""
    rows = list(dict.fromkeys(place.row for place in (*comparison.base, *comparison.tuned)))
    codes = [looks_like_code(passages[row].text) for row in rows]
    return {
        "query": comparison.query,
        "continuation": comparison.continuation,
        "document": comparison.document_id,
        # One look for all of a query's passages: that of most of them.
        "code": 2 * sum(codes) > len(codes),
        "k": comparison.k,
        "overlap": comparison.overlap,
        "rbo": comparison.rbo,
        "tau": comparison.kendall_tau,
        "first_kept": comparison.first_kept,
        "scored": _scored(comparison),
        "unscored": comparison.unscored,
        "passages": [_passage(row, passages[row], comparison, common) for row in rows],
        "joins": [list(join) for join in joins(comparison)],
        **{
            side: [_place(side, place, comparison.depth, rows) for place in places]
            for side, places in (("base", comparison.base), ("tuned", comparison.tuned))
        },
    }


def _scored(comparison: QueryComparison) -> dict[str, Any] | None:
    worth = comparison.worth
    if worth is None:
        return None
    return {
        "of": worth.of,
        "no_passage": worth.no_passage,
        "tokens": worth.num_tokens,
        "bytes": worth.num_bytes,
        "base": worth.gain(comparison.base[0].row),
        "tuned": worth.gain(comparison.tuned[0].row),
        "gain": comparison.first_gain,
    }


def _passage(
    row: int, passage: Passage, comparison: QueryComparison, common: frozenset[str]
) -> dict[str, Any]:
    text = clean(passage.text)
    cut = segments(text, comparison.query, comparison.continuation or "", common)
    worth = comparison.worth
    return {
        "id": passage.id,
        "title": passage.title,
        "extra": [f"{column}={value}" for column, value in passage.extra.items()],
        "text": [[segment.mark, segment.text] for segment in cut],
        "log_likelihood": None if worth is None else worth.log_likelihoods[row],
        "gain": None if worth is None else worth.gain(row),
    }


def _place(side: str, place: Place, depth: int, rows: list[int]) -> dict[str, Any]:
    kind, words = movement(side, place, depth)
    return {
        "passage": rows.index(place.row),
        "rank": place.rank,
        "similarity": place.similarity,
        "kind": kind,
        "words": words,
    }

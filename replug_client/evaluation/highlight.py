"""Which words of a passage stand in the query, or in what really follows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from replug_client.retriever.lexical import token_spans, tokenize

Mark = Literal["", "query", "continuation"]

_SHORTEST = 2
# A word in more of the passages than this says nothing of one of them (`self`, `the`).
_COMMON_SHARE = 0.2
# In a corpus of a few passages every word would be common.
_COMMON_LEAST = 3


class Segment(NamedTuple):
    """A piece of a passage's text, and where its words stand besides."""

    mark: Mark
    text: str


def common_words(texts: Iterable[str], share: float = _COMMON_SHARE) -> frozenset[str]:
    """Words (see :func:`~replug_client.retriever.lexical.tokenize`) in more than ``share`` of the texts."""
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        counts.update(set(tokenize(text)))
        total += 1
    least = max(share * total, _COMMON_LEAST)
    return frozenset(word for word, count in counts.items() if count > least)


def segments(
    text: str, query: str, continuation: str = "", common: frozenset[str] = frozenset()
) -> list[Segment]:
    """The text cut where marks begin and end; joined again, the segments are the text.

    A word is marked ``query`` where the query has it, else ``continuation`` where that has it; an identifier
    as a whole, or by those of its parts that are found (``parse_date`` in ``parse(text)``). Words of one
    character, and those in ``common``, are not.
    """
    sources: Sequence[tuple[Mark, frozenset[str]]] = [
        ("query", _telling(query, common)),
        ("continuation", _telling(continuation, common)),
    ]
    found: list[Segment] = []
    at = 0
    for word in token_spans(text):
        for start, end in word:
            mark = _mark(text[start:end].lower(), sources)
            if not mark:
                continue
            if at < start:
                found.append(Segment("", text[at:start]))
            found.append(Segment(mark, text[start:end]))
            at = end
            if (start, end) == word[0]:  # marked as a whole: not by its parts once more
                break
    if at < len(text):
        found.append(Segment("", text[at:]))
    return found


def _telling(text: str, common: frozenset[str]) -> frozenset[str]:
    return frozenset(word for word in tokenize(text) if len(word) >= _SHORTEST) - common


def _mark(word: str, sources: Sequence[tuple[Mark, frozenset[str]]]) -> Mark:
    return next((mark for mark, words in sources if word in words), "")

"""The overlap guard across sets: which items of corpus, training and evaluation share runs of words.

Each run of ``n`` words (lower case, no punctuation; or a tokenizer's ids) is a 64-bit hash, by
:mod:`replug_client.corpus.overlap`'s rolling hash; a text shorter than ``n`` is one run. Two runs that differ have
the same hash with a chance of about (runs of one set) x (runs of the other) / 1.8e19: one in two million for a
billion against ten thousand. What the report shows is confirmed word by word; what it counts is not.
"""

from __future__ import annotations

import heapq
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from replug_client.corpus.text_runs import Flags, PlainWords, RunChunk, SortedRuns, TextSet, run_chunks
from replug_client.corpus.unique import hash64
from replug_client.corpus.windows import OffsetTokenizer

_SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class SharedItem:
    """An item that shares runs with another set.

    Attributes:
        id: Its id.
        shared: How many of its runs also stand in the other set.
        runs: How many it has.
        text: The first of them, as the item writes it; cut at 160 characters.
        other_id: The first item of the other set in which that run stands.
    """

    id: str
    shared: int
    runs: int
    text: str
    other_id: str


@dataclass(frozen=True, slots=True)
class PairOverlap:
    """What the items of one set share with another set.

    Attributes:
        name: The set whose items are counted.
        other: The set that they share with.
        items: How many items there are.
        sharing: How many of them share more than the allowed part of their runs.
        same_id: How many of them have an id that stands in the other set, too.
        worst: Those that share the largest part, the worst first.
    """

    name: str
    other: str
    items: int
    sharing: int
    same_id: int
    worst: tuple[SharedItem, ...]


@dataclass(frozen=True, slots=True)
class SetOverlap:
    """The report over all pairs of sets, in both directions.

    Attributes:
        n: Length of a run.
        min_share: An item counts when more than this part of its runs is shared.
        pairs: Each direction of each pair.
        sharing: Set, then other set, to a flag for each item of the set in order.
    """

    n: int
    min_share: float
    pairs: tuple[PairOverlap, ...]
    sharing: Mapping[str, Mapping[str, Flags]] = field(repr=False)

    def shares_with_any(self, name: str, others: Sequence[str]) -> Flags:
        """For each item of a set, whether it shares with one of ``others``, ``(items,)``."""
        return np.asarray(np.logical_or.reduce([self.sharing[name][other] for other in others]))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"n": self.n, "min_share": self.min_share, "pairs": [asdict(pair) for pair in self.pairs]}


class _Entry(NamedTuple):
    """A candidate for the worst of a pair; compared by its first two members."""

    share: float
    before: int  # minus the row: of equal ones the first is the worst
    id: str
    shared: int
    runs: int
    hash: int
    place: int
    text: str


_Pair = tuple[int, int]


def find_set_overlap(
    sets: Sequence[TextSet],
    *,
    n: int = 13,
    min_share: float = 0.0,
    tokenizer: OffsetTokenizer | None = None,
    num_worst: int = 5,
) -> SetOverlap:
    """Compare each set with each other one.

    Memory: some bytes an item, and the pages in use of the sorted hashes, which lie in temporary files (about 10
    bytes a word of every set but the first, of which none are kept: so the corpus is named first). The first set is
    read once, the others twice, and what is shown is looked up once more.

    Args:
        sets: At least two, with different names.
        n: Length of a run, in words or in the tokenizer's ids.
        min_share: An item counts when more than this part of its runs is shared; 0: when one is.
        tokenizer: Text to ids; None for :class:`~replug_client.corpus.text_runs.PlainWords`.
        num_worst: How many items are shown of each set against each other.

    Raises:
        ValueError: ``n`` below 1, ``min_share`` outside ``[0, 1)``, or fewer than two sets.
        CorpusError: as the files' reader.
    """
    if n < 1 or not 0 <= min_share < 1 or len({items.name for items in sets}) < 2:
        raise ValueError(
            f"n {n}, min_share {min_share}, {len(sets)} sets; expected n >= 1, 0 <= min_share < 1, two sets"
        )
    words = tokenizer or PlainWords()
    with tempfile.TemporaryDirectory(prefix="replug-overlap-") as folder:
        runs = [SortedRuns(run_chunks(s, words, n), Path(folder) / s.name) for s in sets[1:]]
        return _Comparison(sets, runs, n, min_share, words, num_worst).report()


class _Comparison:
    def __init__(
        self,
        sets: Sequence[TextSet],
        runs: Sequence[SortedRuns],
        n: int,
        min_share: float,
        words: OffsetTokenizer,
        num_worst: int,
    ) -> None:
        self._sets = sets
        self._runs = runs  # of sets[1:]
        self._n = n
        self._min_share = min_share
        self._words = words
        self._num_worst = num_worst
        self._pairs = [(a, b) for a in range(len(sets)) for b in range(len(sets)) if a != b]
        self._flags: dict[_Pair, list[Flags]] = {pair: [] for pair in self._pairs}
        self._worst: dict[_Pair, list[_Entry]] = {pair: [] for pair in self._pairs}
        self._ids = [array("Q") for _ in sets]

    def report(self) -> SetOverlap:
        for number in range(len(self._sets)):
            self._count(number)
        shown = self._shown()
        sharing: dict[str, dict[str, Flags]] = {items.name: {} for items in self._sets}
        pairs = []
        for one, other in self._pairs:
            flags = np.concatenate([np.empty(0, dtype=bool), *self._flags[one, other]])
            names = self._sets[one].name, self._sets[other].name
            sharing[names[0]][names[1]] = flags
            same = len(np.intersect1d(np.array(self._ids[one]), np.array(self._ids[other])))
            pairs.append(PairOverlap(*names, len(flags), int(flags.sum()), same, tuple(shown[one, other])))
        return SetOverlap(self._n, self._min_share, tuple(pairs), sharing)

    def _count(self, number: int) -> None:
        """What each item of a set shares with each other set. The sets before it have been counted."""
        for chunk in run_chunks(self._sets[number], self._words, self._n):
            runs = np.bincount(chunk.owners, minlength=len(chunk.ids))
            row = len(self._ids[number])
            self._ids[number].extend(map(hash64, chunk.ids))
            for pair in self._pairs:
                if pair[0] != number:
                    continue
                # A set that comes later holds its hashes ready; one that came before has left its marks on ours.
                if pair[1] > number:
                    hits = self._runs[pair[1] - 1].mark(chunk.hashes, number)
                else:
                    hits = self._runs[number - 1].marked(chunk.hashes, pair[1])
                shared = np.bincount(chunk.owners[hits], minlength=len(chunk.ids))
                self._flags[pair].append((shared > 0) & (shared > self._min_share * runs))
                share = shared / np.maximum(runs, 1)
                for item in np.argsort(-share, kind="stable")[: self._num_worst].tolist():
                    if shared[item]:
                        first = int(np.flatnonzero(hits & (chunk.owners == item))[0])
                        counts = int(shared[item]), int(runs[item])
                        self._keep(pair, float(share[item]), row + item, item, counts, chunk, first)

    def _keep(
        self,
        pair: _Pair,
        share: float,
        row: int,
        item: int,
        counts: tuple[int, int],
        chunk: RunChunk,
        run: int,
    ) -> None:
        heap = self._worst[pair]
        place = int(chunk.places[run])
        hash_ = int(chunk.hashes[run])
        entry = _Entry(share, -row, chunk.ids[item], *counts, hash_, place, chunk.texts[item])
        heapq.heappush(heap, entry)
        if len(heap) > self._num_worst:
            heapq.heappop(heap)

    def _shown(self) -> dict[_Pair, list[SharedItem]]:
        holders = [self._holders(number) for number in range(len(self._sets))]
        shown: dict[_Pair, list[SharedItem]] = {pair: [] for pair in self._pairs}
        for pair in self._pairs:
            for entry in sorted(self._worst[pair], reverse=True):
                held = holders[pair[1]].get(entry.hash)
                run, characters = self._run(entry.text, entry.place)
                if held is not None and self._run(*held[1:])[0] == run:
                    text = " ".join(characters.split())[:_SHOWN_CHARACTERS]
                    shown[pair].append(SharedItem(entry.id, entry.shared, entry.runs, text, held[0]))
        return shown

    def _run(self, text: str, place: int) -> tuple[list[int], str]:
        """Ids and characters of the run that begins at a place of a text."""
        ids, offsets = self._words.encode_with_offsets(text)
        stop = min(place + self._n, len(ids))
        return ids[place:stop], text[offsets[place][0] : offsets[stop - 1][1]]

    def _holders(self, number: int) -> dict[int, tuple[str, str, int]]:
        """Hash of a run that is shown of another set, to id, text and place of the first item here that has it."""
        wanted = {e.hash for (_, other), heap in self._worst.items() if other == number for e in heap}
        holders: dict[int, tuple[str, str, int]] = {}
        if wanted:
            words = np.array(sorted(wanted), dtype=np.uint64)
            for chunk in run_chunks(self._sets[number], self._words, self._n):
                found = np.flatnonzero(np.isin(chunk.hashes, words))
                for run in found[np.argsort(chunk.owners[found], kind="stable")].tolist():
                    owner = int(chunk.owners[run])
                    held = chunk.ids[owner], chunk.texts[owner], int(chunk.places[run])
                    holders.setdefault(int(chunk.hashes[run]), held)
                if len(holders) == len(wanted):
                    break
        return holders

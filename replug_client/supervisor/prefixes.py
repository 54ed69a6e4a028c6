"""Which prompts share a prefix worth running once, and which prompts go into one batch. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from replug_client.supervisor.protocol import Prompt

MIN_SHARED = 16
"""Shorter shared prefixes (a BOS alone, say) cost more in bookkeeping than they save."""

_MAX_CUT = 0.1


@dataclass(frozen=True, slots=True)
class Group:
    """Prompts whose first ``shared`` ids are the same; ``shared`` is 0 for a prompt on its own.

    ``members`` are positions in the submission. The row that predicts the first continuation token
    always lies behind the shared part.
    """

    shared: int
    members: tuple[int, ...]


@dataclass(slots=True)
class _Node:
    """An open interval of the sorted prompts: what they share, and the best cut found inside so far."""

    depth: int
    start: int
    saved: int = 0
    groups: list[Group] = field(default_factory=list)

    def absorb(self, other: _Node) -> None:
        self.saved += other.saved
        self.groups += other.groups


def group_by_prefix(prompts: Sequence[Prompt], min_shared: int = MIN_SHARED) -> list[Group]:
    """Cut the prompts into groups so that the tokens not run again are as many as can be.

    A group of n prompts with a shared prefix of d tokens saves (n - 1) * d. The sorted prompts form a
    tree of common prefixes; from its leaves upwards each node is either one group or what its children
    save together, whichever is more. O(n log n) comparisons.
    """
    order = sorted(range(len(prompts)), key=lambda position: prompts[position].ids)
    done: list[Group] = []
    open_nodes: list[_Node] = []
    for end in range(1, len(order) + 1):
        shared = _shared(prompts[order[end - 1]], prompts[order[end]]) if end < len(order) else 0
        shared = shared if shared >= min_shared else 0
        node = _Node(0, end - 1, groups=[Group(0, (order[end - 1],))])
        while open_nodes and open_nodes[-1].depth > shared:
            node = _close(open_nodes.pop(), node, order, end)
        if shared == 0:
            done += node.groups
        elif open_nodes and open_nodes[-1].depth == shared:
            open_nodes[-1].absorb(node)
        else:
            open_nodes.append(_Node(shared, node.start, node.saved, node.groups))
    return done


def _close(node: _Node, last: _Node, order: Sequence[int], end: int) -> _Node:
    node.absorb(last)
    saved = (end - node.start - 1) * node.depth
    if saved >= node.saved:
        return _Node(0, node.start, saved, [Group(node.depth, tuple(order[node.start : end]))])
    return node


def _shared(first: Prompt, second: Prompt) -> int:
    """Length of the common prefix, short of the row that predicts either one's continuation."""
    a, b = first.ids, second.ids
    high = min(len(a) - first.num_continuation, len(b) - second.num_continuation) - 1
    if a[:high] == b[:high]:
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def waves(groups: Sequence[Group], batch_tokens: int) -> Iterator[list[Group]]:
    """Groups whose prefixes are run and kept together, longest first, at most ``batch_tokens`` of them.

    All prefixes of a wave are cut to its shortest (a part of a shared prefix is shared, too), so that no
    padding and no mask is needed; a wave ends before that costs more than a tenth of the longest.
    """
    wave: list[Group] = []
    for group in sorted((group for group in groups if group.shared), key=lambda group: -group.shared):
        longest = wave[0].shared if wave else group.shared
        if wave and (
            (len(wave) + 1) * group.shared > batch_tokens or longest - group.shared > _MAX_CUT * longest
        ):
            yield wave
            wave = []
        wave.append(group)
    if wave:
        yield wave


def batches(lengths: Sequence[int], batch_tokens: int, max_rows: int) -> Iterator[list[int]]:
    """Positions of ``lengths`` in batches, long with long; padded to the longest, at most ``batch_tokens``.

    A batch holds at most ``max_rows`` prompts, and at least one, however long.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batch: list[int] = []
    for position in order:
        if batch and (len(batch) == max_rows or (len(batch) + 1) * lengths[batch[0]] > batch_tokens):
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch

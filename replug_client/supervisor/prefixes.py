"""Which prompts share a prefix worth running once, and which prompts go into one batch. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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

    @property
    def saved(self) -> int:
        """Tokens that need not be run again."""
        return (len(self.members) - 1) * self.shared


@dataclass(slots=True)
class _Node:
    """A node of the tree of common prefixes: its depth, and the best groups of all that lies below it."""

    depth: int
    groups: list[Group]

    def merge(self) -> list[Group]:
        """Put those groups into one that gain by sharing only ``depth`` tokens, but with more others."""
        gaining = [group for group in self.groups if len(group.members) * self.depth > group.saved]
        members = tuple(member for group in gaining for member in group.members)
        merged = Group(self.depth, members)
        if len(gaining) < 2 or merged.saved <= sum(group.saved for group in gaining):
            return self.groups
        kept = [group for group in self.groups if len(group.members) * self.depth <= group.saved]
        return [*kept, merged]


def group_by_prefix(prompts: Sequence[Prompt], min_shared: int = MIN_SHARED) -> list[Group]:
    """Cut the prompts into groups so that the tokens not run again are as many as can be.

    A group of n prompts with a shared prefix of d tokens saves (n - 1) * d. The sorted prompts form a
    tree of common prefixes; from its leaves upwards each node joins what saves more together.
    """
    # Only what stands before the row that predicts the continuation can be shared.
    heads = [prompt.ids[: len(prompt.ids) - prompt.num_continuation - 1] for prompt in prompts]
    order = sorted(range(len(prompts)), key=heads.__getitem__)
    done: list[Group] = []
    path: list[_Node] = []  # from the root's child to the deepest node that may still grow
    for end in range(1, len(order) + 1):
        shared = _shared(heads[order[end - 1]], heads[order[end]]) if end < len(order) else 0
        shared = shared if shared >= min_shared else 0
        groups = [Group(0, (order[end - 1],))]
        while path and path[-1].depth > shared:
            node = path.pop()
            node.groups += groups
            groups = node.merge()
        if shared == 0:
            done += groups
        elif path and path[-1].depth == shared:
            path[-1].groups += groups
        else:
            path.append(_Node(shared, groups))
    return done


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common prefix, by halving: comparing slices is quicker than a loop over tokens."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
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

"""What training did to the order of the passages: ranks before and after, and the pairs that moved most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replug_client.training.candidates import NO_PASSAGE, Rows

BUCKETS = (1, 3, 10, 30, 100)
"""Upper ends of the groups of ranks that :func:`rank_table` counts in; one more holds all beyond."""


@dataclass(frozen=True, slots=True)
class Move:
    """One passage of one example, in the base's list and in the current one.

    Attributes:
        example: Number of the validation example.
        row: The passage's corpus row.
        base_rank: Its rank in the base's list, from 1; one more than the list's length where it is not in it.
        rank: Its rank in the current list, likewise.
        advantage: Its score less the mean score of the example's pool: above 0, the LM likes it.
    """

    example: int
    row: int
    base_rank: int
    rank: int
    advantage: float


def ranks_in(lists: Rows, wanted: Rows) -> Rows:
    """Ranks of passages in ranked lists.

    Args:
        lists: ``(n, depth)`` corpus rows, best first.
        wanted: ``(n, M)`` corpus rows.

    Returns:
        ``(n, M)`` ranks from 1; ``depth + 1`` for a row that is not in its list.
    """
    depth = lists.shape[1]
    found = np.full(wanted.shape, depth + 1, dtype=np.int64)
    for column in range(wanted.shape[1]):
        equal = lists == wanted[:, column, None]
        found[:, column] = np.where(equal.any(axis=1), equal.argmax(axis=1) + 1, depth + 1)
    return found


def reciprocal_ranks(ranks: Rows, depth: int) -> npt.NDArray[np.float64]:
    """``1 / rank``, and 0 for a rank beyond ``depth``."""
    return np.where(ranks <= depth, 1.0 / ranks, 0.0)


def churn(before: Rows, now: Rows) -> float:
    """Mean share of the passages in ``(n, k)`` lists that were not in the lists before, in whatever order."""
    kept = (now[:, :, None] == before[:, None, :]).any(axis=2)
    return float(1.0 - kept.mean())


def rank_table(before: Rows, now: Rows) -> npt.NDArray[np.int64]:
    """How many of n passages went from which group of ranks (line) to which (column): ``(6, 6)`` counts."""
    table = np.zeros((len(BUCKETS) + 1, len(BUCKETS) + 1), dtype=np.int64)
    np.add.at(table, (np.searchsorted(BUCKETS, before), np.searchsorted(BUCKETS, now)), 1)
    return table


def biggest_moves(
    pool: Rows, before: Rows, now: Rows, advantages: npt.NDArray[np.float64], count: int
) -> tuple[list[Move], list[Move]]:
    """The pairs whose rank rose most, and those whose rank fell most, by the ratio of the ranks.

    From rank 20 to 2 is as much as from 10 to 1: it is at the top of the list that ranks matter. Of one
    example only the pair that moved most is taken.

    Args:
        pool: ``(n, M)`` corpus rows, ``NO_PASSAGE`` where there is none.
        before: ``(n, M)`` ranks with the base.
        now: ``(n, M)`` ranks with the current retriever.
        advantages: ``(n, M)`` scores less their example's mean.
        count: At most this many of each.
    """
    size = np.where(pool == NO_PASSAGE, 0.0, np.log(before / now))
    order = np.argsort(-size, axis=None, kind="stable")

    def take(places: Rows, sign: int) -> list[Move]:
        chosen: dict[int, Move] = {}
        for place in places.tolist():
            number, column = divmod(place, pool.shape[1])
            if len(chosen) == count or sign * size[number, column] <= 0:
                break
            row, base_rank, rank = (int(values[number, column]) for values in (pool, before, now))
            move = Move(number, row, base_rank, rank, float(advantages[number, column]))
            chosen.setdefault(number, move)
        return list(chosen.values())

    return take(order, 1), take(order[::-1], -1)

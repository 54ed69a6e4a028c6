"""Two retrievers on the same queries: what each returns, what moved, and how far the lists agree.

Pure functions over ranked lists of corpus rows. Ranks are 1-based. A list is searched to some depth
and shown to ``k`` passages, so that a passage which is new among the first ``k`` still has a rank to
have come from, if it stood within the depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from replug_client.corpus.records import Passage

Status = Literal["kept", "new", "dropped"]
Rows = npt.NDArray[np.int64]

RBO_PERSISTENCE = 0.9


@dataclass(frozen=True, slots=True)
class Place:
    """One passage in one retriever's list.

    Attributes:
        row: The passage's position in the corpus.
        rank: Its rank in this list, from 1.
        similarity: What this retriever gives it for the query.
        other_rank: Its rank with the other retriever; None beyond the depth searched.
        status: ``kept`` where both have it among their first k; otherwise ``dropped`` (base's list)
            or ``new`` (tuned's list).
    """

    row: int
    rank: int
    similarity: float
    other_rank: int | None
    status: Status


@dataclass(frozen=True, slots=True)
class Worth:
    """What the passages of one query are worth to the supervisor.

    Attributes:
        of: What was scored behind each passage: the query's ``continuation``; or, where none is known, the
            ``query`` itself, from its second token on if the model has no BOS.
        no_passage: Its log-likelihood with no passage before it, summed, in nats.
        log_likelihoods: Corpus row to the same behind that passage.
        num_tokens: How many tokens were scored.
        num_bytes: Length in bytes of the text scored.
    """

    of: Literal["continuation", "query"]
    no_passage: float
    log_likelihoods: Mapping[int, float]
    num_tokens: int
    num_bytes: int

    def gain(self, row: int) -> float:
        """Nats that the passage adds to no passage; positive where it helps."""
        return self.log_likelihoods[row] - self.no_passage


@dataclass(frozen=True, slots=True)
class QueryComparison:
    """One query, both lists, and how far they agree.

    Attributes:
        query: Its text.
        base: The base retriever's first ``k``, best first.
        tuned: The tuned retriever's first ``k``.
        depth: How far down each list ``other_rank`` was looked for.
        overlap: See :func:`overlap`.
        rbo: See :func:`rank_biased_overlap`.
        kendall_tau: See :func:`kendall_tau`.
        continuation: What really follows the query, where that is known.
        document_id: The document that the query was cut from, where that is known.
        worth: What the LM makes of the passages, where a supervisor was asked.
        unscored: Why it was not asked about this query, where it was about others.
    """

    query: str
    base: tuple[Place, ...]
    tuned: tuple[Place, ...]
    depth: int
    overlap: float
    rbo: float
    kendall_tau: float
    continuation: str | None = None
    document_id: str | None = None
    worth: Worth | None = None
    unscored: str | None = None

    @property
    def k(self) -> int:
        """Passages compared; smaller than asked for where the corpus is."""
        return max(len(self.base), len(self.tuned))

    @property
    def first_gain(self) -> float | None:
        """Nats that the tuned retriever's first passage gives more than the base's; None where nothing was scored."""
        if self.worth is None:
            return None
        return self.worth.gain(self.tuned[0].row) - self.worth.gain(self.base[0].row)

    @property
    def first_kept(self) -> bool:
        """Whether both retrievers return the same first passage."""
        return self.base[0].row == self.tuned[0].row


@dataclass(frozen=True, slots=True)
class Agreement:
    """Means over ``n`` queries; ``first_kept`` is the share with the same first passage."""

    n: int
    k: int
    overlap: float
    rbo: float
    kendall_tau: float
    first_kept: float


def overlap(base: Sequence[int], tuned: Sequence[int]) -> float:
    """Share of passages in common: ``|base & tuned| / max(len(base), len(tuned))``."""
    return len(set(base) & set(tuned)) / max(len(base), len(tuned))


def rank_biased_overlap(
    base: Sequence[int], tuned: Sequence[int], persistence: float = RBO_PERSISTENCE
) -> float:
    """Agreement weighted towards the top: 1 for equal lists, 0 for disjoint ones.

    RBO_ext of Webber, Moffat & Zobel 2010, extrapolated from lists of one length:
    ``A_k p^k + (1 - p)/p * sum_{d=1..k} A_d p^d``, with ``A_d`` the overlap of the first ``d``.
    """
    k = min(len(base), len(tuned))
    agreements = [len(set(base[:d]) & set(tuned[:d])) / d for d in range(1, k + 1)]
    weighted = sum(a * persistence**d for d, a in enumerate(agreements, start=1))
    return agreements[-1] * persistence**k + (1 - persistence) / persistence * weighted


def kendall_tau(base: Sequence[int], tuned: Sequence[int]) -> float:
    """Kendall's tau-b over the union of two lists.

    A passage that a list does not have stands one rank behind its last, tied with the others it
    does not have. 1 for equal lists, -1 for the reverse order; two disjoint lists are negative,
    since every passage of the one stands above every passage of the other.
    """
    union = list(dict.fromkeys([*base, *tuned]))
    if len(union) == 1:
        return 1.0
    order = []
    for rows in (base, tuned):
        ranks = {row: rank for rank, row in enumerate(rows)}
        values = np.array([ranks.get(row, len(rows)) for row in union])
        order.append(np.sign(values[:, None] - values[None, :]))
    one, two = order
    untied = np.sqrt(float((one != 0).sum()) * float((two != 0).sum()))
    return float((one * two).sum() / untied)


def compare_query(
    query: str,
    base: tuple[Sequence[int], Sequence[float]],
    tuned: tuple[Sequence[int], Sequence[float]],
    k: int,
    *,
    continuation: str | None = None,
    document_id: str | None = None,
) -> QueryComparison:
    """Compare two lists for one query.

    Args:
        query: Its text.
        base: ``(rows, similarities)``, best first, searched at least ``k`` deep where the corpus allows.
        tuned: The same with the tuned retriever.
        k: How many of each are compared and shown.
        continuation: What follows the query, to be shown with it.
        document_id: Where the query is from, to be shown with it.

    Raises:
        ValueError: an empty list, ``k`` below 1, or a row twice in one list.
    """
    for name, (rows, similarities) in (("base", base), ("tuned", tuned)):
        if k < 1 or len(rows) == 0 or len(rows) != len(similarities):
            raise ValueError(
                f"{name}: expected k >= 1 and one similarity a row, found k={k}, "
                f"{len(rows)} rows and {len(similarities)} similarities"
            )
        if len(set(rows)) != len(rows):
            raise ValueError(f"{name}: a passage stands twice in one list")
    first, second = list(base[0][:k]), list(tuned[0][:k])
    return QueryComparison(
        query=query,
        base=_places(base, tuned[0], k, "dropped"),
        tuned=_places(tuned, base[0], k, "new"),
        depth=max(len(base[0]), len(tuned[0])),
        overlap=overlap(first, second),
        rbo=rank_biased_overlap(first, second),
        kendall_tau=kendall_tau(first, second),
        continuation=continuation,
        document_id=document_id,
    )


def _places(
    own: tuple[Sequence[int], Sequence[float]], other: Sequence[int], k: int, missing: Status
) -> tuple[Place, ...]:
    ranks = {row: rank for rank, row in enumerate(other, start=1)}
    return tuple(
        Place(
            row=int(row),
            rank=rank,
            similarity=float(similarity),
            other_rank=ranks.get(row),
            status="kept" if ranks.get(row, k + 1) <= k else missing,
        )
        for rank, (row, similarity) in enumerate(zip(own[0][:k], own[1][:k], strict=True), start=1)
    )


def movement(side: str, place: Place, depth: int) -> tuple[str, str]:
    """What became of a passage: its kind (``same``, ``up``, ``down``, ``new``, ``dropped``) and words for it.

    ``side`` is the list it is shown in: the base's says where the passage is now, the tuned one's
    where it was.
    """
    then = "now" if side == "base" else "was"
    other = f"beyond {_ordinal(depth)}" if place.other_rank is None else _ordinal(place.other_rank)
    if place.status != "kept" or place.other_rank is None:
        return place.status, f"{place.status} ({then} {other})"
    risen = place.rank - place.other_rank if side == "base" else place.other_rank - place.rank
    if risen == 0:
        return "same", "same place"
    kind = "up" if risen > 0 else "down"
    return kind, f"{kind} {abs(risen)} ({then} {other})"


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def agreement(comparisons: Sequence[QueryComparison]) -> Agreement:
    """Means over queries. Raises ValueError where there is no query."""
    if not comparisons:
        raise ValueError("no query to compare")
    return Agreement(
        n=len(comparisons),
        k=max(item.k for item in comparisons),
        overlap=fmean(item.overlap for item in comparisons),
        rbo=fmean(item.rbo for item in comparisons),
        kendall_tau=fmean(item.kendall_tau for item in comparisons),
        first_kept=fmean(item.first_kept for item in comparisons),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Two retrievers compared on many queries, some of which are shown.

    Attributes:
        base: The base retriever's name.
        tuned: The tuned one's.
        shown: The queries that are shown in full.
        passages: Every passage in a shown list, by row.
        agreement: Means over all queries compared, the shown ones among them.
        held_out: Whether the queries are held-out ones of a run.
        supervisor: Name of the LM that scored the passages shown; None where none did.
    """

    base: str
    tuned: str
    shown: tuple[QueryComparison, ...]
    passages: Mapping[int, Passage]
    agreement: Agreement
    held_out: bool
    supervisor: str | None = None

    @property
    def first_gains(self) -> tuple[float, ...]:
        """Of each shown query that was scored, what tuning its first passage gave the LM, in nats."""
        return tuple(gain for item in self.shown if (gain := item.first_gain) is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with whole passage texts; log-likelihoods and gains (to no passage) in nats."""
        scored = {} if self.supervisor is None else {"supervisor": self.supervisor}
        return {
            "base": self.base,
            "tuned": self.tuned,
            "held_out": self.held_out,
            **scored,
            "queries": [_query_json(item, self.passages) for item in self.shown],
            "agreement": {
                "n": self.agreement.n,
                "k": self.agreement.k,
                "overlap": self.agreement.overlap,
                "rank_biased_overlap": self.agreement.rbo,
                "kendall_tau": self.agreement.kendall_tau,
                "first_kept": self.agreement.first_kept,
            },
        }


def _query_json(comparison: QueryComparison, passages: Mapping[int, Passage]) -> dict[str, Any]:
    value: dict[str, Any] = {"query": comparison.query}
    for name in ("document_id", "continuation"):
        if (known := getattr(comparison, name)) is not None:
            value[name] = known
    worth = comparison.worth
    for side, other, places in (("base", "tuned", comparison.base), ("tuned", "base", comparison.tuned)):
        value[side] = [_place_json(place, f"{other}_rank", passages[place.row], worth) for place in places]
    if worth is not None:
        value["scored"] = {
            "of": worth.of,
            "no_passage": worth.no_passage,
            "num_tokens": worth.num_tokens,
            "num_bytes": worth.num_bytes,
            "first_gain": comparison.first_gain,
        }
    if comparison.unscored is not None:
        value["unscored"] = comparison.unscored
    return value | {
        "depth": comparison.depth,
        "overlap": comparison.overlap,
        "rank_biased_overlap": comparison.rbo,
        "kendall_tau": comparison.kendall_tau,
        "first_kept": comparison.first_kept,
    }


def _place_json(place: Place, other: str, passage: Passage, worth: Worth | None) -> dict[str, Any]:
    value: dict[str, Any] = {
        "rank": place.rank,
        "id": passage.id,
        "similarity": place.similarity,
        other: place.other_rank,
        "status": place.status,
        "text": passage.text,
    }
    if worth is not None:
        value["log_likelihood"] = worth.log_likelihoods[place.row]
        value["gain"] = worth.gain(place.row)
    if passage.title is not None:
        value["title"] = passage.title
    if passage.extra:
        value["extra"] = dict(passage.extra)
    return value

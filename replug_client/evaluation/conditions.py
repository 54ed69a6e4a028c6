"""What the LM reads before an example: which retriever's passages, and how several of them are combined.

A condition is a retrieval (no passage, random ones, BM25's, the base's, the tuned retriever's, the best of the
base's K) and a combination (the first passage, n of them one behind the other, an ensemble of n). Its name says
both: ``none``, ``base``, ``tuned.concat-3``, ``random.ensemble-5``, ``ceiling``. Pure: no model, no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from replug_client.errors import OptionError
from replug_client.mixtures import ensemble_log_probs, log_weights, uniform_log_weights

NONE, RANDOM, BM25, BASE, TUNED, CEILING = "none", "random", "bm25", "base", "tuned", "ceiling"
RETRIEVALS = (NONE, RANDOM, BM25, BASE, TUNED, CEILING)
NO_PASSAGE = -1

Rows = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_FIRST_OF = {
    RANDOM: "a random passage",
    BM25: "BM25's first",
    BASE: "base retriever's first",
    TUNED: "tuned retriever's first",
}
_SEVERAL_OF = {RANDOM: "random", BM25: "BM25", BASE: "base", TUNED: "tuned"}
_COMBINATION = re.compile(r"(concat|ensemble)-([1-9][0-9]{0,3})")


@dataclass(frozen=True, slots=True)
class Combination:
    """How the passages found for an example are used.

    Attributes:
        kind: ``first``: the most relevant alone; ``concat``: one behind the other in one prompt, the most relevant
            last, next to the query; ``ensemble``: a prompt each, mixed at every token (Shi et al. 2023, eq. 2).
        n: How many passages.
    """

    kind: Literal["first", "concat", "ensemble"] = "first"
    n: int = 1

    @property
    def name(self) -> str:
        """``first``, ``concat-3``, ``ensemble-5``."""
        return self.kind if self.kind == "first" else f"{self.kind}-{self.n}"

    @classmethod
    def parse(cls, text: str) -> Combination:
        """Read a name.

        Raises:
            OptionError: it is none.
        """
        if text == "first":
            return cls()
        found = _COMBINATION.fullmatch(text)
        if found is None:
            raise OptionError(
                f"--combinations: {text!r} is unknown; expected first, concat-N or ensemble-N, N at least 1"
            )
        return cls("concat" if found[1] == "concat" else "ensemble", int(found[2]))


FIRST = Combination()


@dataclass(frozen=True, slots=True)
class Condition:
    """A retrieval with a combination.

    ``none`` has no passage to combine, and of the ``ceiling``'s each is read alone: both stand with ``FIRST``.
    """

    retrieval: str
    combination: Combination = FIRST

    @property
    def name(self) -> str:
        """Stable: ``base`` for its first passage, else ``base.ensemble-5``."""
        return (
            self.retrieval
            if self.combination.kind == "first"
            else f"{self.retrieval}.{self.combination.name}"
        )

    @property
    def label(self) -> str:
        """For people."""
        if self.retrieval == NONE:
            return "no passage"
        if self.retrieval == CEILING:
            return "best of the base's K (ceiling)"
        if self.combination.kind == "first":
            return _FIRST_OF[self.retrieval]
        n = self.combination.n
        how = f"{n} concatenated" if self.combination.kind == "concat" else f"ensemble of {n}"
        return f"{_SEVERAL_OF[self.retrieval]}, {how}"


@dataclass(frozen=True, slots=True, eq=False)
class Retrieved:
    """What one retrieval found for n queries.

    Attributes:
        rows: ``(n, k)`` int64 corpus rows, best first; ``NO_PASSAGE`` behind those where fewer were found.
        similarities: ``(n, k)`` of each row to its query; None where they are no softmax's logits (random, BM25).
    """

    rows: Rows
    similarities: npt.NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.rows.shape[1] < 1:
            raise ValueError(f"expected rows of shape (n, k), k at least 1; found {self.rows.shape}")
        if self.similarities is not None and self.similarities.shape != self.rows.shape:
            raise ValueError(f"found rows {self.rows.shape}, but similarities {self.similarities.shape}")

    def first(self, k: int) -> Retrieved:
        """The first k of each line."""
        similarities = None if self.similarities is None else self.similarities[:, :k]
        return Retrieved(self.rows[:, :k], similarities)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What the LM reads for one example under one condition.

    Attributes:
        contexts: One for each prompt: the corpus rows that stand in it, in their order there; ``()`` is no passage.
        log_weights: ``(len(contexts),)``: log λ of the mixture; None: the best context alone counts.
    """

    contexts: tuple[tuple[int, ...], ...]
    log_weights: Floats | None = field(default_factory=lambda: uniform_log_weights(1))

    def token_log_probs(self, of_contexts: Sequence[npt.NDArray[np.floating]]) -> Floats:
        """The continuation's log-probs under this reading, ``(T,)`` nats, from those under each context.

        Mixed at every token; or, where the best counts, those of the context with the highest sum.
        """
        values = np.asarray(of_contexts, dtype=np.float64)
        if len(values) == 1:
            return np.asarray(values[0])
        if self.log_weights is None:
            return np.asarray(values[np.argmax(values.sum(axis=1))])
        return ensemble_log_probs(values, self.log_weights)


def read_names(texts: Sequence[str]) -> list[str]:
    """Names as they are typed, ``none base``, ``none,base`` or one by one: each once, in their order."""
    return list(dict.fromkeys(name for text in texts for name in text.replace(",", " ").split()))


def parse_conditions(retrievals: Sequence[str], combinations: Sequence[str] = ("first",)) -> list[Condition]:
    """The conditions that ``--conditions`` and ``--combinations`` ask for: each with each.

    Args:
        retrievals: Of :data:`RETRIEVALS`, as typed.
        combinations: As :meth:`Combination.parse` reads them, as typed.

    Raises:
        OptionError: an unknown name, or none at all.
    """
    names = read_names(retrievals)
    combined = [Combination.parse(text) for text in read_names(combinations)]
    unknown = [name for name in names if name not in RETRIEVALS]
    if unknown:
        raise OptionError(f"--conditions: {unknown[0]!r} is unknown; expected {', '.join(RETRIEVALS)}")
    if not names or not combined:
        raise OptionError("--conditions and --combinations: expected at least one of each")
    return [
        Condition(name, combination)
        for name in names
        for combination in ([FIRST] if name in (NONE, CEILING) else combined)
    ]


def passages_needed(conditions: Sequence[Condition], k: int) -> dict[str, int]:
    """How many passages each retrieval has to find; the ceiling is the best of the base's first ``k``."""
    needed: dict[str, int] = {}
    for condition in conditions:
        if condition.retrieval == NONE:
            continue
        retrieval, n = (
            (BASE, k) if condition.retrieval == CEILING else (condition.retrieval, condition.combination.n)
        )
        needed[retrieval] = max(n, needed.get(retrieval, 0))
    return needed


def read_with(
    condition: Condition, found: Mapping[str, Retrieved], number: int, *, k: int, temperature: float
) -> Reading:
    """What the LM reads for example ``number`` under ``condition``.

    Where a retrieval found fewer passages than are combined, those; where it found none, no passage.

    Args:
        condition: Which.
        found: Retrieval to what it found, as many as :func:`passages_needed` says (or the whole corpus).
        number: Line in ``found``.
        k: Of the ceiling.
        temperature: γ of the ensemble's weights, λ = softmax(similarity / γ). Passages without similarities
            count alike.
    """
    if condition.retrieval == NONE:
        return Reading(((),))
    ceiling = condition.retrieval == CEILING
    source = found[BASE if ceiling else condition.retrieval]
    chosen = source.rows[number, : k if ceiling else condition.combination.n]
    there = chosen >= 0
    rows = tuple(int(row) for row in chosen[there])
    if not rows:
        return Reading(((),))
    if condition.combination.kind == "concat":
        return Reading((rows[::-1],))
    contexts = tuple((row,) for row in rows)
    if ceiling:
        return Reading(contexts, None)
    if source.similarities is None:
        return Reading(contexts, uniform_log_weights(len(rows)))
    return Reading(contexts, log_weights(source.similarities[number, : len(there)][there], temperature))


def random_rows(num_examples: int, num_passages: int, k: int = 1, *, seed: int) -> Rows:
    """``(num_examples, min(k, num_passages))`` passages drawn evenly from the corpus, distinct in each line.

    The first of each line are the same whatever ``k``.
    """
    if num_passages < 1 or k < 1:
        raise ValueError(f"cannot draw {k} of {num_passages} passages")
    rows = np.zeros((num_examples, 0), dtype=np.int64)
    for place in range(min(k, num_passages)):
        rng = np.random.default_rng([seed, place])
        drawn = rng.integers(num_passages, size=num_examples)
        while (again := (rows == drawn[:, None]).any(axis=1)).any():
            drawn[again] = rng.integers(num_passages, size=int(again.sum()))
        rows = np.column_stack([rows, drawn])
    return rows

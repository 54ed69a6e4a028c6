"""Where a wrong answer comes from: retrieval, what was cut off, reading, or its form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum

from replug_client.evaluation.qa.presence import holds_answer


class Outcome(StrEnum):
    """What became of a question under one condition."""

    CORRECT = "correct"
    RETRIEVAL_MISS = "retrieval_miss"
    CUT_OFF = "cut_off"
    READ_MISS = "read_miss"
    FORMAT = "format"

    @property
    def label(self) -> str:
        """For a heading."""
        return _LABELS[self]


_LABELS = {
    Outcome.CORRECT: "right",
    Outcome.RETRIEVAL_MISS: "retrieval miss",
    Outcome.CUT_OFF: "cut off",
    Outcome.READ_MISS: "read miss",
    Outcome.FORMAT: "form",
}

MEANING = (
    "retrieval miss: wrong, and the answer stands in none of the passages given; cut off: in one, but behind what"
    " --retrieved_max_length lets the LM read; read miss: the LM read it; form: an empty answer, or one that holds"
    " the right one and more"
)


def outcome(
    *,
    correct: bool,
    prediction: str | None,
    answers: Sequence[str],
    rank: int | None,
    given: int,
    read: Callable[[], bool],
) -> Outcome:
    """What became of a question.

    Args:
        correct: Exact match, or the right choice.
        prediction: A free answer; None for a choice, which has no form to miss.
        answers: The right ones.
        rank: Of the first passage that holds one, from 1; None: no passage does.
        given: How many passages the LM was given.
        read: Whether what the LM read of the passages holds one; asked only where it matters.
    """
    if correct:
        return Outcome.CORRECT
    if prediction is not None and (not prediction.strip() or holds_answer(prediction, answers)):
        return Outcome.FORMAT
    if rank is None or rank > given:
        return Outcome.RETRIEVAL_MISS
    return Outcome.READ_MISS if read() else Outcome.CUT_OFF

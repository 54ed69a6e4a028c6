from __future__ import annotations

import pytest

from replug_client.evaluation.qa.analysis import Outcome, outcome


@pytest.mark.parametrize(
    ("correct", "prediction", "rank", "given", "read", "expected"),
    [
        (True, "Paris", None, 1, False, Outcome.CORRECT),
        (False, "", 1, 1, True, Outcome.FORMAT),
        (False, "It is Paris, of course", None, 1, False, Outcome.FORMAT),
        (False, "Parisians", None, 1, False, Outcome.RETRIEVAL_MISS),
        (False, "Rome", 3, 2, True, Outcome.RETRIEVAL_MISS),  # found, but not among those given
        (False, "Rome", 2, 2, True, Outcome.READ_MISS),
        (False, "Rome", 2, 2, False, Outcome.CUT_OFF),
        (False, "Rome", None, 0, False, Outcome.RETRIEVAL_MISS),
        (False, None, 1, 1, True, Outcome.READ_MISS),  # a choice has no form to miss
        (False, None, None, 1, True, Outcome.RETRIEVAL_MISS),
    ],
)
def test_each_miss_has_its_name(
    correct: bool, prediction: str | None, rank: int | None, given: int, read: bool, expected: Outcome
) -> None:
    found = outcome(
        correct=correct,
        prediction=prediction,
        answers=["Paris"],
        rank=rank,
        given=given,
        read=lambda: read,
    )
    assert found is expected

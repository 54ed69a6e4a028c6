"""Free answers: what is asked under each condition, how often, and what is left out."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from replug_client.corpus.store import PassageStore
from replug_client.errors import PromptTooLongError, SupervisorError
from replug_client.evaluation.conditions import Retrieved, parse_conditions
from replug_client.evaluation.qa.answering import Asked, answer_questions, asked_under
from replug_client.inference.answerer import Answer, Combination
from tests.evaluation.qa.tools import answer_of
from tests.retriever.tiny import store_of

FOUND = {
    "base": Retrieved(np.array([[2, 0, 1]]), np.array([[0.5, 0.25, 0.125]])),
    "bm25": Retrieved(np.array([[1, -1, -1]])),
    "random": Retrieved(np.array([[-1, -1, -1]])),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PassageStore:
    return store_of(tmp_path_factory.mktemp("store"), ["zero", "one", "two"])


@pytest.mark.parametrize(
    ("retrieval", "combination", "expected"),
    [
        ("none", "first", Asked(Combination.NONE, ())),
        ("base", "first", Asked(Combination.CONCAT, (2,))),
        ("base", "concat-2", Asked(Combination.CONCAT, (2, 0))),
        ("base", "ensemble-2", Asked(Combination.ENSEMBLE, (2, 0), (0.5, 0.25))),
        ("bm25", "ensemble-3", Asked(Combination.ENSEMBLE, (1,))),  # alike: BM25's are no softmax's logits
        ("random", "ensemble-3", Asked(Combination.NONE, ())),  # nothing found
    ],
)
def test_a_condition_says_what_is_asked(retrieval: str, combination: str, expected: Asked) -> None:
    (condition,) = parse_conditions([retrieval], [combination])
    assert asked_under(condition, FOUND, 0) == expected


class Listening:
    """Answers with all that it was asked, and notes it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._lock = threading.Lock()

    def __call__(
        self,
        prompt: str,
        passages: Sequence[str],
        similarities: Sequence[float] | None,
        combination: Combination,
    ) -> Answer:
        if "long" in prompt and passages:
            raise PromptTooLongError("too long")
        if "broken" in prompt:
            raise SupervisorError("the server is gone")
        said = f"{prompt}|{combination}|{','.join(passages)}|{similarities}"
        with self._lock:
            self.asked.append(said)
        return answer_of(said)


def test_every_question_is_asked_in_order_and_nothing_twice(store: PassageStore) -> None:
    ask = Listening()
    same = {"base": Asked(Combination.CONCAT, (2,)), "tuned": Asked(Combination.CONCAT, (2,))}
    mixed = {"tuned.ensemble-2": Asked(Combination.ENSEMBLE, (0, 1), (1.0, 0.5))}
    found = answer_questions(
        ["a", "b"], [same | mixed] * 2, store, ask, Counter(), too_long="long", at_once=2
    )
    for prompt, answers in zip("ab", found, strict=True):
        assert answers is not None
        assert answers["base"] is answers["tuned"]
        assert answers["base"].text == f"{prompt}|concat|two|None"
        assert answers["tuned.ensemble-2"].text == f"{prompt}|ensemble|zero,one|(1.0, 0.5)"
    assert len(ask.asked) == 4


def test_a_prompt_too_long_leaves_its_question_out(store: PassageStore) -> None:
    left_out: Counter[str] = Counter()
    asked = {"none": Asked(Combination.NONE, ()), "base": Asked(Combination.CONCAT, (0,))}
    found = answer_questions(
        ["short", "long"], [asked] * 2, store, Listening(), left_out, too_long="too long", at_once=1
    )
    assert found[0] is not None
    assert found[1] is None
    assert left_out == {"too long": 1}


def test_questions_are_under_way_at_once(store: PassageStore) -> None:
    both = threading.Barrier(2, timeout=20)

    def ask(prompt: str, *_: object) -> Answer:
        both.wait()  # would time out if one question waited for the other
        return answer_of(prompt)

    asked = [{"none": Asked(Combination.NONE, ())}] * 2
    found = answer_questions(["a", "b"], asked, store, ask, Counter(), too_long="long", at_once=2)
    assert [answers["none"].text for answers in found if answers] == ["a", "b"]


def test_an_error_ends_the_evaluation(store: PassageStore, tmp_path: Path) -> None:
    asked = [{"none": Asked(Combination.NONE, ())}] * 50
    with pytest.raises(SupervisorError, match="the server is gone"):
        answer_questions(
            ["broken"] + ["x"] * 49, asked, store, Listening(), Counter(), too_long="long", at_once=2
        )

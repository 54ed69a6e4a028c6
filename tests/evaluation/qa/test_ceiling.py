"""The oracle's passage: the one behind which the right answer stands best, among the base's first k."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from replug_client.corpus.store import PassageStore
from replug_client.evaluation.conditions import Retrieved
from replug_client.evaluation.qa.ceiling import Ceiling, best_passages
from replug_client.evaluation.qa.choices import ChoiceScorer, Scoring
from replug_client.evaluation.qa.questions import Question
from replug_client.evaluation.qa.templates import AnswerTemplate, ChoiceTemplate
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt
from tests.evaluation.qa.tools import Characters
from tests.retriever.tiny import store_of

TEXTS = ["nothing", "Bergen and Oslo", "Oslo alone", "a text that is far too long"]
FREE = Question("free", "capital", ("Oslo",))
PICK = Question("pick", "capital", ("Oslo",), ("Bergen", "Oslo"), 1)


def believing(prompt: Prompt) -> list[float]:
    """-1 a character; half of that for a word that stands in the passage."""
    text = "".join(map(chr, prompt.ids[1:]))
    before, scored = text[: -prompt.num_continuation], text[-prompt.num_continuation :]
    return [-0.5 if scored.strip() in before else -1.0] * prompt.num_continuation


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PassageStore:
    return store_of(tmp_path_factory.mktemp("store"), TEXTS)


@pytest.fixture
def fake() -> Iterator[FakeSupervisor]:
    supervisor = FakeSupervisor(believing)
    yield supervisor
    supervisor.close()


def choose(
    store: PassageStore,
    fake: FakeSupervisor,
    questions: list[Question],
    rows: list[list[int]],
    *,
    k: int = 4,
    scoring: Scoring = "sum",
    free_answers: bool = False,
    longest: int = 1000,
) -> Ceiling:
    builder = PromptBuilder(Characters(), retrieved_max_length=40, max_prompt_tokens=longest)
    scorer = ChoiceScorer(fake, Characters(), builder, store, ChoiceTemplate())
    return best_passages(
        questions,
        Retrieved(np.array(rows)),
        k,
        scorer,
        AnswerTemplate(),
        scoring,
        free_answers=free_answers,
    )


def test_of_choices_the_lead_counts_and_of_answers_the_likelihood(
    store: PassageStore, fake: FakeSupervisor
) -> None:
    # "Bergen and Oslo" makes both likelier: " Bergen" -3.5, " Oslo" -2.5, a lead of 1; "Oslo alone" -7 and -2.5: 4.5.
    found = choose(store, fake, [PICK, FREE], [[0, 1, 2], [0, 1, 2]])
    assert found.found.rows.tolist() == [[2], [1]]  # of equal ones the base's better
    assert found.too_long == frozenset()
    freely = choose(store, fake, [PICK], [[0, 1, 2]], free_answers=True)
    assert freely.found.rows.tolist() == [[1]]


def test_only_the_first_k_are_looked_at(store: PassageStore, fake: FakeSupervisor) -> None:
    assert choose(store, fake, [PICK, FREE], [[0, 1, 2], [0, 1, 2]], k=1).found.rows.tolist() == [[0], [0]]
    # "Bergen and Oslo" is worse than nothing for the choice: its lead is 1, that of "nothing" 2.
    assert choose(store, fake, [PICK, FREE], [[0, 1, 2], [0, 1, 2]], k=2).found.rows.tolist() == [[0], [1]]


def test_the_lead_is_measured_as_the_lm_chooses(store: PassageStore, fake: FakeSupervisor) -> None:
    # Per token both words of "Bergen and Oslo" are equal: no lead; "nothing" has none, either, and stands before it.
    assert choose(store, fake, [PICK], [[0, 1]], scoring="mean").found.rows.tolist() == [[0]]


def test_of_several_right_answers_the_likeliest_counts(store: PassageStore, fake: FakeSupervisor) -> None:
    question = Question("free", "capital", ("Kristiania", "Oslo"))
    assert choose(store, fake, [question], [[0, 2]]).found.rows.tolist() == [[2]]


def test_what_the_base_did_not_find_is_no_passage(store: PassageStore, fake: FakeSupervisor) -> None:
    found = choose(store, fake, [PICK, FREE], [[2, -1], [-1, -1]])
    assert found.found.rows.tolist() == [[2], [-1]]


def test_a_question_with_a_prompt_that_is_too_long_is_named(
    store: PassageStore, fake: FakeSupervisor
) -> None:
    found = choose(store, fake, [PICK, FREE], [[3, 2], [2, 0]], longest=50)
    assert found.too_long == {0}
    assert found.found.rows.tolist() == [[-1], [2]]

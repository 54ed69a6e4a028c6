"""Choices by likelihood: what is scored, and the four readings of it, worked out by hand."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from replug_client.corpus.store import PassageStore
from replug_client.errors import OptionError
from replug_client.evaluation.conditions import Reading
from replug_client.evaluation.qa.choices import (
    SCORINGS,
    ChoiceLikelihoods,
    ChoiceScorer,
    Scoring,
    split,
)
from replug_client.evaluation.qa.questions import Question
from replug_client.evaluation.qa.templates import ChoiceTemplate
from replug_client.mixtures import log_weights
from replug_client.supervisor.fake import FakeSupervisor, hashed_log_probs
from replug_client.supervisor.prompts import PromptBuilder
from replug_client.supervisor.protocol import Prompt
from replug_client.training.toy import toy
from tests.evaluation.qa.tools import Characters
from tests.retriever.tiny import store_of

QUESTION = Question("q1", "Why?", ("bb",), ("a", "bb"), 1)
NONE = Reading(((),))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PassageStore:
    return store_of(tmp_path_factory.mktemp("store"), ["first", "second", "third"])


def scorer(store: PassageStore, fake: FakeSupervisor, *, longest: int = 1000) -> ChoiceScorer:
    builder = PromptBuilder(Characters(), retrieved_max_length=4, max_prompt_tokens=longest, separator="|")
    return ChoiceScorer(fake, Characters(), builder, store, ChoiceTemplate("Q:{question} A: {choice}"))


def test_the_four_readings_can_each_pick_another_choice() -> None:
    found = ChoiceLikelihoods(
        log_likelihood=np.array([-4.0, -6.0, -8.0, -9.0]),
        no_context=np.array([-3.0, -6.0, -8.0, -20.0]),
        num_tokens=np.array([1, 6, 4, 3]),
        num_bytes=np.array([2, 4, 16, 5]),
    )
    # sum: -4, -6, -8, -9; per token: -4, -1, -2, -3; per byte: -2, -1.5, -0.5, -1.8; less no-context: -1, 0, 0, 11
    assert [found.picked(scoring) for scoring in SCORINGS] == [0, 1, 2, 3]
    assert found.scores("mean").tolist() == [-4.0, -1.0, -2.0, -3.0]
    assert found.scores("byte").tolist() == [-2.0, -1.5, -0.5, -1.8]
    assert found.scores("no_context").tolist() == [-1.0, 0.0, 0.0, 11.0]


def test_of_equal_choices_the_first_is_picked_and_an_unknown_scoring_refused() -> None:
    two = np.array([-1.0, -1.0])
    found = ChoiceLikelihoods(two, two, np.array([1, 1]), np.array([1, 1]))
    assert found.picked("sum") == 0
    unknown: Scoring = "pmi"  # type: ignore[assignment]
    with pytest.raises(OptionError, match="--choice_scoring pmi"):
        found.scores(unknown)


def test_prompts_are_bos_passages_question_and_each_choice(store: PassageStore) -> None:
    fake = FakeSupervisor()
    readings = {"none": NONE, "base": Reading(((1,),)), "base.concat-2": Reading(((2, 1),))}
    scorer(store, fake).score([QUESTION], [readings], Counter(), "long")
    asked = ["".join(map(chr, prompt.ids[1:])) for prompt in fake.asked]
    assert asked == [
        # The template's line before the choice holds the question, so the choice alone stands behind "Answer:".
        "Answer: a",
        "Answer: bb",
        "Q:Why? A: a",
        "Q:Why? A: bb",
        "seco|Q:Why? A: a",
        "seco|Q:Why? A: bb",
        "thir|seco|Q:Why? A: a",
        "thir|seco|Q:Why? A: bb",
    ]
    assert {prompt.ids[0] for prompt in fake.asked} == {1}
    assert [prompt.num_continuation for prompt in fake.asked] == [2, 3] * 4
    fake.close()


def test_figures_are_those_of_the_single_prompts(store: PassageStore) -> None:
    fake = FakeSupervisor()
    weights = log_weights([0.9, 0.4], 0.5)
    readings = {
        "none": NONE,
        "base": Reading(((0,),)),
        "base.ensemble-2": Reading(((0,), (1,)), weights),
        "one": Reading(((0,),), np.zeros(1)),
        "equal": Reading(((2,), (2,)), log_weights([0.1, 5.0], 1.0)),
        "third": Reading(((2,),)),
    }
    (found,) = scorer(store, fake).score([QUESTION], [readings], Counter(), "long")
    fake.close()
    assert found is not None

    def of(text: str, choice: str) -> np.ndarray:  # type: ignore[type-arg]
        ids = (1, *map(ord, f"{text} {choice}"))
        return np.asarray(hashed_log_probs(Prompt(ids, len(choice) + 1)))

    for place, choice in enumerate(QUESTION.choices):
        first, second = of("firs|Q:Why? A:", choice), of("seco|Q:Why? A:", choice)
        assert found["none"].log_likelihood[place] == pytest.approx(of("Q:Why? A:", choice).sum(), abs=1e-5)
        assert found["base"].log_likelihood[place] == pytest.approx(first.sum(), abs=1e-5)
        # Eq. 2 of REPLUG, written out: the mixture at every token.
        mixed = np.log(np.exp(weights[0]) * np.exp(first) + np.exp(weights[1]) * np.exp(second)).sum()
        assert found["base.ensemble-2"].log_likelihood[place] == pytest.approx(mixed, abs=1e-5)
        assert found["base"].no_context[place] == pytest.approx(of("Answer:", choice).sum(), abs=1e-5)
    assert found["one"].log_likelihood.tolist() == found["base"].log_likelihood.tolist()
    assert found["equal"].log_likelihood == pytest.approx(found["third"].log_likelihood, abs=1e-6)
    assert found["base"].num_tokens.tolist() == [2, 3]
    assert found["base"].num_bytes.tolist() == [1, 2]


def test_many_questions_go_in_few_submissions_and_come_back_in_order(store: PassageStore) -> None:
    class Counting(FakeSupervisor):
        submissions = 0

        def submit(self, prompts, on_scores=None):  # type: ignore[no-untyped-def]
            self.submissions += 1
            return super().submit(prompts, on_scores)

    fake = Counting()
    questions = [Question(str(n), f"{n}?", ("x",), ("x", "yy"), 0) for n in range(400)]
    found = scorer(store, fake).score(questions, [{"none": NONE}] * 400, Counter(), "long")
    fake.close()
    assert fake.submissions == 2  # 1,600 prompts, up to 1,024 and a question each
    for number in (0, 255, 256, 399):
        own = found[number]
        assert own is not None
        ids = (1, *map(ord, f"Q:{number}? A: yy"))
        assert own["none"].log_likelihood[1] == pytest.approx(sum(hashed_log_probs(Prompt(ids, 3))), abs=1e-5)


def test_a_question_too_long_under_one_condition_is_left_out_of_all(store: PassageStore) -> None:
    fake = FakeSupervisor()
    long = Question("long", "x" * 16, ("a",), ("a", "b"), 0)
    left_out: Counter[str] = Counter()
    readings = {"none": NONE, "base": Reading(((0,),))}
    found = scorer(store, fake, longest=25).score([long, QUESTION], [readings] * 2, left_out, "too long")
    fake.close()
    assert found[0] is None
    assert found[1] is not None
    assert left_out == {"too long": 1}
    assert not any("x" in "".join(map(chr, prompt.ids)) for prompt in fake.asked)


def test_the_text_is_encoded_as_one_and_cut_where_the_choice_begins() -> None:
    made = toy(["Answer : Paris , Texas"])
    made.supervisor.close()
    before, scored = split(made.tokenizer, "Answer:", " Paris, Texas")
    assert made.tokenizer.decode(before).split() == ["Answer", ":"]
    assert made.tokenizer.decode(scored).split() == ["Paris", ",", "Texas"]
    # "Ans" + "wer" is one word: a token across the boundary is scored.
    before, scored = split(made.tokenizer, ": Ans", "wer Paris")
    assert (len(before), len(scored)) == (1, 2)


def test_the_path_of_the_passages_is_not_needed_without_any(tmp_path: Path) -> None:
    fake = FakeSupervisor()
    found = scorer(store_of(tmp_path, ["x"]), fake).score([], [], Counter(), "long")
    fake.close()
    assert found == []
    assert fake.asked == []

from __future__ import annotations

import pytest

from replug_client.errors import OptionError
from replug_client.evaluation.qa.questions import Question
from replug_client.evaluation.qa.templates import AnswerTemplate, ChoiceTemplate

MMLU = "{question}\n{choices}\nAnswer: {letter}"
QUESTION = Question("q", "Is {choice} in here?", ("yes",), ("yes", "no {question}"), 0)


def test_an_answer_continues_the_question() -> None:
    assert AnswerTemplate().prompt(QUESTION) == "Question: Is {choice} in here?\nAnswer:"


def test_what_is_scored_begins_at_the_blank_before_the_choice() -> None:
    template = ChoiceTemplate()
    assert template.prompt(QUESTION) == "Question: Is {choice} in here?\nAnswer:"
    assert template.scored(QUESTION) == [" yes", " no {question}"]  # what a question holds is not filled in
    assert template.domain == "Answer:"


def test_letters_with_the_choices_listed_are_mmlus_form() -> None:
    template = ChoiceTemplate(MMLU)
    assert template.prompt(QUESTION) == "Is {choice} in here?\nA. yes\nB. no {question}\nAnswer:"
    assert template.scored(QUESTION) == [" A", " B"]


@pytest.mark.parametrize(
    ("text", "given", "domain"),
    [
        ("Q: {question}\nA: {choice}", None, "A:"),
        ("Q: {question} {choice}", None, "Answer:"),  # that line holds the question
        ("Q: {question}\n{choice}", None, "Answer:"),
        ("Q: {question}\nA: {choice}", "So:", "So:"),
    ],
)
def test_what_stands_before_a_choice_without_context(text: str, given: str | None, domain: str) -> None:
    assert ChoiceTemplate(text, given).domain == domain


@pytest.mark.parametrize("text", ["no place", "{question} {passage}", "{Question}"])
def test_a_template_that_cannot_work_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--template"):
        AnswerTemplate(text)


@pytest.mark.parametrize(
    "text", ["{question}", "{choice} {question}", "{question}{choice}{letter}", "{choice}"]
)
def test_a_choice_template_that_cannot_work_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--choice_template"):
        ChoiceTemplate(text)

"""What stands around a question: the prompt that a free answer continues, and the one that a choice does."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from replug_client.errors import OptionError
from replug_client.evaluation.qa.questions import LETTERS, Question

ANSWER_TEMPLATE = "Question: {question}\nAnswer:"
CHOICE_TEMPLATE = "Question: {question}\nAnswer: {choice}"

_PLACE = re.compile(r"\{([a-z_]+)\}")
_SCORED = re.compile(r"[ \t]*\{(?:choice|letter)\}")
_CONTEXT_FREE = "Answer:"


def fill(template: str, values: Mapping[str, str]) -> str:
    """``template`` with each ``{name}`` of ``values`` in its place; all else, and the values, are left alone."""
    return _PLACE.sub(lambda found: values.get(found[1], found[0]), template)


@dataclass(frozen=True, slots=True)
class AnswerTemplate:
    """The prompt of a free answer, with ``{question}`` in it; passages are put before it."""

    text: str = ANSWER_TEMPLATE

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check("--template", self.text, {"question"})
        if "{question}" not in self.text:
            raise OptionError(
                f"--template {self.text!r}: {{question}} is not in it. For example {ANSWER_TEMPLATE!r}."
            )

    def prompt(self, question: Question) -> str:
        """What the answer is to continue."""
        return fill(self.text, {"question": question.text})


@dataclass(frozen=True, slots=True)
class ChoiceTemplate:
    r"""The prompt of a question with choices; what is scored begins at the blanks before ``{choice}`` or ``{letter}``.

    ``{question}``, and ``{choices}`` for all of them, a line each with its letter. MMLU's own form is
    ``"{question}\n{choices}\nAnswer: {letter}"``.

    Attributes:
        text: The template.
        no_context: What stands before a choice where its likelihood by itself is asked for (Brown et al. 2020,
            section 2.4); None: the last line before the choice, where nothing is filled in there, else ``Answer:``.
    """

    text: str = CHOICE_TEMPLATE
    no_context: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        _check("--choice_template", self.text, {"question", "choices", "choice", "letter"})
        if len(_SCORED.findall(self.text)) != 1:
            raise OptionError(
                f"--choice_template {self.text!r}: expected {{choice}} or {{letter}} in it, once: that is what is"
                f" scored. For example {CHOICE_TEMPLATE!r}."
            )
        if "{question}" not in self._before:
            raise OptionError(
                f"--choice_template {self.text!r}: {{question}} must stand before the choice. For example"
                f" {CHOICE_TEMPLATE!r}."
            )

    @property
    def _before(self) -> str:
        return _SCORED.split(self.text)[0]

    @property
    def domain(self) -> str:
        """What stands before a choice without any question or passage."""
        if self.no_context is not None:
            return self.no_context
        line = self._before.rpartition("\n")[2]
        return _CONTEXT_FREE if not line.strip() or _PLACE.search(line) else line

    def prompt(self, question: Question) -> str:
        """What stands before a choice, the same for each."""
        listed = "\n".join(
            f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)
        )
        return fill(self._before, {"question": question.text, "choices": listed})

    def scored(self, question: Question) -> list[str]:
        """What is scored of each choice, with the blanks before it."""
        after = self.text[len(self._before) :]
        return [
            fill(after, {"choice": choice, "letter": letter})
            for letter, choice in zip(LETTERS, question.choices, strict=False)
        ]


def _check(flag: str, text: str, known: set[str]) -> None:
    unknown = [name for name in _PLACE.findall(text) if name not in known]
    if unknown:
        listed = ", ".join(f"{{{name}}}" for name in sorted(known))
        raise OptionError(
            f"{flag}: {{{unknown[0]}}} is unknown, expected {listed}. Passages are put before the prompt."
        )

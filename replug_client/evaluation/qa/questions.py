"""A question with its answers, and what a file's record makes of one."""

from __future__ import annotations

import ast
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from replug_client.corpus.rows import Place, encodable, missing_column

LETTERS = string.ascii_uppercase

_QUESTION = ("question", "Question")
_ANSWERS = ("answers", "answer", "Answer", "answerKey")
_ID = ("id", "question_id", "QuestionId")
_TYPE = ("type", "subject")
# TriviaQA's names, as in its own files and as on the hub; SQuAD's, on the hub.
_ALIASES = (
    "Value",
    "Aliases",
    "NormalizedAliases",
    "value",
    "aliases",
    "normalized_aliases",
    "text",
)
_QUESTION_WORD = re.compile(r"\b(?:(how (?:many|much|long|old|often))|(who|what|when|where|which|why|how))\b")


@dataclass(frozen=True, slots=True)
class Question:
    """One question.

    Attributes:
        id: The file's, or the file's name and the record's number.
        text: What is asked.
        answers: Every answer that counts as right, the one to be shown first; empty where none is known.
        choices: What to choose from; empty for a question with a free answer.
        gold: Position of the right choice; None where there are no choices, or where none is marked.
        type: The file's type or subject, else the question word.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    gold: int | None = None
    type: str = "other"


def question_word(text: str) -> str:
    """What a question asks for: ``who``, ``how many``, ...; ``other`` without such a word.

    The first word of that kind anywhere, as questions are also put as "In which city ...", "Gibraltar is where?".
    """
    found = _QUESTION_WORD.search(text.lower())
    return "other" if found is None else found.group(0)


def question_of(place: Place, record: Mapping[str, Any]) -> Question:
    """Make a question of a record.

    ``question``; ``answer`` or ``answers`` (a text or a list of them; TriviaQA's and SQuAD's objects); optionally
    ``choices`` (a list, ARC's object of ``text`` and ``label``, or columns A, B, ...), ``id``, and ``type`` or
    ``subject``. Of a question with choices the answer is the position (from 0), the letter or the text of one.

    Args:
        place: Where the record stands, for the errors.
        record: Column to value; in a CSV a list is written as JSON or Python writes it.

    Raises:
        CorpusError: names file, record and column.
    """
    name, value = _first(record, _QUESTION)
    if name is None:
        raise missing_column(str(place), "question", list(record))
    text = _text(place, name, value)
    if not text.strip():
        raise place.error("an empty question. Fill it in, or leave the record out.", column=name)
    id_name, own_id = _first(record, _ID)
    kind_name, kind = _first(record, _TYPE)
    choices, labels = _choices(place, record)
    column, answer = _first(record, _ANSWERS)
    if column is None:
        raise missing_column(str(place), "answer", list(record))
    gold = _gold(place, column, answer, choices, labels) if choices else None
    right = None if gold is None else choices[gold]
    answers = (right,) if right is not None else () if choices else _answers(place, column, answer)
    return Question(
        id=f"{place.file}#{place.record}" if own_id in (None, "") else _text(place, id_name or "", own_id),
        text=text,
        answers=answers,
        choices=choices,
        gold=gold,
        type=_text(place, kind_name, kind) if kind_name and kind else question_word(text),
    )


def list_in(cell: str) -> list[Any] | None:
    """The list that a cell of a CSV holds, written as JSON or as Python does; None where it holds something else."""
    if not cell.lstrip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    return None


def _first(record: Mapping[str, Any], names: Sequence[str]) -> tuple[str | None, Any]:
    """The first of these columns that is there and not null, else one that is there."""
    present = [name for name in names if name in record]
    name = next((name for name in present if record[name] is not None), present[0] if present else None)
    return name, None if name is None else record[name]


def _text(place: Place, column: str, value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        found = "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
        raise place.error(f"found {found}, expected text. Write it as a string.", column=column)
    return encodable(place, column, value)


def _texts(place: Place, column: str, values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(_text(place, column, value) for value in values)


def _answers(place: Place, column: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, Mapping):
        known = [value[name] for name in _ALIASES if value.get(name) is not None]
        if not known:
            raise place.error(
                f"an object with {', '.join(map(repr, value)) or 'nothing'}, expected 'Value' and 'Aliases' (TriviaQA)"
                " or 'text' (SQuAD). Write the answers as a list.",
                column=column,
            )
        value = [item for part in known for item in ([part] if isinstance(part, str) else part)]
    if isinstance(value, str):
        listed = list_in(value)
        value = listed if listed is not None and all(isinstance(item, str) for item in listed) else [value]
    elif value is None:
        value = []
    elif not isinstance(value, list | tuple):
        value = [value]
    texts = (text.strip() for text in _texts(place, column, value))
    return tuple(dict.fromkeys(text for text in texts if text))


def _choices(place: Place, record: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices, and what the file calls each; no names where it only lists them."""
    value = record.get("choices")
    labels: Sequence[Any] = ()
    if value is None or value == "":
        named = []
        for letter in LETTERS:
            if record.get(letter) in (None, ""):
                break
            named.append(record[letter])
        if len(named) < 2:
            return (), ()
        return _texts(place, "A", named), tuple(LETTERS[: len(named)])
    if isinstance(value, str):
        value = list_in(value)
    if isinstance(value, Mapping) and isinstance(value.get("text"), list | tuple):
        labels = value.get("label") or ()
        value = value["text"]
    if not isinstance(value, list | tuple) or not 2 <= len(value) <= len(LETTERS):
        found = f"{len(value)} of them" if isinstance(value, list | tuple) else f"{record['choices']!r:.60}"
        raise place.error(
            f'found {found}, expected a list of 2 to {len(LETTERS)} choices, for example ["yes", "no"].',
            column="choices",
        )
    texts = _texts(place, "choices", value)
    if any(not text.strip() for text in texts):
        raise place.error("a choice is empty, so that there is nothing to score.", column="choices")
    if len(labels) not in (0, len(texts)):
        raise place.error(f"{len(texts)} choices but {len(labels)} labels.", column="choices")
    return texts, _texts(place, "choices", labels)


def _gold(place: Place, column: str, value: Any, choices: Sequence[str], labels: Sequence[str]) -> int | None:
    """Position of the right choice; a text that could name two of them is refused, not guessed at."""
    if isinstance(value, str) and (listed := list_in(value)) is not None and value not in choices:
        value = listed
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise place.error(f"{len(value)} answers to one choice, expected one.", column=column)
        value = value[0] if value else None
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(choices):
            raise place.error(
                f"found {value}, expected a position from 0 to {len(choices) - 1}.", column=column
            )
        return value
    text = _text(place, column, value).strip()
    if text in labels:
        return list(labels).index(text)
    ways = {number for number, choice in enumerate(choices) if choice.strip() == text}
    if not labels:
        ways |= {number for number in range(len(choices)) if text in (LETTERS[number], str(number))}
    if len(ways) != 1:
        found = "names more than one of" if ways else "is none of"
        raise place.error(
            f"{text[:60]!r} {found} the {len(choices)} choices. Write the letter (A to {LETTERS[len(choices) - 1]}),"
            " or, where a choice is itself a letter or a number, the position from 0 as a number in JSON.",
            column=column,
        )
    return ways.pop()

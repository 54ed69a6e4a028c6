"""A quick reader of vLLM's ``prompt_logprobs``: objects are built for the continuation's tokens only.

An answer has some 75 bytes for each token of each prompt, nearly all of them about tokens that nobody
scores. They are matched against the exact form in which vLLM writes them, in one step of the regular
expression engine, and cut out; what is left is small and goes through the JSON parser. So what is read here
is valid JSON as a whole, and means what the JSON parser would have found in it; anything else is handed back.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from replug_client.supervisor.protocol import Prompt

_KEY = ',"prompt_logprobs":'
_OPEN = _KEY + "[null"
_MARK = f"rows cut out {secrets.token_hex(8)}: "  # stands in no answer
# No valid JSON holds this inside a string: the quote would end it, and no letter may follow there.
_ENTRY = '{"logprob":'

# Each character can be matched in one way only, so nothing is ever tried twice, whatever the bytes. Only single
# characters are repeated possessively (++): quicker, and Python 3.11's first releases err with groups.
_COUNT = r"(?:0|[1-9][0-9]{0,17}+)"
_NUMBER = rf"-?{_COUNT}(?:\.[0-9]{{1,40}}+)?(?:[eE][-+]?[0-9]{{1,3}}+)?"
_TEXT = r'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*"'
_TAIL = rf',"rank":(?:null|{_COUNT}),"decoded_token":(?:null|{_TEXT})\}}\}}'
_ROWS = re.compile(rf'(?:,\{{"{_COUNT}":\{{"logprob":{_NUMBER}{_TAIL})*')
_ROW = re.compile(rf',\{{"({_COUNT})":\{{"logprob":({_NUMBER}){_TAIL}')


def cut_rows(body: bytes) -> tuple[str, list[str]] | None:
    """Take the ``prompt_logprobs`` out of an answer.

    Returns:
        The answer with a mark in the place of each, to be read as JSON, and what was cut out: the rows
        after the first, which is null. None where something is not in the expected form.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    kept: list[str] = []
    tables: list[str] = []
    at = 0
    while (found := text.find(_OPEN, at)) >= 0:
        start = found + len(_OPEN)
        match = _ROWS.match(text, start)
        if match is None or not text.startswith("]", match.end()):
            return None
        kept += [text[at : found + len(_KEY)], f'"{_MARK}{len(tables)}"']
        tables.append(match[0])
        at = match.end() + 1
    return "".join([*kept, text[at:]]), tables


def table_of(mark: Any, tables: Sequence[str]) -> str | None:
    """The rows for which a mark stands; None if it is no mark."""
    number = mark.removeprefix(_MARK) if isinstance(mark, str) and mark.startswith(_MARK) else ""
    return tables[int(number)] if number.isdecimal() and int(number) < len(tables) else None


def read_table(table: str, prompt: Prompt) -> npt.NDArray[np.float64] | None:
    """The continuation's log-probs, ``(num_continuation,)``; None where the rows are not those expected."""
    if table.count(_ENTRY) != len(prompt.ids) - 1:
        return None
    before = table.rsplit(_ENTRY, prompt.num_continuation)[0]
    rows = _ROW.findall(table, before.rindex("{") - 1)
    if [token for token, _ in rows] != [str(token) for token in prompt.ids[-prompt.num_continuation :]]:
        return None
    return np.array([float(value) for _, value in rows])

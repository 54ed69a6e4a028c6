"""Wire formats: how prompts are put to a server, and how its answer is read. Pure functions.

An answer is believed only where it can be checked: number of choices, length, the token ids at the scored
positions, numbers that are log-probs, the finish reason. A wrong answer becomes an error that names the
pair; its neighbours in the same answer are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replug_client.errors import SupervisorError, SupervisorUnavailableError, WrongAnswerError
from replug_client.supervisor.protocol import Prompt, Score

_TOKEN_ID = "token_id:"
_ABOVE_ZERO = 1e-3  # a log-prob may exceed 0 by rounding

Parsed = list[Score | SupervisorError]


@dataclass(frozen=True, slots=True)
class WireFormat:
    """One way to ask for log-probs.

    Attributes:
        name: What the log calls it.
        path: Appended to the base URL.
        build: Model and prompts to a JSON payload.
        parse: The JSON answer and its prompts to a score or an error for each, in order. Raises
            ``WrongAnswerError`` where the answer as a whole is of no use.
        verifies_ids: Whether the answer carries token ids, from any server, to be checked.
    """

    name: str
    path: str
    build: Callable[[str, Sequence[Prompt]], dict[str, Any]]
    parse: Callable[[Any, Sequence[Prompt]], Parsed]
    verifies_ids: bool


def build_vllm(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """VLLM's ``prompt_logprobs``: 0 asks for the prompt's own tokens only, the cheapest answer."""
    return _completion(model, prompts) | {"prompt_logprobs": 0}


def parse_vllm(answer: Any, prompts: Sequence[Prompt]) -> Parsed:
    """Read ``choices[i].prompt_logprobs``: per position null or ``{"<token id>": {"logprob": ...}}``."""
    return _parse(answer, prompts, _vllm_log_probs)


def build_echo(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The OpenAI completions format: the prompt comes back with the log-prob of each of its tokens.

    ``return_tokens_as_token_ids`` is vLLM's; servers that know it let the ids be checked.
    """
    return _completion(model, prompts) | {"echo": True, "logprobs": 1, "return_tokens_as_token_ids": True}


def parse_echo(answer: Any, prompts: Sequence[Prompt]) -> Parsed:
    """Read ``choices[i].logprobs``: ``token_logprobs`` and ``tokens`` over the prompt and one new token."""
    return _parse(answer, prompts, _echo_log_probs)


FORMATS: tuple[WireFormat, ...] = (
    WireFormat("vllm", "/completions", build_vllm, parse_vllm, verifies_ids=True),
    WireFormat("openai-echo", "/completions", build_echo, parse_echo, verifies_ids=False),
)
"""In the order in which they are tried: the cheapest answer first."""


def _completion(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    # One token has to be generated: several servers refuse 0, or take it for "as many as there is room for".
    return {
        "model": model,
        "prompt": [list(prompt.ids) for prompt in prompts],
        "max_tokens": 1,
        "temperature": 0,
    }


def _parse(
    answer: Any, prompts: Sequence[Prompt], read: Callable[[dict[str, Any], Prompt], list[Any]]
) -> Parsed:
    results: Parsed = []
    for choice, prompt in zip(_choices(answer, prompts), prompts, strict=True):
        try:
            _check_finish(choice, prompt)
            results.append(_score(read(choice, prompt), prompt))
        except (WrongAnswerError, SupervisorUnavailableError) as error:
            results.append(error)
    return results


def _choices(answer: Any, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """The choices in the order of the prompts."""
    name = f"the request of {len(prompts)} prompts that begins with {_name(prompts[0])}"
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise WrongAnswerError(f"{name}: the answer has no list of choices, but is {_short(answer)}")
    indices = [choice.get("index") for choice in choices]
    if sorted(indices, key=repr) != sorted(range(len(prompts)), key=repr):
        raise WrongAnswerError(f"{name}: the answer has choices {_short(indices)}, one for each is expected")
    usage = answer.get("usage")
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    sent = sum(len(prompt.ids) for prompt in prompts)
    if isinstance(counted, int) and counted != sent:
        raise WrongAnswerError(
            f"{name}: {sent} token ids were sent, but the server counts {counted};"
            " it has changed the prompts (a BOS added, or cut), so its log-probs are of other text"
        )
    return sorted(choices, key=lambda choice: choice["index"])


def _check_finish(choice: dict[str, Any], prompt: Prompt) -> None:
    reason = choice.get("finish_reason")
    if reason in ("abort", "error"):
        raise SupervisorUnavailableError(
            f"{_name(prompt)}: the server gave up on it (finish reason {reason!r})"
        )


def _vllm_log_probs(choice: dict[str, Any], prompt: Prompt) -> list[Any]:
    rows = choice.get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(prompt.ids):
        raise WrongAnswerError(
            f"{_name(prompt)}: expected prompt_logprobs of {len(prompt.ids)} positions, found {_short(rows)}"
        )
    if rows[0] is not None:
        raise WrongAnswerError(
            f"{_name(prompt)}: prompt_logprobs are shifted: the first must be null, not {_short(rows[0])}"
        )
    values = []
    for position in range(len(rows) - prompt.num_continuation, len(rows)):
        row, token = rows[position], prompt.ids[position]
        entry = row.get(str(token)) if isinstance(row, dict) else None
        if not isinstance(entry, dict):
            raise WrongAnswerError(
                f"{_name(prompt)}: expected token {token} at position {position}, found {_short(row)}"
            )
        values.append(entry.get("logprob"))
    return values


def _echo_log_probs(choice: dict[str, Any], prompt: Prompt) -> list[Any]:
    block = choice.get("logprobs")
    values = block.get("token_logprobs") if isinstance(block, dict) else None
    length = len(prompt.ids)
    # The generated token may or may not be there; the prompt comes first in any case.
    if not isinstance(values, list) or len(values) not in (length, length + 1):
        raise WrongAnswerError(
            f"{_name(prompt)}: expected echoed token_logprobs of {length} positions, found {_short(values)}"
        )
    if values[0] is not None:
        raise WrongAnswerError(
            f"{_name(prompt)}: the first echoed token cannot have a log-prob, found {_short(values[0])};"
            " the server has put something before the prompt, or dropped its first token"
        )
    scored = range(length - prompt.num_continuation, length)
    tokens = block.get("tokens") if isinstance(block, dict) else None
    if not isinstance(tokens, list) or len(tokens) != len(values):
        raise WrongAnswerError(
            f"{_name(prompt)}: expected {len(values)} echoed tokens, found {_short(tokens)}"
        )
    if str(tokens[scored[0]]).startswith(_TOKEN_ID):
        for position in scored:
            if tokens[position] != f"{_TOKEN_ID}{prompt.ids[position]}":
                raise WrongAnswerError(
                    f"{_name(prompt)}: expected token {prompt.ids[position]} at position {position},"
                    f" found {_short(tokens[position])}"
                )
    return [values[position] for position in scored]


def _score(values: Sequence[Any], prompt: Prompt) -> Score:
    for value in values:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value > _ABOVE_ZERO:
            raise WrongAnswerError(f"{_name(prompt)}: {_short(value)} is no log-prob")
    return Score(np.asarray(values, dtype=np.float32))


def _name(prompt: Prompt) -> str:
    return prompt.label or f"a prompt of {len(prompt.ids)} tokens"


def _short(value: Any) -> str:
    """A value for a message: lists by their length and beginning, the rest cut."""
    text = repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"{len(value)} of them: {text}" if isinstance(value, list) else text

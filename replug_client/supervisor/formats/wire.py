"""What all wire formats share: the pair of functions that makes one, and the checks that every answer meets."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replug_client.errors import (
    SupervisorError,
    SupervisorUnavailableError,
    UnreadableAnswerError,
    WrongAnswerError,
)
from replug_client.supervisor.protocol import Prompt, Score

Parsed = list[Score | SupervisorError]
"""A score or an error for each prompt, in the prompts' order."""

_ABOVE_ZERO = 1e-3  # a log-prob may exceed 0 by rounding


@dataclass(frozen=True, slots=True)
class WireFormat:
    """One way to ask for log-probs.

    Attributes:
        name: What the log calls it.
        path: The route, from the base URL on; from the server's root on where ``beside_v1``.
        build: Model and prompts (at least one, at most ``max_prompts``) to a JSON payload.
        parse: The answer's body, as it came, and its prompts to a score or an error for each, in order.
            Raises ``UnreadableAnswerError`` where the body is no JSON, and ``WrongAnswerError`` where the
            answer as a whole is of no use. It gets bytes so that a format need not build an object for
            each token of a long answer.
        verifies_ids: Whether each number is sure to belong to the token that it should: the answer carries
            token ids, from any server, to be checked, or the request names the tokens to be scored.
        beside_v1: The route lies at the server's root, not under ``/v1``.
        max_prompts: Most prompts in one request; None for as many as the caller likes.
    """

    name: str
    path: str
    build: Callable[[str, Sequence[Prompt]], dict[str, Any]]
    parse: Callable[[bytes, Sequence[Prompt]], Parsed]
    verifies_ids: bool
    beside_v1: bool = False
    max_prompts: int | None = None


def read_json(body: bytes | str) -> Any:
    """The JSON of an answer.

    Raises:
        UnreadableAnswerError: it is none: an HTML page, or cut off.
    """
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        beginning = body[:80] if isinstance(body, str) else body[:80].decode("utf-8", "replace")
        raise UnreadableAnswerError(
            f"the answer is no JSON, or only a part of it ({error}): {len(body)} bytes, {beginning!r}."
            " Is there a proxy between here and the server? It may have cut or replaced the answer."
        ) from error


def score_of(values: Sequence[Any], prompt: Prompt) -> Score:
    """The score made of the values that stand where the log-probs of the continuation should.

    Raises:
        WrongAnswerError: one of them is no number, not finite (as float32), or above 0.
    """
    for value in values:
        if type(value) is not float and type(value) is not int:  # a truth value is an int, too
            raise WrongAnswerError(f"{name_of(prompt)}: {short(value)} is no log-prob")
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except OverflowError as error:  # an int of hundreds of digits
        raise WrongAnswerError(f"{name_of(prompt)}: {short(values)} are no log-probs") from error
    return score_of_array(numbers, prompt)


def score_of_array(values: npt.NDArray[np.floating[Any]], prompt: Prompt) -> Score:
    """The same for ``(num_continuation,)`` numbers."""
    with np.errstate(over="ignore"):  # becomes -inf, which is refused below
        log_probs = values.astype(np.float32)
    wrong = ~np.isfinite(log_probs) | (log_probs > _ABOVE_ZERO)
    if wrong.any():
        raise WrongAnswerError(f"{name_of(prompt)}: {values[wrong][0]} is no log-prob")
    return Score(log_probs)


def check_finish(reason: Any, prompt: Prompt) -> None:
    """Refuse what the server has not carried through.

    Raises:
        SupervisorUnavailableError: it gave up, and may not next time.
    """
    if reason in ("abort", "error"):
        raise SupervisorUnavailableError(
            f"{name_of(prompt)}: the server gave up on it (finish reason {reason!r})"
        )


def check_count(usage: Any, prompts: Sequence[Prompt]) -> None:
    """Hold the server's count of prompt tokens, if it gives one, against what was sent.

    Raises:
        WrongAnswerError: they differ, so the log-probs are of other text.
    """
    counted = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    sent = sum(len(prompt.ids) for prompt in prompts)
    if isinstance(counted, int) and counted != sent:
        raise WrongAnswerError(
            f"{request_of(prompts)}: {sent} token ids were sent, but the server counts {counted};"
            " it has changed the prompts (a BOS added, or cut), so its log-probs are of other text"
        )


def name_of(prompt: Prompt) -> str:
    """What an error calls a prompt."""
    return prompt.label or f"a prompt of {len(prompt.ids)} tokens"


def request_of(prompts: Sequence[Prompt]) -> str:
    """What an error calls a request."""
    count = f"{len(prompts)} prompts that begins with " if len(prompts) > 1 else ""
    return f"the request of {count}{name_of(prompts[0])}"


def short(value: Any) -> str:
    """A value for a message: lists by their length and beginning, the rest cut."""
    text = repr(value)
    text = text if len(text) <= 80 else text[:77] + "..."
    return f"{len(value)} of them: {text}" if isinstance(value, list) else text

"""Generated tokens with their log-probs, by ``/v1/completions``: how they are asked for, and how an answer is read.

Tokens are asked for by their ids (vLLM's ``return_tokens_as_token_ids``), as strings are not unique. Log-probs are
those of the model itself (vLLM's ``raw_logprobs``, its default). Whatever a server would take from the model's
``generation_config.json`` where a request leaves it open is set to do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replug_client.errors import WrongAnswerError
from replug_client.supervisor.formats.completions import choices_of
from replug_client.supervisor.formats.wire import check_finish, read_json, short
from replug_client.supervisor.protocol import Prompt

PATH = "/completions"
MAX_TOKEN_IDS = 128
"""Most tokens that one request may ask the log-probs of (vLLM's own bound)."""

_TOKEN_ID = "token_id:"
_ABOVE_ONE = 1e-3  # the sum of rounded probabilities may exceed 1 by a little
_NEUTRAL = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "return_tokens_as_token_ids": True,
}

Payload = dict[str, Any]
Prompts = Sequence[tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One token that a server generated.

    Attributes:
        token: Its id.
        log_prob: Nats.
        ids: ``(n,)`` the tokens of which log-probs were asked for, ``token`` among them.
        log_probs: ``(n,)`` nats, float64; what is -9999 on the wire is as good as impossible.
        ends: The server takes it for the end of the text: it is an end token of the model's.
    """

    token: int
    log_prob: float
    ids: npt.NDArray[np.int64]
    log_probs: npt.NDArray[np.float64]
    ends: bool


def build_tops(prompts: Prompts, num_tops: int, num_tokens: int) -> Payload:
    """Ask for the most probable tokens behind each prompt, and behind what the server itself would take, greedily."""
    return {
        "prompt": [list(prompt) for prompt in prompts],
        "max_tokens": num_tokens,
        "temperature": 0.0,
        "logprobs": num_tops,
        **_NEUTRAL,
    }


def build_token_ids(prompts: Prompts, token_ids: Sequence[int]) -> Payload:
    """Ask for the log-probs of these tokens, at most ``MAX_TOKEN_IDS``, behind each prompt."""
    return {**build_tops(prompts, 1, 1), "logprob_token_ids": list(token_ids)}


def build_continuations(
    prompts: Prompts, max_tokens: int, temperature: float, top_p: float, stop: Sequence[str], seed: int | None
) -> Payload:
    """Ask for a text behind each prompt."""
    payload = {**build_tops(prompts, 1, max_tokens), "temperature": temperature, "top_p": top_p}
    if stop:
        payload["stop"] = list(stop)
    if seed is not None:
        payload["seed"] = seed
    return payload


def parse_steps(body: bytes, prompts: Prompts) -> list[list[Step]]:
    """The tokens behind each prompt, at least one each.

    Raises:
        UnreadableAnswerError: the body is no JSON.
        WrongAnswerError: it is not what was asked for.
        SupervisorUnavailableError: the server gave up, and may not next time.
    """
    asked = [Prompt(tuple(prompt), 1, _name(place)) for place, prompt in enumerate(prompts)]
    choices = choices_of(read_json(body), asked)
    steps = [steps_of(choice, prompt.label) for choice, prompt in zip(choices, asked, strict=True)]
    if not all(steps):
        raise WrongAnswerError("the server generated no token, and gives no log-probs")
    return steps


def parse_token_ids(
    body: bytes, prompts: Prompts, token_ids: Sequence[int]
) -> npt.NDArray[np.float64] | None:
    """``(K, n)`` log-probs of the tokens that were asked for; None where the server does not know how to be asked.

    Raises:
        As :func:`parse_steps`.
    """
    rows = []
    for first, *_ in parse_steps(body, prompts):
        found = dict(zip(first.ids.tolist(), first.log_probs.tolist(), strict=True))
        if not found.keys() >= set(token_ids):
            return None
        rows.append([found[token] for token in token_ids])
    return np.array(rows, dtype=np.float64)


def parse_event(event: Any, count: int) -> list[tuple[int, list[Step], bool]]:
    """One event of a stream: for each of ``count`` prompts that it is about, its new tokens, and whether it is done.

    Raises:
        WrongAnswerError: it is not what was asked for.
        SupervisorUnavailableError: the server gave up, and may not next time.
    """
    choices = event.get("choices") if isinstance(event, dict) else None
    if not isinstance(choices, list):
        raise WrongAnswerError(f"an event of a stream has no list of choices, but is {short(event)}")
    found = []
    for choice in choices:
        index = choice.get("index") if isinstance(choice, dict) else None
        if type(index) is not int or not 0 <= index < count:
            raise WrongAnswerError(f"expected tokens behind one of {count} prompts, found {short(choice)}")
        found.append((index, steps_of(choice, _name(index)), choice.get("finish_reason") is not None))
    return found


def steps_of(choice: dict[str, Any], name: str) -> list[Step]:
    """The tokens of one choice; it may have none, within a stream."""
    reason = choice.get("finish_reason")
    check_finish(reason, Prompt((), 1, name))
    block = choice.get("logprobs")
    if not block and not choice.get("text"):
        return []
    fields = block if isinstance(block, dict) else {}
    parts = [list(fields.get(field) or ()) for field in ("tokens", "token_logprobs", "top_logprobs")]
    if not parts[0] or not len(parts[0]) == len(parts[1]) == len(parts[2]):
        raise WrongAnswerError(f"{name}: expected tokens with their log-probs, found {short(block)}. {_MEND}")
    # A stop string ends a text as well; it is named.
    ended = reason == "stop" and not isinstance(choice.get("stop_reason"), str)
    last = len(parts[0]) - 1
    return [
        _step(token, value, top, name, ends=ended and place == last)
        for place, (token, value, top) in enumerate(zip(*parts, strict=True))
    ]


def _step(token: Any, value: Any, top: Any, name: str, *, ends: bool) -> Step:
    own = _token_id(token, name)
    if not isinstance(top, dict) or token not in top:
        raise WrongAnswerError(f"{name}: expected log-probs with that of {token!r}, found {short(top)}")
    ids = np.array([_token_id(word, name) for word in top], dtype=np.int64)
    if any(type(number) not in (int, float) for number in (value, *top.values())):
        raise WrongAnswerError(f"{name}: {short(top)} are no log-probs")
    log_probs = np.array(list(top.values()), dtype=np.float64)
    with np.errstate(over="ignore"):
        total = float(np.exp(log_probs).sum())
    if not total <= 1 + _ABOVE_ONE or len(set(ids.tolist())) < len(ids):
        raise WrongAnswerError(
            f"{name}: {short(top)} are no log-probs of distinct tokens: their probabilities sum to {total:g}."
            " The server must give raw_logprobs (vLLM's --logprobs-mode, its default)."
        )
    return Step(own, float(value), ids, log_probs, ends)


def _token_id(word: Any, name: str) -> int:
    digits = word.removeprefix(_TOKEN_ID) if isinstance(word, str) and word.startswith(_TOKEN_ID) else ""
    if not (digits.isascii() and digits.isdigit()):
        raise WrongAnswerError(
            f"{name}: expected a token such as 'token_id:17', found {short(word)}. {_MEND}"
        )
    return int(digits)


def _name(place: int) -> str:
    return f"the tokens behind prompt {place}"


_MEND = (
    "The server must know return_tokens_as_token_ids, as vLLM does (python -m server --model NAME_OR_FOLDER);"
    " or generate in process with --supervisor local."
)

__all__ = [
    "MAX_TOKEN_IDS",
    "PATH",
    "Step",
    "build_continuations",
    "build_token_ids",
    "build_tops",
    "parse_event",
    "parse_steps",
    "parse_token_ids",
]

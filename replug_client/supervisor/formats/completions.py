"""The completions route: vLLM's own ``prompt_logprobs``, and the ``echo`` of the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from replug_client.errors import SupervisorUnavailableError, WrongAnswerError
from replug_client.supervisor.formats.wire import (
    Parsed,
    WireFormat,
    name_of,
    read_json,
    request_of,
    score_of,
    short,
)
from replug_client.supervisor.protocol import Prompt

_TOKEN_ID = "token_id:"


def build_vllm(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """VLLM's ``prompt_logprobs``: 0 asks for the prompt's own tokens only, the cheapest answer."""
    return _completion(model, prompts) | {"prompt_logprobs": 0}


def parse_vllm(body: bytes, prompts: Sequence[Prompt]) -> Parsed:
    """Read ``choices[i].prompt_logprobs``: per position null or ``{"<token id>": {"logprob": ...}}``."""
    return _parse(body, prompts, _vllm_log_probs)


def build_echo(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The OpenAI completions format: the prompt comes back with the log-prob of each of its tokens.

    ``return_tokens_as_token_ids`` is vLLM's; servers that know it let the ids be checked.
    """
    return _completion(model, prompts) | {"echo": True, "logprobs": 1, "return_tokens_as_token_ids": True}


def parse_echo(body: bytes, prompts: Sequence[Prompt]) -> Parsed:
    """Read ``choices[i].logprobs``: ``token_logprobs`` and ``tokens`` over the prompt and one new token."""
    return _parse(body, prompts, _echo_log_probs)


def _completion(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    # One token has to be generated: several servers refuse 0, or take it for "as many as there is room for".
    return {
        "model": model,
        "prompt": [list(prompt.ids) for prompt in prompts],
        "max_tokens": 1,
        "temperature": 0,
    }


def _parse(
    body: bytes, prompts: Sequence[Prompt], read: Callable[[dict[str, Any], Prompt], list[Any]]
) -> Parsed:
    results: Parsed = []
    for choice, prompt in zip(_choices(read_json(body), prompts), prompts, strict=True):
        try:
            _check_finish(choice, prompt)
            results.append(score_of(read(choice, prompt), prompt))
        except (WrongAnswerError, SupervisorUnavailableError) as error:
            results.append(error)
    return results


def _choices(answer: Any, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """The choices in the order of the prompts."""
    name = request_of(prompts)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise WrongAnswerError(f"{name}: the answer has no list of choices, but is {short(answer)}")
    indices = [choice.get("index") for choice in choices]
    if sorted(indices, key=repr) != sorted(range(len(prompts)), key=repr):
        raise WrongAnswerError(f"{name}: the answer has choices {short(indices)}, one for each is expected")
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
            f"{name_of(prompt)}: the server gave up on it (finish reason {reason!r})"
        )


def _vllm_log_probs(choice: dict[str, Any], prompt: Prompt) -> list[Any]:
    rows = choice.get("prompt_logprobs")
    if not isinstance(rows, list) or len(rows) != len(prompt.ids):
        raise WrongAnswerError(
            f"{name_of(prompt)}: expected prompt_logprobs of {len(prompt.ids)} positions, found {short(rows)}"
        )
    if rows[0] is not None:
        raise WrongAnswerError(
            f"{name_of(prompt)}: prompt_logprobs are shifted: the first must be null, not {short(rows[0])}"
        )
    values = []
    for position in range(len(rows) - prompt.num_continuation, len(rows)):
        row, token = rows[position], prompt.ids[position]
        entry = row.get(str(token)) if isinstance(row, dict) else None
        if not isinstance(entry, dict):
            raise WrongAnswerError(
                f"{name_of(prompt)}: expected token {token} at position {position}, found {short(row)}"
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
            f"{name_of(prompt)}: expected echoed token_logprobs of {length} positions, found {short(values)}"
        )
    if values[0] is not None:
        raise WrongAnswerError(
            f"{name_of(prompt)}: the first echoed token cannot have a log-prob, found {short(values[0])};"
            " the server has put something before the prompt, or dropped its first token"
        )
    scored = range(length - prompt.num_continuation, length)
    tokens = block.get("tokens") if isinstance(block, dict) else None
    if not isinstance(tokens, list) or len(tokens) != len(values):
        raise WrongAnswerError(
            f"{name_of(prompt)}: expected {len(values)} echoed tokens, found {short(tokens)}"
        )
    if str(tokens[scored[0]]).startswith(_TOKEN_ID):
        for position in scored:
            if tokens[position] != f"{_TOKEN_ID}{prompt.ids[position]}":
                raise WrongAnswerError(
                    f"{name_of(prompt)}: expected token {prompt.ids[position]} at position {position},"
                    f" found {short(tokens[position])}"
                )
    return [values[position] for position in scored]


VLLM = WireFormat("vllm", "/completions", build_vllm, parse_vllm, verifies_ids=True)
ECHO = WireFormat("openai-echo", "/completions", build_echo, parse_echo, verifies_ids=False)

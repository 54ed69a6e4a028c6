"""The completions route: vLLM's own ``prompt_logprobs``, and the ``echo`` of the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from replug_client.errors import SupervisorError, SupervisorUnavailableError, WrongAnswerError
from replug_client.supervisor.formats.rows import cut_rows, read_table, table_of
from replug_client.supervisor.formats.wire import (
    Parsed,
    WireFormat,
    check_count,
    check_finish,
    name_of,
    read_json,
    request_of,
    score_of,
    score_of_array,
    short,
)
from replug_client.supervisor.protocol import Prompt

_TOKEN_ID = "token_id:"


def build_vllm(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """VLLM's ``prompt_logprobs``: 0 asks for the prompt's own tokens only, the cheapest answer."""
    return _completion(model, prompts) | {"prompt_logprobs": 0}


def parse_vllm(body: bytes, prompts: Sequence[Prompt]) -> Parsed:
    """Read ``choices[i].prompt_logprobs``: per position null or ``{"<token id>": {"logprob": ...}}``.

    An answer of the usual form is read without building objects for the tokens before the continuation
    (``rows.py``); whatever is unusual in it is left to this module to judge.
    """
    return parse_vllm_rows(body, prompts) or parse_vllm_json(body, prompts)


def parse_vllm_json(body: bytes, prompts: Sequence[Prompt]) -> Parsed:
    """The same, by the JSON parser alone."""
    return _parse(body, prompts, _vllm_log_probs)


def parse_vllm_rows(body: bytes, prompts: Sequence[Prompt]) -> Parsed | None:
    """The same, quickly; None where anything at all is wrong or new: that is for the JSON parser to say."""
    cut = cut_rows(body)
    if cut is None or len(cut[1]) != len(prompts):
        return None
    envelope, tables = cut
    results: Parsed = []
    try:
        for choice, prompt in zip(choices_of(read_json(envelope), prompts), prompts, strict=True):
            check_finish(choice.get("finish_reason"), prompt)
            table = table_of(choice.get("prompt_logprobs"), tables)
            values = None if table is None else read_table(table, prompt)
            if values is None:
                return None
            results.append(score_of_array(values, prompt))
    except SupervisorError:
        return None
    return results


def build_echo(model: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """The OpenAI completions format: the prompt comes back with the log-prob of each of its tokens.

    ``return_tokens_as_token_ids`` is vLLM's; servers that know it let the ids be checked.
    """
    return _completion(model, prompts) | {"echo": True, "logprobs": 1, "return_tokens_as_token_ids": True}


def parse_echo(body: bytes, prompts: Sequence[Prompt]) -> Parsed:
    """Read ``choices[i].logprobs``: ``token_logprobs`` and ``tokens`` over the prompt and one new token."""
    return _parse(body, prompts, _echo_log_probs)


def echoed_tokens(body: bytes, prompt: Prompt) -> list[str] | None:
    """What the server calls the prompt's tokens, of an answer for it alone; None where it calls them by their ids.

    Raises:
        WrongAnswerError: it does not say.
    """
    (choice,) = choices_of(read_json(body), [prompt])
    _echo_log_probs(choice, prompt)
    tokens = [str(token) for token in choice["logprobs"]["tokens"][: len(prompt.ids)]]
    return None if tokens[-1].startswith(_TOKEN_ID) else tokens


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
    for choice, prompt in zip(choices_of(read_json(body), prompts), prompts, strict=True):
        try:
            check_finish(choice.get("finish_reason"), prompt)
            results.append(score_of(read(choice, prompt), prompt))
        except (WrongAnswerError, SupervisorUnavailableError) as error:
            results.append(error)
    return results


def choices_of(answer: Any, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """The choices of a completions answer, in the order of the prompts.

    Raises:
        WrongAnswerError: they are not one for each prompt, or the server counts other tokens than were sent.
    """
    name = request_of(prompts)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise WrongAnswerError(f"{name}: the answer has no list of choices, but is {short(answer)}")
    indices = [choice.get("index") for choice in choices]
    if sorted(indices, key=repr) != sorted(range(len(prompts)), key=repr):
        raise WrongAnswerError(f"{name}: the answer has choices {short(indices)}, one for each is expected")
    check_count(answer.get("usage"), prompts)
    return sorted(choices, key=lambda choice: choice["index"])


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

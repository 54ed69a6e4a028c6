"""Answers as vLLM 0.32 gives them, and every way in which they can be wrong."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from replug_client.errors import SupervisorUnavailableError, UnreadableAnswerError, WrongAnswerError
from replug_client.supervisor.formats import FORMATS, WireFormat
from replug_client.supervisor.formats.completions import build_echo, build_vllm, parse_echo, parse_vllm
from replug_client.supervisor.protocol import Prompt, Score

Parse = Callable[..., Any]
PROMPTS = [Prompt((0, 11, 12, 13), 2, "pair A"), Prompt((0, 11, 11), 1, "pair B")]

VLLM: dict[str, Any] = {
    "id": "cmpl-1",
    "object": "text_completion",
    "model": "demo-lm",
    "choices": [
        {
            "index": 1,
            "text": " x",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "prompt_logprobs": [
                None,
                {"11": {"logprob": -4.5, "rank": 9, "decoded_token": "a"}},
                {"11": {"logprob": -0.25, "rank": 1, "decoded_token": "a"}},
            ],
        },
        {
            "index": 0,
            "text": " y",
            "logprobs": None,
            "finish_reason": "length",
            "stop_reason": None,
            "prompt_logprobs": [
                None,
                {"11": {"logprob": -4.5, "rank": 9, "decoded_token": "a"}},
                {"12": {"logprob": -1.5, "rank": 2, "decoded_token": None}},
                {"13": {"logprob": -2.0, "rank": 3, "decoded_token": "b"}},
            ],
        },
    ],
    "usage": {"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2},
}

ECHO: dict[str, Any] = {
    "choices": [
        {
            "index": 0,
            "text": "abc y",
            "finish_reason": "length",
            "logprobs": {
                "text_offset": [0, 1, 2, 3, 4],
                "token_logprobs": [None, -4.5, -1.5, -2.0, -0.1],
                "tokens": ["token_id:0", "token_id:11", "token_id:12", "token_id:13", "token_id:99"],
                "top_logprobs": [None, {}, {}, {}, {}],
            },
        },
        {
            "index": 1,
            "text": "aa x",
            "finish_reason": "stop",
            "logprobs": {
                "token_logprobs": [None, -4.5, -0.25, -0.1],
                "tokens": ["token_id:0", "token_id:11", "token_id:11", "token_id:99"],
            },
        },
    ],
    "usage": {"prompt_tokens": 7, "total_tokens": 9, "completion_tokens": 2},
}


def body(answer: object) -> bytes:
    """As vLLM writes it."""
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def test_the_payloads_are_those_of_the_api() -> None:
    shared = {"model": "m", "prompt": [[0, 11, 12, 13], [0, 11, 11]], "max_tokens": 1, "temperature": 0}
    assert build_vllm("m", PROMPTS) == {**shared, "prompt_logprobs": 0}
    assert build_echo("m", PROMPTS) == {
        **shared,
        "echo": True,
        "logprobs": 1,
        "return_tokens_as_token_ids": True,
    }


@pytest.mark.parametrize(("parse", "answer"), [(parse_vllm, VLLM), (parse_echo, ECHO)])
def test_the_continuations_log_probs_are_read_in_the_prompts_order(
    parse: Parse, answer: dict[str, Any]
) -> None:
    first, second = parse(body(answer), PROMPTS)
    assert first.token_log_probs.tolist() == [-1.5, -2.0]
    assert second.token_log_probs.tolist() == [-0.25]


def test_a_server_that_hides_the_generated_token_or_the_ids_is_read_too() -> None:
    answer = copy.deepcopy(ECHO)
    block = answer["choices"][0]["logprobs"]
    block["token_logprobs"].pop()
    block["tokens"] = ["<s>", "a", "b", "c"]
    del answer["usage"]
    first, _ = parse_echo(body(answer), PROMPTS)
    assert isinstance(first, Score)
    assert first.token_log_probs.tolist() == [-1.5, -2.0]


Change = Callable[[dict[str, Any]], object]


def choice(answer: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in answer["choices"] if c["index"] == index)
    return found


ROWS: dict[str, Change] = {
    "null": lambda c: c.update(prompt_logprobs=None),
    "a list of null": lambda c: c.update(prompt_logprobs=[None]),
    "missing": lambda c: c.pop("prompt_logprobs"),
    "too short": lambda c: c["prompt_logprobs"].pop(),
    "too long": lambda c: c["prompt_logprobs"].append({"9": {"logprob": -1.0}}),
    "shifted": lambda c: c["prompt_logprobs"].append(c["prompt_logprobs"].pop(0)),
    "a null row": lambda c: c["prompt_logprobs"].__setitem__(3, None),
    "another token": lambda c: c["prompt_logprobs"].__setitem__(3, {"14": {"logprob": -1.0}}),
    "NaN": lambda c: c["prompt_logprobs"][3]["13"].update(logprob=math.nan),
    "minus infinity": lambda c: c["prompt_logprobs"][3]["13"].update(logprob=-math.inf),
    "a null number": lambda c: c["prompt_logprobs"][3]["13"].update(logprob=None),
    "a text": lambda c: c["prompt_logprobs"][3]["13"].update(logprob="-1"),
    "a truth value": lambda c: c["prompt_logprobs"][3]["13"].update(logprob=False),
    "a positive number": lambda c: c["prompt_logprobs"][3]["13"].update(logprob=0.5),
    "a bare number": lambda c: c["prompt_logprobs"].__setitem__(3, {"13": -1.0}),
}

ECHOES: dict[str, Change] = {
    "null": lambda c: c.update(logprobs=None),
    "no numbers": lambda c: c["logprobs"].pop("token_logprobs"),
    "too short": lambda c: [c["logprobs"]["token_logprobs"].pop() for _ in range(2)],
    "too long": lambda c: c["logprobs"]["token_logprobs"].append(-1.0),
    "a BOS of its own": lambda c: c["logprobs"]["token_logprobs"].__setitem__(0, -7.0),
    "a null number": lambda c: c["logprobs"]["token_logprobs"].__setitem__(3, None),
    "NaN": lambda c: c["logprobs"]["token_logprobs"].__setitem__(2, math.nan),
    "another token": lambda c: c["logprobs"]["tokens"].__setitem__(2, "token_id:77"),
    "another token at the end": lambda c: c["logprobs"]["tokens"].__setitem__(3, "token_id:77"),
    "no tokens": lambda c: c["logprobs"].pop("tokens"),
}

CASES = [(parse_vllm, VLLM, change) for change in ROWS.values()] + [
    (parse_echo, ECHO, change) for change in ECHOES.values()
]


@pytest.mark.parametrize(("parse", "answer", "change"), CASES, ids=[*ROWS, *ECHOES])
def test_a_wrong_answer_names_its_pair_and_leaves_its_neighbour(
    parse: Parse, answer: dict[str, Any], change: Change
) -> None:
    answer = copy.deepcopy(answer)
    change(choice(answer, 0))
    first, second = parse(body(answer), PROMPTS)
    assert isinstance(first, WrongAnswerError)
    assert "pair A" in str(first)
    assert isinstance(second, Score)


@pytest.mark.parametrize(("parse", "answer"), [(parse_vllm, VLLM), (parse_echo, ECHO)])
def test_what_the_server_gave_up_on_may_be_asked_again(parse: Parse, answer: dict[str, Any]) -> None:
    answer = copy.deepcopy(answer)
    choice(answer, 1)["finish_reason"] = "abort"
    first, second = parse(body(answer), PROMPTS)
    assert isinstance(first, Score)
    assert isinstance(second, SupervisorUnavailableError)
    assert "pair B" in str(second)


WHOLE: dict[str, Change] = {
    "no choices": lambda a: a.pop("choices"),
    "one choice missing": lambda a: a["choices"].pop(),
    "one choice too many": lambda a: a["choices"].append(a["choices"][0]),
    "the same index twice": lambda a: a["choices"][0].update(index=a["choices"][1]["index"]),
    "an index of another kind": lambda a: a["choices"][0].update(index=None),
    "choices of another kind": lambda a: a.update(choices=[1, 2]),
    "other tokens counted": lambda a: a["usage"].update(prompt_tokens=9),
}


@pytest.mark.parametrize("change", WHOLE.values(), ids=WHOLE)
@pytest.mark.parametrize(("parse", "answer"), [(parse_vllm, VLLM), (parse_echo, ECHO)])
def test_an_answer_that_is_wrong_as_a_whole_says_which_request_it_was(
    parse: Parse, answer: dict[str, Any], change: Change
) -> None:
    answer = copy.deepcopy(answer)
    change(answer)
    with pytest.raises(WrongAnswerError, match="2 prompts that begins with pair A"):
        parse(body(answer), PROMPTS)


@pytest.mark.parametrize("answer", [None, [], "html", 3, {}])
@pytest.mark.parametrize("wire_format", FORMATS, ids=lambda f: f.name)
def test_what_is_no_answer_at_all_is_an_error(wire_format: WireFormat, answer: object) -> None:
    with pytest.raises(WrongAnswerError):
        wire_format.parse(body(answer), PROMPTS[: wire_format.max_prompts])


@pytest.mark.parametrize(
    "content", [b"", b"<html>502</html>", b'{"choices": [{"ind', b"\xff\xfe", b"[" * 100_000]
)
@pytest.mark.parametrize("wire_format", FORMATS, ids=lambda f: f.name)
def test_a_body_that_is_no_json_may_be_asked_for_again(wire_format: WireFormat, content: bytes) -> None:
    with pytest.raises(UnreadableAnswerError, match=f"{len(content)} bytes") as caught:
        wire_format.parse(content, PROMPTS[: wire_format.max_prompts])
    assert caught.value.retryable


def test_token_text_is_never_used_to_check_ids() -> None:
    """Two ids may read the same; where only text comes back, positions alone count."""
    answer = copy.deepcopy(ECHO)
    for block in (c["logprobs"] for c in answer["choices"]):
        block["tokens"] = ["same"] * len(block["tokens"])
    first, second = parse_echo(body(answer), PROMPTS)
    assert isinstance(first, Score)
    assert isinstance(second, Score)

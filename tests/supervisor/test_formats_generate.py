"""``vllm-generate`` and ``sglang``: what is sent, what is read, and every way in which it can be wrong.

The answers are written after the servers' own protocols. Those of vLLM are held against its own code in
tests/end_to_end/test_vllm_generate_contract.py; no SGLang was at hand.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from replug_client.errors import SupervisorUnavailableError, WrongAnswerError
from replug_client.supervisor.formats.generate import build_generate, parse_generate
from replug_client.supervisor.formats.sglang import build_sglang, parse_sglang
from replug_client.supervisor.protocol import Prompt, Score

PROMPT = Prompt((0, 11, 12, 13), 2, "pair A")
OTHER = Prompt((0, 11, 11), 1, "pair B")


def body(answer: object) -> bytes:
    return json.dumps(answer).encode()


def npy(values: object, dtype: str = "<f4") -> str:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, dtype=dtype), allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


GENERATE: dict[str, Any] = {
    "request_id": "generate-tokens-1",
    "choices": [{"index": 0, "finish_reason": "length", "stop_reason": None, "token_ids": [99], "logprobs": None}],
    "usage": {"prompt_tokens": 4, "total_tokens": 5, "completion_tokens": 1},
    "prompt_logprobs": None,
    "prompt_token_id_logprobs": npy([[-1.5], [-2.0]]),
    "prompt_token_ids": None,
}  # fmt: skip


def test_one_prompt_and_a_row_for_each_scored_token_is_sent() -> None:
    assert build_generate("m", [PROMPT]) == {
        "model": "m",
        "token_ids": [0, 11, 12, 13],
        "sampling_params": {
            "max_tokens": 1,
            "temperature": 0,
            "detokenize": False,
            "prompt_logprob_start": 1,
            "prompt_logprob_token_ids": [[12], [13]],
            "skip_reading_prefix_cache": True,
        },
    }


def test_the_array_is_read() -> None:
    (score,) = parse_generate(body(GENERATE), [PROMPT])
    assert isinstance(score, Score)
    assert score.token_log_probs.tolist() == [-1.5, -2.0]
    assert score.token_log_probs.dtype == np.float32


def test_what_is_impossible_reads_as_in_vllms_other_routes() -> None:
    answer = {**GENERATE, "prompt_token_id_logprobs": npy([[-math.inf], [-2.0]])}
    (score,) = parse_generate(body(answer), [PROMPT])
    assert isinstance(score, Score)
    assert score.token_log_probs.tolist() == [-9999.0, -2.0]


ARRAYS: dict[str, object] = {
    "null": None,
    "no text": 3,
    "no base64": "%%%%",
    "no npy": base64.b64encode(b"hello").decode(),
    "nothing": "",
    "an archive": base64.b64encode(b"PK\x03\x04").decode(),
    "cut": npy([[-1.5], [-2.0]])[:-4],
    "too long": base64.b64encode(base64.b64decode(npy([[-1.5], [-2.0]])) + b"\0").decode(),
    "a row too few": npy([[-1.5]]),
    "a row too many": npy([[-1.5], [-2.0], [-3.0]]),
    "two columns": npy([[-1.5, -1.0], [-2.0, -1.0]]),
    "flat": npy([-1.5, -2.0]),
    "another type": npy([[-1.5], [-2.0]], "<f8"),
    "the other end first": npy([[-1.5], [-2.0]], ">f4"),
    "objects": base64.b64encode(
        b"\x93NUMPY\x01\x00\x36\x00{'descr': '|O', 'fortran_order': False, 'shape': (2, 1)}\n"
    ).decode(),
    "a shape beyond all memory": base64.b64encode(
        b"\x93NUMPY\x01\x00\x40\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999,)}  \n"
    ).decode(),
    "NaN": npy([[math.nan], [-2.0]]),
    "a positive number": npy([[-1.5], [0.5]]),
}


@pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
def test_an_array_that_is_not_what_was_asked_for_names_the_pair(array: object) -> None:
    (error,) = parse_generate(body({**GENERATE, "prompt_token_id_logprobs": array}), [PROMPT])
    assert isinstance(error, WrongAnswerError)
    assert "pair A" in str(error)


def test_a_missing_array_says_what_mends_it() -> None:
    answer = {key: value for key, value in GENERATE.items() if key != "prompt_token_id_logprobs"}
    (error,) = parse_generate(body(answer), [PROMPT])
    assert "--no-enable-prefix-caching" in str(error)


OTHERS: list[dict[str, Any]] = [
    {"choices": []},
    {"choices": None},
    {"choices": [1]},
    {"usage": {"prompt_tokens": 5}},
]


@pytest.mark.parametrize("change", OTHERS)
def test_an_answer_to_something_else_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(WrongAnswerError, match="pair A"):
        parse_generate(body({**GENERATE, **change}), [PROMPT])


def test_what_vllm_gave_up_on_may_be_asked_again() -> None:
    answer = copy.deepcopy(GENERATE)
    answer["choices"][0]["finish_reason"] = "abort"
    (error,) = parse_generate(body(answer), [PROMPT])
    assert isinstance(error, SupervisorUnavailableError)


def native(prompt: Prompt, rows: list[Any]) -> dict[str, Any]:
    return {
        "text": "",
        "output_ids": [],
        "meta_info": {
            "id": "1",
            "finish_reason": {"type": "length", "length": 0},
            "prompt_tokens": len(prompt.ids),
            "completion_tokens": 0,
            "cached_tokens": 1,
            "input_token_logprobs": rows,
            "output_token_logprobs": [],
        },
    }


SGLANG = [
    native(PROMPT, [[None, 11, None], [-1.5, 12, None], [-2.0, 13, None]]),
    native(OTHER, [[None, 11, None], [-0.25, 11, None]]),
]


def test_each_prompt_goes_with_the_position_before_its_continuation() -> None:
    assert build_sglang("m", [PROMPT, OTHER]) == {
        "input_ids": [[0, 11, 12, 13], [0, 11, 11]],
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": [1, 1],
    }


def test_the_entries_after_the_first_are_read() -> None:
    first, second = parse_sglang(body(SGLANG), [PROMPT, OTHER])
    assert isinstance(first, Score)
    assert isinstance(second, Score)
    assert first.token_log_probs.tolist() == [-1.5, -2.0]
    assert second.token_log_probs.tolist() == [-0.25]


def test_an_answer_to_one_prompt_may_come_bare() -> None:
    (score,) = parse_sglang(body(SGLANG[1]), [OTHER])
    assert isinstance(score, Score)


ROWS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no meta_info": lambda a: a.pop("meta_info"),
    "no entries": lambda a: a["meta_info"].pop("input_token_logprobs"),
    "null": lambda a: a["meta_info"].update(input_token_logprobs=None),
    "a row too few": lambda a: a["meta_info"]["input_token_logprobs"].pop(0),
    "a row too many": lambda a: a["meta_info"]["input_token_logprobs"].insert(0, [None, 0, None]),
    "shifted": lambda a: a["meta_info"]["input_token_logprobs"][0].__setitem__(0, -1.0),
    "another token": lambda a: a["meta_info"]["input_token_logprobs"][2].__setitem__(1, 14),
    "another token before": lambda a: a["meta_info"]["input_token_logprobs"][0].__setitem__(1, 14),
    "a null number": lambda a: a["meta_info"]["input_token_logprobs"][2].__setitem__(0, None),
    "NaN": lambda a: a["meta_info"]["input_token_logprobs"][2].__setitem__(0, math.nan),
    "a bare number": lambda a: a["meta_info"]["input_token_logprobs"].__setitem__(2, -2.0),
    "other tokens counted": lambda a: a["meta_info"].update(prompt_tokens=5),
}


@pytest.mark.parametrize("change", ROWS.values(), ids=ROWS)
def test_a_wrong_answer_of_sglang_names_its_pair_and_leaves_its_neighbour(
    change: Callable[[dict[str, Any]], object],
) -> None:
    answer = copy.deepcopy(SGLANG)
    change(answer[0])
    first, second = parse_sglang(body(answer), [PROMPT, OTHER])
    assert isinstance(first, WrongAnswerError)
    assert "pair A" in str(first)
    assert isinstance(second, Score)


def test_what_sglang_aborted_may_be_asked_again() -> None:
    answer = copy.deepcopy(SGLANG)
    answer[1]["meta_info"]["finish_reason"] = {"type": "abort", "message": "x", "status_code": None}
    first, second = parse_sglang(body(answer), [PROMPT, OTHER])
    assert isinstance(first, Score)
    assert isinstance(second, SupervisorUnavailableError)


@pytest.mark.parametrize("answer", [SGLANG[:1], [*SGLANG, SGLANG[0]], SGLANG[0], {"error": "x"}])
def test_another_number_of_answers_is_refused(answer: object) -> None:
    with pytest.raises(WrongAnswerError, match="2 prompts that begins with pair A"):
        parse_sglang(body(answer), [PROMPT, OTHER])

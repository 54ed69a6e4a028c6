"""The quick reader of vLLM's answers: whatever the bytes, it says what the JSON parser says, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replug_client.errors import SupervisorError
from replug_client.supervisor.formats import FORMATS, Parsed
from replug_client.supervisor.formats.completions import parse_vllm, parse_vllm_json, parse_vllm_rows
from replug_client.supervisor.formats.rows import cut_rows, table_of
from replug_client.supervisor.protocol import Prompt, Score
from tests.supervisor.recorded.record import NAMES, load_prompts

RECORDED = Path(__file__).parent / "recorded"
NASTY = [
    '"', "\\", '\\"', "}},{", '}},{"', "}}]", '"}}],"', '{"logprob":', ',"prompt_logprobs":[null', "\n\t\r\x00",
    "\x7f\u2028", "\ud800", "é数😀", ']}],"usage":{"prompt_tokens":1}}', "rows cut out: 0", '"rank":1', "",
]  # fmt: skip

texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=8), st.none())
numbers = st.one_of(
    st.floats(-50, 0.0005),
    st.floats(allow_nan=True),
    st.integers(-9999, 0),
    st.sampled_from([None, 0.5, True]),
)
good_numbers = st.one_of(st.floats(-9999, 0), st.integers(-9999, 0), st.sampled_from([-1e-9, -0.0, -5e-324]))


@st.composite
def answers(draw: st.DrawFn, values: st.SearchStrategy[Any] = good_numbers) -> tuple[bytes, list[Prompt]]:
    """Prompts and vLLM's answer to them, with token texts that look like JSON."""
    prompts, choices = [], []
    for index in range(draw(st.integers(1, 3))):
        ids = draw(st.lists(st.integers(0, 200_000), min_size=2, max_size=8))
        prompts.append(Prompt(tuple(ids), draw(st.integers(1, len(ids) - 1)), f"pair {index}"))
        rows = [
            {str(token): {"logprob": draw(values), "rank": draw(st.integers(1, 99)), "decoded_token": draw(texts)}}
            for token in ids[1:]
        ]  # fmt: skip
        choices.append(
            {
                "index": index,
                "text": draw(texts),
                "finish_reason": draw(st.sampled_from(["length", "stop", None, "length", "abort"])),
                "prompt_logprobs": [None, *rows],
                "prompt_token_ids": None,
            }
        )
    choices = draw(st.permutations(choices))
    answer = {"model": "m", "choices": choices, "usage": {"prompt_tokens": sum(len(p.ids) for p in prompts)}}
    plain = draw(st.booleans())  # a lone surrogate can only be written as an escape
    separators = draw(st.sampled_from([(",", ":"), (",", ":"), (", ", ": ")]))
    return json.dumps(answer, ensure_ascii=plain, separators=separators).encode("utf-8", "replace"), prompts


def outcome(parse: Any, body: bytes, prompts: list[Prompt]) -> Any:
    """Scores exactly, and errors by type and words."""
    try:
        results: Parsed = parse(body, prompts)
    except SupervisorError as error:
        return type(error), str(error)
    return [
        (r.token_log_probs.dtype, r.token_log_probs.tobytes()) if isinstance(r, Score) else (type(r), str(r))
        for r in results
    ]


@settings(deadline=None)
@given(answers())
def test_it_reads_exactly_what_the_json_parser_reads(case: tuple[bytes, list[Prompt]]) -> None:
    body, prompts = case
    assert outcome(parse_vllm, body, prompts) == outcome(parse_vllm_json, body, prompts)


@given(answers(numbers), st.data())
@settings(deadline=None, max_examples=300)
def test_damaged_bytes_mean_the_same_to_both(case: tuple[bytes, list[Prompt]], data: st.DataObject) -> None:
    body, prompts = case
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(len(body), start + 40)))
    put = data.draw(
        st.one_of(st.binary(max_size=3), st.sampled_from([body[start:end] * 2, *map(str.encode, NASTY[:5])]))
    )
    damaged = body[:start] + put + body[end:]
    assert outcome(parse_vllm, damaged, prompts) == outcome(parse_vllm_json, damaged, prompts)


@settings(deadline=None)
@given(answers(), st.integers(1, 200))
def test_an_answer_cut_short_is_never_taken_for_whole(case: tuple[bytes, list[Prompt]], lost: int) -> None:
    body, prompts = case
    assert parse_vllm_rows(body[:-lost], prompts) is None


def compact(prompt: Prompt, decoded: str, value: float = -1.5) -> bytes:
    rows = [{str(token): {"logprob": value, "rank": 1, "decoded_token": decoded}} for token in prompt.ids[1:]]
    answer = {
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "length", "prompt_logprobs": [None, *rows]}],
    }
    return json.dumps(answer, separators=(",", ":")).encode()


@pytest.mark.parametrize("text", NASTY)
def test_token_text_that_looks_like_json_does_not_send_it_the_slow_way(text: str) -> None:
    prompt = Prompt((1, 22, 333, 4444), 2)
    results = parse_vllm_rows(compact(prompt, text), [prompt])
    assert results is not None
    (score,) = results
    assert isinstance(score, Score)
    assert score.token_log_probs.tolist() == [-1.5, -1.5]


@pytest.mark.parametrize("scored", range(1, 8))
def test_each_length_of_continuation_is_cut_at_its_place(scored: int) -> None:
    ids = tuple(range(7, 15))
    rows = [{str(token): {"logprob": -token / 8, "rank": 1, "decoded_token": ""}} for token in ids[1:]]
    answer = {"m": 0, "choices": [{"index": 0, "prompt_logprobs": [None, *rows]}]}
    body = json.dumps(answer, separators=(",", ":")).encode()
    results = parse_vllm_rows(body, [Prompt(ids, scored)])
    assert results is not None
    (score,) = results
    assert isinstance(score, Score)
    assert score.token_log_probs.tolist() == [-token / 8 for token in ids[-scored:]]


def test_what_is_cut_out_is_nearly_all_of_an_answer() -> None:
    prompt = Prompt(tuple(range(400)), 8)
    cut = cut_rows(compact(prompt, "x"))
    assert cut is not None
    assert len(cut[0]) < 120


@pytest.mark.parametrize("name", NAMES)
def test_recorded_answers_of_vllm_are_read(name: str) -> None:
    """Real answers of vLLM 0.32.0 on a CPU, with the demo LM; see recorded/record.py."""
    body, prompts = (RECORDED / f"{name}.json").read_bytes(), load_prompts()
    (parse,) = [f.parse for f in FORMATS if f.name == name]
    if name == "vllm":
        assert parse_vllm_rows(body, prompts) is not None
        assert outcome(parse_vllm_rows, body, prompts) == outcome(parse_vllm_json, body, prompts)
    for score, prompt in zip(parse(body, prompts), prompts, strict=True):
        assert isinstance(score, Score)
        assert score.num_tokens == prompt.num_continuation
        assert (score.token_log_probs < 0).all()


def test_recorded_answers_of_both_formats_are_the_same_numbers() -> None:
    first, second = (
        [f.parse((RECORDED / f"{f.name}.json").read_bytes(), load_prompts()) for f in FORMATS if f.name in NAMES]
    )  # fmt: skip
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, Score)
        assert isinstance(other, Score)
        assert np.abs(one.token_log_probs - other.token_log_probs).max() < 1e-5


MORE = [
    '"x":1',
    '"prompt_logprobs":0',
    '"prompt_logprobs":[null]',
    '"prompt_logprobs":[null,{"333":{"logprob":-9.0,"rank":1,"decoded_token":null}}]',
    '"choices":[]',
    '"index":0',
]


@pytest.mark.parametrize("field", MORE)
@pytest.mark.parametrize(
    ("old", "new"), [('{"model"', '{"y":1,%s,"model"'), ("}]}", "}],%s}"), ("}}]}", "}}],%s}")]
)
def test_a_field_more_or_twice_means_the_same_to_both(field: str, old: str, new: str) -> None:
    """Of a key given twice the last counts; one at another level does not count."""
    prompt = Prompt((1, 22, 333), 1)
    body = compact(prompt, "x").decode().replace(old, new % field).encode()
    assert field.encode() in body
    assert outcome(parse_vllm, body, [prompt]) == outcome(parse_vllm_json, body, [prompt])


def test_the_mark_in_the_place_of_rows_cannot_be_sent() -> None:
    prompt = Prompt((1, 22, 333), 1)
    cut = cut_rows(compact(prompt, "x"))
    assert cut is not None
    mark = json.loads(cut[0])["choices"][0]["prompt_logprobs"]
    assert len(mark) > 20
    assert table_of(mark, cut[1]) == cut[1][0]
    for other in (mark[:-1], mark + "1", "0", 0, None, [mark], "rows cut out: 0"):
        assert table_of(other, cut[1]) is None

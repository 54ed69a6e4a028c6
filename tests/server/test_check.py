"""`python -m server check` against a stand-in: what passes, what does not, and what is advised."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.protocol import Prompt
from server.__main__ import main
from server.advice import Observed, advise, read_metrics
from server.check import _generated
from tests.server.conftest import free_port
from tests.supervisor.fake_server import MODEL, Body, FakeServer, running

QUICK = ("--tokens", "40", "--continuation", "10", "--concurrency", "1,2", "--seconds", "0.01")


def check(server: FakeServer, *more: str) -> int:
    return main(["check", "--base_url", server.base_url, *QUICK, *more])


def test_a_good_server_passes(capsys: pytest.CaptureFixture[str]) -> None:
    with running(FakeServer()) as server:
        assert check(server) == 0
    screen = capsys.readouterr().out
    assert f"model: {MODEL}, at most 257 tokens" in screen
    assert "formats: vllm, openai-echo" in screen
    assert "together, as openai-echo: off by 0 nats" in screen
    assert "in two pieces: off by 0 nats" in screen
    assert "2 request(s) in flight:" in screen
    assert "auto request(s) in flight:" in screen
    assert "OK: training would work" in screen
    assert "1 of 1 server(s)" in screen


def test_a_server_that_answers_otherwise_in_a_crowd_fails(capsys: pytest.CaptureFixture[str]) -> None:
    def worse(server: FakeServer, payload: dict[str, Any], body: Body) -> tuple[int, Body] | None:
        if len(payload["prompt"]) > 2 and isinstance(body, dict):
            for choice, row in itertools.product(body["choices"], range(1, 400)):
                for entry in choice.get("prompt_logprobs", [])[row : row + 1]:
                    for token in entry.values():
                        token["logprob"] -= 0.1
        return None

    with running(FakeServer(mischief=worse)) as server:
        assert check(server) == 1
    screen = capsys.readouterr().out
    assert "NOT usable: the same pair gets other numbers (together, as vllm): 0.1" in screen
    assert "0 of 1 server(s)" in screen


def test_a_server_whose_numbers_depend_on_where_the_continuation_begins_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def by_length(prompt: Prompt) -> Sequence[float]:
        values = hashed_log_probs(prompt)
        canary = prompt.ids[:3] == (5, 6, 7)  # with which the client finds the same at the start
        return values if canary else [value - len(prompt.ids) / 10 for value in values]

    with running(FakeServer(log_probs=by_length)) as server:
        assert check(server) == 1
    assert "in two pieces" in capsys.readouterr().out


def test_too_short_a_context_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with running(FakeServer(max_model_len=60)) as server:
        assert check(server, "--tokens", "60") == 1
    assert "a pair of 60 tokens does not fit into 60" in capsys.readouterr().out


def test_no_format_fails_with_each_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with running(FakeServer(formats=set())) as server:
        assert check(server) == 1
    screen = capsys.readouterr().out
    assert "formats: none works" in screen
    assert "openai-echo: " in screen


def test_nobody_there_and_another_model_fail(capsys: pytest.CaptureFixture[str]) -> None:
    with running(FakeServer()) as server:
        nobody = f"http://127.0.0.1:{free_port()}/v1"
        assert main(["check", "--base_url", f"{server.base_url},{nobody}", *QUICK]) == 1
        screen = capsys.readouterr().out
        assert "1 of 2 server(s)" in screen
        assert "NOT usable: no answer" in screen
        assert check(server, "--model", "other") == 1
        assert f"it serves {MODEL}" in capsys.readouterr().out


def test_bad_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--concurrency", "many"]) == 1
    assert "--concurrency takes numbers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["check", "--tokens", "10", "--continuation", "10"])


def test_a_generated_token_is_read_where_its_id_is_named() -> None:
    block = {"tokens": ["token_id:7"], "token_logprobs": [-0.5]}
    assert _generated({"choices": [{"logprobs": block}]}) == (7, -0.5)
    for answer in (
        {},
        {"choices": [{"logprobs": {**block, "tokens": ["the"]}}]},
        {"choices": [{"logprobs": None}]},
    ):
        assert _generated(answer) is None


METRICS = """\
# HELP vllm:num_preemptions_total Preemptions.
vllm:num_preemptions_total{engine="0"} 2.0
vllm:num_preemptions_total{engine="1"} 3.0
vllm:cache_config_info{block_size="16",enable_prefix_caching="True"} 1.0
process_cpu_seconds_total 9.5
bad nan-ish
"""


def test_metrics_are_summed_and_the_configuration_read() -> None:
    sums, config = read_metrics(METRICS)
    assert sums["vllm:num_preemptions_total"] == 5.0
    assert config == {"block_size": "16", "enable_prefix_caching": "True"}


def test_advice_follows_from_figures() -> None:
    sums, config = read_metrics(METRICS)
    advice = advise(Observed(("vllm",), {1: 10.0, 16: 80.0, "auto": 60.0}, sums, config, seconds=10.0))
    wanted = (
        "--no-enable-prefix-caching",
        "KV cache",
        "--api-server-count",
        "--enable-scale-out",
        "--concurrency 16",
    )
    assert len(advice) == len(wanted)
    assert all(word in line for word, line in zip(wanted, advice, strict=True))
    quiet = {"block_size": "16"}
    assert advise(Observed(("vllm-generate",), {1: 10.0, 16: 10.5, "auto": 10.2}, {}, quiet, 10.0)) == []

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
from tests.server.conftest import ROOT, free_port
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
    assert f"opened as training opens them: {MODEL}, with the server's own tokenizer" in screen


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


def test_two_models_under_one_name_fail_as_they_would_in_training(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def other(prompt: Prompt) -> Sequence[float]:
        return [value - 3.0 for value in hashed_log_probs(prompt)]

    with running(FakeServer()) as one, running(FakeServer(log_probs=other)) as two:
        assert check(one, "--base_url", two.base_url) == 1
    screen = capsys.readouterr().out
    assert "2 of 2 server(s) can be trained with, each by itself" in screen
    assert f"NOT usable as --base_url {one.base_url},{two.base_url} --model {MODEL}" in screen


def test_a_model_is_found_by_its_root_as_in_training(capsys: pytest.CaptureFixture[str]) -> None:
    with running(FakeServer()) as server:
        assert check(server, "--model", "/models/fake") == 0
    assert f"model: {MODEL}, at most 257 tokens" in capsys.readouterr().out


def test_a_tokenizer_that_is_not_the_models_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with running(FakeServer()) as server:
        assert check(server, "--tokenizer", str(ROOT / "demo" / "lm")) == 1
    assert "the tokenizer in use is not that of" in capsys.readouterr().out


def test_nobody_there_and_another_model_fail(capsys: pytest.CaptureFixture[str]) -> None:
    with running(FakeServer()) as server:
        nobody = f"http://127.0.0.1:{free_port()}/v1"
        assert main(["check", "--base_url", f"{server.base_url},{nobody}", *QUICK]) == 1
        screen = capsys.readouterr().out
        assert "1 of 2 server(s)" in screen
        assert "NOT usable: no answer" in screen
        assert check(server, "--model", "other") == 1
        assert f"it serves '{MODEL}'" in capsys.readouterr().out


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(arguments: Sequence[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.check.main", interrupted)
    assert main(["check"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


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

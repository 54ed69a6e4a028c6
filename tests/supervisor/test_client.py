"""The remote client: connecting, probing, grouping, options, ending."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replug_client.errors import (
    OptionError,
    SupervisorError,
    SupervisorRequestError,
    SupervisorUnavailableError,
)
from replug_client.supervisor.address import base_urls, default_base_url, is_loopback
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import (
    Endpoint,
    ServedModel,
    roots_of,
)
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.limiter import FIRST_LIMIT
from replug_client.supervisor.options import parse_concurrency
from replug_client.supervisor.protocol import Prompt
from replug_client.supervisor.server_tokenizer import ServerTokenizer
from tests.supervisor.client_tools import QUICK, Reply, check, connect, start
from tests.supervisor.contract import random_prompts
from tests.supervisor.fake_server import MODEL, Body, FakeServer


def test_the_probe_takes_the_cheapest_format_that_works_and_says_so(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        both = connect(stack, start(stack, FakeServer()))
        echo = connect(stack, start(stack, FakeServer(formats={"openai-echo"})))
    assert (both.format, echo.format) == ("vllm", "openai-echo")
    assert both.fingerprint == echo.fingerprint
    assert "format vllm, at most 257 tokens" in caplog.text
    assert both.max_prompt_tokens == 256


def test_a_server_without_prompt_log_probs_is_refused_with_every_reason(stack: ExitStack) -> None:
    server = start(stack, FakeServer(formats=set()))
    with pytest.raises(SupervisorError, match=r"(?s)no prompt log-probs.*vllm: .*openai-echo: .*local"):
        connect(stack, server)


def test_a_server_that_mixes_up_prompts_is_refused(stack: ExitStack) -> None:
    def mix(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if len(payload["prompt"]) == 2 and isinstance(body, dict):
            for choice in body["choices"]:
                for row in (choice.get("prompt_logprobs") or [])[1:]:
                    for entry in row.values():
                        entry["logprob"] -= 1.0
                if "logprobs" in choice:
                    block = choice["logprobs"]
                    block["token_logprobs"] = [None, *[v - 1.0 for v in block["token_logprobs"][1:]]]
            return 200, body
        return None

    server = start(stack, FakeServer(mischief=mix))
    with pytest.raises(SupervisorError, match="mixes up prompts"):
        connect(stack, server)


def test_an_unknown_model_is_refused_with_what_is_served(stack: ExitStack) -> None:
    server = start(stack, FakeServer())
    with pytest.raises(OptionError, match="does not serve 'other'; it serves 'fake-lm'"):
        RemoteSupervisor(Endpoint.open(server.base_url), "other", QUICK)
    assert server.requests == []


def test_a_model_may_be_named_by_its_root(stack: ExitStack) -> None:
    server = start(stack, FakeServer())
    supervisor = stack.enter_context(RemoteSupervisor(Endpoint.open(server.base_url), "/models/fake", QUICK))
    assert supervisor.name == MODEL


def test_the_weights_have_one_name_however_they_are_listed_and_spelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm").mkdir()
    spelled = [ServedModel("m", root, None) for root in ("lm", str(tmp_path / "lm"), "../lm", "b", "a", None)]
    assert roots_of(spelled[:1]) == roots_of(spelled[:2]) == [str(tmp_path / "lm")]
    assert roots_of(spelled[3:]) == roots_of(spelled[:2:-1]) == ["a", "b", "m"]
    assert roots_of(spelled[2:3]) == ["../lm"], "no folder of this machine's"


def test_no_proxy_leads_to_this_machine(stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server = start(stack, FakeServer())
    check(random_prompts(2), connect(stack, server).score(random_prompts(2)))
    assert ServerTokenizer(server.base_url, MODEL, options=QUICK).encode("a") == [197]
    assert is_loopback("http://localhost:8000/v1") and is_loopback("http://[::1]/v1")
    assert not is_loopback("http://gpu:8000/v1") and not is_loopback("http://10.0.0.5/v1")


def test_a_format_that_always_breaks_the_server_is_not_the_last_one_that_is_tried(stack: ExitStack) -> None:
    def break_it(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        return (500, {"error": "no prompt_logprobs here"}) if "prompt_logprobs" in payload else None

    supervisor = connect(stack, start(stack, FakeServer(mischief=break_it)))
    assert supervisor.format == "openai-echo"


def test_a_server_that_is_too_busy_says_nothing_of_its_formats(stack: ExitStack) -> None:
    def refuse(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        return (429, {"error": "slow down"}) if "prompt_logprobs" in payload else None

    with pytest.raises(SupervisorUnavailableError, match="slow down"):
        connect(stack, start(stack, FakeServer(mischief=refuse)))


def test_another_model_behind_the_same_name_has_another_fingerprint(stack: ExitStack) -> None:
    def other(prompt: Prompt) -> list[float]:
        return [value * 0.99 for value in hashed_log_probs(prompt)]

    one = connect(stack, start(stack, FakeServer()))
    same = connect(stack, start(stack, FakeServer(max_model_len=300)))
    swapped = connect(stack, start(stack, FakeServer(log_probs=other)))
    assert one.fingerprint == same.fingerprint != swapped.fingerprint


def test_prompts_travel_together_within_the_limits_and_long_with_long(stack: ExitStack) -> None:
    def dawdle(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        time.sleep(0.05)
        return None

    server = start(stack, FakeServer(mischief=dawdle))
    options = ClientOptions(concurrency=3, prompts_per_request=5, tokens_per_request=300)
    supervisor = connect(stack, server, options)
    server.requests.clear()
    server.most_at_once = 0
    prompts = random_prompts(60)
    check(prompts, supervisor.score(prompts))
    sent = [request["prompt"] for request in server.requests]
    assert sum(map(len, sent)) == 60
    assert max(map(len, sent)) == 5
    assert all(len(p) == 1 or sum(map(len, p)) <= 300 for p in sent)
    assert len(sent) < 30
    assert server.most_at_once == 3
    assert server.complaints == []


def test_the_key_comes_from_the_environment_and_is_never_logged(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(stack, FakeServer(key="sk-very-secret"))
    with pytest.raises(SupervisorRequestError, match="OPENAI_API_KEY"):
        connect(stack, server)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with caplog.at_level(logging.DEBUG):
        supervisor = connect(stack, server)
        check(random_prompts(2), supervisor.score(random_prompts(2)))
    assert "sk-very-secret" not in caplog.text


def test_the_base_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert default_base_url() == "http://localhost:8000/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://gpu:9000/v1")
    assert default_base_url() == "http://gpu:9000/v1"
    with pytest.raises(OptionError, match="http://"):
        Endpoint.open("gpu:9000/v1")


def test_several_base_urls_are_told_apart_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_urls("http://a/v1, http://b/v1/,") == ["http://a/v1", "http://b/v1"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://c/v1,http://d/v1")
    assert base_urls(None) == ["http://c/v1", "http://d/v1"]
    with pytest.raises(OptionError, match="twice"):
        base_urls("http://a/v1,http://a/v1/")
    with pytest.raises(OptionError, match="no URL"):
        base_urls(",")


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://127.0.0.1:80o0/v1", "80o0"),
        ("http://127.0.0.1:99999/v1", "port 99999, which is not between 1 and 65535"),
        ("http://:8000/v1", "no host"),
        ("http:///v1", "no host"),
    ],
)
def test_what_is_no_url_is_refused_before_anything_is_asked(url: str, found: str) -> None:
    with pytest.raises(OptionError, match=f"--base_url .*{found}.*expected one such as http"):
        Endpoint.open(url)


@pytest.mark.parametrize("key", ["sekret-123\n", "sekret ", "sekr\u00e9t"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_said(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(OptionError, match="OPENAI_API_KEY has") as caught:
        Endpoint.open("http://127.0.0.1:1/v1")
    assert "sekr" not in str(caught.value)


def test_a_base_url_that_is_no_such_server_says_so(stack: ExitStack) -> None:
    server = start(stack, FakeServer())
    with pytest.raises(SupervisorRequestError, match="404"):
        RemoteSupervisor(Endpoint.open(server.base_url.removesuffix("/v1")), MODEL, QUICK)


def test_closing_ends_what_is_under_way(stack: ExitStack) -> None:
    release = threading.Event()
    stack.callback(release.set)
    arrived = threading.Event()

    def hang(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if 666 in payload["prompt"][0]:
            arrived.set()
            release.wait(20)
        return None

    supervisor = connect(stack, start(stack, FakeServer(mischief=hang)))
    future = supervisor.submit([Prompt((0, 666, 7), 1)])
    assert arrived.wait(20)
    supervisor.close()
    assert future.cancelled() or future.exception() is not None


def test_options_that_cannot_work_are_refused() -> None:
    for name in ("concurrency", "prompts_per_request", "tokens_per_request", "attempts"):
        with pytest.raises(OptionError, match=name) as caught:
            ClientOptions(**{name: 0})
        assert ("--" in str(caught.value)) == (name == "concurrency"), "no flag that no command has"


def test_concurrency_is_a_number_or_found_out() -> None:
    assert (parse_concurrency("auto"), parse_concurrency("12")) == ("auto", 12)
    assert (ClientOptions().fixed_concurrency, ClientOptions(concurrency=3).fixed_concurrency) == (None, 3)
    for text in ("0", "-1", "many", "1.5", ""):
        with pytest.raises(OptionError, match="auto or a number"):
            parse_concurrency(text)
    for bad in ({"server_wait": -1.0}, {"recheck_after": 0.0}, {"canary_every": 0.0}, {"start_wait": -1.0}):
        with pytest.raises(OptionError, match=next(iter(bad))):
            ClientOptions(**bad)


def test_the_concurrency_is_found_out_by_default(stack: ExitStack) -> None:
    """Eight requests at first, and more as they bring more: this server takes as many as come."""

    def dawdle(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        time.sleep(0.03)
        return None

    server = start(stack, FakeServer(mischief=dawdle))
    supervisor = connect(stack, server, replace(QUICK, concurrency="auto", prompts_per_request=1))
    prompts = [Prompt((0, 1, number), 1) for number in range(5, 305)]
    check(prompts, supervisor.score(prompts))
    assert server.most_at_once > 8


def test_where_a_request_holds_one_prompt_a_gpu_is_not_kept_waiting_for_the_limit(stack: ExitStack) -> None:
    def dawdle(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        time.sleep(0.6)
        return None

    server = start(stack, FakeServer(formats={"vllm-generate"}, mischief=dawdle))
    supervisor = connect(stack, server, replace(QUICK, concurrency="auto"))
    prompts = random_prompts(64)
    check(prompts, supervisor.score(prompts))
    assert supervisor.format == "vllm-generate"
    assert server.most_at_once > 2 * FIRST_LIMIT, "which eight at first would not reach"


def test_requests_are_plain_json(stack: ExitStack) -> None:
    server = start(stack, FakeServer())
    connect(stack, server).score(random_prompts(3))
    assert json.loads(json.dumps(server.requests)) == server.requests

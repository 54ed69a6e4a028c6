from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from replug_client.errors import (
    OptionError,
    SupervisorError,
    SupervisorRequestError,
    SupervisorUnavailableError,
    UnreadableAnswerError,
    WrongAnswerError,
)
from replug_client.supervisor.canary import CANARY
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import base_urls, default_base_url, make_client
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.options import parse_concurrency
from replug_client.supervisor.protocol import Prompt, Score
from tests.supervisor.contract import random_prompts
from tests.supervisor.fake_server import MODEL, Body, FakeServer, Mischief, running

QUICK = ClientOptions(
    concurrency=4, prompts_per_request=4, attempts=3, first_wait=0.01, longest_wait=0.02, server_wait=0.3
)
Reply = tuple[int, Body] | None


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as exit_stack:
        yield exit_stack


def start(stack: ExitStack, server: FakeServer) -> FakeServer:
    stack.enter_context(running(server))
    return server


def connect(stack: ExitStack, server: FakeServer, options: ClientOptions = QUICK) -> RemoteSupervisor:
    return stack.enter_context(RemoteSupervisor(make_client(server.base_url), MODEL, options))


def check(prompts: Sequence[Prompt], scores: Sequence[Score]) -> None:
    for prompt, score in zip(prompts, scores, strict=True):
        assert score.log_likelihood == pytest.approx(sum(hashed_log_probs(prompt)), abs=1e-4)


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
        RemoteSupervisor(make_client(server.base_url), "other", QUICK)
    assert server.requests == []


def test_a_model_may_be_named_by_its_root(stack: ExitStack) -> None:
    server = start(stack, FakeServer())
    supervisor = stack.enter_context(RemoteSupervisor(make_client(server.base_url), "/models/fake", QUICK))
    assert supervisor.name == MODEL


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


def is_canary(payload: dict[str, Any]) -> bool:
    return any(tuple(ids) == CANARY.ids for ids in payload["prompt"])


def of_pairs(server: FakeServer) -> list[dict[str, Any]]:
    """The requests for pairs: not the probe's, and not those that hold a server against its canary."""
    return [request for request in server.requests if not is_canary(request)]


def times(count: int, reply: Callable[[], tuple[int, Body]], *, canaries_too: bool = False) -> Mischief:
    """Spoil the first ``count`` answers to requests for pairs; then the canaries' from then on, too."""
    lock = threading.Lock()
    seen = 0

    def spoil(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        nonlocal seen
        with lock:
            if is_canary(payload):
                return reply() if canaries_too and seen else None
            seen += 1
            return reply() if seen <= count else None

    return spoil


TRANSIENT: dict[str, tuple[int, Body]] = {
    "hang up": (0, None),
    "500": (500, {"error": {"message": "EngineCore encountered an issue"}}),
    "502 in HTML": (502, "<html>Bad Gateway</html>"),
    "503": (503, {"error": {"message": "queue full", "type": "Service Unavailable"}}),
    "503 with a text": (503, {"error": "scaling"}),
    "504": (504, ""),
    "429": (429, {"error": {"message": "slow down"}}),
    "408": (408, ""),
    "200 in HTML": (200, "<html>maintenance</html>"),
    "truncated JSON": (200, '{"choices": [{"ind'),
}


@pytest.mark.parametrize("reply", TRANSIENT.values(), ids=TRANSIENT)
def test_what_is_transient_is_asked_again(stack: ExitStack, reply: tuple[int, Body]) -> None:
    server = start(stack, FakeServer(mischief=times(2, lambda: reply)))
    prompts = random_prompts(4)
    supervisor = connect(stack, server)
    check(prompts, supervisor.score(prompts))
    assert len(of_pairs(server)) == 3


@pytest.mark.parametrize("reply", TRANSIENT.values(), ids=TRANSIENT)
def test_what_stays_broken_ends_in_a_typed_error_with_pair_server_and_mend(
    stack: ExitStack, reply: tuple[int, Body]
) -> None:
    server = start(stack, FakeServer(mischief=times(1000, lambda: reply)))
    supervisor = connect(stack, server)
    (prompt,) = random_prompts(1)
    with pytest.raises((SupervisorUnavailableError, UnreadableAnswerError)) as caught:
        supervisor.score([replace(prompt, label="example 3, passage 'p'")])
    for part in ("example 3, passage 'p'", server.base_url, "3 times", "python -m server check --base_url"):
        assert part in str(caught.value)
    assert len(of_pairs(server)) == QUICK.attempts


def test_no_server_at_all_says_how_to_start_one() -> None:
    with pytest.raises(SupervisorUnavailableError, match=r"127.0.0.1:1/v1/models.*python -m server --model"):
        RemoteSupervisor(make_client("http://127.0.0.1:1/v1"), MODEL, QUICK)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_the_request_itself_is_final(stack: ExitStack, status: int) -> None:
    server = start(stack, FakeServer(mischief=times(1000, lambda: (status, {"error": "Unauthorized"}))))
    supervisor = connect(stack, server)
    with pytest.raises(SupervisorRequestError, match=f"status {status}: Unauthorized"):
        supervisor.score(random_prompts(4))
    assert len(of_pairs(server)) == 1


def test_a_poisoned_prompt_is_named_and_its_neighbours_are_scored(stack: ExitStack) -> None:
    def refuse(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        poisoned = any(666 in ids for ids in payload["prompt"])
        return (400, {"error": {"message": "Token id 666 is out of vocabulary"}}) if poisoned else None

    supervisor = connect(stack, start(stack, FakeServer(mischief=refuse)))
    clean = [Prompt((0, 1, number), 1, f"clean {number}") for number in range(5, 16)]
    prompts = [*clean[:6], Prompt((0, 666, 7), 1, "example 9, passage 'p'"), *clean[6:]]
    handed: dict[int, Score] = {}

    def take(positions: Sequence[int], scores: Sequence[Score]) -> None:
        handed.update(zip(positions, scores, strict=True))

    with pytest.raises(SupervisorRequestError, match=r"example 9, passage 'p': .*Token id 666"):
        supervisor.submit(prompts, take).result()
    assert sorted(handed) == [position for position in range(12) if position != 6]
    check(clean, [handed[position] for position in sorted(handed)])


def wrong(body: Body, kind: str) -> Body:
    """The answer with what is wrong in its last choice alone."""
    assert isinstance(body, dict)
    choice = body["choices"][-1]
    rows = choice["prompt_logprobs"]
    if kind == "[null]":
        choice["prompt_logprobs"] = [None]
    elif kind == "NaN":
        rows[-1] = {token: entry | {"logprob": float("nan")} for token, entry in rows[-1].items()}
    elif kind == "length":
        del rows[-1]
    elif kind == "ids":
        rows[-1] = {"99999": {"logprob": -1.0}}
    elif kind == "abort":
        choice["finish_reason"] = "abort"
    return body


@pytest.mark.parametrize("kind", ["[null]", "NaN", "length", "ids", "abort"])
def test_a_wrong_answer_that_passes_costs_one_more_question_for_that_prompt_alone(
    stack: ExitStack, kind: str
) -> None:
    spoilt: list[list[int]] = []

    def spoil(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if is_canary(payload) or spoilt:
            return None
        spoilt.append(payload["prompt"][-1])
        return 200, wrong(body, kind)

    server = start(stack, FakeServer(mischief=spoil))
    prompts = random_prompts(4)
    check(prompts, connect(stack, server).score(prompts))
    assert [request["prompt"] for request in of_pairs(server)][1:] == [spoilt]


def test_a_time_out_is_asked_for_again_in_halves(stack: ExitStack) -> None:
    release = threading.Event()
    stack.callback(release.set)

    def hang(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if len(payload["prompt"]) == 4:
            release.wait(20)
        return None

    server = start(stack, FakeServer(mischief=hang))
    client = make_client(server.base_url, timeout=0.5)
    supervisor = stack.enter_context(RemoteSupervisor(client, MODEL, QUICK))
    prompts = random_prompts(4)
    check(prompts, supervisor.score(prompts))
    assert [len(request["prompt"]) for request in of_pairs(server)] == [4, 2, 2]


def test_what_fails_again_and_again_is_halved_until_the_culprit_stands_alone(stack: ExitStack) -> None:
    def choke(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        return (500, {"error": "KeyError"}) if any(666 in ids for ids in payload["prompt"]) else None

    server = start(stack, FakeServer(mischief=choke))
    supervisor = connect(stack, server, replace(QUICK, attempts=6))
    prompts = [Prompt((0, 666, 7), 1, "example 9, passage 'p'"), *random_prompts(3)]
    handed: list[int] = []
    with pytest.raises(SupervisorUnavailableError, match=r"example 9, passage 'p'.*KeyError"):
        supervisor.submit(prompts, lambda positions, _: handed.extend(positions)).result()
    assert sorted(handed) == [1, 2, 3]


def test_a_server_that_does_nothing_right_ends_a_submission_before_all_of_it_is_asked_for(
    stack: ExitStack,
) -> None:
    server = start(stack, FakeServer(mischief=times(10**6, lambda: (500, {"error": "broken"}))))
    supervisor = connect(stack, server)
    with pytest.raises(SupervisorUnavailableError, match="broken"):
        supervisor.score(random_prompts(200))
    asked = {json.dumps(ids) for request in of_pairs(server) for ids in request["prompt"]}
    assert len(asked) < 100


def test_a_wrong_answer_for_one_prompt_leaves_the_others(stack: ExitStack) -> None:
    def spoil(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if isinstance(body, dict):
            for choice, ids in zip(body["choices"], payload["prompt"], strict=True):
                if 666 in ids:
                    choice["prompt_logprobs"][-1] = {"7": {"logprob": float("nan")}}
            return 200, body
        return None

    supervisor = connect(stack, start(stack, FakeServer(mischief=spoil)))
    prompts = [Prompt((0, 666, 7), 1, "the spoilt pair"), *random_prompts(5)]
    handed: list[int] = []
    with pytest.raises(WrongAnswerError, match="the spoilt pair: nan is no log-prob"):
        supervisor.submit(prompts, lambda positions, _: handed.extend(positions)).result()
    assert sorted(handed) == [1, 2, 3, 4, 5]


def test_only_the_aborted_prompts_of_a_request_are_asked_again(stack: ExitStack) -> None:
    aborted: list[list[int]] = []

    def abort(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if isinstance(body, dict) and len(payload["prompt"]) == 4 and not aborted:
            body["choices"][2]["finish_reason"] = "abort"
            aborted.append(payload["prompt"][2])
        return 200, body

    server = start(stack, FakeServer(mischief=abort))
    supervisor = connect(stack, server)
    prompts = random_prompts(4)
    check(prompts, supervisor.score(prompts))
    assert server.requests[-1]["prompt"] == aborted


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
        make_client("gpu:9000/v1")


def test_several_base_urls_are_told_apart_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_urls("http://a/v1, http://b/v1/,") == ["http://a/v1", "http://b/v1"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://c/v1,http://d/v1")
    assert base_urls(None) == ["http://c/v1", "http://d/v1"]
    with pytest.raises(OptionError, match="twice"):
        base_urls("http://a/v1,http://a/v1/")
    with pytest.raises(OptionError, match="no URL"):
        base_urls(",")


def test_a_base_url_that_is_no_such_server_says_so(stack: ExitStack) -> None:
    server = start(stack, FakeServer())
    with pytest.raises(SupervisorRequestError, match="404"):
        RemoteSupervisor(make_client(server.base_url.removesuffix("/v1")), MODEL, QUICK)


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
        with pytest.raises(OptionError, match=name):
            ClientOptions(**{name: 0})


def test_concurrency_is_a_number_or_found_out() -> None:
    assert (parse_concurrency("auto"), parse_concurrency("12")) == ("auto", 12)
    assert (ClientOptions().fixed_concurrency, ClientOptions(concurrency=3).fixed_concurrency) == (None, 3)
    for text in ("0", "-1", "many", "1.5", ""):
        with pytest.raises(OptionError, match="auto or a number"):
            parse_concurrency(text)
    for bad in ({"server_wait": -1.0}, {"recheck_after": 0.0}):
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


def test_requests_are_plain_json(stack: ExitStack) -> None:
    server = start(stack, FakeServer())
    connect(stack, server).score(random_prompts(3))
    assert json.loads(json.dumps(server.requests)) == server.requests

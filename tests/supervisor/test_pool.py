"""Several servers: who gets work, who is gone, and who is back."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from replug_client.errors import OptionError, SupervisorUnavailableError
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.canary import CANARY
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from tests.supervisor.client_tools import check
from tests.supervisor.contract import random_prompts
from tests.supervisor.fake_server import MODEL, Body, FakeServer, running
from tests.supervisor.pool_tools import (
    QUICK,
    Breakable,
    Watched,
    connect,
    eventually,
    other_model,
    servers,
    started,
)


def test_all_servers_work_and_each_prompt_is_asked_once(stack: ExitStack) -> None:
    pool = servers(stack, 3)
    prompts = random_prompts(60)
    check(prompts, connect(stack, pool).score(prompts))
    assert all(server.pairs for server in pool)
    asked = [ids for server in pool for ids in server.pairs]
    assert sorted(asked) == sorted(prompt.ids for prompt in prompts)


def test_a_few_short_prompts_are_shared_out_though_they_would_fit_into_one_request(stack: ExitStack) -> None:
    pool = servers(stack, 3)
    prompts = random_prompts(12)
    check(prompts, connect(stack, pool, replace(QUICK, prompts_per_request=64)).score(prompts))
    assert [len(server.pairs) for server in pool] == [4, 4, 4]


def test_a_slow_server_gets_less(stack: ExitStack) -> None:
    slow, quick = servers(stack, 2)
    answer = slow.complete

    def dawdle(payload: dict[str, Any]) -> tuple[int, Body]:
        time.sleep(0.1)
        return answer(payload)

    slow.complete = dawdle  # type: ignore[method-assign]
    supervisor = connect(stack, [slow, quick])
    check(random_prompts(60), supervisor.score(random_prompts(60)))
    assert 0 < len(slow.pairs) < len(quick.pairs)


def test_servers_of_different_models_are_refused(stack: ExitStack) -> None:
    pool = [*servers(stack, 1), stack.enter_context(started(Breakable(log_probs=other_model)))]
    with pytest.raises(OptionError, match=r"serve different models: .* differ by 0\.\d+ nats") as caught:
        connect(stack, pool)
    assert all(server.base_url in str(caught.value) for server in pool)


def test_the_shortest_limit_of_all_counts(stack: ExitStack) -> None:
    pool = [*servers(stack, 1), stack.enter_context(started(Breakable(max_model_len=100)))]
    assert connect(stack, pool).max_prompt_tokens == 99


def test_a_format_that_one_of_them_lacks_is_not_taken(stack: ExitStack) -> None:
    pool = [*servers(stack, 1), stack.enter_context(started(Breakable(formats={"openai-echo"})))]
    supervisor = connect(stack, pool)
    assert supervisor.format == "openai-echo"
    check(random_prompts(8), supervisor.score(random_prompts(8)))


def test_servers_of_which_none_is_there_at_the_start_are_an_error_soon() -> None:
    clients = [Endpoint.open(f"http://127.0.0.1:{port}/v1") for port in (1, 2)]
    with pytest.raises(SupervisorUnavailableError, match=r"127.0.0.1:1/v1/models.*--server_wait SECONDS"):
        RemoteSupervisor(clients, MODEL, QUICK)


class Loading(Breakable):
    """Says 503 until it is ready."""

    ready = False

    def models(self) -> tuple[int, Body]:
        return super().models() if self.ready else (503, {"error": "loading"})


def test_a_server_that_is_not_there_at_the_start_is_taken_in_when_it_is(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    (there,) = servers(stack, 1)
    late = stack.enter_context(started(Loading()))
    assert isinstance(late, Loading)
    supervisor = connect(stack, [late, there])
    prompts = random_prompts(40)
    check(prompts, supervisor.score(prompts))
    assert not late.pairs
    assert f"{late.base_url}/models: status 503: loading; going on without it" in caplog.text
    late.ready = True
    eventually(lambda: f"{late.base_url} is back" in caplog.text)
    check(prompts, supervisor.score(prompts))
    assert late.pairs


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"log_probs": other_model}, "serves another model"), ({"max_model_len": 100}, "--max-model-len 257")],
    ids=["another model", "shorter prompts"],
)
def test_a_late_server_that_is_not_as_the_others_gets_no_work(
    stack: ExitStack, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], reason: str
) -> None:
    (there,) = servers(stack, 1)
    late = stack.enter_context(started(Loading(**settings)))
    assert isinstance(late, Loading)
    supervisor = connect(stack, [there, late])
    late.ready = True
    eventually(lambda: any(reason in r.getMessage() and r.levelname == "ERROR" for r in caplog.records))
    check(random_prompts(8), supervisor.score(random_prompts(8)))
    assert not late.pairs


@pytest.mark.parametrize("status", [500, 502, 503, 0], ids=str)
def test_a_server_that_lists_its_model_but_does_not_score_is_left_out_until_it_does(
    status: int, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    (there,) = servers(stack, 1)
    sick = FakeServer(mischief=lambda *_: (status, {"error": "engine dead"}) if status else (0, None))
    stack.enter_context(running(sick))
    supervisor = connect(stack, [sick, there])
    prompts = random_prompts(40)
    check(prompts, supervisor.score(prompts))
    assert supervisor.format == "vllm"
    assert f"{sick.base_url}/completions" in caplog.text and "going on without it" in caplog.text
    sick.mischief = None
    eventually(lambda: f"{sick.base_url} is back" in caplog.text)


def test_a_late_server_that_answers_something_else_is_mentioned(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    (there,) = servers(stack, 1)
    late = stack.enter_context(started(Loading(formats={"openai-echo"})))
    assert isinstance(late, Loading)
    supervisor = connect(stack, [there, late])
    late.ready = True
    eventually(lambda: f"{late.base_url} is not taken in: " in caplog.text)
    check(random_prompts(8), supervisor.score(random_prompts(8)))
    eventually(lambda: len(late.requests) > 2)
    assert caplog.text.count(f"{late.base_url} is not taken in: ") == 1


def test_an_answer_of_a_server_that_is_gone_since_is_asked_of_another(stack: ExitStack) -> None:
    """One connection breaks, the server never comes back, and another answer was on its way by then."""
    armed, guard, count = False, threading.Lock(), 0

    def dies(_: FakeServer, payload: dict[str, Any], body: Body) -> tuple[int, Body] | None:
        nonlocal count
        if not armed:
            return None
        if tuple(payload["prompt"][0]) == CANARY.ids:
            return 0, None
        with guard:
            count += 1
            first = count == 1
        if first:
            return 0, None
        time.sleep(0.3)
        return None

    (there,) = servers(stack, 1)
    dying = FakeServer(mischief=dies)
    stack.enter_context(running(dying))
    supervisor = connect(stack, [there, dying])
    armed = True
    prompts = random_prompts(100)
    check(prompts, supervisor.submit(prompts).result(20))


def test_a_request_that_was_alone_at_a_server_that_stays_away_is_asked_of_another(stack: ExitStack) -> None:
    """It died, came back, and died for good under the request that it was given alone."""
    armed, asked, back = False, 0, False

    def flaps(_: FakeServer, payload: dict[str, Any], body: Body) -> tuple[int, Body] | None:
        nonlocal asked, back
        if not armed:
            return None
        if tuple(payload["prompt"][0]) == CANARY.ids:
            asked += 1
            back = asked == 4  # gone after two failures; back once
            return None if back else (0, None)
        time.sleep(0.02)
        return 0, None

    slow = FakeServer(mischief=lambda *_: time.sleep(0.5))  # type: ignore[func-returns-value]
    flapping = FakeServer(mischief=flaps)
    for server in (slow, flapping):
        stack.enter_context(running(server))
    supervisor = connect(stack, [slow, flapping])
    armed = True
    prompts = random_prompts(24)
    check(prompts, supervisor.submit(prompts).result(30))
    assert asked > 4


def test_a_first_server_that_is_still_loading_is_waited_for_where_asked_to(
    stack: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replug_client.supervisor.probe._START_WAIT", 0.05)
    late = stack.enter_context(started(Loading()))
    assert isinstance(late, Loading)
    with pytest.raises(SupervisorUnavailableError, match="503: loading"):
        connect(stack, [late], replace(QUICK, start_wait=0.1))

    def get_ready() -> None:
        eventually(lambda: caplog.text.count("waiting up to 20 s") == 1)
        late.ready = True

    threading.Thread(target=get_ready).start()
    supervisor = connect(stack, [late], replace(QUICK, start_wait=20))
    check(random_prompts(4), supervisor.score(random_prompts(4)))


def test_work_goes_on_while_one_lives_and_the_other_is_taken_back(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = servers(stack, 2)
    first.let_through = 3
    supervisor = connect(stack, [first, second])
    prompts = random_prompts(80)
    with caplog.at_level(logging.WARNING):
        check(prompts, Watched(supervisor, [first]).submit(prompts).result(timeout=20))
        asked = [*first.pairs, *second.pairs]
        assert sorted(asked) == sorted(prompt.ids for prompt in prompts), "nothing received is asked again"
        eventually(lambda: f"{first.base_url} is gone" in caplog.text)
        first.down = False
        eventually(lambda: f"{first.base_url} is back" in caplog.text)
    before = len(first.pairs)
    check(prompts, supervisor.score(prompts))
    assert len(first.pairs) > before


def test_with_none_left_it_waits_says_so_once_and_goes_on(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    (server,) = servers(stack, 1)
    server.let_through = 2
    supervisor = connect(stack, [server])
    prompts = random_prompts(20)
    with caplog.at_level(logging.WARNING):
        future = supervisor.submit(prompts)
        eventually(lambda: "no supervisor is left" in caplog.text)
        assert not future.done()
        server.down = False
        check(prompts, future.result(timeout=20))
    assert caplog.text.count("no supervisor is left") == 1
    assert "waiting up to 20 s" in caplog.text
    assert sorted(server.pairs) == sorted(prompt.ids for prompt in prompts)


def test_the_wait_is_bounded_and_what_was_scored_is_kept(stack: ExitStack) -> None:
    first, second = servers(stack, 2)
    first.let_through = second.let_through = 4
    remote = connect(stack, [first, second], replace(QUICK, server_wait=0.2))
    cache = ScoreCache(None)
    supervisor = CachedSupervisor(Watched(remote, [first, second]), cache)
    prompts = random_prompts(60)
    with pytest.raises(SupervisorUnavailableError, match=r"no supervisor came back in 0\.2 s") as caught:
        supervisor.score(prompts)
    for part in (first.base_url, second.base_url, "--resume", "--server_wait"):
        assert part in str(caught.value)
    assert len(cache) == len(first.pairs) + len(second.pairs) == 16
    with pytest.raises(SupervisorUnavailableError, match="no supervisor came back"):
        supervisor.score(prompts)
    first.down = False
    first.let_through = -1
    deadline = time.monotonic() + 20
    while True:
        try:
            check(prompts, supervisor.score(prompts))
            break
        except SupervisorUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert len(first.pairs) + len(second.pairs) == 60

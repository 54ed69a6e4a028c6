"""Is it still the same model: the canary at work, at the end, and after a break."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replug_client.errors import SupervisorChangedError, SupervisorUnavailableError
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.canary import CANARY
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.protocol import Prompt
from tests.supervisor.client_tools import check
from tests.supervisor.contract import random_prompts
from tests.supervisor.fake_server import MODEL, Body, FakeServer, running
from tests.supervisor.pool_tools import QUICK, connect, eventually, other_model, servers


def test_another_model_under_the_same_name_ends_it_and_none_of_its_scores_is_kept(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    server.let_through = 3
    cache = ScoreCache(None)
    supervisor = CachedSupervisor(connect(stack, [server]), cache)
    prompts = random_prompts(40)
    future = supervisor.submit(prompts)
    eventually(lambda: server.down)
    server.log_probs = other_model
    server.down = False
    with pytest.raises(
        SupervisorChangedError, match="serves another model under the name 'fake-lm'"
    ) as caught:
        future.result(timeout=20)
    assert server.base_url in str(caught.value)
    assert len(cache) == 0, (
        "when the model was exchanged is not known, only that it was since the last canary"
    )
    server.log_probs = hashed_log_probs
    second = CachedSupervisor(connect(stack, [server]), cache)
    check(prompts, second.score(prompts))


def test_another_model_at_one_of_two_leaves_the_work_to_the_other(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = servers(stack, 2)
    first.let_through = 3
    supervisor = connect(stack, [first, second])
    prompts = random_prompts(60)
    future = supervisor.submit(prompts)
    eventually(lambda: first.down)
    first.log_probs = other_model
    first.down = False
    check(prompts, future.result(timeout=20))
    eventually(lambda: "serves another model" in caplog.text)
    before = len(first.pairs)
    check(prompts, supervisor.score(prompts))
    assert len(first.pairs) == before


def test_a_server_exchanged_while_nobody_asked_is_noticed(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    supervisor = connect(stack, [server], replace(QUICK, recheck_after=0.01))
    check(random_prompts(4), supervisor.score(random_prompts(4)))
    server.log_probs = other_model
    time.sleep(0.02)
    with pytest.raises(SupervisorChangedError):
        supervisor.score(random_prompts(4))


def test_a_server_that_answers_is_not_held_against_its_canary_each_time(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    supervisor = connect(stack, [server])
    for _ in range(5):
        supervisor.score(random_prompts(4))
    assert canaries(server) == 2  # the probe's


def test_another_model_behind_an_unbroken_connection_is_noticed_while_it_works(stack: ExitStack) -> None:
    (server,) = servers(stack, 1)
    cache = ScoreCache(None)
    supervisor = CachedSupervisor(connect(stack, [server], replace(QUICK, canary_every=0.01)), cache)
    good = random_prompts(20, seed=1)
    check(good, supervisor.score(good))
    eventually(lambda: canaries(server) > 2)  # they are proved, or will be by a canary before the exchange
    seen = canaries(server)
    while canaries(server) < seen + 2:
        time.sleep(0.02)
        supervisor.score(random_prompts(1, seed=seen + len(server.requests)))
    server.log_probs = other_model
    foreign = random_prompts(400, seed=2)
    with pytest.raises(SupervisorChangedError, match="differs by"):
        supervisor.score(foreign)
    server.log_probs = hashed_log_probs
    second = CachedSupervisor(connect(stack, [server]), cache)
    check([*good, *foreign], second.score([*good, *foreign]))
    assert second.stats.hits >= len(good)


def test_another_model_behind_an_unbroken_connection_is_noticed_at_the_end(
    stack: ExitStack, tmp_path: Path
) -> None:
    (server,) = servers(stack, 1)
    supervisor = CachedSupervisor(connect(stack, [server]), ScoreCache(tmp_path / "scores.sqlite"))
    server.log_probs = other_model
    supervisor.score(random_prompts(20))
    assert canaries(server) == 2, "it did not take long enough for one in between"
    with pytest.raises(SupervisorChangedError):
        supervisor.close()
    assert len(ScoreCache(tmp_path / "scores.sqlite")) == 0


def test_a_canary_that_fails_once_is_asked_again_and_decides_nothing(
    stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    (server,) = servers(stack, 1)
    cache = ScoreCache(None)
    supervisor = CachedSupervisor(connect(stack, [server], replace(QUICK, recheck_after=0.01)), cache)
    prompts = random_prompts(8)
    check(prompts[:4], supervisor.score(prompts[:4]))
    answer, left = server.complete, iter([other_model, other_model])

    def waver(payload: dict[str, Any]) -> tuple[int, Body]:
        server.log_probs = next(left, hashed_log_probs)
        return answer(payload)

    server.complete = waver  # type: ignore[method-assign]
    time.sleep(0.02)
    check(prompts, supervisor.score(prompts))
    assert caplog.text.count("asked") == 2
    assert len(cache) == 8


def canaries(server: FakeServer) -> int:
    return sum(any(tuple(i) == CANARY.ids for i in request["prompt"]) for request in server.requests)


def test_an_answer_of_a_server_in_doubt_is_held_back_until_it_passes_the_canary(stack: ExitStack) -> None:
    """One connection breaks while another, to what is a new server by now, brings an answer of another model."""
    both = threading.Barrier(2, timeout=20)
    broken = threading.Event()

    def swap(server: FakeServer, payload: dict[str, Any], body: Body) -> tuple[int, Body] | None:
        if any(tuple(ids) == CANARY.ids for ids in payload["prompt"]):
            return None
        server.log_probs = other_model
        both.wait()  # two requests are in flight; one is broken off, the other is answered by the new model
        if any(666 in ids for ids in payload["prompt"]):
            broken.set()
            return 0, None
        broken.wait(20)
        time.sleep(0.2)  # the client has seen the break by now
        return server._complete(payload)

    server = stack.enter_context(running(FakeServer(mischief=None)))
    options = replace(QUICK, prompts_per_request=1)
    supervisor = stack.enter_context(RemoteSupervisor(Endpoint.open(server.base_url), MODEL, options))
    server.mischief = swap
    handed: list[int] = []
    with pytest.raises(SupervisorChangedError):
        supervisor.submit(
            [Prompt((0, 666, 7), 1), Prompt((0, 5, 7), 1)], lambda positions, _: handed.extend(positions)
        ).result(timeout=20)
    assert handed == []


def test_a_defect_in_the_check_of_a_server_does_not_leave_work_waiting_for_ever(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def defective(*_: object) -> None:
        raise KeyError("a defect")

    monkeypatch.setattr("replug_client.supervisor.client.check_unchanged", defective)
    (server,) = servers(stack, 1)
    server.let_through = 1
    supervisor = connect(stack, [server], replace(QUICK, server_wait=0.1))
    with pytest.raises(SupervisorUnavailableError, match="a defect"):
        supervisor.score(random_prompts(8))

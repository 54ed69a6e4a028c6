"""Several servers: who gets work, who is gone, who is back, and who is another one by then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replug_client.errors import OptionError, SupervisorChangedError, SupervisorUnavailableError
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.canary import CANARY
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import make_client
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.protocol import Prompt, Score
from tests.supervisor.contract import random_prompts
from tests.supervisor.fake_server import MODEL, Body, FakeServer, running

QUICK = ClientOptions(
    concurrency=2, prompts_per_request=2, attempts=4, first_wait=0.01, longest_wait=0.02, server_wait=20.0
)


class Breakable(FakeServer):
    """A server that can be cut off: it then hangs up on every request, and counts those for the canary apart."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.down = False
        self.let_through = -1  # so many requests for pairs, and then it is down
        self.pairs: list[tuple[int, ...]] = []
        self.mischief = Breakable._break
        self._guard = threading.Lock()

    @staticmethod
    def _break(server: FakeServer, payload: dict[str, Any], body: Body) -> tuple[int, Body] | None:
        assert isinstance(server, Breakable)
        canary = any(tuple(ids) == CANARY.ids for ids in payload["prompt"])
        with server._guard:
            if not canary and not server.down:
                server.down = server.let_through == 0
                server.let_through -= 1
            if server.down:
                return 0, None
            if not canary:
                server.pairs += map(tuple, payload["prompt"])
        return None


def other_model(prompt: Prompt) -> list[float]:
    return [value * 0.9 for value in hashed_log_probs(prompt)]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as exit_stack:
        yield exit_stack


def servers(stack: ExitStack, count: int) -> list[Breakable]:
    return [stack.enter_context(started(Breakable())) for _ in range(count)]


@contextmanager
def started(server: Breakable) -> Iterator[Breakable]:
    with running(server):
        yield server


def connect(stack: ExitStack, pool: Sequence[FakeServer], options: ClientOptions = QUICK) -> RemoteSupervisor:
    clients = [make_client(server.base_url, timeout=20) for server in pool]
    return stack.enter_context(RemoteSupervisor(clients, MODEL, options))


def check(prompts: Sequence[Prompt], scores: Sequence[Score]) -> None:
    for prompt, score in zip(prompts, scores, strict=True):
        assert score.log_likelihood == pytest.approx(sum(hashed_log_probs(prompt)), abs=1e-4)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_servers_work_and_each_prompt_is_asked_once(stack: ExitStack) -> None:
    pool = servers(stack, 3)
    prompts = random_prompts(60)
    check(prompts, connect(stack, pool).score(prompts))
    assert all(server.pairs for server in pool)
    asked = [ids for server in pool for ids in server.pairs]
    assert sorted(asked) == sorted(prompt.ids for prompt in prompts)


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
    clients = [make_client(f"http://127.0.0.1:{port}/v1") for port in (1, 2)]
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
        check(prompts, supervisor.score(prompts))
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
    supervisor = CachedSupervisor(remote, cache)
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
    supervisor = stack.enter_context(RemoteSupervisor(make_client(server.base_url), MODEL, options))
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

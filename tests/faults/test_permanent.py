"""Whatever does not pass ends in a typed error that names the pair, the server and the mend; the rest is kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event, Timer
from typing import Any

import pytest

from replug_client.errors import ReplugError, SupervisorChangedError, SupervisorError
from replug_client.supervisor.cache import ScoreCache, ScoreCacheError, cache_key
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.protocol import Prompt
from server.options import WatchOptions
from tests.faults.faults import Fault
from tests.faults.proxy import Counts, FaultProxy
from tests.faults.setting import MARK, check_exact, connect, quick
from tests.supervisor.contract import random_prompts
from tests.supervisor.fake_server import Body, FakeServer, running

PERMANENT = [fault for fault in Fault if fault not in (Fault.STALE, Fault.DRIP)]  # these two cost time alone
PAIR = "example 9, passage 'the odd one'"
MEND = re.compile(r"--\w+|python -m server|server's log|restart", re.IGNORECASE)


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with running(FakeServer()) as server, FaultProxy(server.base_url) as between:
        yield between
    assert server.complaints == []


def cached(proxy: FaultProxy, folder: Path, **options: object) -> CachedSupervisor:
    supervisor = connect(proxy.base_url, quick(**({"server_wait": 2} | options)))
    return CachedSupervisor(supervisor, ScoreCache(folder / "scores.sqlite"))


def with_the_odd_one(prompts: list[Prompt]) -> list[Prompt]:
    """One prompt in the middle holds the mark; no other does."""
    assert all(MARK not in prompt.ids for prompt in prompts)
    middle = len(prompts) // 2
    neighbour = prompts[middle]  # of its length, so that they share a request
    odd = Prompt((*neighbour.ids[:2], MARK, *neighbour.ids[3:]), neighbour.num_continuation, PAIR)
    return [*prompts[:middle], odd, *prompts[middle:]]


def kept(supervisor: CachedSupervisor, folder: Path, prompts: list[Prompt]) -> list[Prompt]:
    """Those of the prompts whose score is on disk, each of them checked."""
    cache = ScoreCache(folder / "scores.sqlite")
    keys = [cache_key(supervisor.fingerprint, prompt) for prompt in prompts]
    found = cache.get(keys)
    cache.close()
    present = [(prompt, found[key]) for prompt, key in zip(prompts, keys, strict=True) if key in found]
    check_exact([prompt for prompt, _ in present], [score for _, score in present])
    return [prompt for prompt, _ in present]


@pytest.mark.parametrize("fault", PERMANENT, ids=str)
def test_a_prompt_that_always_fails_is_named_and_its_neighbours_are_kept(
    fault: Fault, proxy: FaultProxy, tmp_path: Path
) -> None:
    others = random_prompts(24, seed=7)
    with cached(proxy, tmp_path, attempts=3) as supervisor:
        proxy.inject(fault, rate=1.0, mark=MARK)
        with pytest.raises(SupervisorError) as caught:
            supervisor.score(with_the_odd_one(others))
        message = str(caught.value)
        assert PAIR in message
        assert proxy.base_url in message
        assert MEND.search(message), message
        assert proxy.counts.faults[fault] >= 1
        assert kept(supervisor, tmp_path, others) == others
        proxy.inject(rate=0)
        proxy.counts = Counts()
        check_exact(with_the_odd_one(others), supervisor.score(with_the_odd_one(others)))
        assert proxy.counts.asked.total() <= 3, "the odd one alone, and perhaps a canary"


@pytest.mark.parametrize("fault", [Fault.STATUS_500, Fault.NULL, Fault.RESET, Fault.HTML], ids=str)
def test_of_a_large_request_none_but_the_one_that_fails_is_lost(
    fault: Fault, proxy: FaultProxy, tmp_path: Path
) -> None:
    others = [
        Prompt((*range(4, 40), 700 + number), 5, f"innocent {number}") for number in range(191)
    ]  # all of one length: requests of 64, which halving alone does not bring down to one
    prompts = with_the_odd_one(others)
    with cached(proxy, tmp_path, prompts_per_request=64) as supervisor:
        proxy.inject(fault, rate=1.0, mark=MARK)
        with pytest.raises(SupervisorError) as caught:
            supervisor.score(prompts)
        assert PAIR in str(caught.value) and "innocent" not in str(caught.value)
        assert kept(supervisor, tmp_path, others) == others


@pytest.mark.parametrize("prompts_per_request", [1, 4])
def test_a_prompt_that_kills_the_server_is_alone_before_the_launcher_gives_up(
    prompts_per_request: int, tmp_path: Path
) -> None:
    others = random_prompts(60, seed=13)
    options = {"server_wait": 20, "prompts_per_request": prompts_per_request}
    deaths = 0

    def die(server: FakeServer, payload: dict[str, Any], body: Body) -> None:
        nonlocal deaths
        if any(MARK in ids for ids in payload["prompt"]):
            deaths += 1
            proxy.down()
            Timer(0.5, proxy.up).start()

    with (
        running(FakeServer(mischief=die)) as server,
        FaultProxy(server.base_url) as proxy,
        cached(proxy, tmp_path, **options) as supervisor,
    ):
        with pytest.raises(SupervisorError, match="server was gone") as caught:
            supervisor.score(with_the_odd_one(others))
        message = str(caught.value)
        assert PAIR in message and proxy.base_url in message and MEND.search(message), message
        assert kept(supervisor, tmp_path, others) == others
    assert deaths <= WatchOptions().restarts


def test_a_server_that_stays_away_keeps_what_was_scored(proxy: FaultProxy, tmp_path: Path) -> None:
    prompts = random_prompts(200, seed=8)
    begun = Event()
    with cached(proxy, tmp_path, server_wait=1) as supervisor:
        future = supervisor.submit(prompts, lambda *_: begun.set())
        assert begun.wait(20)
        proxy.down()
        with pytest.raises(SupervisorError, match=proxy.base_url):
            future.result(60)
        there = kept(supervisor, tmp_path, prompts)
        assert 0 < len(there) < len(prompts)
    proxy.up()
    with cached(proxy, tmp_path) as resumed:
        proxy.counts = Counts()
        check_exact(prompts, resumed.score(prompts))
        assert all(proxy.counts.asked[prompt.ids] == 0 for prompt in there)


@pytest.mark.parametrize("away", [0.0, 1.0], ids=["at once", "after a while"])
def test_another_model_behind_the_same_name_is_noticed_after_a_restart(
    away: float, proxy: FaultProxy, tmp_path: Path
) -> None:
    def other(prompt: Prompt) -> list[float]:
        return [value * 0.9 for value in hashed_log_probs(prompt)]

    prompts = random_prompts(200, seed=9)
    begun, pause = Event(), Event()
    with (
        running(FakeServer(log_probs=other)) as impostor,
        cached(proxy, tmp_path, server_wait=30) as supervisor,
    ):
        future = supervisor.submit(prompts, lambda *_: begun.set())
        assert begun.wait(20)
        proxy.down()
        proxy.target = impostor.base_url
        pause.wait(away)
        proxy.up()
        with pytest.raises(SupervisorChangedError) as caught:
            future.result(60)
        message = str(caught.value)
        assert proxy.base_url in message and MEND.search(message), message
        assert kept(supervisor, tmp_path, prompts) == [], "nothing that came since the last canary"


def test_a_full_disk_is_said_and_what_was_put_before_is_not_asked_again(
    proxy: FaultProxy, tmp_path: Path
) -> None:
    prompts = random_prompts(60, seed=10)
    with cached(proxy, tmp_path) as supervisor:
        check_exact(prompts[:20], supervisor.score(prompts[:20]))
        connection = supervisor._cache._connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages + 1}")  # SQLite then says what a full disk says
        with pytest.raises(ReplugError, match=r"full.*--cache_dir") as caught:
            supervisor.score(
                [replace(p, num_continuation=len(p.ids) - 1) for p in random_prompts(400, seed=11)]
            )
        assert isinstance(caught.value, ScoreCacheError)
        proxy.counts = Counts()
        check_exact(prompts[:20], supervisor.score(prompts[:20]))
        assert proxy.counts.requests == 0


def test_a_cache_that_is_damaged_while_it_is_used_costs_scores_and_no_run(
    proxy: FaultProxy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = random_prompts(300, seed=12)
    with cached(proxy, tmp_path) as supervisor:
        supervisor.score(prompts)
    path = tmp_path / "scores.sqlite"
    data = bytearray(path.read_bytes())
    for start in range(4096 * 4, len(data), 4096):
        data[start : start + 200] = bytes(200)  # the header of each page but the first ones
    path.write_bytes(data)
    with cached(proxy, tmp_path) as supervisor:
        check_exact(prompts, supervisor.score(prompts))
        check_exact(prompts, supervisor.score(prompts))
    assert "is damaged" in caplog.text
    assert list(tmp_path.glob("*.damaged-*"))

"""Servers as a program starts them, and what makes the watch begin anew; with a stand-in for vLLM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from server import process
from server.errors import ServerError
from server.fleet import Fleet, StopRequest, serving
from server.options import ServeOptions, WatchOptions
from server.plan import Plan
from server.probe import served_models
from server.replica import Replica, State
from server.serve import announce, make_plan
from tests.server.conftest import ROOT, Bench, alive, free_port, wait_until


def planned(bench: Bench, environ: dict[str, str], **more: Any) -> Plan:
    options = ServeOptions(str(bench.model), **{"port": free_port(), **more})
    return make_plan(options, str(bench.python), environ)[0]


def watched(bench: Bench, options: WatchOptions, act: Callable[[list[str]], None]) -> list[str]:
    """Watch a server while ``act`` does things in a thread; then end it. What the screen showed."""
    environ, screen, stop = bench.environment(), list[str](), StopRequest()
    fleet = Fleet(planned(bench, environ), environ, options, screen.append)

    def run() -> None:
        try:
            act(screen)
        finally:
            stop(signal.SIGTERM)

    with ThreadPoolExecutor(1) as pool:
        try:
            assert fleet.start(stop)
            acting = pool.submit(run)
            fleet.watch(stop)
        finally:
            fleet.end()
    acting.result()
    assert bench.nothing_left()
    return screen


def count(screen: list[str], text: str) -> int:
    return sum(text in line for line in screen)


def test_a_server_for_a_program_is_ready_inside_and_gone_after(bench: Bench) -> None:
    environ = bench.environment()
    chosen = planned(bench, environ)
    watch = WatchOptions(log_dir=bench.folder / "logs", interval=0.05)
    with serving(chosen, watch, lambda line: None, environ) as (url,):
        assert url == chosen.base_urls[0]
        assert served_models(url)[0].name == str(bench.model)
        assert all(map(alive, bench.pids()))
    assert bench.nothing_left()


def test_the_launcher_asks_its_own_server_through_no_proxy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    environ = bench.environment()
    chosen = planned(bench, environ, host="127.0.0.2")  # this machine's, but none of the names of loopback
    watch = WatchOptions(log_dir=bench.folder / "logs", interval=0.05, start_timeout=60.0)
    with serving(chosen, watch, lambda line: None, environ) as (url,):
        assert "//127.0.0.2:" in url


def test_a_start_that_fails_raises_its_cause(bench: Bench) -> None:
    environ = bench.environment("missing-model")
    with (
        pytest.raises(ServerError, match="no such model"),
        serving(planned(bench, environ), WatchOptions(log_dir=bench.folder), lambda line: None, environ),
    ):
        pytest.fail("entered")
    assert bench.nothing_left()


def test_a_server_that_says_nothing_is_replaced(bench: Bench) -> None:
    def act(screen: list[str]) -> None:
        (bench.folder / "mute").touch()
        wait_until(lambda: count(screen, "no answer to /health for 1 s") == 1, "death")
        (bench.folder / "mute").unlink()
        wait_until(lambda: count(screen, "READY again") == 1, "restart")

    watch = WatchOptions(hang_timeout=1.0, interval=0.05, first_wait=0.1, log_dir=bench.folder / "logs")
    screen = watched(bench, watch, act)
    assert count(screen, "restart 1 of 5") == 1


def test_health_for_long_enough_resets_the_count(bench: Bench) -> None:
    def act(screen: list[str]) -> None:
        for time in (1, 2, 3):
            healthy = threading.Event()
            healthy.wait(0.5)  # ten times as long as what counts as steady here
            os.kill(bench.pids("engine")[-1], signal.SIGKILL)
            wait_until(lambda time=time: count(screen, "READY again") == time, f"restart {time}")  # type: ignore[misc]

    watch = WatchOptions(
        restarts=1, steady=0.05, interval=0.05, first_wait=0.1, log_dir=bench.folder / "logs"
    )
    screen = watched(bench, watch, act)
    assert count(screen, "restart 1 of 1") == 3


def test_a_fleet_goes_on_while_one_lives(bench: Bench) -> None:
    environ, screen, stop = bench.environment(), list[str](), StopRequest()
    options = ServeOptions(str(bench.model), port=free_port(2), replicas=2)
    chosen = make_plan(options, str(bench.python), environ)[0]
    watch = WatchOptions(restarts=0, interval=0.05, log_dir=bench.folder / "logs")
    fleet = Fleet(chosen, environ, watch, screen.append)

    def kill_both() -> None:
        os.kill(bench.pids("engine")[0], signal.SIGKILL)
        wait_until(lambda: count(screen, "given up") == 1, "one is given up")
        assert alive(bench.pids("engine")[1])
        os.kill(bench.pids("engine")[1], signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        try:
            assert fleet.start(stop)
            acting = pool.submit(kill_both)
            with pytest.raises(ServerError, match="no server is left"):
                fleet.watch(stop)
        finally:
            fleet.end()
    acting.result()
    assert bench.nothing_left()


def started(bench: Bench, monkeypatch: pytest.MonkeyPatch, *states: State) -> Fleet:
    """A fleet whose servers come to ``states`` as soon as they are started; there are no processes."""
    chosen = planned(bench, bench.environment(), port=free_port(len(states)), replicas=len(states))
    coming = iter(states)
    monkeypatch.setattr(Replica, "start", lambda self: setattr(self, "state", next(coming)))
    return Fleet(chosen, {}, WatchOptions(log_dir=bench.folder), lambda line: None)


def test_a_start_goes_on_with_those_that_are_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = started(bench, monkeypatch, "failed", "ready")
    assert fleet.start(StopRequest())
    port = fleet.replicas[1].command.port
    assert announce(fleet, ServeOptions("lm"))[0].startswith(f"READY http://127.0.0.1:{port}/v1 serves")


def test_a_start_of_which_nothing_is_left_is_an_error(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = started(bench, monkeypatch, "failed", "failed")
    with pytest.raises(ServerError, match="no server is left"):
        fleet.start(StopRequest())


@pytest.mark.parametrize(("before", "asked"), [((), True), (("nohup",), False)])
def test_a_hang_up_ends_all_unless_it_is_ignored(before: tuple[str, ...], asked: bool) -> None:
    program = """
import os, signal
from server.fleet import StopRequest
stop = StopRequest()
with stop.on_signals():
    os.kill(os.getpid(), signal.SIGHUP)
print(stop.asked)
"""
    done = subprocess.run(
        [*before, sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        # As in a terminal, whatever these tests were started with (nohup leaves it ignored).
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert done.stdout == f"{asked}\n"


def test_what_is_left_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = started(bench, monkeypatch, "ready")
    monkeypatch.setattr(Replica, "kill", lambda self: 77)
    assert fleet.end() == [77]


def test_an_orphan_that_cannot_be_killed_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "KILL_SECONDS", 0.1)
    monkeypatch.setattr(process, "_children", lambda: [77, 78])
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    assert process.end_orphans([78]) == [77]
    assert process.end_orphans([77, 78]) == []

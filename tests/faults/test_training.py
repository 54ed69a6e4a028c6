"""Training runs whose server goes away, and whose driver is killed: they end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from replug_client.supervisor.cache import cache_key
from replug_client.supervisor.canary import CANARY
from replug_client.supervisor.protocol import Prompt
from tests.faults.faults import TRANSIENT, Fault
from tests.faults.proxy import FaultProxy
from tests.faults.training import PRED_LEN, arguments, assert_same_weights, figures, replug, write_files
from tests.supervisor.fake_server import Body, FakeServer, running

ROOT = Path(__file__).parents[2]
KILLS = 20

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Place:
    """Files to train on, a server, and the run that nothing happened to."""

    folder: Path
    server: FakeServer
    whole: Path


class WithoutTokenizer(FakeServer):
    """Its own tokenizer, one request a text, would be the slowest part of these runs; a folder's is used."""

    def tokenize(self, payload: dict[str, Any]) -> tuple[int, Body]:
        return 404, {"error": "no such route"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("faults")
    write_files(folder)
    with running(WithoutTokenizer()) as server:
        assert replug(arguments(folder, "whole", server.base_url)) == 0
        yield Place(folder, server, folder / "whole")
    assert server.complaints == []


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_weights(one, other)
    first, second = figures(one), figures(other)
    for name in ("bits_per_byte", "kl", "changed"):
        assert [entry[name] for entry in second["validation"]] == [
            entry[name] for entry in first["validation"]
        ]


def test_a_run_through_every_transient_fault_ends_with_the_same_weights(place: Place) -> None:
    faults = [fault for fault in TRANSIENT if fault not in (Fault.TIME_OUT, Fault.TRICKLE)]
    with FaultProxy(place.server.base_url, seed=5) as proxy:
        proxy.inject(*faults, rate=0.2)
        assert replug(arguments(place.folder, "faulty", proxy.base_url)) == 0
        assert proxy.counts.faults.total() >= 5
    assert_same_run(place.whole, place.folder / "faulty")


def test_a_server_that_goes_in_mid_training_is_waited_for(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(place.server.requests)
    with FaultProxy(place.server.base_url) as proxy:

        def go_away(server: FakeServer, payload: dict[str, Any], body: Body) -> None:
            """In the middle of the first generation's scores; back after more than all attempts take."""
            if len(server.requests) == before + 12:
                proxy.down()
                Timer(8.0, proxy.up).start()

        place.server.mischief = go_away
        try:
            status = replug([*arguments(place.folder, "outage", proxy.base_url), "--server_wait", "120"])
        finally:
            place.server.mischief = None
        said = capsys.readouterr().err
        assert status == 0, said
        lines = [line for line in said.splitlines() if proxy.base_url in line and "wait" in line]
        assert 1 <= len(lines) <= 6, said
    assert_same_run(place.whole, place.folder / "outage")


# Imports take longer than a run, so one process makes them and forks before torch has any thread.
# Prints a line whenever a run has ended, by itself or by a kill, and waits to be told to go on.
KILLER = """
import json, os, random, signal, sqlite3, sys, time
import replug_client.supervisor.open, replug_client.training.run
from replug_client.cli.app import main

words, cache, kills, seed = json.loads(sys.argv[1])
moments = random.Random(seed)

def begin(number):
    pid = os.fork()
    if pid == 0:
        main([word.replace("NUMBER", str(number)) for word in words])
    return pid

def ended(number, pid):
    status = os.waitpid(pid, 0)[1]
    path = cache.replace("NUMBER", str(number))
    kept = []
    if os.path.exists(path):
        database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'scores'").fetchone():
            kept = [key.hex() for (key,) in database.execute("SELECT key FROM scores")]
        database.close()
    print(json.dumps({"number": number, "status": status, "kept": kept}), flush=True)
    if not sys.stdin.readline():
        sys.exit("nobody listens any more")
    return status

def has_ended(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

began = time.monotonic()
ended(0, begin(0))
duration, number, killed, whole = time.monotonic() - began, 1, 0, True
while killed < kills:
    began, moment = time.monotonic(), moments.uniform(0.02, 0.9) * duration
    pid = begin(number)
    while time.monotonic() < began + moment and not has_ended(pid):
        time.sleep(0.01)
    took = time.monotonic() - began
    os.kill(pid, signal.SIGKILL)
    if ended(number, pid) == signal.SIGKILL:
        killed, whole = killed + 1, False
    else:  # it was done by then; the first run may have had a busy machine, and the kills would all come too late
        duration = min(duration, took) if whole else duration
        number, whole = number + 1, True
ended(number, begin(number))
"""


@dataclass
class Ended:
    """A run that has ended: the run's number, how, the keys on disk then, and the prompts that it asked for."""

    number: int
    status: int
    kept: set[str]
    asked: list[tuple[int, ...]]


def killed_runs(place: Place, kills: int, seed: int) -> Iterator[Ended]:
    """Number 0 is let alone; then run until so many have been killed, each resumed until it comes to its end."""
    words = [*arguments(place.folder, "killed-NUMBER", place.server.base_url, concurrency=2), "--resume"]
    cache = place.folder / "killed-NUMBER-cache" / "scores.sqlite"
    requests = place.server.requests
    first = len(requests)
    with subprocess.Popen(
        [sys.executable, "-c", KILLER, json.dumps([words, str(cache), kills, seed])],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None and driver.stdin is not None
        for line in driver.stdout:
            if not line.startswith("{"):
                continue
            told = json.loads(line)
            asked = [tuple(ids) for request in requests[first:] for ids in request["prompt"]]
            first = len(requests)
            yield Ended(told["number"], told["status"], set(told["kept"]), asked)
            driver.stdin.write("\n")
            driver.stdin.flush()
    assert driver.returncode == 0


def dawdle(server: FakeServer, payload: dict[str, Any], body: Body) -> None:
    """So that scoring takes a good part of a run, and many kills come in the middle of it."""
    time.sleep(0.1)


def test_a_driver_killed_at_twenty_random_moments_asks_for_no_score_twice(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place.server, "mischief", dawdle)
    seed = random.randrange(2**32)
    fingerprint = json.loads((place.whole / "run.json").read_text())["supervisor"]["fingerprint"]
    received: dict[int, set[str]] = {}
    kills = []
    for run in killed_runs(place, KILLS, seed):
        before = received.get(run.number, set())
        again = [ids for ids in run.asked if ids != CANARY.ids and keys(fingerprint, ids) & before]
        assert not again, f"seed {seed}: {len(again)} scores were asked for that were on disk"
        assert before <= run.kept, f"seed {seed}: a kill lost scores"
        received[run.number] = run.kept
        if run.status == signal.SIGKILL:
            kills.append(len(run.kept))
        else:
            assert run.status == 0, f"seed {seed}"
            assert_same_run(place.folder / "killed-0", place.folder / f"killed-{run.number}")
    assert len(kills) == KILLS
    assert len(set(kills)) >= 3, f"seed {seed}: all kills came at the same moments: {kills}"


def keys(fingerprint: str, ids: tuple[int, ...]) -> set[str]:
    """Under which a prompt's score may be kept: how much of it was the continuation is not in the request."""
    lengths = range(1, min(PRED_LEN, len(ids) - 1) + 1)
    return {cache_key(fingerprint, Prompt(ids, length)).hex() for length in lengths}

"""Training runs whose server goes away, and whose driver is killed: they end as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
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


def assert_same_run(place: Place, other: Path) -> None:
    assert_same_weights(place.whole, other)
    first, second = figures(place.whole), figures(other)
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
    assert_same_run(place, place.folder / "faulty")


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
    assert_same_run(place, place.folder / "outage")


# Imports take longer than the run, so one process makes them and forks before torch has any thread.
KILLER = """
import json, os, signal, sqlite3, sys, time
import replug_client.supervisor.open, replug_client.training.run
from replug_client.cli.app import main

def begin(arguments):
    pid = os.fork()
    if pid == 0:
        main(arguments)
    return pid

arguments, cache, duration, fractions = json.loads(sys.argv[1])
for fraction in fractions:
    pid = begin(arguments)
    time.sleep(fraction * duration)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    kept = []
    if os.path.exists(cache):
        with sqlite3.connect(cache) as database:
            if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'scores'").fetchone():
                kept = [key.hex() for (key,) in database.execute("SELECT key FROM scores")]
        database.close()
    print(json.dumps({"status": status, "kept": kept}), flush=True)
    sys.stdin.readline()
status = os.waitpid(begin(arguments), 0)[1]
print(json.dumps({"status": status, "kept": []}), flush=True)
"""


def test_a_driver_killed_at_twenty_random_moments_asks_for_no_score_twice(place: Place) -> None:
    fractions = [random.uniform(0.02, 1.0) for _ in range(KILLS)]
    cache = place.folder / "killed-cache" / "scores.sqlite"
    server = place.server
    words = [*arguments(place.folder, "killed", server.base_url), "--resume"]
    duration = figures(place.whole)["seconds"]
    first = len(server.requests)
    asked: list[list[tuple[int, ...]]] = []  # by run
    ends: list[int] = []
    kept: list[set[str]] = []  # keys on disk after each run
    with subprocess.Popen(
        [sys.executable, "-c", KILLER, json.dumps([words, str(cache), duration, fractions])],
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
            ends.append(told["status"])
            kept.append(set(told["kept"]))
            requests = server.requests[first:]
            first += len(requests)
            asked.append([tuple(ids) for request in requests for ids in request["prompt"]])
            if len(ends) <= KILLS:
                driver.stdin.write("\n")
                driver.stdin.flush()
    assert len(ends) == KILLS + 1 and ends[-1] == 0, (fractions, ends)
    assert ends.count(9) >= KILLS // 2, (fractions, ends, "most runs were too quick to be killed")
    assert_same_run(place, place.folder / "killed")

    fingerprint = json.loads((place.folder / "killed" / "run.json").read_text())["supervisor"]["fingerprint"]
    received: set[str] = set()
    for run, prompts in enumerate(asked):
        again = {ids for ids in prompts if ids != CANARY.ids and keys(fingerprint, ids) & received}
        assert not again, f"run {run} asked for {len(again)} scores that were on disk"
        received |= kept[run]
    assert received
    assert place.whole.exists()


def keys(fingerprint: str, ids: tuple[int, ...]) -> set[str]:
    """Under which a prompt's score may be kept: how much of it was the continuation is not in the request."""
    lengths = range(1, min(PRED_LEN, len(ids) - 1) + 1)
    return {cache_key(fingerprint, Prompt(ids, length)).hex() for length in lengths}

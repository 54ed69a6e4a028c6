"""`python -m server` as a person runs it, with a stand-in for vLLM: what the screen shows, what is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.server.conftest import ROOT, Bench, alive, free_port, wait_until

KEY = "sk-very-secret"


def test_a_dry_run_prints_command_and_environment_and_starts_nothing(bench: Bench) -> None:
    process = bench.launch("--dry-run", "--max_model_len", 32, "--", "--seed", "7", VLLM_API_KEY=KEY)
    assert process.wait(60) == 0
    screen = bench.screen()
    assert "--max-model-len=32 \\\n" in screen
    assert "VLLM_CPU_KVCACHE_SPACE=" in screen
    assert "--seed \\\n    7" in screen
    assert KEY not in screen
    assert not bench.pids()


def test_ready_then_ctrl_c_leaves_nothing(bench: Bench) -> None:
    port = free_port()
    process = bench.launch("--port", port)
    bench.shows(f"READY http://127.0.0.1:{port}/v1 serves {bench.model}, at most 64 tokens")
    assert "loading the model" in bench.screen() or "opening the port" in bench.screen()
    assert all(map(alive, bench.pids()))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert bench.nothing_left()
    assert "no process is left" in bench.screen()


def test_a_killed_engine_is_replaced(bench: Bench) -> None:
    port = free_port()
    process = bench.launch("--port", port, modes=("stray",))
    bench.shows("READY http")
    before = bench.pids()
    os.kill(bench.pids("engine")[0], signal.SIGKILL)
    bench.shows(f"READY again http://127.0.0.1:{port}/v1")
    assert "the server has died: the engine died without a word" in bench.screen()
    assert "restart 1 of 5" in bench.screen()
    assert not any(map(alive, before))
    assert len(bench.pids("server")) == 2
    process.terminate()
    assert process.wait(60) == 0
    assert bench.nothing_left()


def test_restarts_are_bounded_and_the_end_names_the_cause(bench: Bench) -> None:
    process = bench.launch("--port", free_port(), "--restarts", 2, modes=("broken-later",))
    bench.shows("READY http")
    os.kill(bench.pids("server")[0], signal.SIGKILL)
    assert process.wait(60) == 1
    screen = bench.screen()
    assert screen.count("a disk is full") == 2
    assert "given up after 2 restarts" in screen
    assert "error: no server is left" in screen
    assert bench.nothing_left()


def test_a_sick_server_is_replaced(bench: Bench) -> None:
    process = bench.launch("--port", free_port())
    bench.shows("READY http")
    (bench.folder / "sick").touch()
    bench.shows("the server has died")
    (bench.folder / "sick").unlink()
    bench.shows("READY again")
    process.terminate()
    assert process.wait(60) == 0
    assert bench.nothing_left()


@pytest.mark.parametrize(
    ("mode", "cause", "mend"),
    [
        ("missing-model", "error: there is no such model", "Check --model"),
        ("obscure", "ZeroDivisionError: division by zero", "The whole log: "),
        ("no-scores", "gives no log-probs of prompts", "cannot score"),
    ],
)
def test_a_first_start_that_fails_ends_at_once_with_its_cause(
    bench: Bench, mode: str, cause: str, mend: str
) -> None:
    process = bench.launch("--port", free_port(), modes=(mode,))
    assert process.wait(60) == 1
    screen = bench.screen()
    assert cause in screen
    assert mend in screen
    assert "Traceback" not in screen
    assert "restart" not in screen
    assert len(bench.pids("server")) == 1
    assert bench.nothing_left()


def test_a_taken_port_is_refused_before_anything_starts(bench: Bench) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = bench.launch("--port", port)
        assert process.wait(60) == 1
    assert f"error: port {port} of 127.0.0.1 cannot be had" in bench.screen()
    assert "is free" in bench.screen()
    assert not bench.pids()


def test_no_replica_starts_where_the_port_of_another_is_taken(bench: Bench) -> None:
    port = free_port(2)
    with socket.create_server(("127.0.0.1", port + 1)):
        process = bench.launch("--port", port, "--replicas", 2)
        assert process.wait(60) == 1
    assert f"error: port {port + 1} of 127.0.0.1 cannot be had" in bench.screen()
    assert not list((bench.folder / "logs").iterdir())


@pytest.mark.parametrize("taken", ["logs", "logs/vllm-{port}.log/folder"])
def test_a_log_that_cannot_be_written_is_said_at_once(bench: Bench, taken: str) -> None:
    port = free_port()
    path = bench.folder / taken.format(port=port)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    process = bench.launch("--port", port)
    assert process.wait(60) == 1
    assert f"error: the servers' output cannot be written to {bench.folder / 'logs'}" in bench.screen()
    assert "--log-dir FOLDER" in bench.screen()
    assert not bench.pids()


def test_ctrl_c_before_anything_starts_is_no_traceback(bench: Bench) -> None:
    bench.python.write_text(f"#!/bin/sh\ntouch '{bench.folder}/asked'\nexec sleep 60\n")
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored, if the tests run in the background
    process = bench.launch("--port", free_port())
    signal.signal(signal.SIGINT, before)
    wait_until((bench.folder / "asked").exists, "the interpreter is asked for its vLLM")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert bench.screen() == "interrupted\n"


def test_ctrl_c_during_start_up_ends_it(bench: Bench) -> None:
    process = bench.launch("--port", free_port(), modes=("slow",))
    bench.shows("loading the model")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert "READY" not in bench.screen()
    assert bench.nothing_left()


def test_a_server_that_will_not_end_is_killed_and_a_second_ctrl_c_makes_haste(bench: Bench) -> None:
    process = bench.launch("--port", free_port(), modes=("stubborn", "stray"))
    bench.shows("READY")
    process.send_signal(signal.SIGINT)
    bench.shows("ending (SIGINT)")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert bench.nothing_left()


def test_a_launcher_that_is_killed_takes_its_server_and_the_engine_along(bench: Bench) -> None:
    process = bench.launch("--port", free_port(), modes=("orderly",))
    bench.shows("READY")
    process.kill()
    process.wait()
    wait_until(bench.nothing_left, "server and engine have ended")


def test_too_long_a_start_is_ended(bench: Bench) -> None:
    process = bench.launch("--port", free_port(), "--start-timeout", 3, modes=("slow",))
    assert process.wait(60) == 1
    assert "error: not ready after 3 s" in bench.screen()
    assert bench.nothing_left()


def test_replicas_are_one_fleet(bench: Bench) -> None:
    port = free_port(2)
    process = bench.launch("--port", port, "--replicas", 2)
    urls = [f"http://127.0.0.1:{port + i}/v1" for i in range(2)]
    bench.shows(f"READY {','.join(urls)} serves")
    os.kill(bench.pids("engine")[0], signal.SIGKILL)
    bench.shows("READY again")
    for url in urls:
        with urllib.request.urlopen(url + "/models", timeout=30) as answer:
            assert answer.status == 200
    process.terminate()
    assert process.wait(60) == 0
    assert bench.nothing_left()


@pytest.mark.parametrize("variable", ["VLLM_API_KEY", "OPENAI_API_KEY"])
def test_the_key_is_asked_for_and_seen_nowhere(bench: Bench, variable: str) -> None:
    process = bench.launch("--port", free_port(), **{variable: KEY})
    bench.shows("READY")
    processes = [process.pid, *bench.pids()]
    lines = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes]
    process.terminate()
    assert process.wait(60) == 0
    logs = [path.read_text() for path in (bench.folder / "logs").iterdir()]
    assert any("'api_key': '***'" in text for text in logs)
    assert not [text for text in (*logs, *lines, bench.screen()) if KEY in text]


def test_the_launcher_needs_python_alone(bench: Bench) -> None:
    """As on a GPU box that has vLLM and nothing of ours: -S leaves every installed package out."""
    command = [
        sys.executable,
        "-S",
        "-m",
        "server",
        "--model",
        bench.model,
        "--python",
        bench.python,
        "--dry-run",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "vLLM 0.32.0 for the CPU" in done.stdout

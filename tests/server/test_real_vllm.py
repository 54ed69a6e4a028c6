"""The real vLLM on the CPU through `python -m server`: ready, checked, its engine killed and replaced, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import DEMO_LM, vllm_python
from tests.server.conftest import ROOT, alive, free_port

_START_SECONDS = 420.0
Launch = Callable[..., tuple[subprocess.Popen[bytes], Path]]


def descendants(pid: int) -> list[int]:
    """All processes below one, read from /proc."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, open_ = [], [pid]
    while open_:
        below = parents.get(open_.pop(), [])
        found += below
        open_ += below
    return found


def engine_of(pid: int) -> int:
    """vLLM names its engine's process; what it is called is in its command line."""
    for child in descendants(pid):
        if "EngineCore" in Path(f"/proc/{child}/cmdline").read_text(errors="replace"):
            return child
    raise AssertionError("no engine among the launcher's processes")


def wait_for(text: str, screen: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while text not in screen.read_text():
        assert process.poll() is None, screen.read_text()
        assert time.monotonic() < deadline, screen.read_text()
        time.sleep(0.5)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start the launcher with the demo LM; what it prints is in the file."""
    python = vllm_python()
    if not python.exists():
        message = f"no vLLM at {python}; install it with server/install_cpu.sh"
        if os.environ.get("REPLUG_REQUIRE_VLLM") == "1":
            pytest.fail(message)
        pytest.skip(message)

    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object) -> tuple[subprocess.Popen[bytes], Path]:
        command = [sys.executable, "-u", "-m", "server", "--python", python, "--log-dir", tmp_path / "logs"]
        screen = tmp_path / "screen"
        process = subprocess.Popen(
            list(map(str, [*command, *arguments])),
            cwd=ROOT,
            stdout=screen.open("wb"),
            stderr=subprocess.STDOUT,
            # Another server may run beside it: threads that spin while they wait take its cores away.
            env=os.environ
            | {"VLLM_CPU_KVCACHE_SPACE": "1", "OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"},
        )
        started.append(process)
        return process, screen

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_is_ready_checked_restarted_and_ended(launch: Launch) -> None:
    port = free_port()
    process, screen = launch("--model", DEMO_LM, "--port", port)
    wait_for(f"READY http://127.0.0.1:{port}/v1", screen, process)
    assert "reading the model's configuration" in screen.read_text()
    url = f"http://127.0.0.1:{port}/v1"
    quick = ["--base_url", url, "--concurrency", "1,4", "--seconds", "0.5"]
    command = [sys.executable, "-m", "server", "check", *quick]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "formats: vllm, openai-echo" in checked.stdout
    assert "against a generated token: off by" in checked.stdout

    before = descendants(process.pid)
    os.kill(engine_of(process.pid), signal.SIGKILL)
    wait_for("READY again", screen, process)
    assert not any(map(alive, before))

    everything = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not any(map(alive, everything))
    assert "no process is left" in screen.read_text()


@pytest.mark.server
@pytest.mark.slow
def test_vllms_own_complaint_is_understood(launch: Launch) -> None:
    """One of them: each costs a start of vLLM; ``test_diagnose`` has the words of the others."""
    process, screen = launch("--model", DEMO_LM, "--port", free_port(), "--max-model-len", 9999)
    assert process.wait(_START_SECONDS) == 1
    assert "the model takes 1024 tokens at most, not 9999" in screen.read_text()
    assert "Add --max-model-len 1024" in screen.read_text()

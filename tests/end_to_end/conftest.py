"""A real vLLM server on the CPU with the demo LM, started once for all tests that use it."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

ROOT = Path(__file__).parents[2]
DEMO_LM = ROOT / "demo" / "lm"
MODEL = "demo-lm"
MAX_MODEL_LEN = 1024
_START_SECONDS = 300
_STOP_SECONDS = 20

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "2",
    # Client, server and engine share two cores in tests; threads that spin while they wait take them away.
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
_FLAGS = (
    "--dtype=float32",
    "--enforce-eager",
    f"--max-model-len={MAX_MODEL_LEN}",
    "--no-enable-prefix-caching",
    "--host=127.0.0.1",
    f"--served-model-name={MODEL}",
)


@dataclass(frozen=True)
class VllmServer:
    """A running server: where it is, and what it has counted."""

    base_url: str
    model: str = MODEL
    folder: Path = DEMO_LM

    def metric(self, name: str) -> float:
        """Sum over the labels of a counter of ``/metrics``, for example ``vllm:prompt_tokens_total``."""
        text = httpx2.get(self.base_url.removesuffix("/v1") + "/metrics").raise_for_status().text
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, flags=re.MULTILINE)
        assert values, f"no metric {name}"
        return sum(map(float, values))

    def prompts_answered(self) -> int:
        """How many prompts it has answered so far, each of a list counted."""
        return int(self.metric("vllm:request_success_total"))

    def http_requests(self) -> int:
        """How many completion requests came in, answered well or not."""
        text = httpx2.get(self.base_url.removesuffix("/v1") + "/metrics").raise_for_status().text
        pattern = r'^http_requests_total\{[^}]*handler="/v1/completions"[^}]*\} (\S+)$'
        return int(sum(map(float, re.findall(pattern, text, flags=re.MULTILINE))))


def vllm_python() -> Path:
    """The interpreter of vLLM's own environment; ``REPLUG_VLLM_PYTHON`` names another."""
    return Path(os.environ.get("REPLUG_VLLM_PYTHON") or ROOT / ".venv-vllm" / "bin" / "python")


@pytest.fixture(scope="session")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    python = vllm_python()
    if not python.exists():
        message = f"no vLLM at {python}; install it with server/install_cpu.sh"
        if os.environ.get("REPLUG_REQUIRE_VLLM") == "1":
            pytest.fail(message)
        pytest.skip(message)
    port = _free_port()
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    command = [
        str(python),
        "-m",
        "vllm.entrypoints.openai.api_server",
        f"--model={DEMO_LM}",
        f"--port={port}",
    ]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, *_FLAGS],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | _ENVIRONMENT,
            start_new_session=True,  # a process group of its own: the engine is a child of the server
            preexec_fn=_die_with_parent,
        )
    try:
        _wait_until_ready(process, port, log)
        yield VllmServer(f"http://127.0.0.1:{port}/v1")
    finally:
        _stop(process)


def _die_with_parent() -> None:
    """Linux ends the server when pytest is killed, so that none is left behind."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"vLLM ended with status {process.returncode}:\n{_tail(log)}")
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    pytest.fail(f"vLLM was not ready after {_START_SECONDS} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and every process that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue

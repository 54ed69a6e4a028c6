"""A real vLLM server on the CPU with the demo LM, started once for all tests that use it."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from server.fleet import serving
from server.options import ServeOptions, WatchOptions
from server.serve import make_plan

ROOT = Path(__file__).parents[2]
DEMO_LM = ROOT / "demo" / "lm"
MODEL = "demo-lm"
MAX_MODEL_LEN = 1024
_START_SECONDS = 420.0

_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    # Client, server and engine share two cores in tests; threads that spin while they wait take them away.
    "OMP_WAIT_POLICY": "PASSIVE",
    "KMP_BLOCKTIME": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
# The tests' own: the threads of a test process, and keys that the tests do not send.
_LEFT_OUT = ("OMP_NUM_THREADS", "VLLM_API_KEY", "OPENAI_API_KEY")


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
    environ = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT} | _ENVIRONMENT
    # float32, so that scores can be held against transformers' to four digits.
    options = ServeOptions(
        str(DEMO_LM),
        port=_free_port(),
        max_model_len=MAX_MODEL_LEN,
        dtype="float32",
        # Not compiled: ready sooner. tests/server/test_real_vllm.py has one as the plan makes it.
        extra=(f"--served-model-name={MODEL}", "--enforce-eager"),
    )
    plan, _, _ = make_plan(options, str(python), environ)
    watch = WatchOptions(start_timeout=_START_SECONDS, log_dir=tmp_path_factory.mktemp("vllm"))
    with serving(plan, watch, environ=environ) as (base_url,):
        yield VllmServer(base_url)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

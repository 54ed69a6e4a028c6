"""Format ``vllm-generate`` against vLLM's own server code: it needs a GPU, so here the model is a stub.

See ``vllm_stub_engine.py``. What is held to vLLM's word: our request is one that its classes take, and its
answer one that we read, number by number.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from replug_client.errors import PromptTooLongError
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.formats.generate import GENERATE, build_generate, parse_generate
from replug_client.supervisor.protocol import Prompt, Score
from tests.end_to_end.conftest import DEMO_LM, MODEL, vllm_python
from tests.supervisor.contract import random_prompts

pytestmark = pytest.mark.server
STUB = Path(__file__).with_name("vllm_stub_engine.py")
KEY = "the key of this test"
_START_SECONDS = 300


def stub_log_prob(row: int, token: int) -> float:
    """What the stub's row says of a token; exact in float32."""
    return -((31 * row + 17 * token) % 4096) / 512


def expected(prompt: Prompt) -> list[float]:
    """The row before each scored position predicts it."""
    first = len(prompt.ids) - prompt.num_continuation
    return [stub_log_prob(at - 1, prompt.ids[at]) for at in range(first, len(prompt.ids))]


@contextmanager
def serving(log: Path, *flags: str) -> Iterator[str]:
    """The base URL of vLLM's server over the stub."""
    if not vllm_python().exists():
        message = f"no vLLM at {vllm_python()}; install it with server/install_cpu.sh"
        if os.environ.get("REPLUG_REQUIRE_VLLM") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(vllm_python()), str(STUB), f"--model={DEMO_LM}", f"--served-model-name={MODEL}",
        "--host=127.0.0.1", f"--port={port}", "--dtype=float32", "--enforce-eager", "--max-model-len=256",
        "--no-enable-prefix-caching", "--disable-log-stats", *flags,
    ]  # fmt: skip
    environment = {
        "VLLM_API_KEY": KEY, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=os.environ | environment
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()  # one process: there is no engine to end
        process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx2.get(url, timeout=5).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.5)
    pytest.fail(f"vLLM's server over the stub did not start:\n{log.read_text(errors='replace')[-4000:]}")


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("stub") / "server.log", "--enable-scale-out") as url:
        yield url


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_the_client_chooses_it_and_reads_every_number_exactly(base_url: str) -> None:
    prompts = [
        *random_prompts(20),
        Prompt((0, 1), 1, "the shortest"),
        Prompt(tuple(range(1, 256)), 254, "the longest, all of it scored"),
        Prompt(tuple(range(1, 256)), 1, "the longest, one token scored"),
        *(Prompt(tuple(range(5, 5 + n)), 16, f"{n} tokens, at a step's edge") for n in range(31, 36)),
    ]
    with RemoteSupervisor(Endpoint.open(base_url), MODEL) as supervisor:
        assert supervisor.format == GENERATE.name
        scores = supervisor.score(prompts)
    for prompt, score in zip(prompts, scores, strict=True):
        assert score.token_log_probs.tolist() == expected(prompt), prompt.label
    assert len({value for score in scores for value in score.token_log_probs.tolist()}) > 100


def post(base_url: str, payload: object) -> httpx2.Response:
    url = base_url.removesuffix("/v1") + GENERATE.path
    return httpx2.post(url, json=payload, headers={"Authorization": f"Bearer {KEY}"}, timeout=60)


def test_an_answer_has_a_few_bytes_for_each_scored_token_and_none_for_the_others(base_url: str) -> None:
    sizes = {}
    for length, scored in ((20, 10), (220, 10), (220, 200)):
        prompt = Prompt(tuple(range(5, 5 + length)), scored)
        content = post(base_url, build_generate(MODEL, [prompt])).content
        (score,) = parse_generate(content, [prompt])
        assert isinstance(score, Score)
        assert score.token_log_probs.tolist() == expected(prompt)
        sizes[length, scored] = len(content)
    assert abs(sizes[220, 10] - sizes[20, 10]) < 10
    assert (sizes[220, 200] - sizes[220, 10]) / 190 < 6


def test_a_row_too_many_is_refused_so_that_none_can_be_shifted(base_url: str) -> None:
    payload = build_generate(MODEL, [Prompt((0, 5, 6, 7), 2)])
    payload["sampling_params"]["prompt_logprob_token_ids"].append([8])
    answer = post(base_url, payload)
    assert answer.status_code == 400
    assert "3 rows" in answer.text


def test_scores_that_came_from_the_prefix_cache_are_noticed(base_url: str) -> None:
    prompt = Prompt((0, 5, 6, 7), 2, "pair A")
    payload = build_generate(MODEL, [prompt])
    payload["sampling_params"]["skip_reading_prefix_cache"] = False
    answer = post(base_url, payload)
    assert answer.status_code == 200
    (error,) = parse_generate(answer.content, [prompt])
    assert "pair A: no prompt_token_id_logprobs" in str(error)


def test_a_refused_prompt_is_named_and_its_neighbours_are_scored(base_url: str) -> None:
    good = random_prompts(4)
    handed: dict[int, Score] = {}
    poisoned = Prompt((0, 5, 999_999, 7), 1, "pair X")
    with RemoteSupervisor(Endpoint.open(base_url), MODEL) as supervisor:
        future = supervisor.submit(
            [*good, poisoned], lambda at, scores: handed.update(zip(at, scores, strict=True))
        )
        with pytest.raises(Exception, match="pair X"):
            future.result()
        with pytest.raises(PromptTooLongError):
            supervisor.score([Prompt(tuple(range(5, 5 + 256)), 1, "too long")])
    assert sorted(handed) == [0, 1, 2, 3]
    for at, score in handed.items():
        assert score.token_log_probs.tolist() == expected(good[at])

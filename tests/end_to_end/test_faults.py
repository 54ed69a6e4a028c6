"""Faults between the client and a real vLLM: its own answers are what is spoilt, and its own refusals what is read."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event, Timer

import numpy as np
import pytest

from replug_client.errors import SupervisorRequestError
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.protocol import Prompt, Score
from tests.end_to_end.conftest import VllmServer
from tests.faults.faults import TRANSIENT, Fault
from tests.faults.proxy import Counts, FaultProxy
from tests.faults.setting import IN_FLIGHT, check_explained, quick

# A score's last bits depend on what else is in the server's batch (float32, nats per token).
NEAR = 1e-4
TIMEOUT = 20.0  # seconds; a request takes less on a busy machine
SLOW = (Fault.TIME_OUT, Fault.TRICKLE)
VOCABULARY = 2000


@pytest.fixture
def proxy(vllm_server: VllmServer) -> Iterator[FaultProxy]:
    with FaultProxy(vllm_server.base_url) as between:
        yield between


def connect(base_url: str, server: VllmServer, options: ClientOptions | None = None) -> RemoteSupervisor:
    return RemoteSupervisor(Endpoint.open(base_url, timeout=TIMEOUT), server.model, options or quick())


def some_prompts(count: int, seed: int) -> list[Prompt]:
    generator = random.Random(seed)
    lengths = [generator.randint(8, 60) for _ in range(count)]
    return [
        Prompt(tuple(generator.choices(range(5, VOCABULARY), k=length)), length // 2, f"pair {number}")
        for number, length in enumerate(lengths)
    ]


def check_near(expected: Sequence[Score], found: Sequence[Score]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(expected, found, strict=True):
        assert np.abs(one.token_log_probs - other.token_log_probs).max() <= NEAR


def test_every_transient_fault_at_once(proxy: FaultProxy, vllm_server: VllmServer) -> None:
    prompts = some_prompts(160, seed=1)
    with connect(vllm_server.base_url, vllm_server) as calm:
        expected = calm.score(prompts)
    with connect(proxy.base_url, vllm_server) as supervisor:
        proxy.counts = Counts()
        proxy.inject(*(fault for fault in TRANSIENT if fault not in SLOW), rate=0.2)
        check_near(expected, supervisor.score(prompts))
    assert len(proxy.counts.faults) >= 5
    check_explained(proxy.counts)


def test_a_prompt_that_vllm_refuses_is_named_and_its_neighbours_are_kept(
    vllm_server: VllmServer, tmp_path: Path
) -> None:
    prompts = some_prompts(12, seed=2)
    poison = Prompt((5, 6, 10_000_000, 7), 2, "example 9, passage 'the odd one'")
    with CachedSupervisor(
        connect(vllm_server.base_url, vllm_server), ScoreCache(tmp_path / "scores.sqlite")
    ) as supervisor:
        with pytest.raises(
            SupervisorRequestError, match=r"example 9, passage 'the odd one'.*status 400"
        ) as caught:
            supervisor.score([*prompts[:5], poison, *prompts[5:]])
        assert vllm_server.base_url in str(caught.value)
        before = vllm_server.prompts_answered()
        supervisor.score(prompts)
        assert vllm_server.prompts_answered() == before


def test_a_server_that_goes_in_the_middle_is_waited_for(proxy: FaultProxy, vllm_server: VllmServer) -> None:
    prompts = some_prompts(120, seed=3)
    with connect(vllm_server.base_url, vllm_server) as calm:
        expected = calm.score(prompts)
    begun = Event()
    with connect(proxy.base_url, vllm_server, quick(server_wait=120)) as supervisor:
        proxy.counts = Counts()
        future = supervisor.submit(prompts, lambda *_: begun.set())
        assert begun.wait(60)
        proxy.down()
        Timer(4.0, proxy.up).start()
        check_near(expected, future.result(180))
    again = sum(times - 1 for times in proxy.counts.asked.values())
    assert again <= IN_FLIGHT + 5, "what was in flight, and canaries"

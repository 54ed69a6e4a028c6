"""Whatever passes is got over: scores are the fault-free ones, and nothing is asked for in vain."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Timer

import pytest

from replug_client.errors import SupervisorError
from replug_client.supervisor.apart import SupervisorApart
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.protocol import Score
from tests.faults.faults import TRANSIENT, Fault
from tests.faults.forms import FORMS, VLLM
from tests.faults.proxy import Counts, FaultProxy
from tests.faults.setting import IN_FLIGHT, check_exact, check_explained, connect, connect_apart, quick
from tests.supervisor.contract import random_prompts
from tests.supervisor.fake_server import FakeServer, running

RATE = 0.2
# Those that a client gets over by waiting for its own time-out: fewer of them, they take seconds.
SLOW = (Fault.TIME_OUT, Fault.TRICKLE)


OTHERS = [form for form in FORMS if form is not VLLM]


@pytest.fixture
def formats() -> set[str]:
    """What the server understands."""
    return {"vllm", "openai-echo"}


@pytest.fixture
def server(formats: set[str]) -> Iterator[FakeServer]:
    with running(FakeServer(formats)) as fake:
        yield fake
    assert fake.complaints == []


@pytest.fixture
def proxy(server: FakeServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.base_url) as between:
        yield between


@pytest.mark.parametrize("fault", TRANSIENT, ids=str)
def test_scores_are_exact_and_no_prompt_is_asked_more_often_than_its_faults_explain(
    fault: Fault, proxy: FaultProxy
) -> None:
    prompts = random_prompts(60 if fault in SLOW else 200)
    with connect(proxy.base_url) as supervisor:
        proxy.counts = Counts()
        proxy.inject(fault, rate=RATE)
        check_exact(prompts, supervisor.score(prompts))
    assert proxy.counts.faults[fault] >= (1 if fault in SLOW else 3)
    check_explained(proxy.counts)


@pytest.mark.parametrize(
    ("formats", "fault"),
    [
        pytest.param({form.name}, fault, id=f"{form.name}: {fault}")
        for form in OTHERS
        for fault in TRANSIENT
        if fault not in SLOW and (fault not in VLLM.hurts or fault in form.hurts)
    ],
)
def test_the_same_in_every_other_format(formats: set[str], fault: Fault, proxy: FaultProxy) -> None:
    prompts = random_prompts(120)
    with connect(proxy.base_url) as supervisor:
        assert {supervisor.format} == formats
        proxy.counts = Counts()
        proxy.inject(fault, rate=RATE)
        check_exact(prompts, supervisor.score(prompts))
    assert proxy.counts.faults[fault] >= 2
    check_explained(proxy.counts)


@pytest.mark.parametrize("formats", [{form.name} for form in OTHERS], ids=lambda names: next(iter(names)))
def test_all_of_them_together_in_every_other_format(formats: set[str], server: FakeServer) -> None:
    prompts = random_prompts(200, seed=7)
    with FaultProxy(server.base_url, seed=7) as proxy, connect(proxy.base_url) as supervisor:
        proxy.counts = Counts()
        proxy.inject(*(fault for fault in TRANSIENT if fault not in SLOW), rate=RATE)
        check_exact(prompts, supervisor.score(prompts))
        assert len(proxy.counts.faults) >= 6
        check_explained(proxy.counts)


@pytest.mark.parametrize(
    ("connect", "seed"),
    [*((connect, seed) for seed in range(3)), (connect_apart, 3)],
    ids=["0", "1", "2", "in a process of its own"],
)
def test_all_of_them_together(
    connect: Callable[[str], RemoteSupervisor | SupervisorApart], seed: int, server: FakeServer
) -> None:
    prompts = random_prompts(400, seed=seed)
    with FaultProxy(server.base_url, seed=seed) as proxy, connect(proxy.base_url) as supervisor:
        proxy.counts = Counts()
        proxy.inject(*TRANSIENT, rate=RATE)
        check_exact(prompts, supervisor.score(prompts))
        assert len(proxy.counts.faults) >= 8
        check_explained(proxy.counts)


@pytest.mark.parametrize("seed", range(4))
def test_a_start_under_fire_chooses_the_same_format(seed: int, server: FakeServer) -> None:
    """A fault is no sign that the server does not know a format."""
    with FaultProxy(server.base_url, seed=seed) as proxy:
        proxy.inject(*(fault for fault in TRANSIENT if fault not in SLOW), rate=RATE)
        with connect(proxy.base_url) as supervisor, connect(server.base_url) as calm:
            assert supervisor.format == calm.format
            assert supervisor.fingerprint == calm.fingerprint
            prompts = random_prompts(20)
            check_exact(prompts, supervisor.score(prompts))


def test_a_server_that_is_down_for_longer_than_all_attempts_is_waited_for(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = random_prompts(200)
    begun = Event()

    def note(positions: Sequence[int], scores: Sequence[Score]) -> None:
        begun.set()

    with connect(proxy.base_url, quick(server_wait=60)) as supervisor:
        proxy.counts = Counts()
        future = supervisor.submit(prompts, note)
        assert begun.wait(20)
        proxy.down()
        Timer(2.0, proxy.up).start()
        check_exact(prompts, future.result(60))
    asked_again = {ids: times for ids, times in proxy.counts.asked.items() if times > 1}
    assert sum(times - 1 for times in asked_again.values()) <= IN_FLIGHT + 3, (
        "what was in flight, and canaries"
    )
    said = [record for record in caplog.records if proxy.base_url in record.getMessage()]
    assert 1 <= len(said) <= 10, "once, and now and then; not at every attempt"


def test_a_server_that_stays_away_ends_in_an_error_that_says_so(proxy: FaultProxy) -> None:
    with connect(proxy.base_url, quick(server_wait=1)) as supervisor:
        proxy.down()
        began = time.monotonic()
        with pytest.raises(SupervisorError, match=proxy.base_url) as caught:
            supervisor.score(random_prompts(40))
        assert time.monotonic() - began >= 1
        assert "python -m server" in str(caught.value) or "--server_wait" in str(caught.value)

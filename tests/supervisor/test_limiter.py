from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

import pytest

from replug_client.supervisor.limiter import FIRST_LIMIT, MAX_LIMIT, Limiter, waiting_prompts


@dataclass
class Server:
    """A server of so many places, each taking so many seconds a request; time is simulated."""

    places: int
    seconds: float = 1.0
    now: float = 0.0
    done: list[tuple[float, float]] = field(default_factory=list)  # when a request ends, and when it was sent

    def clock(self) -> float:
        return self.now

    def send(self) -> None:
        ahead = sorted(end for end, _ in self.done)
        start = self.now if len(ahead) < self.places else ahead[len(ahead) - self.places]
        heapq.heappush(self.done, (start + self.seconds, self.now))

    def run(self, limiter: Limiter, answers: int) -> None:
        """A client that always has more to send."""
        for _ in range(answers):
            while len(self.done) < limiter.limit:
                self.send()
            self.now, sent = heapq.heappop(self.done)
            limiter.answered(100, self.now - sent, crowded=True)


@pytest.mark.parametrize("places", [1, 4, 8, 12, 30, 100, 300])
def test_the_limit_fills_the_server_and_not_many_more(places: int) -> None:
    server = Server(places)
    limiter = Limiter(clock=server.clock)
    server.run(limiter, 40 * max(places, FIRST_LIMIT))
    assert limiter.limit >= 0.95 * places
    assert limiter.limit <= max(3.5 * places, 2 * FIRST_LIMIT)


def test_a_server_that_gets_more_places_gets_more_requests() -> None:
    server = Server(8)
    limiter = Limiter(clock=server.clock)
    server.run(limiter, 1000)
    assert limiter.limit < 40
    server.places = 80
    server.run(limiter, 60_000)
    assert limiter.limit >= 76


def test_an_overload_halves_the_limit_down_to_one() -> None:
    limiter = Limiter()
    seen = [limiter.limit]
    for _ in range(6):
        limiter.overloaded()
        seen.append(limiter.limit)
    assert seen == [8, 4, 2, 1, 1, 1, 1]


def test_after_an_overload_the_limit_finds_its_way_back() -> None:
    server = Server(16)
    limiter = Limiter(clock=server.clock)
    server.run(limiter, 2000)
    for _ in range(3):
        limiter.overloaded()
    assert limiter.limit < 8
    server.run(limiter, 20_000)
    assert limiter.limit >= 15


def test_answers_without_more_work_behind_them_say_nothing() -> None:
    limiter = Limiter()
    for _ in range(10_000):
        limiter.answered(100, 0.1, crowded=False)
    assert limiter.limit == FIRST_LIMIT


def test_slow_answers_are_not_made_slower() -> None:
    server = Server(MAX_LIMIT, seconds=60.0)
    limiter = Limiter(clock=server.clock)
    server.run(limiter, 5000)
    assert limiter.limit == FIRST_LIMIT * 1


def test_it_may_begin_higher_and_still_goes_lower_where_there_is_too_much() -> None:
    server = Server(100)
    limiter = Limiter(first=64, clock=server.clock)
    assert limiter.limit == 64
    server.run(limiter, 4000)
    assert 95 <= limiter.limit <= 350
    limiter.restart()
    assert limiter.limit == 64
    for _ in range(40):
        limiter.queue(waiting=60, ours=64)
    assert limiter.limit == FIRST_LIMIT


def test_a_fixed_limit_stays() -> None:
    server = Server(100)
    limiter = Limiter(fixed=3, clock=server.clock)
    server.run(limiter, 500)
    limiter.overloaded()
    limiter.queue(0, 24)
    assert limiter.limit == 3


def test_a_long_queue_lowers_the_limit_and_an_empty_one_brings_a_trial_forward() -> None:
    server = Server(32)
    limiter = Limiter(clock=server.clock)
    server.run(limiter, 4000)
    before = limiter.limit
    limiter.queue(waiting=8 * before - 8, ours=8 * before)
    assert limiter.limit == int(0.9 * before)
    limiter.queue(waiting=100 * before, ours=8 * before)  # other clients'
    assert limiter.limit == int(0.9 * before)
    for _ in range(3):
        limiter.queue(waiting=0, ours=8 * before)
    server.run(limiter, 8 * limiter.limit)
    assert limiter.limit > before


METRICS = """\
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="demo-lm"} 3.0
vllm:num_requests_waiting{engine="1",model_name="demo-lm"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 3.0
vllm:num_requests_running{engine="0",model_name="demo-lm"} 5.0
"""


def test_the_queue_is_read_from_the_metrics() -> None:
    assert waiting_prompts(METRICS) == 7
    assert waiting_prompts("vllm:num_requests_waiting 2.0") == 2
    assert waiting_prompts("process_cpu_seconds_total 3.5") is None
    assert waiting_prompts("vllm:num_requests_waiting NaN") is None


@dataclass
class BatchServer:
    """Takes up to ``rows`` prompts in one step, whose time grows with them, as vLLM does; simulated."""

    rows: int
    step_seconds: float
    prompt_seconds: float
    prompts_per_request: int
    now: float = 0.0

    def rate(self, limiter: Limiter, requests: int) -> float:
        """Prompts a second over the second half of so many requests."""
        queue: deque[float] = deque()
        left: dict[float, int] = {}
        done, sent, halfway = 0, 0, (0, 0.0)
        while done < requests:
            while len(left) < limiter.limit:
                sent += 1
                when = self.now + sent * 1e-9  # names the request
                left[when] = self.prompts_per_request
                queue.extend([when] * self.prompts_per_request)
            batch = [queue.popleft() for _ in range(min(self.rows, len(queue)))]
            self.now += self.step_seconds + self.prompt_seconds * len(batch)
            for when in batch:
                left[when] -= 1
                if not left[when]:
                    del left[when]
                    done += 1
                    limiter.answered(100, self.now - when, crowded=True)
            if done <= requests // 2:
                halfway = (done, self.now)
        return (done - halfway[0]) * self.prompts_per_request / (self.now - halfway[1])


@pytest.mark.parametrize(
    ("rows", "step_seconds", "prompt_seconds", "prompts_per_request"),
    [(5, 0.01, 0.025, 8), (20, 0.008, 0.001, 8), (64, 0.02, 0.0005, 8), (64, 0.01, 0.0003, 1)],
    ids=["two cores", "a GPU", "a large GPU", "one prompt a request"],
)
def test_a_server_that_works_in_batches_reaches_its_ceiling(
    rows: int, step_seconds: float, prompt_seconds: float, prompts_per_request: int
) -> None:
    server = BatchServer(rows, step_seconds, prompt_seconds, prompts_per_request)
    found = server.rate(Limiter(clock=lambda: server.now), 4000)
    ceiling = rows / (step_seconds + prompt_seconds * rows)
    assert 0.95 * ceiling <= found <= 1.01 * ceiling

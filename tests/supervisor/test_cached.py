from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from replug_client.errors import SupervisorRequestError, SupervisorUnavailableError
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor, CacheStats
from replug_client.supervisor.canary import Identity
from replug_client.supervisor.fake import FakeSupervisor
from replug_client.supervisor.protocol import OnScores, Prompt, Score
from tests.supervisor.contract import random_prompts


class Held:
    """A supervisor that answers only when told to, and as told."""

    name = "held"
    fingerprint = "held"
    max_prompt_tokens = 100

    def __init__(self) -> None:
        self.asked: list[tuple[list[Prompt], OnScores | None, Future[list[Score]]]] = []

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        raise AssertionError("the cache must not wait")

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        future: Future[list[Score]] = Future()
        self.asked.append((list(prompts), on_scores, future))
        return future

    def answer(self, number: int, positions: Sequence[int]) -> None:
        prompts, on_scores, _ = self.asked[number]
        assert on_scores is not None
        on_scores(positions, [score_of(prompts[position]) for position in positions])

    def close(self) -> None:
        pass


def score_of(prompt: Prompt) -> Score:
    return Score(np.full(prompt.num_continuation, -float(sum(prompt.ids)), dtype=np.float32))


def prompts(*numbers: int) -> list[Prompt]:
    return [Prompt((1, number), 1, f"prompt {number}") for number in numbers]


@pytest.fixture
def cache() -> ScoreCache:
    return ScoreCache(None)


def test_a_second_asking_costs_nothing_even_after_reopening(tmp_path: Path) -> None:
    asked = random_prompts(40)
    first = CachedSupervisor(FakeSupervisor(), ScoreCache(tmp_path / "s.sqlite"))
    scores = first.score(asked)
    assert first.stats == CacheStats(hits=0, shared=0, misses=40)
    first.close()
    fake = FakeSupervisor()
    second = CachedSupervisor(fake, ScoreCache(tmp_path / "s.sqlite"))
    again = second.score(asked)
    assert fake.asked == []
    assert second.stats == CacheStats(hits=40, shared=0, misses=0)
    for one, other in zip(scores, again, strict=True):
        assert one.token_log_probs.tobytes() == other.token_log_probs.tobytes()
    second.close()


def test_another_supervisor_does_not_get_these_scores(cache: ScoreCache) -> None:
    asked = random_prompts(3)
    CachedSupervisor(FakeSupervisor(name="one"), cache).score(asked)
    other = FakeSupervisor(name="other")
    CachedSupervisor(other, cache).score(asked)
    assert other.asked == asked


def test_scores_are_found_again_though_noise_moved_the_canary(cache: ScoreCache) -> None:
    def shown(shift: float) -> FakeSupervisor:
        fake = FakeSupervisor(name=f"shifted by {shift}")
        fake.identity = Identity({"kind": "fake"}, Score(np.full(32, shift - 2.004, dtype=np.float32)))  # type: ignore[attr-defined]
        return fake

    asked = random_prompts(3)
    first = CachedSupervisor(shown(0.0), cache)
    first.score(asked)
    noisy, other = shown(0.01), shown(0.1)
    assert CachedSupervisor(noisy, cache).fingerprint == first.fingerprint
    CachedSupervisor(noisy, cache).score(asked)
    assert noisy.asked == []
    CachedSupervisor(other, cache).score(asked)
    assert other.asked == asked


def test_equal_prompts_are_sent_once_within_and_across_submissions(cache: ScoreCache) -> None:
    held = Held()
    cached = CachedSupervisor(held, cache)
    first = cached.submit(prompts(1, 2, 1))
    second = cached.submit(prompts(2, 3))
    assert [asked for asked, _, _ in held.asked] == [prompts(1, 2), prompts(3)]
    held.answer(0, [1])
    held.answer(1, [0])
    assert [s.log_likelihood for s in second.result(timeout=5)] == [-3, -4]
    assert not first.done()
    held.answer(0, [0])
    assert [s.log_likelihood for s in first.result(timeout=5)] == [-2, -3, -2]
    assert cached.stats == CacheStats(hits=0, shared=2, misses=3)


def test_each_score_is_kept_as_soon_as_it_is_there(cache: ScoreCache) -> None:
    held = Held()
    future = CachedSupervisor(held, cache).submit(prompts(1, 2, 3))
    held.answer(0, [2, 0])
    assert len(cache) == 2
    held.asked[0][2].set_exception(SupervisorUnavailableError("gone"))
    with pytest.raises(SupervisorUnavailableError, match="gone"):
        future.result(timeout=5)
    resumed = CachedSupervisor(held, cache)
    resumed.submit(prompts(1, 2, 3))
    assert held.asked[1][0] == prompts(2)


def test_one_callers_failure_is_not_anothers(cache: ScoreCache) -> None:
    held = Held()
    cached = CachedSupervisor(held, cache)
    bad = cached.submit(prompts(1, 2))
    good = cached.submit(prompts(2))
    held.asked[0][2].set_exception(SupervisorRequestError("prompt 1 was refused"))
    with pytest.raises(SupervisorRequestError, match="prompt 1"):
        bad.result(timeout=5)
    assert not good.done()
    assert held.asked[1][0] == prompts(2)
    held.answer(1, [0])
    assert good.result(timeout=5)[0].log_likelihood == -3


def test_one_callers_defect_is_not_anothers(cache: ScoreCache) -> None:
    held = Held()
    cached = CachedSupervisor(held, cache)

    def defective(positions: Sequence[int], scores: Sequence[Score]) -> None:
        raise KeyError("a defect")

    bad = cached.submit(prompts(1), defective)
    good = cached.submit(prompts(1))
    held.answer(0, [0])
    assert good.result(timeout=5)[0].log_likelihood == -2
    with pytest.raises(KeyError, match="a defect"):
        bad.result(timeout=5)


def test_after_a_failure_the_same_may_be_asked_again(cache: ScoreCache) -> None:
    held = Held()
    cached = CachedSupervisor(held, cache)
    failed = cached.submit(prompts(1))
    held.asked[0][2].set_exception(SupervisorUnavailableError("gone"))
    assert failed.exception(timeout=5) is not None
    again = cached.submit(prompts(1))
    held.answer(1, [0])
    assert again.result(timeout=5)[0].log_likelihood == -2


@pytest.mark.parametrize("where", ["get", "put"])
def test_what_the_cache_cannot_do_reaches_the_caller(
    cache: ScoreCache, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(cache, where, full)
    cached = CachedSupervisor(FakeSupervisor(), cache)
    with pytest.raises(OSError, match="the disk is full"):
        cached.submit(prompts(1)).result(timeout=5)
    monkeypatch.undo()
    assert cached.score(prompts(1))[0].num_tokens == 1


def test_many_threads_asking_the_same_ask_once(cache: ScoreCache) -> None:
    asked = random_prompts(30)
    fake = FakeSupervisor()
    cached = CachedSupervisor(fake, cache)
    results: list[list[Score]] = []
    work: Callable[[], None] = lambda: results.append(cached.score(asked))  # noqa: E731
    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(results) == 8
    assert sorted(p.ids for p in fake.asked) == sorted(p.ids for p in asked)
    assert cached.stats.misses == 30
    assert cached.stats.hits + cached.stats.shared == 7 * 30

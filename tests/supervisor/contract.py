"""What every supervisor must do. Subclass it beside a ``subject`` fixture; all tests run through it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest

from replug_client.errors import PromptTooLongError, SupervisorError
from replug_client.supervisor.protocol import Prompt, Score, StreamingSupervisor, Supervisor


@dataclass(frozen=True)
class Subject:
    """A supervisor, what its scores must be (independently computed), and how near."""

    supervisor: StreamingSupervisor
    expected: Callable[[Prompt], Sequence[float]]
    tolerance: float = 0.0


def random_prompts(count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of 2 to 120 tokens; half of them share a prefix with others, as pairs of one passage do."""
    rng = random.Random(seed)
    passages = [tuple(rng.choices(range(5, 6000), k=rng.randint(20, 60))) for _ in range(3)]
    prompts = []
    for number in range(count):
        head = (
            rng.choice(passages)
            if rng.random() < 0.5
            else tuple(rng.choices(range(5, 6000), k=rng.randint(1, 60)))
        )
        tail = tuple(rng.choices(range(5, 6000), k=rng.randint(1, 60)))
        prompts.append(Prompt((0, *head, *tail), rng.randint(1, len(tail)), f"prompt {number}"))
    return prompts


class SupervisorContract:
    """The tests. ``subject`` may be shared by them: none of them closes it."""

    def test_it_is_a_supervisor_that_streams(self, subject: Subject) -> None:
        assert isinstance(subject.supervisor, Supervisor)
        assert isinstance(subject.supervisor, StreamingSupervisor)
        assert subject.supervisor.name
        assert len(subject.supervisor.fingerprint) == 64
        assert subject.supervisor.fingerprint == subject.supervisor.fingerprint

    def test_scores_are_right_and_in_order_for_any_mixture_of_lengths(self, subject: Subject) -> None:
        prompts = random_prompts(24)
        scores = subject.supervisor.score(prompts)
        assert len(scores) == len(prompts)
        for prompt, score in zip(prompts, scores, strict=True):
            check(subject, prompt, score)

    def test_a_score_does_not_depend_on_its_neighbours(self, subject: Subject) -> None:
        prompts = random_prompts(12, seed=1)
        together = subject.supervisor.score(prompts)
        backwards = subject.supervisor.score(prompts[::-1])[::-1]
        for first, second in zip(together, backwards, strict=True):
            assert np.abs(first.token_log_probs - second.token_log_probs).max() <= subject.tolerance

    def test_the_continuation_is_cut_where_it_is_said_to_be(self, subject: Subject) -> None:
        ids = random_prompts(1, seed=2)[0].ids
        whole = subject.supervisor.score([Prompt(ids, len(ids) - 1)])[0]
        for length in range(1, len(ids)):
            (part,) = subject.supervisor.score([Prompt(ids, length)])
            assert part.num_tokens == length
            assert np.abs(part.token_log_probs - whole.token_log_probs[-length:]).max() <= subject.tolerance
            if length == 3:
                break

    def test_nothing_asked_nothing_answered(self, subject: Subject) -> None:
        assert subject.supervisor.score([]) == []

    def test_equal_prompts_get_equal_scores_whatever_their_labels(self, subject: Subject) -> None:
        (prompt,) = random_prompts(1, seed=3)
        twin = replace(prompt, label="its twin")
        assert twin == prompt
        first, second = subject.supervisor.score([prompt, twin])
        assert np.abs(first.token_log_probs - second.token_log_probs).max() <= subject.tolerance

    def test_a_prompt_that_is_too_long_is_named_before_anything_is_scored(self, subject: Subject) -> None:
        longest = subject.supervisor.max_prompt_tokens
        long = Prompt((0,) * (longest + 1), 1, "example 7, passage 'long'")
        told: list[int] = []
        with pytest.raises(PromptTooLongError, match=rf"example 7, passage 'long'.*{longest + 1}.*{longest}"):
            subject.supervisor.submit([*random_prompts(2), long], lambda at, _: told.extend(at))
        assert told == []

    def test_the_longest_prompt_is_scored(self, subject: Subject) -> None:
        longest = subject.supervisor.max_prompt_tokens
        rng = random.Random(4)
        prompt = Prompt(tuple(rng.choices(range(5, 6000), k=longest)), 5)
        check(subject, prompt, subject.supervisor.score([prompt])[0])

    @pytest.mark.parametrize(("length", "scored"), [(3, 0), (3, 3), (3, 4), (1, 1)])
    def test_a_prompt_with_nothing_to_score_or_nothing_before_it_is_refused(
        self, subject: Subject, length: int, scored: int
    ) -> None:
        with pytest.raises(SupervisorError, match="the odd one"):
            subject.supervisor.score([Prompt((5,) * length, scored, "the odd one")])

    def test_every_score_is_handed_out_once_as_it_comes(self, subject: Subject) -> None:
        prompts = random_prompts(10, seed=5)
        handed: dict[int, Score] = {}

        def take(positions: Sequence[int], scores: Sequence[Score]) -> None:
            for position, score in zip(positions, scores, strict=True):
                assert position not in handed
                handed[position] = score

        scores = subject.supervisor.submit(prompts, take).result()
        assert sorted(handed) == list(range(len(prompts)))
        assert all(handed[i].log_likelihood == score.log_likelihood for i, score in enumerate(scores))

    def test_several_threads_may_ask_at_once(self, subject: Subject) -> None:
        sets = [random_prompts(6, seed=10 + number) for number in range(4)]
        with ThreadPoolExecutor(max_workers=4) as pool:
            results = list(pool.map(subject.supervisor.score, sets))
        for prompts, scores in zip(sets, results, strict=True):
            for prompt, score in zip(prompts, scores, strict=True):
                check(subject, prompt, score)


def check(subject: Subject, prompt: Prompt, score: Score) -> None:
    """Shape, type, and each token's log-prob against the independent figure."""
    expected = np.asarray(subject.expected(prompt), dtype=np.float32)
    assert score.token_log_probs.dtype == np.float32
    assert score.token_log_probs.shape == (prompt.num_continuation,)
    assert np.abs(score.token_log_probs - expected).max() <= subject.tolerance
    assert score.log_likelihood == pytest.approx(float(expected.sum(dtype=np.float64)), abs=1e-2)

"""A supervisor in memory, for tests: deterministic, and strict about what it is asked."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from replug_client.errors import SupervisorError
from replug_client.supervisor.checks import check_lengths
from replug_client.supervisor.protocol import OnScores, Prompt, Score

LogProbs = Callable[[Prompt], Sequence[float]]
"""What a fake scores by: a prompt in, a log-prob per continuation token out."""


class FakeSupervisor:
    """Scores by a function of the prompt instead of a model; counts what it was asked.

    The default function is a hash of the ids up to each token, so that it depends on what a language
    model's would, on all that stands before the token and on nothing behind it.
    """

    def __init__(
        self, log_probs: LogProbs | None = None, *, max_prompt_tokens: int = 1024, name: str = "fake"
    ) -> None:
        self.name = name
        self.fingerprint = hashlib.sha256(f"fake {name}".encode()).hexdigest()
        self.max_prompt_tokens = max_prompt_tokens
        self.asked: list[Prompt] = []
        self._log_probs = log_probs or hashed_log_probs
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fake-supervisor")
        self._closed = False

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        """See ``Supervisor.score``."""
        return self.submit(prompts).result()

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        """See ``StreamingSupervisor.submit``."""
        if self._closed:
            raise SupervisorError(f"supervisor {self.name} is closed")
        prompts = tuple(prompts)
        check_lengths(prompts, self.max_prompt_tokens)
        for prompt in prompts:
            if any(not isinstance(token, int) or token < 0 for token in prompt.ids):
                raise SupervisorError(
                    f"{prompt.label}: token ids must be non-negative int, found {prompt.ids}"
                )
        return self._worker.submit(self._run, prompts, on_scores)

    def close(self) -> None:
        """Refuse whatever is asked from now on."""
        self._closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)

    def _run(self, prompts: Sequence[Prompt], on_scores: OnScores | None) -> list[Score]:
        scores = []
        for position, prompt in enumerate(prompts):
            with self._lock:
                self.asked.append(prompt)
            values = np.asarray(self._log_probs(prompt), dtype=np.float32)
            if values.shape != (prompt.num_continuation,) or not (values <= 0).all():
                raise SupervisorError(
                    f"{prompt.label}: the function gave {values}, not {prompt.num_continuation} log-probs"
                )
            scores.append(Score(values))
            if on_scores is not None:
                on_scores([position], scores[-1:])
        return scores


def hashed_log_probs(prompt: Prompt) -> list[float]:
    """Between -8 and 0 nats, from a hash of the ids up to and with each continuation token."""
    digest = hashlib.blake2b(digest_size=4)
    result = []
    for position, token in enumerate(prompt.ids):
        digest.update(token.to_bytes(4, "little"))
        if position >= len(prompt.ids) - prompt.num_continuation:
            result.append(-8.0 * int.from_bytes(digest.digest(), "little") / 2**32)
    return result

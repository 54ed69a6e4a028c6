"""A supervisor of fixed latency and parallelism in this process: no HTTP, and next to no CPU."""

from __future__ import annotations

import hashlib
import heapq
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from itertools import count

import numpy as np

from benchmarks._stand_in import MAX_MODEL_LEN, Places
from replug_client.supervisor.protocol import OnScores, Prompt, Score

_STATES = 4099


class DirectSupervisor:
    """Scores when its time has come; see ``_stand_in``, which is the same behind HTTP."""

    name = "direct"
    fingerprint = hashlib.sha256(b"direct").hexdigest()
    max_prompt_tokens = MAX_MODEL_LEN

    def __init__(self, seconds: float, parallel: int) -> None:
        """``parallel`` places; a prompt keeps one for ``seconds``."""
        self._places = Places(seconds, parallel)
        self._due: list[tuple[float, int, Future[list[Score]], tuple[Prompt, ...], OnScores | None]] = []
        self._order = count()
        self._change = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._deliver, name="direct-supervisor", daemon=True)
        self._thread.start()

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        """See ``Supervisor.score``."""
        return self.submit(prompts).result()

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        """See ``StreamingSupervisor.submit``."""
        future: Future[list[Score]] = Future()
        with self._change:
            due = time.monotonic() + self._places.take(len(prompts))
            heapq.heappush(self._due, (due, next(self._order), future, tuple(prompts), on_scores))
            self._change.notify()
        return future

    def close(self) -> None:
        """Cancel what is not due yet."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join()
        for _, _, future, *_ in self._due:
            future.cancel()

    def _deliver(self) -> None:
        while True:
            with self._change:
                while not self._closed and (
                    not self._due or (wait := self._due[0][0] - time.monotonic()) > 0
                ):
                    self._change.wait(wait if self._due else None)
                if self._closed:
                    return
                _, _, future, prompts, on_scores = heapq.heappop(self._due)
            scores = [_score(prompt) for prompt in prompts]
            if on_scores is not None:
                on_scores(range(len(scores)), scores)
            if future.set_running_or_notify_cancel():
                future.set_result(scores)


def _score(prompt: Prompt) -> Score:
    """By each token and where it stands, as the server's ``generate`` has it."""
    first = len(prompt.ids) - prompt.num_continuation
    ids = np.array(prompt.ids[first:], dtype=np.int64)
    states = (ids * 31 + first + np.arange(len(ids))) % _STATES
    return Score((-states / 512).astype(np.float32))

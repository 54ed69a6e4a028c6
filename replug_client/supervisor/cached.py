"""A supervisor behind a score cache: nothing is scored twice, and what was scored is kept at once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace

from replug_client.errors import SupervisorError
from replug_client.supervisor.cache import ScoreCache, cache_key
from replug_client.supervisor.canary import Identity
from replug_client.supervisor.checks import check_lengths, check_scores
from replug_client.supervisor.protocol import (
    OnScores,
    Prompt,
    RecognisableSupervisor,
    Retract,
    Score,
    StreamingSupervisor,
)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Where scores came from, in prompts.

    Attributes:
        hits: Found in the cache.
        shared: The same prompt was asked for already, in this submission or one still under way.
        misses: Asked of the supervisor.
    """

    hits: int = 0
    shared: int = 0
    misses: int = 0


class _Submission:
    """What one caller waits for: a score for each of its keys."""

    def __init__(self, keys: Sequence[bytes], prompts: Sequence[Prompt], on_scores: OnScores | None) -> None:
        self.keys = keys
        self.prompts = dict(zip(keys, prompts, strict=True))
        self.missing = set(keys)
        self.scores: dict[bytes, Score] = {}
        self.future: Future[list[Score]] = Future()
        self._on_scores = on_scores
        self._positions: dict[bytes, list[int]] = {}
        for position, key in enumerate(keys):
            self._positions.setdefault(key, []).append(position)
        self._lock = threading.Lock()

    def deliver(self, scores: dict[bytes, Score]) -> None:
        with self._lock:
            new = {key: score for key, score in scores.items() if key in self.missing}
            # Not "-= new.keys()", which makes a new set of all that are missing.
            self.missing.difference_update(new)
            self.scores |= new
            complete = not self.missing
        if new and self._on_scores is not None:
            positions = sorted(position for key in new for position in self._positions[key])
            self._on_scores(positions, [new[self.keys[position]] for position in positions])
        if complete:
            with suppress(InvalidStateError):  # cancelled, or failed, by now
                self.future.set_result([self.scores[key] for key in self.keys])

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class CachedSupervisor:
    """Looks scores up, asks the supervisor for the rest, and commits each part as it comes.

    Prompts asked for by several submissions at once are sent once. Where the submission that sent them
    fails, the others ask again for what they still miss, so one caller's bad prompt is not another's.
    Closing closes the supervisor and the cache. Scores are kept under the fingerprint by which the cache
    knows the supervisor (``ScoreCache.recognise``); one that shows no canary is known by its own.
    """

    def __init__(self, supervisor: StreamingSupervisor, cache: ScoreCache) -> None:
        """``supervisor`` may be a ``RecognisableSupervisor``.

        Raises:
            ScoreCacheError: the cache cannot be read or written.
        """
        self._supervisor = supervisor
        self._cache = cache
        self._fingerprint = (
            cache.recognise(supervisor.identity)
            if isinstance(supervisor, RecognisableSupervisor)
            else supervisor.fingerprint
        )
        self._lock = threading.Lock()
        self._under_way: dict[bytes, list[_Submission]] = {}
        self._stats = CacheStats()

    @property
    def wrapped(self) -> StreamingSupervisor:
        """The supervisor that is asked for what the cache does not hold."""
        return self._supervisor

    @property
    def name(self) -> str:
        """The wrapped supervisor's name."""
        return self._supervisor.name

    @property
    def fingerprint(self) -> str:
        """That under which the cache knows the wrapped supervisor; part of every key."""
        return self._fingerprint

    @property
    def identity(self) -> Identity | None:
        """What the wrapped supervisor says it is, and its canary score; None where it does not tell."""
        wrapped = self._supervisor
        return wrapped.identity if isinstance(wrapped, RecognisableSupervisor) else None

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt that the wrapped supervisor takes."""
        return self._supervisor.max_prompt_tokens

    @property
    def stats(self) -> CacheStats:
        """Counts since this object was made."""
        with self._lock:
            return self._stats

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        """See ``Supervisor.score``."""
        return self.submit(prompts).result()

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        """See ``StreamingSupervisor.submit``."""
        check_lengths(prompts, self.max_prompt_tokens)
        keys = [cache_key(self.fingerprint, prompt) for prompt in prompts]
        submission = _Submission(keys, prompts, on_scores)
        self._count(shared=len(keys) - len(submission.missing))
        submission.deliver({})  # a submission of nothing is complete
        try:
            self._request(submission, list(submission.prompts))
        except BaseException as error:
            submission.fail(error)
            raise
        return submission.future

    def close(self) -> None:
        """Close the supervisor and the cache.

        Raises:
            SupervisorChangedError: the last scores were another model's; they have been taken out of the cache.
        """
        try:
            self._supervisor.close()
        finally:
            self._cache.close()

    def __enter__(self) -> CachedSupervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, submission: _Submission, keys: Sequence[bytes]) -> None:
        """Take over the keys that nobody has under way: look them up, and ask for the rest."""
        with self._lock:
            owned = [key for key in keys if key not in self._under_way]
            for key in keys:
                self._under_way.setdefault(key, []).append(submission)
        self._count(shared=len(keys) - len(owned))
        if not owned:
            return
        try:
            found = self._cache.get(owned)
            self._finish(found)
            wanted = [key for key in owned if key not in found]
            self._count(hits=len(found), misses=len(wanted))
            if wanted:
                self._ask(submission, wanted)
        except BaseException as error:
            self._abandon(submission, owned, error)
            raise

    def _ask(self, submission: _Submission, keys: Sequence[bytes]) -> None:
        def keep(positions: Sequence[int], scores: Sequence[Score]) -> Retract:
            part = {keys[position]: score for position, score in zip(positions, scores, strict=True)}
            check_scores([submission.prompts[key] for key in part], list(part.values()))
            # What failed is handed on, and asked for again another time.
            self._cache.put(
                (key, score) for key, score in part.items() if not math.isnan(score.log_likelihood)
            )
            self._finish(part)
            names = tuple(part)
            return lambda: self._cache.forget(names)

        def ended(future: Future[list[Score]]) -> None:
            cancelled = SupervisorError("the submission was cancelled, for the supervisor was closed")
            error = cancelled if future.cancelled() else future.exception()
            if error is not None:
                self._abandon(submission, keys, error)

        future = self._supervisor.submit([submission.prompts[key] for key in keys], keep)
        future.add_done_callback(ended)

    def _finish(self, scores: dict[bytes, Score]) -> None:
        """Hand scores to everyone who waits for them."""
        waiting: dict[int, tuple[_Submission, dict[bytes, Score]]] = {}
        with self._lock:
            for key, score in scores.items():
                for submission in self._under_way.pop(key, ()):
                    waiting.setdefault(id(submission), (submission, {}))[1][key] = score
        for submission, part in waiting.values():
            try:
                submission.deliver(part)
            except Exception as error:  # of that caller's `on_scores`: the others get theirs
                submission.fail(error)

    def _abandon(self, failed: _Submission, keys: Iterable[bytes], error: BaseException) -> None:
        """``failed`` gets the error; others that waited for its keys ask for themselves."""
        others: dict[int, tuple[_Submission, list[bytes]]] = {}
        with self._lock:
            for key in keys:
                for submission in self._under_way.pop(key, ()):
                    if submission is not failed:
                        others.setdefault(id(submission), (submission, []))[1].append(key)
        failed.fail(error)
        for submission, missing in others.values():
            try:
                self._request(submission, missing)
            except BaseException as second:  # it belongs to that caller, who finds it in the future
                submission.fail(second)

    def _count(self, *, hits: int = 0, shared: int = 0, misses: int = 0) -> None:
        with self._lock:
            stats = self._stats
            self._stats = replace(
                stats, hits=stats.hits + hits, shared=stats.shared + shared, misses=stats.misses + misses
            )

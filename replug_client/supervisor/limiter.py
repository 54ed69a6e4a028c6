"""How many requests a server is given at once: so many that it never idles, and not many more.

vLLM has no 429 and its queue no end, so a server does not say when it has enough. It shows it: from some number
of requests in flight on, more of them no longer make it faster, and prompts wait in its queue.

The limit is doubled for as long as that brings more tokens a second, and left alone two rounds after it no
longer does: the start-up of BBR (Cardwell, Cheng, Gunn, Yeganeh and Jacobson, 2016, "BBR: Congestion-Based
Congestion Control", ACM Queue 14(5)), with a lower threshold, since requests too many only wait while requests
too few leave the server idle. From then on a larger limit is tried now and then. Where the server is overloaded
(a time-out, 429) the limit is halved, and raised again in small steps (Chiu and Jain, 1989).
Where the server tells how many prompts wait in it (vLLM's ``/metrics``), an empty queue brings the next trial
forward, and a long one ends it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

FIRST_LIMIT = 8
MAX_LIMIT = 512
_ANSWERS_PER_ROUND = (
    4  # times the limit: a server that works in batches answers in bursts, of up to the limit
)
_FASTER = 1.05  # rates below this times the best one are no gain; measured rates scatter by some percent
_FLAT_ROUNDS = 2
_SETTLED_ROUNDS = 12  # before the next trial
_TRIAL = 1.5
_MARGIN = 1.5  # of the limit that was the best one, when start-up ends
_LONGEST_SECONDS = 30.0  # a limit that makes answers this slow is not raised: time-outs are not far
_LONG_QUEUE = (
    2 / 3
)  # of our own prompts in flight: more than two batches of the server's wait behind the one it runs

_WAITING = re.compile(r"^vllm:num_requests_waiting(?:\{[^}]*\})? ([\d.e+]+)$", re.MULTILINE)


def waiting_prompts(metrics: str) -> int | None:
    """Prompts that wait in the server, by its ``/metrics``; summed over engines. None where it does not tell."""
    values = [float(value) for value in _WAITING.findall(metrics)]
    return int(sum(values)) if values else None


@dataclass(slots=True)
class _Round:
    """Requests sent and answered at one limit, all while more work was to be had."""

    began: float
    ahead: int  # answers that come while the queue settles to the limit; not counted
    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def rate(self, limit: int) -> float:
        """Tokens a second, by Little's law: in flight, over the mean time that each took.

        Answers over elapsed time would depend on where in a burst the round ends; a server that works in
        batches answers in bursts.
        """
        return limit * self.tokens / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Limiter:
    """The limit for one server.

    Attributes:
        fixed: Requests in flight, where the caller has decided; else the limit adapts.
        clock: Seconds, monotonic.
        first: The limit to begin with; more where a request holds but one prompt.
        limit: Requests that may be in flight now; at least 1.
    """

    fixed: int | None = None
    clock: Callable[[], float] = time.monotonic
    first: int = FIRST_LIMIT
    limit: int = field(init=False)
    _round: _Round = field(init=False)
    _rising: bool = field(init=False)
    _best: tuple[float, int] = field(init=False)
    _flat: int = field(init=False)
    _settled: list[float] = field(init=False)
    _margin: float = field(init=False)
    _lowered: float = field(init=False)

    def __post_init__(self) -> None:
        """Begin."""
        self.restart()

    def restart(self) -> None:
        """Forget what was measured: the server, or what stands before it, is another one."""
        self.limit = self.fixed or self.first
        self._round = _Round(self.clock(), self.limit)
        self._rising, self._margin, self._lowered = True, _MARGIN, self.clock()
        self._best, self._flat, self._settled = (0.0, self.limit), 0, []

    def answered(self, tokens: int, seconds: float, *, crowded: bool) -> None:
        """A request came back.

        Args:
            tokens: Of its prompts.
            seconds: Since it was sent.
            crowded: Whether more work is waiting for a place. Only then does the rate say what the server can do.
        """
        if self.fixed is not None:
            return
        if not crowded:
            self._round = _Round(self.clock(), self.limit)
            return
        current = self._round
        if self.clock() - seconds < current.began:
            return  # sent at the limit of before
        if current.ahead:
            current.ahead -= 1
            return
        current.answers += 1
        current.tokens += tokens
        current.seconds += seconds
        if current.answers >= _ANSWERS_PER_ROUND * self.limit:
            self._round = _Round(self.clock(), self.limit)
            self._judge(current.rate(self.limit), current.seconds / current.answers)

    def overloaded(self, seconds: float = 0.0) -> None:
        """The server gave up for want of time or room: 429, a time-out.

        Args:
            seconds: Since the request was sent. One sent at the limit of before says nothing about this one.
        """
        if self.fixed is None and self.clock() - seconds >= self._lowered:
            self._lowered = self.clock()
            self.limit = max(1, self.limit // 2)
            self._settle(self.limit)

    def queue(self, waiting: int, ours: int) -> None:
        """Told how many prompts wait in the server, and how many it has from us.

        A queue longer than what we have in flight is of other clients, and says nothing about us.
        """
        if self.fixed is not None:
            return
        if not waiting and ours and not self._rising:
            self._settled += [self._best[0]] * (
                _SETTLED_ROUNDS // 3
            )  # three times in a row are a trial's worth
        elif _LONG_QUEUE * ours < waiting <= ours and self.limit > FIRST_LIMIT:
            self.limit = max(FIRST_LIMIT, int(self.limit * 0.9))
            self._settle(self.limit)

    def _judge(self, rate: float, seconds: float) -> None:
        """At the end of a round: ``rate`` in tokens a second, ``seconds`` an answer took in the mean."""
        if not self._rising:
            self._settled.append(rate)
            if len(self._settled) >= _SETTLED_ROUNDS and seconds < _LONGEST_SECONDS:
                self._best = (sum(self._settled) / len(self._settled), self.limit)
                self._rising, self._flat, self._margin = True, 0, 1.0
                self.limit = min(MAX_LIMIT, math.ceil(self.limit * _TRIAL))
            return
        if rate > _FASTER * self._best[0]:
            self._best, self._flat = (rate, self.limit), 0
            if self.limit < MAX_LIMIT and seconds < _LONGEST_SECONDS:
                self.limit = min(MAX_LIMIT, 2 * self.limit)
                return
        self._flat += 1
        if self._flat >= _FLAT_ROUNDS:
            self._settle(min(self.limit, math.ceil(self._margin * self._best[1])))

    def _settle(self, limit: int) -> None:
        self.limit = limit
        self._rising, self._flat, self._settled = False, 0, []
        self._best = (self._best[0], limit)
        self._round = _Round(self.clock(), self.limit)

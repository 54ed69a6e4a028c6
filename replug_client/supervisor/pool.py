"""The servers of a run: who gets the next request, who is gone, and who may come back.

A server that breaks a connection is given no new work until it has passed the canary: it may have been restarted
with another model under the same name. What was on its way to us by then is held back until that is known. One
that answers all the time is held against the canary as well, now and then (``proof``).

A server that dies may have died of a prompt. So what was under way by then is given to it one request at a time when
it is back, before anything else: a prompt that kills it is then alone soon, before its launcher gives up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import ClassVar

from replug_client.errors import SupervisorChangedError, SupervisorError, SupervisorUnavailableError
from replug_client.supervisor.endpoint import (
    BusyError,
    Endpoint,
    LostConnectionError,
    NoConnectionError,
    RefusedForNowError,
    TimedOutError,
)
from replug_client.supervisor.limiter import FIRST_LIMIT, Limiter, waiting_prompts
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.proof import Proof
from replug_client.supervisor.protocol import Retract
from replug_client.supervisor.replica import Replica, State

_log = logging.getLogger(__name__)

_LONGEST_PROBE_WAIT = 10.0
_REMIND_SECONDS = 60.0
_METRICS_SECONDS = 2.0
_LAST_CANARY_SECONDS = 10.0  # nothing else is under way then

Check = Callable[[Endpoint], Awaitable[None]]
"""Ends well where a server is as it was; raises ``SupervisorChangedError`` where another model answers."""


class OutageError(SupervisorUnavailableError):
    """No server is left, and none came back; it was waited for, so asking again is of no use."""

    retryable: ClassVar[bool] = False


class KilledServerError(LostConnectionError):
    """The server died of a request: nothing else was under way there, and it was gone afterwards."""


class Slot:
    """A place at a server for one request."""

    def __init__(self, pool: Pool, replica: Replica) -> None:
        self.endpoint = replica.endpoint
        self._pool = pool
        self._replica = replica

    async def confirm(self) -> None:
        """Wait, where the server is in doubt, until what it answered may be believed.

        Raises:
            LostConnectionError: it must not be, or it cannot be known; ask another one.
        """
        await self._pool.confirm(self._replica)

    def kept(self, retract: Retract | None) -> None:
        """Its answer has been kept; how to take it back, should another model prove to have given it."""
        if retract is not None:
            self._replica.proof.add(retract)


class Pool:
    """Gives each request to the server with the least work under way, measured in tokens."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        check: Check,
        options: ClientOptions,
        absent: Mapping[Endpoint, SupervisorError] | None = None,
        first_limit: int = FIRST_LIMIT,
    ) -> None:
        """Begin with all servers.

        Args:
            endpoints: The servers.
            check: Holds one against the canary.
            options: How they are asked.
            absent: Those that do not answer at the start, and why; they are taken in when they do.
            first_limit: Requests in flight at each, until it shows what it bears.
        """
        self.replicas = [
            Replica(
                e,
                Limiter(options.fixed_concurrency, first=first_limit),
                Proof(partial(check, e), options.first_wait),
            )
            for e in endpoints
        ]
        self._options = options
        self._waiting: deque[tuple[asyncio.Future[Replica], int, int, bool]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._outage: asyncio.Task[None] | None = None
        self._over: OutageError | None = None  # an outage that was waited for, and lasts
        self._back = asyncio.Event()
        self._news = asyncio.Event()  # set for a moment when a server's state has changed
        for replica in self.replicas:
            if (error := (absent or {}).get(replica.endpoint)) is not None:
                _log.warning("%s; going on without it until it answers", error)
                replica.state, replica.error = State.GONE, error
                self._start(self._restore(replica))

    @property
    def names(self) -> str:
        """The servers' URLs."""
        return ", ".join(replica.endpoint.base_url for replica in self.replicas)

    @asynccontextmanager
    async def slot(self, prompts: int, tokens: int, *, again: bool = False) -> AsyncIterator[Slot]:
        """A place for a request, first come, first served; what goes wrong inside is noted.

        Args:
            prompts: How many it holds.
            tokens: How many they hold.
            again: It was sent before, and goes first: so a server that is broken is found out soon.

        Raises:
            OutageError: no server came back in time.
            SupervisorChangedError: all that is left serves another model.
            KilledServerError: see there.
        """
        replica = await self._place(prompts, tokens, again)
        began, deaths, alone = time.monotonic(), replica.deaths, replica.on_probation
        try:
            yield Slot(self, replica)
        except SupervisorUnavailableError as error:
            if alone or isinstance(error, LostConnectionError | TimedOutError):
                self._doubt(replica, error)
            if isinstance(error, BusyError | RefusedForNowError | TimedOutError):
                replica.limiter.overloaded(time.monotonic() - began)
            if alone and not isinstance(error, NoConnectionError):
                await self._known(replica)
                if replica.deaths > deaths:
                    raise KilledServerError(f"{error} The server was gone after it.") from error
            raise
        else:
            replica.seen = time.monotonic()
            replica.limiter.answered(tokens, replica.seen - began, crowded=bool(self._waiting))
            self._prove_if_due(replica)
        finally:
            self._free(replica, prompts, tokens)

    async def confirm(self, replica: Replica) -> None:
        """See ``Slot.confirm``."""
        if not replica.is_alive:
            passed = replica.passed
            await self._known(replica)
            # Not `is_alive`: another connection may have broken since, which says nothing of this answer.
            if replica.passed == passed:
                raise LostConnectionError(f"an answer of a server that is gone since: {replica.error}")

    async def _known(self, replica: Replica) -> None:
        """Wait until it is known whether a server is as it was; or until it is gone and another is there instead."""
        while not replica.settled.is_set() and not self._is_replaced(replica):
            await self._news.wait()

    def _is_replaced(self, replica: Replica) -> bool:
        """Whether a server is gone, perhaps for good, while what it was asked can be asked of another."""
        return replica.state is State.GONE and any(other.is_alive for other in self.replicas)

    def _tell(self) -> None:
        """Wake whoever waits for news of a server."""
        self._news.set()
        self._news.clear()

    async def prove(self) -> None:
        """At the end: hold each server against the canary that has answered since its last one.

        One that cannot be asked any more cannot be blamed either; its answers are kept.

        Raises:
            SupervisorChangedError: another model has answered; its scores have been taken back.
        """
        work = [self._prove_last(replica) for replica in self.replicas if replica.proof.is_open]
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def _prove_last(self, replica: Replica) -> None:
        try:
            await asyncio.wait_for(replica.proof.hold(), _LAST_CANARY_SECONDS)
        except SupervisorChangedError:
            replica.proof.retract()
            raise
        except (SupervisorError, TimeoutError) as error:
            url = replica.endpoint.base_url
            _log.info("%s could not be held against its canary at the end: %s", url, error)

    async def _place(self, prompts: int, tokens: int, again: bool) -> Replica:
        future: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if again else self._waiting.append)((future, prompts, tokens, again))
        self._hand_out()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._free(future.result(), prompts, tokens)
            raise

    def _hand_out(self) -> None:
        while self._waiting:
            if self._waiting[0][0].done():  # cancelled
                self._waiting.popleft()
                continue
            replica = self._least_busy(again=self._waiting[0][3])
            if replica is None:
                break
            future, prompts, tokens, _ = self._waiting.popleft()
            replica.requests += 1
            replica.prompts += prompts
            replica.tokens += tokens
            future.set_result(replica)
            self._watch(replica)
        if self._waiting:
            self._look_for_outage()

    def _least_busy(self, *, again: bool) -> Replica | None:
        best = None
        for replica in self.replicas:
            if not replica.is_alive:
                continue
            if not again and not replica.requests:
                replica.on_probation = False  # all that was under way when it died has been asked for again
            if replica.requests >= (1 if replica.on_probation else replica.limiter.limit):
                continue
            if not replica.requests and time.monotonic() - replica.seen > self._options.recheck_after:
                self._doubt(replica, None)
            elif best is None or replica.tokens < best.tokens:
                best = replica
        return best

    def _free(self, replica: Replica, prompts: int, tokens: int) -> None:
        replica.requests -= 1
        replica.prompts -= prompts
        replica.tokens -= tokens
        self._hand_out()

    def _start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _doubt(self, replica: Replica, error: SupervisorError | None) -> None:
        if replica.is_alive:
            replica.state, replica.error = State.IN_DOUBT, error
            replica.settled.clear()
            self._start(self._restore(replica))

    def _prove_if_due(self, replica: Replica) -> None:
        idle = replica.prover is None or replica.prover.done()
        if idle and replica.is_alive and replica.proof.is_due(self._options.canary_every):
            replica.prover = self._start(self._prove(replica))

    async def _prove(self, replica: Replica) -> None:
        """Ask for the canary beside the work; where it differs, the server is in doubt."""
        try:
            await replica.proof.hold(times=1)
        except SupervisorChangedError as error:
            self._doubt(replica, error)
        except SupervisorError as error:  # if the server is gone, the work will tell
            _log.debug("%s: no canary: %s", replica.endpoint.base_url, error)

    async def _restore(self, replica: Replica) -> None:
        """Ask for the canary until the server is back, or another model answers."""
        url, began, wait, asked = replica.endpoint.base_url, time.monotonic(), self._options.first_wait, 0
        told: set[type[SupervisorError]] = set()
        while True:
            try:
                await replica.proof.hold()
                break
            except SupervisorChangedError as error:
                _log.error("%s", error)
                replica.state, replica.error = State.CHANGED, error
                replica.proof.retract()
                self._back.set()
                break
            except SupervisorError as error:
                asked, replica.error = asked + 1, error
                if not isinstance(error, SupervisorUnavailableError) and type(error) not in told:
                    told.add(type(error))  # it answers, but not as it must: nobody would look for that
                    _log.warning("%s is not taken in: %s", url, error)
            except Exception as error:  # a defect of ours must not leave all that waits without an end
                _log.exception("%s cannot be held against its canary", url)
                asked, replica.error = asked + 1, SupervisorError(f"{url}: {error!r}")
            if asked == 2 and replica.state is not State.GONE:  # one failure may be chance
                replica.state, replica.on_probation = State.GONE, True
                replica.deaths += 1
                _log.warning("%s is gone (%s)", url, replica.error)
                self._tell()
            if asked >= 2:
                self._look_for_outage()
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_PROBE_WAIT)
        if replica.state is not State.CHANGED:
            if replica.state is State.GONE:
                _log.warning("%s is back after %.0f s", url, time.monotonic() - began)
                replica.limiter.restart()
            replica.state, replica.error, replica.seen = State.ALIVE, None, time.monotonic()
            replica.passed += 1
            self._over = None
            self._back.set()
        replica.settled.set()
        self._tell()
        self._hand_out()

    def _look_for_outage(self) -> None:
        if any(replica.state in (State.ALIVE, State.IN_DOUBT) for replica in self.replicas):
            return
        if all(replica.state is State.CHANGED for replica in self.replicas):
            self._fail(self.replicas[0].error or SupervisorChangedError("another model is served"))
        elif self._over is not None:
            self._fail(self._over)
        elif self._outage is None or self._outage.done():
            self._outage = self._start(self._wait_for_any())

    async def _wait_for_any(self) -> None:
        """Say so, and wait; when the time is over, all that waits fails."""
        began, longest = time.monotonic(), self._options.server_wait
        _log.warning(
            "no supervisor is left (%s); waiting up to %.0f s for one to come back. What was scored is kept.",
            self.names,
            longest,
        )
        while not any(replica.is_alive for replica in self.replicas):
            if all(replica.state is State.CHANGED for replica in self.replicas):
                return self._look_for_outage()
            left = began + longest - time.monotonic()
            if left <= 0:
                self._over = self._gone_for_good()
                return self._fail(self._over)
            self._back.clear()
            try:
                await asyncio.wait_for(self._back.wait(), min(left, _REMIND_SECONDS))
            except TimeoutError:
                waited = time.monotonic() - began
                if waited < longest:
                    _log.warning("still no supervisor after %.0f s of %.0f", waited, longest)
        return None

    def _gone_for_good(self) -> OutageError:
        errors = "; ".join(str(replica.error) for replica in self.replicas)
        return OutageError(
            f"{errors} (no supervisor came back in {self._options.server_wait:g} s)."
            " Start it again, and then the same command (replug train: with --resume): what was scored is kept, so"
            " nothing is asked for twice. --server_wait sets how long to wait."
        )

    def _fail(self, error: SupervisorError) -> None:
        """Everything that waits ends with this error, and so does later work until a server is back."""
        waiting, self._waiting = self._waiting, deque()
        for future, *_ in waiting:
            if not future.done():
                future.set_exception(type(error)(str(error)))  # its own: a raised one gathers tracebacks
        for replica in self.replicas:
            replica.settled.set()
        self._tell()

    def _watch(self, replica: Replica) -> None:
        idle = replica.watcher is None or replica.watcher.done()
        if idle and replica.tells_queue and self._options.concurrency == "auto":
            replica.watcher = self._start(self._watch_queue(replica))

    async def _watch_queue(self, replica: Replica) -> None:
        """While the server has work, tell its limiter how much of it waits; ends where it cannot be read."""
        while replica.requests and replica.is_alive:
            await asyncio.sleep(_METRICS_SECONDS)
            if not replica.requests:
                return
            try:
                waiting = waiting_prompts(await replica.endpoint.metrics())
            except SupervisorUnavailableError:
                return
            except SupervisorError:
                waiting = None
            if waiting is None:
                replica.tells_queue = False
                return
            replica.limiter.queue(waiting, replica.prompts)

"""Servers that can be cut off, and a client over several of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from replug_client.supervisor.canary import CANARY
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.protocol import OnScores, Prompt, Retract, Score
from tests.supervisor.fake_server import MODEL, Body, FakeServer, running

QUICK = ClientOptions(
    concurrency=2, prompts_per_request=2, attempts=4, first_wait=0.01, longest_wait=0.02, server_wait=20.0
)


class Breakable(FakeServer):
    """A server that can be cut off: it then hangs up on every request, and counts those for the canary apart."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.down = False
        self.let_through = -1  # so many requests for pairs, and then it is down
        self.may_break = lambda: True  # ... as soon as this is so
        self.pairs: list[tuple[int, ...]] = []
        self.mischief = Breakable._break
        self._guard = threading.Lock()

    @staticmethod
    def _break(server: FakeServer, payload: dict[str, Any], body: Body) -> tuple[int, Body] | None:
        assert isinstance(server, Breakable)
        canary = any(tuple(ids) == CANARY.ids for ids in payload["prompt"])
        with server._guard:
            if not canary and not server.down:
                if server.let_through == 0:
                    eventually(server.may_break)
                    server.down = True
                server.let_through -= 1
            if server.down:
                return 0, None
            if not canary:
                server.pairs += map(tuple, payload["prompt"])
        return None


def other_model(prompt: Prompt) -> list[float]:
    return [value * 0.9 for value in hashed_log_probs(prompt)]


def servers(stack: ExitStack, count: int) -> list[Breakable]:
    return [stack.enter_context(started(Breakable())) for _ in range(count)]


@contextmanager
def started(server: Breakable) -> Iterator[Breakable]:
    with running(server):
        yield server


def connect(stack: ExitStack, pool: Sequence[FakeServer], options: ClientOptions = QUICK) -> RemoteSupervisor:
    clients = [Endpoint.open(server.base_url, timeout=20) for server in pool]
    return stack.enter_context(RemoteSupervisor(clients, MODEL, options))


class Watched:
    """A client of ``pool``, whose servers break no connection before each of their answers was taken in.

    One that is still held back when its server is gone is rightly asked of another.
    """

    def __init__(self, supervisor: RemoteSupervisor, pool: Sequence[Breakable]) -> None:
        self._supervisor = supervisor
        self._taken: set[tuple[int, ...]] = set()
        for server in pool:
            server.may_break = partial(self._has_taken_all_of, server)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._supervisor, name)

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        def take(positions: Sequence[int], scores: Sequence[Score]) -> Retract | None:
            retract = on_scores(positions, scores) if on_scores else None
            self._taken.update(prompts[position].ids for position in positions)
            return retract

        return self._supervisor.submit(prompts, take)

    def _has_taken_all_of(self, server: Breakable) -> bool:
        return self._taken.issuperset(server.pairs)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

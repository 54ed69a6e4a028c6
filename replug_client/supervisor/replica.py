"""One server of a pool, and where it stands."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum, auto

from replug_client.errors import SupervisorError
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.limiter import Limiter
from replug_client.supervisor.proof import Proof


class State(Enum):
    """Where a server stands."""

    ALIVE = auto()
    IN_DOUBT = auto()  # a connection broke, or none was there for long: it has to pass the canary
    GONE = auto()  # asked again and again until it is back
    CHANGED = auto()  # never asked again


@dataclass(eq=False)
class Replica:
    """One server.

    Attributes:
        endpoint: Where it is.
        limiter: How many requests it gets at once.
        proof: Its answers since the last canary.
        state: See ``State``.
        error: Why it is not alive.
        requests: In flight.
        prompts: In flight.
        tokens: In flight.
        seen: When it last answered, by ``time.monotonic``.
        settled: Set where it is known whether the server is as it was.
        tells_queue: Whether its ``/metrics`` says how many prompts wait, so far as is known.
        watcher: Reads them.
        passed: How often it has passed the canary since it was in doubt first.
        prover: Holds it against the canary while it works.
        deaths: How often it was gone.
        on_probation: It was gone, and what it had under way then is asked for one request at a time.
    """

    endpoint: Endpoint
    limiter: Limiter
    proof: Proof
    state: State = State.ALIVE
    error: SupervisorError | None = None
    requests: int = 0
    prompts: int = 0
    tokens: int = 0
    seen: float = field(default_factory=time.monotonic)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    tells_queue: bool = True
    watcher: asyncio.Task[None] | None = None
    passed: int = 0
    prover: asyncio.Task[None] | None = None
    deaths: int = 0
    on_probation: bool = False

    @property
    def is_alive(self) -> bool:
        """Whether it may get work, and its answers be believed."""
        return self.state is State.ALIVE

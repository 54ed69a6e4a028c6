"""The one place where this package meets the client: scores over HTTP as training gets them.

Everything else in ``server/`` runs with Python alone; this module needs replug installed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt

from replug_client.errors import OptionError, ReplugError
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import make_client
from replug_client.supervisor.formats import FORMATS
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.protocol import Prompt
from server.errors import ServerError

FORMAT_NAMES = tuple(wire_format.name for wire_format in FORMATS)
"""In the order in which training tries them."""
_IDS = range(5, 250)  # in every vocabulary
LogProbs = npt.NDArray[np.float32]


class Scorer:
    """A server, asked as training asks it."""

    def __init__(self, supervisor: RemoteSupervisor) -> None:
        """See ``connect``."""
        self._supervisor = supervisor

    @property
    def format(self) -> str:
        """Name of the wire format in use."""
        return self._supervisor.format

    def score(self, pairs: Sequence[tuple[Sequence[int], int]]) -> list[LogProbs]:
        """Log-probs in nats of the last ``n`` ids of each ``(ids, n)``: a list of ``(n,)``.

        Raises:
            ServerError: the server cannot score them; what the client says.
        """
        prompts = [Prompt(tuple(ids), count, f"test pair {i}") for i, (ids, count) in enumerate(pairs)]
        try:
            return [score.token_log_probs for score in self._supervisor.score(prompts)]
        except ReplugError as error:
            raise ServerError(str(error)) from error

    def rate(self, tokens: int, continuation: int, seconds: float, at_once: int) -> float:
        """Pairs a second over at least ``seconds``; no pair is sent twice, so no cache helps."""
        done, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            done += len(self.score([(random_ids(tokens), continuation) for _ in range(at_once)]))
        return done / (time.perf_counter() - start)


@contextmanager
def connect(
    base_url: str,
    model: str,
    *,
    wire_format: str | None = None,
    concurrency: int | Literal["auto"] = 4,
    prompts_per_request: int | None = None,
) -> Iterator[Scorer]:
    """Connect as training does; ``wire_format``: this one alone, instead of the best that works.

    Raises:
        ServerError: no such model, or the server does not score in this way; what the client says.
    """
    formats = [one for one in FORMATS if wire_format in (None, one.name)]
    more: dict[str, int] = {} if prompts_per_request is None else {"prompts_per_request": prompts_per_request}
    try:
        # A check does not wait for a server that has gone; training does.
        options = ClientOptions(concurrency=concurrency, attempts=3, server_wait=0.0, **more)
        supervisor = RemoteSupervisor(make_client(base_url, timeout=300.0), model, options, formats)
    except (ReplugError, OptionError) as error:
        raise ServerError(str(error)) from error
    with supervisor:
        yield Scorer(supervisor)


def random_ids(count: int) -> list[int]:
    """Token ids that mean nothing: what a server needs for them does not depend on what they are."""
    return random.choices(_IDS, k=count)


def prompts_per_request() -> int:
    """How many prompts the client puts into a request by default."""
    return ClientOptions().prompts_per_request

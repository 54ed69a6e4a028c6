"""The one place where this package meets the client: scores over HTTP as training gets them.

Everything else in ``server/`` runs with Python alone; this module needs replug installed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt

from replug_client.errors import OptionError, ReplugError
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint, ServedModel
from replug_client.supervisor.formats import FORMATS
from replug_client.supervisor.open import SupervisorOptions, open_supervisor
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.protocol import Prompt
from replug_client.supervisor.server_tokenizer import ServerTokenizer
from server.errors import ServerError
from server.probe import Served

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
        supervisor = RemoteSupervisor(Endpoint.open(base_url, timeout=300.0), model, options, formats)
    except (ReplugError, OptionError) as error:
        raise ServerError(str(error)) from error
    with supervisor:
        yield Scorer(supervisor)


def find_model(base_url: str, model: str) -> Served:
    """A model of a server as training finds it: by its name, by its root, or as the same folder.

    Raises:
        ServerError: it is not served, or there is no answer; what the client says.
    """

    async def find() -> ServedModel:
        endpoint = Endpoint.open(base_url, timeout=30.0)
        try:
            return await endpoint.served_model(model)
        finally:
            await endpoint.close()

    try:
        found = asyncio.run(find())
    except (ReplugError, OptionError) as error:
        raise ServerError(str(error)) from error
    return Served(found.name, found.max_model_len)


def open_as_training(base_urls: Sequence[str], model: str, tokenizer: str | None) -> str:
    """Open all the servers as one supervisor, find its tokenizer, and hold that against the servers' own.

    Returns:
        What was opened, for the screen.

    Raises:
        ServerError: training would refuse them; what the client says.
    """
    client = ClientOptions(attempts=3, server_wait=0.0)
    options = SupervisorOptions(
        model, base_url=",".join(base_urls), tokenizer=tokenizer, timeout=300.0, client=client
    )
    try:
        supervisor, found = open_supervisor(options)
    except (ReplugError, OptionError) as error:
        raise ServerError(str(error)) from error
    supervisor.close()
    if isinstance(found, ServerTokenizer):
        found.close()
        return f"{model}, with the server's own tokenizer (slow; --tokenizer gives another)"
    return f"{model}, with the tokenizer of {tokenizer or model}"


def random_ids(count: int) -> list[int]:
    """Token ids that mean nothing: what a server needs for them does not depend on what they are."""
    return random.choices(_IDS, k=count)


def prompts_per_request(tokens: int) -> int:
    """How many prompts of so many tokens the client puts into a request by default."""
    options = ClientOptions()
    return max(1, min(options.prompts_per_request, options.tokens_per_request // tokens))

"""The remote supervisor: scores over OpenAI-compatible servers such as vLLM."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import openai

from replug_client.errors import OptionError, SupervisorError
from replug_client.supervisor.asking import Asker, Request, all_or_none
from replug_client.supervisor.canary import Identity
from replug_client.supervisor.checks import check_lengths
from replug_client.supervisor.completing import Completer
from replug_client.supervisor.endpoint import Endpoint, roots_of
from replug_client.supervisor.formats import FORMATS, WireFormat
from replug_client.supervisor.limiter import FIRST_LIMIT
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.pool import Pool
from replug_client.supervisor.prefixes import batches
from replug_client.supervisor.probe import (
    admit,
    check_echoed_text,
    check_unchanged,
    choose_format,
    find_servers,
)
from replug_client.supervisor.protocol import OnScores, Prompt, Score

__all__ = ["ClientOptions", "RemoteSupervisor"]

_log = logging.getLogger(__name__)

Server = str | openai.AsyncOpenAI | Endpoint
"""A base URL, or a client that the caller has set up (with certificates or headers of its own, say).

Through an ``openai`` client each request costs some milliseconds of CPU more than by its URL: ``Endpoint.open``.
"""

_T = TypeVar("_T")
_UNKNOWN_LENGTH = 1 << 31
_PROMPTS_USUALLY = 8  # in a request of the other formats


class RemoteSupervisor:
    """Scores with the model of a server, or of several that serve the same one.

    Requests hold many prompts of about the same length, and run on an event loop of their own, in a
    thread; their number in flight is bounded at each server over all submissions, by default at what keeps
    the server busy (``limiter``). What is transient is retried, within bounds (``asking``). A server that
    is gone is waited for while others go on, and has to pass the canary when it is back (``pool``). At the
    start the servers are asked what they serve, and each wire format is probed, cheapest first, until one
    gives the right kind of answer (``probe``).
    """

    def __init__(
        self,
        servers: Server | Sequence[Server],
        model: str,
        options: ClientOptions | None = None,
        formats: Sequence[WireFormat] = FORMATS,
    ) -> None:
        """Connect and probe. Clients that are given belong to this object from now on, and are closed with it.

        Raises:
            OptionError: no URL, or a server does not serve ``model``, or another one under its name.
            SupervisorError: no answer, or no format that works.
        """
        self._options = options or ClientOptions()
        given = [servers] if isinstance(servers, Server) else servers
        if not given:
            raise OptionError(
                "no server was given; expected at least one base URL, as http://127.0.0.1:8000/v1"
            )
        self._endpoints = [_endpoint(server) for server in given]
        self._closed = False
        self._pool: Pool | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote-supervisor", daemon=True)
        self._thread.start()
        try:
            self._on_loop(self._connect(model, formats)).result()
        except BaseException:
            self.close()
            raise

    @property
    def format(self) -> str:
        """Name of the wire format that the probe chose."""
        return self._format.name

    def check_text(self, ids: Sequence[int], text: str) -> None:
        """Where the format does not say which tokens were scored: ask whether these ids are this text to the server.

        Raises:
            OptionError: they are not; the ids are of another tokenizer.
            SupervisorError: no answer, or a wrong one.
        """
        if self._format.verifies_ids:
            return
        prompt, (endpoint, name) = Prompt(tuple(ids), 1, "a text to know the tokenizer by"), self._first
        self._on_loop(check_echoed_text(endpoint, name, prompt, text, self._options)).result()

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        """See ``Supervisor.score``."""
        future = self.submit(prompts)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: the server need not go on
            raise

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        """See ``StreamingSupervisor.submit``."""
        if self._closed:
            raise SupervisorError(f"supervisor {self.name} is closed")
        prompts = tuple(prompts)
        check_lengths(prompts, self.max_prompt_tokens)
        return self._on_loop(self._run(prompts, on_scores))

    def complete(self, payload: dict[str, Any], read: Callable[[bytes], _T]) -> Future[_T]:
        """Send a completion request of any kind through the pool; see ``Completer.complete``."""
        return self._on_loop(self._open_completer().complete(payload, read))

    def stream(
        self, build: Callable[[], dict[str, Any] | None], on_event: Callable[[Any], None]
    ) -> Future[None]:
        """The same as a stream; ``on_event`` is called on this object's own thread. See ``Completer.stream``."""
        return self._on_loop(self._open_completer().stream(build, on_event))

    def _open_completer(self) -> Completer:
        if self._closed:
            raise SupervisorError(f"supervisor {self.name} is closed")
        return self._completer

    def close(self) -> None:
        """Drop what is under way, close the connections, and end the thread.

        Raises:
            SupervisorChangedError: another model has given the last scores; whoever kept them was told to drop them.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._on_loop(self._shut_down()).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> RemoteSupervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_loop(self, coroutine: Coroutine[Any, Any, _T]) -> Future[_T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _shut_down(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        try:
            if self._pool is not None:
                await self._pool.prove()
        finally:
            for endpoint in self._endpoints:
                await endpoint.close()

    async def _connect(self, model: str, formats: Sequence[WireFormat]) -> None:
        endpoints, options = self._endpoints, self._options
        served, absent = await find_servers(endpoints, model, options)
        names = {endpoint: entry.name for endpoint, entry in served.items()}
        chosen = await choose_format(dict(names), formats, options)
        wire_format, canary = chosen.wire_format, chosen.canary
        absent |= chosen.absent
        lengths = [entry.max_model_len for entry in served.values() if entry.max_model_len is not None]
        self._format = wire_format
        self._first = next(item for item in names.items() if item[0] not in chosen.absent)
        self.name = self._first[1]
        # One token is generated, though nobody reads it.
        self.max_prompt_tokens = min(lengths) - 1 if lengths else _UNKNOWN_LENGTH
        # Which format was used is not in it: all give the same numbers.
        # Of those alone whose canary was seen.
        seen = [entry for endpoint, entry in served.items() if endpoint not in chosen.absent]
        root, *others = [{"kind": "server", "model": root} for root in roots_of(seen)]
        self.identity = Identity(root, canary, tuple(others))
        self.fingerprint = self.identity.fingerprint

        async def check(endpoint: Endpoint) -> None:
            if endpoint not in names:
                late = await admit(endpoint, model, self.max_prompt_tokens if lengths else None)
                names[endpoint] = late.name
            await check_unchanged(endpoint, names[endpoint], wire_format, canary)

        # Where a request holds one prompt, eight of them would leave a GPU idle until the limit has grown.
        first = FIRST_LIMIT * (_PROMPTS_USUALLY if wire_format.max_prompts == 1 else 1)
        self._pool = Pool(endpoints, check, options, absent, first)
        self._asker = Asker(self._pool, names, wire_format, options)
        self._completer = Completer(self._pool, names, options)
        for endpoint in (endpoint for endpoint in served if endpoint not in absent):
            _log.info(
                "supervisor %s at %s: format %s, at most %s tokens",
                names[endpoint],
                endpoint.base_url,
                wire_format.name,
                min(lengths) if lengths else "an unknown number of",
            )

    async def _run(self, prompts: Sequence[Prompt], on_scores: OnScores | None) -> list[Score]:
        options = self._options
        lengths = [len(prompt.ids) for prompt in prompts]
        most = min(options.prompts_per_request, self._format.max_prompts or options.prompts_per_request)
        # A submission of few short prompts would be one request otherwise, and leave the other servers idle.
        most = min(most, math.ceil(len(prompts) / len(self._endpoints)) or 1)
        chunks = list(batches(lengths, options.tokens_per_request, most))
        # A server that is gone ends the submission at once; a refused prompt only after its neighbours.
        parts = await all_or_none(
            [self._asker.ask(Request([prompts[i] for i in chunk], chunk, on_scores)) for chunk in chunks]
        )
        results: dict[int, Score | SupervisorError] = {}
        for chunk, part in zip(chunks, parts, strict=True):
            results.update(zip(chunk, part, strict=True))
        return _all_scores([results[position] for position in range(len(prompts))])


def _endpoint(server: Server) -> Endpoint:
    if isinstance(server, str):
        return Endpoint.open(server)
    return Endpoint(server) if isinstance(server, openai.AsyncOpenAI) else server


def _all_scores(results: Sequence[Score | SupervisorError]) -> list[Score]:
    """The scores, or the first error, which then says how many there are."""
    scores = [result for result in results if isinstance(result, Score)]
    errors = [result for result in results if isinstance(result, SupervisorError)]
    if not errors:
        return scores
    if len(errors) == 1:
        raise errors[0]
    raise type(errors[0])(f"{errors[0]} ({len(errors)} of {len(results)} prompts failed; this is the first)")

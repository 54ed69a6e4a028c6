"""Completion requests of any kind over a pool of servers: what is transient is asked again, within bounds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from replug_client.errors import UnreadableAnswerError, WrongAnswerError
from replug_client.supervisor.endpoint import Endpoint, LostConnectionError
from replug_client.supervisor.formats.next_tokens import PATH
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.pool import Pool
from replug_client.supervisor.probe import patiently

_T = TypeVar("_T")
Payload = dict[str, Any]


class Completer:
    """Sends each request to the server with the least to do; ``names`` says what each calls the model."""

    def __init__(self, pool: Pool, names: Mapping[Endpoint, str], options: ClientOptions) -> None:
        self._pool = pool
        self._names = names
        self._options = options

    async def complete(self, payload: Payload, read: Callable[[bytes], _T]) -> _T:
        """What ``read`` makes of the answer; a wrong one is asked for again, a few times.

        Args:
            payload: But for the model's name; ``prompt`` is a list of lists of ids.
            read: The body's meaning; raises ``WrongAnswerError`` or ``UnreadableAnswerError``.

        Raises:
            SupervisorError: no answer, or a wrong one each time.
        """

        async def ask(endpoint: Endpoint, named: Payload) -> bytes:
            return await endpoint.post(PATH, named)

        return await self._patiently(lambda: payload, ask, read)

    async def stream(self, build: Callable[[], Payload | None], on_event: Callable[[Any], None]) -> None:
        """Hand out the events of a streamed answer as they come.

        Args:
            build: The payload of what has not come yet, None where nothing is left; asked for at each attempt, so
                that one goes on where the last broke off.
            on_event: Gets each event, on this thread; raises ``WrongAnswerError`` for a wrong one.

        Raises:
            SupervisorError: no answer, or a wrong one each time.
        """

        async def ask(endpoint: Endpoint, named: Payload) -> None:
            await endpoint.stream(PATH, {**named, "stream": True}, on_event)
            if build() is not None:
                raise LostConnectionError(f"{endpoint.base_url}: a stream ended before its text did")

        await self._patiently(build, ask, lambda nothing: nothing)

    async def _patiently(
        self,
        build: Callable[[], Payload | None],
        ask: Callable[[Endpoint, Payload], Awaitable[Any]],
        read: Callable[[Any], _T],
    ) -> _T:
        attempts = 0

        async def once() -> _T:
            nonlocal attempts
            payload, attempts = build(), attempts + 1
            if payload is None:  # the last attempt had come to its end before something went wrong
                return read(None)
            prompts = payload["prompt"]
            tokens = sum(len(prompt) + payload["max_tokens"] for prompt in prompts)
            async with self._pool.slot(len(prompts), tokens, again=attempts > 1) as slot:
                place = slot.endpoint.base_url
                try:
                    answer = await ask(slot.endpoint, {"model": self._names[slot.endpoint], **payload})
                    await slot.confirm()
                    return read(answer)
                except (WrongAnswerError, UnreadableAnswerError) as error:
                    raise type(error)(f"{place}: {error}") from error

        return await patiently(once, self._options)

"""The process behind ``SupervisorApart``: a remote supervisor that is asked over a socket.

python -m replug_client.supervisor.apart_process FILE_DESCRIPTOR

One thread reads, one writes, and the supervisor has its own: none of them waits for another, so the other side can
always send. It ends where the other side does, however that ends.
"""

from __future__ import annotations

import itertools
import logging
import os
import pickle
import signal
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from typing import Any

from replug_client.errors import ReplugError, SupervisorError
from replug_client.supervisor.apart import (
    Begin,
    Cancel,
    CheckText,
    Close,
    Closed,
    Done,
    Ready,
    Scored,
    Settled,
    Submit,
    TakeBack,
    packed,
)
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.protocol import Prompt, Retract, Score

Outbox = SimpleQueue[object]
"""Messages to the other side, in order; may be filled from any thread, and from a finaliser."""


class Desk:
    """Takes what is asked to the supervisor, and puts what comes of it into the outbox."""

    def __init__(self, supervisor: RemoteSupervisor, outbox: Outbox) -> None:
        self._supervisor, self._outbox = supervisor, outbox
        self._futures: dict[int, Future[Any]] = {}
        self._parts = itertools.count()

    def take(self, message: object) -> bool:
        """Act on a message; whether it was the last."""
        match message:
            case Submit(number, prompts):
                self._submit(number, [Prompt(*prompt) for prompt in prompts])
            case CheckText():
                # It waits for the server's answer; what is read next may be a Close.
                threading.Thread(target=self._check_text, args=(message,), daemon=True).start()
            case Cancel(number):
                if (future := self._futures.get(number)) is not None:
                    future.cancel()
            case Close():
                return True
        return False

    def _submit(self, number: int, prompts: list[Prompt]) -> None:
        def hand_over(positions: Sequence[int], scores: Sequence[Score]) -> Retract:
            part = next(self._parts)
            self._outbox.put(Scored(number, list(positions), packed(scores), part))
            retract = _TakeBack(self._outbox, part)
            weakref.finalize(retract, self._outbox.put, Settled(part)).atexit = False
            return retract

        def ended(future: Future[list[Score]]) -> None:
            self._futures.pop(number, None)
            cancelled = future.cancelled()
            self._outbox.put(Done(number, None if cancelled else sendable(future.exception()), cancelled))

        try:
            future = self._supervisor.submit(prompts, hand_over)
        except Exception as error:
            self._outbox.put(Done(number, sendable(error)))
            return
        self._futures[number] = future
        future.add_done_callback(ended)

    def _check_text(self, message: CheckText) -> None:
        error = None
        try:
            self._supervisor.check_text(message.ids, message.text)
        except Exception as found:
            error = sendable(found)
        self._outbox.put(Done(message.number, error))


class _TakeBack:
    """Has scores taken back that are on the other side; gone where that is not to happen any more."""

    def __init__(self, outbox: Outbox, part: int) -> None:
        self._outbox, self._part = outbox, part

    def __call__(self) -> None:
        self._outbox.put(TakeBack(self._part))


def sendable(error: BaseException | None) -> BaseException | None:
    """The error; of those that are not replug's, and may not come out of a pickle as they went in, the text."""
    return error if error is None or isinstance(error, ReplugError) else SupervisorError(repr(error))


def write(connection: Connection, outbox: Outbox) -> None:
    """Send what is in the outbox, all that there is at a time, until None comes."""
    while True:
        batch = [outbox.get()]
        with suppress(Empty):
            while True:
                batch.append(outbox.get_nowait())
        last = None in batch
        try:
            connection.send_bytes(
                pickle.dumps([message for message in batch if message is not None], pickle.HIGHEST_PROTOCOL)
            )
        except OSError:
            os._exit(1)  # the other side is gone
        if last:
            return


def serve(connection: Connection) -> None:
    """Until the other side closes, or is gone."""
    outbox: Outbox = SimpleQueue()
    writer = threading.Thread(target=write, args=(connection, outbox), daemon=True)
    writer.start()
    outbox.put(_closed(connection, outbox))
    outbox.put(None)
    writer.join()


def _closed(connection: Connection, outbox: Outbox) -> Closed:
    """Connect, take what comes, and close."""
    try:
        begin: Begin = connection.recv()
        logging.getLogger().addHandler(QueueHandler(outbox))
        logging.getLogger("replug_client").setLevel(begin.log_level)
        endpoints = [Endpoint.open(url, timeout=begin.timeout) for url in begin.base_urls]
        supervisor = RemoteSupervisor(endpoints, begin.model, begin.options)
        outbox.put(
            Ready(supervisor.name, supervisor.format, supervisor.max_prompt_tokens, supervisor.identity)
        )
        desk = Desk(supervisor, outbox)
        try:
            while not desk.take(connection.recv()):
                pass
        except (EOFError, OSError):
            os._exit(1)  # nobody is left to tell
        supervisor.close()
    except Exception as error:
        return Closed(sendable(error))
    return Closed()


def main() -> None:
    """Serve the one that started this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other side, which closes this one
    serve(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()

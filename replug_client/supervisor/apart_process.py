"""The process behind ``SupervisorApart``: a remote supervisor that is asked over a socket.

python -m replug_client.supervisor.apart_process FILE_DESCRIPTOR PARENT

It ends with the process PARENT that started it, however that ends.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from typing import Any

from replug_client.errors import ReplugError, SupervisorError
from replug_client.supervisor.apart_line import Line
from replug_client.supervisor.apart_messages import (
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

_PARENT_SECONDS = 1.0  # between two looks whether it is there
_SAID = (
    "name",
    "levelno",
    "levelname",
    "msg",
    "pathname",
    "filename",
    "module",
    "lineno",
    "funcName",
    "created",
)


class Desk:
    """Takes what is asked to the supervisor, and what comes of it back."""

    def __init__(self, supervisor: RemoteSupervisor, line: Line) -> None:
        self._supervisor, self._line = supervisor, line
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
            self._line.send(Scored(number, list(positions), packed(scores), part))
            retract = _TakeBack(self._line, part)
            weakref.finalize(retract, self._line.send, Settled(part)).atexit = False
            return retract

        def ended(future: Future[list[Score]]) -> None:
            self._futures.pop(number, None)
            cancelled = future.cancelled()
            self._line.send(Done(number, None if cancelled else sendable(future.exception()), cancelled))

        try:
            future = self._supervisor.submit(prompts, hand_over)
        except Exception as error:
            self._line.send(Done(number, sendable(error)))
            return
        self._futures[number] = future
        future.add_done_callback(ended)

    def _check_text(self, message: CheckText) -> None:
        error = None
        try:
            self._supervisor.check_text(message.ids, message.text)
        except Exception as found:
            error = sendable(found)
        self._line.send(Done(message.number, error))


class _TakeBack:
    """Has scores taken back that are on the other side; gone where that is not to happen any more."""

    def __init__(self, line: Line, part: int) -> None:
        self._line, self._part = line, part

    def __call__(self) -> None:
        self._line.send(TakeBack(self._part))


def sendable(error: BaseException | None) -> BaseException | None:
    """The error; of those that are not replug's, and may not come out of a pickle as they went in, the text."""
    return error if error is None or isinstance(error, ReplugError) else SupervisorError(repr(error))


def serve(connection: Connection) -> None:
    """Until the other side closes, or is gone."""
    line = Line(connection, lambda: os._exit(1))
    line.send(_closed(line))
    line.close()


def _closed(line: Line) -> Closed:
    """Connect, take what comes, and close."""
    inbox = line.received()
    try:
        begin = next(inbox)
        assert isinstance(begin, Begin)
        _log_to(line, begin)
        endpoints = [Endpoint.open(url, timeout=begin.timeout) for url in begin.base_urls]
        supervisor = RemoteSupervisor(endpoints, begin.model, begin.options)
        line.send(
            Ready(supervisor.name, supervisor.format, supervisor.max_prompt_tokens, supervisor.identity)
        )
        desk = Desk(supervisor, line)
        if not any(desk.take(message) for message in inbox):
            os._exit(1)  # nobody is left to tell
        supervisor.close()
    except Exception as error:
        return Closed(sendable(error))
    return Closed()


class _LogLine(QueueHandler):
    """Sends log records without what a library may have hung on them, which might not travel."""

    def enqueue(self, record: logging.LogRecord) -> None:
        said = {name: value for name, value in vars(record).items() if name in _SAID}
        self.queue.put_nowait(logging.makeLogRecord(said))


def _log_to(line: Line, begin: Begin) -> None:
    """Log records and warnings go to the other side, which has the screen and says from which level on."""
    logging.captureWarnings(True)
    logging.getLogger().addHandler(_LogLine(line.outbox))
    for name, level in begin.log_levels.items():
        logging.getLogger(name or None).setLevel(level)


def end_with(parent: int) -> None:
    """End this process when ``parent`` has; a fork of that one may still hold the other end of the socket."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)


def main() -> None:
    """Serve the one that started this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the other side, which closes this one
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    serve(connection)


if __name__ == "__main__":
    main()

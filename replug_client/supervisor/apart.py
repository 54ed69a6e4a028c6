"""The remote supervisor in a process of its own: what asking costs is not taken from this one's interpreter.

A training step keeps Python busy: it launches kernel after kernel. A client in the same process takes the interpreter
from it, 0.5 ms a pair and more (``benchmarks/sending.py``); and where the step computes on all cores, one that waits
for the client holds up the others. In a process of its own the client works on cores that are free, and in the step's
pauses where none is (``benchmarks/pipeline.py``).
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from replug_client.errors import SupervisorError
from replug_client.supervisor.canary import Identity
from replug_client.supervisor.checks import check_lengths
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.protocol import OnScores, Prompt, Retract, Score

_log = logging.getLogger(__name__)

_END_SECONDS = 10.0  # for a process that has said all

Packed = tuple[list[int], npt.NDArray[np.float32]]
"""Scores on their way: how many tokens each has, and the log-probs of all of them one after another."""


@dataclass(frozen=True, slots=True)
class Begin:
    """To the process, first: what it connects to, and which log records are wanted."""

    base_urls: Sequence[str]
    model: str
    timeout: float
    options: ClientOptions
    log_level: int


@dataclass(frozen=True, slots=True)
class Ready:
    """From the process, first: what :class:`RemoteSupervisor` has found out."""

    name: str
    format: str
    max_prompt_tokens: int
    identity: Identity


@dataclass(frozen=True, slots=True)
class Submit:
    """To the process: score this. Prompts as tuples, which travel faster."""

    number: int
    prompts: Sequence[tuple[tuple[int, ...], int, str]]


@dataclass(frozen=True, slots=True)
class CheckText:
    """To the process: see ``RemoteSupervisor.check_text``; answered with :class:`Done`."""

    number: int
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the process: nobody waits for this any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Close:
    """To the process: close, and say how that went with :class:`Closed`."""


@dataclass(frozen=True, slots=True)
class Scored:
    """From the process: a part of a submission, and a number by which it may be taken back."""

    number: int
    positions: Sequence[int]
    scores: Packed
    part: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """From the process: that part's scores were another model's."""

    part: int


@dataclass(frozen=True, slots=True)
class Settled:
    """From the process: that part's scores will not be taken back any more."""

    part: int


@dataclass(frozen=True, slots=True)
class Done:
    """From the process: this has ended, with an error or without, or was cancelled."""

    number: int
    error: BaseException | None = None
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """From the process, last; or first, where it could not connect."""

    error: BaseException | None = None


@dataclass(slots=True)
class _Submission:
    """What this side knows of one."""

    size: int
    on_scores: OnScores | None
    future: Future[list[Score]] = field(default_factory=Future)
    scores: dict[int, Score] = field(default_factory=dict)

    def end(self, error: BaseException | None, cancelled: bool) -> None:
        if cancelled:
            self.future.cancel()
            return
        with suppress(InvalidStateError):  # cancelled, or failed, by now
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result([self.scores[position] for position in range(self.size)])


class SupervisorApart:
    """A :class:`RemoteSupervisor` in another process; the same scores, errors and log.

    What is asked goes there over a socket, and comes back in parts, as it is scored; ``on_scores`` is called here, in
    a thread of this object's. The process ends with this one, however that ends.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str,
        options: ClientOptions | None = None,
        *,
        timeout: float = 600.0,
    ) -> None:
        """Start the process, connect and probe there.

        Args:
            base_urls: Of the servers, with the ``/v1``.
            model: As they serve it.
            options: How they are asked.
            timeout: Seconds for an answer.

        Raises:
            OptionError: as ``RemoteSupervisor``.
            SupervisorError: as there; or the process ended.
        """
        self._sending, self._lock = threading.Lock(), threading.Lock()
        self._submissions: dict[int, _Submission] = {}
        self._parts: dict[int, Retract] = {}
        self._count = 0
        self._end: BaseException | None = None  # why nothing can be asked any more
        self._close_error: BaseException | None = None
        self._closed = False
        self._process, self._connection = _start()
        self._inbox = self._messages()
        level = logging.getLogger("replug_client").getEffectiveLevel()
        try:
            self._send(Begin(tuple(base_urls), model, timeout, options or ClientOptions(), level))
            first = self._first()
        except BaseException:
            self._kill()
            raise
        self.name, self.format = first.name, first.format
        self.max_prompt_tokens, self.identity = first.max_prompt_tokens, first.identity
        self.fingerprint = self.identity.fingerprint
        self._reader = threading.Thread(target=self._read, name="supervisor-apart", daemon=True)
        self._reader.start()

    def check_text(self, ids: Sequence[int], text: str) -> None:
        """See ``RemoteSupervisor.check_text``.

        Raises:
            OptionError: the ids are of another tokenizer.
            SupervisorError: no answer, or a wrong one.
        """
        self._ask(lambda number: CheckText(number, tuple(ids), text), _Submission(0, None)).result()

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
        check_lengths(prompts, self.max_prompt_tokens)
        packed = [(prompt.ids, prompt.num_continuation, prompt.label) for prompt in prompts]
        return self._ask(lambda number: Submit(number, packed), _Submission(len(packed), on_scores))

    def close(self) -> None:
        """Drop what is under way, and end the process.

        Raises:
            SupervisorChangedError: see ``RemoteSupervisor.close``.
        """
        if self._closed:
            return
        self._closed = True
        with suppress(OSError):  # it is gone already
            self._send(Close())
        self._reader.join()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._kill()
        if self._close_error is not None:
            raise self._close_error

    def __enter__(self) -> SupervisorApart:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, message: Callable[[int], Submit | CheckText], submission: _Submission
    ) -> Future[list[Score]]:
        with self._lock:
            if self._end is not None:
                raise self._end
            self._count += 1
            number = self._count
            self._submissions[number] = submission

        def ended(future: Future[list[Score]]) -> None:
            if future.cancelled():
                self._cancel(number)

        submission.future.add_done_callback(ended)
        with suppress(OSError):  # then the reader has the end of it, and tells the future
            self._send(message(number))
        return submission.future

    def _cancel(self, number: int) -> None:
        with self._lock:
            known = number in self._submissions
        if known:
            with suppress(OSError):
                self._send(Cancel(number))

    def _send(self, message: object) -> None:
        content = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._connection.send_bytes(content)

    def _first(self) -> Ready:
        """Log records until the process has connected, or has not."""
        for message in self._inbox:
            match message:
                case logging.LogRecord():
                    _log_here(message)
                case Ready():
                    return message
                case Closed(error) if error is not None:
                    raise error
        raise self._gone()

    def _read(self) -> None:
        end: BaseException
        try:
            closed = any(self._take(message) for message in self._inbox)
            end = SupervisorError(f"supervisor {self.name} is closed") if closed else self._gone()
        except Exception as error:  # whoever waits is not to wait for ever
            _log.exception("a message of the process that asks the servers could not be read")
            end = error
        with self._lock:
            self._end = end
            left, self._submissions = list(self._submissions.values()), {}
        for submission in left:
            submission.end(end, cancelled=self._closed)

    def _messages(self) -> Iterator[object]:
        """What comes from the process, until it ends."""
        with suppress(EOFError, OSError):
            while True:
                yield from self._connection.recv()

    def _take(self, message: object) -> bool:
        """Act on a message; whether it was the last."""
        match message:
            case Scored():
                self._hand_out(message)
            case Done(number, error, cancelled):
                with self._lock:
                    submission = self._submissions.pop(number)
                submission.end(error, cancelled)
            case Settled(part):
                self._parts.pop(part, None)
            case TakeBack(part):
                if (retract := self._parts.pop(part, None)) is not None:
                    _take_back(retract)
            case logging.LogRecord():
                _log_here(message)
            case Closed(error):
                self._close_error = error
                return True
        return False

    def _hand_out(self, message: Scored) -> None:
        with self._lock:
            submission = self._submissions[message.number]
        scores = unpacked(message.scores)
        submission.scores.update(zip(message.positions, scores, strict=True))
        if submission.on_scores is None:
            return
        try:
            retract = submission.on_scores(message.positions, scores)
        except Exception as error:  # of the caller's: a full disk, say
            submission.end(error, cancelled=False)
            self._cancel(message.number)
        else:
            if retract is not None:
                self._parts[message.part] = retract

    def _gone(self) -> SupervisorError:
        try:
            status: int | str = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            status = "unknown"
        return SupervisorError(
            f"the process that asks the servers ended (status {status}; below 0 it is a signal's number: -9 is often"
            " a machine without memory left). What was scored is kept: begin again, a training run with --resume"
        )

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()


def packed(scores: Sequence[Score]) -> Packed:
    """Scores as one array."""
    values = [score.token_log_probs for score in scores]
    return [len(value) for value in values], np.concatenate(values)


def unpacked(scores: Packed) -> list[Score]:
    """The reverse of :func:`packed`."""
    lengths, values = scores
    return [Score(part) for part in np.split(values, np.cumsum(lengths)[:-1])]


def _take_back(retract: Retract) -> None:
    try:
        retract()
    except Exception:  # the server is out in any case, and the others' answers are to be taken back
        _log.exception("some scores of another model could not be taken out of the score cache")


def _log_here(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    """The process, and this end of what leads there.

    Not by ``multiprocessing``: that would run the caller's script once more.
    """
    here, there = socket.socketpair()
    with there:
        command = [sys.executable, "-P", "-m", "replug_client.supervisor.apart_process", str(there.fileno())]
        process = subprocess.Popen(
            command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, env=_environment()
        )
    return process, Connection(here.detach())


def _environment() -> dict[str, str]:
    """This process' own, with its path: a module that is found here is found there."""
    path = os.pathsep.join(entry or os.curdir for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path}

"""The remote supervisor in a process of its own: what asking costs is not taken from this one's interpreter.

A training step keeps Python busy: it launches kernel after kernel. A client in the same process takes the interpreter
from it, 0.5 ms a pair and more (``benchmarks/sending.py``); and where the step computes on all cores, one that waits
for the client holds up the others. In a process of its own the client works on cores that are free, and in the step's
pauses where none is (``benchmarks/pipeline.py``).
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from replug_client.errors import SupervisorError
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
    unpacked,
)
from replug_client.supervisor.checks import check_lengths
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.protocol import OnScores, Prompt, Retract, Score

_log = logging.getLogger(__name__)

_END_SECONDS = 10.0  # for a process that has said all


@dataclass(slots=True)
class _Submission:
    """What this side knows of one."""

    size: int
    on_scores: OnScores | None
    future: Future[list[Score]] = field(default_factory=Future)
    scores: dict[int, Score] = field(default_factory=dict)
    ended: bool = False

    def end(self, error: BaseException | None, cancelled: bool) -> None:
        """The process has ended it; or nothing will come of it any more."""
        if cancelled:
            self.future.cancel()
        if not self._may_end():
            return
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result([self.scores[position] for position in range(self.size)])

    def fail(self, error: Exception) -> None:
        """Its callback did; the process may still be at work on it."""
        self.on_scores = None
        if self._may_end():
            self.future.set_exception(error)

    def _may_end(self) -> bool:
        """Not where it has, or where it was cancelled, which whoever waits is told."""
        if self.ended:
            return False
        self.ended = True
        return self.future.set_running_or_notify_cancel()


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
            OSError: no process can be started.
        """
        self._lock = threading.Lock()
        self._submissions: dict[int, _Submission] = {}
        self._parts: dict[int, Retract] = {}
        self._count = 0
        self._end: SupervisorError | None = None  # why nothing can be asked any more
        self._close_error: BaseException | None = None
        self._closed = False
        self._process, connection = _start()
        self._line = Line(connection, self._process.kill)
        self._inbox = self._line.received()
        try:
            self._line.send(
                Begin(tuple(base_urls), model, timeout, options or ClientOptions(), _log_levels())
            )
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
        prompts = tuple(prompts)
        check_lengths(prompts, self.max_prompt_tokens)
        tuples = [(prompt.ids, prompt.num_continuation, prompt.label) for prompt in prompts]
        return self._ask(lambda number: Submit(number, tuples), _Submission(len(tuples), on_scores))

    def close(self) -> None:
        """Drop what is under way, and end the process.

        Raises:
            SupervisorChangedError: see ``RemoteSupervisor.close``.
        """
        if self._closed:
            return
        self._closed = True
        self._line.send(Close())
        try:
            self._reader.join()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        finally:  # Ctrl-C does not leave it behind
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
                raise _again(self._end)
            self._count += 1
            number = self._count
            self._submissions[number] = submission

        def ended(future: Future[list[Score]]) -> None:
            if future.cancelled():
                self._line.send(Cancel(number))

        submission.future.add_done_callback(ended)
        self._line.send(message(number))
        return submission.future

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
        raise SupervisorError(f"the process that is to ask the servers ended at its start ({self._status()})")

    def _read(self) -> None:
        try:
            end = self._ended(any(self._take(message) for message in self._inbox))
        except Exception as error:  # whoever waits is not to wait for ever
            _log.exception("a message of the process that asks the servers was not understood")
            end = SupervisorError(
                f"a message of the process that asks the servers was not understood: {error!r}"
            )
            self._process.kill()
        with self._lock:
            self._end = end
            left, self._submissions = list(self._submissions.values()), {}
        for submission in left:
            submission.end(_again(end), cancelled=self._closed)

    def _ended(self, orderly: bool) -> SupervisorError:
        """Why nothing more comes."""
        if self._closed:
            return SupervisorError(f"supervisor {self.name} is closed")
        if orderly:
            return SupervisorError(f"the process that asks the servers gave up: {self._close_error!r}")
        return SupervisorError(
            f"the process that asks the servers ended ({self._status()}). What was scored is kept: begin again, a"
            " training run with --resume"
        )

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
            submission = self._submissions.get(message.number)
        if submission is None:  # cancelled: that was said while this was on its way
            return
        scores = unpacked(message.scores)
        submission.scores.update(zip(message.positions, scores, strict=True))
        if submission.on_scores is None:
            return
        try:
            retract = submission.on_scores(message.positions, scores)
        except Exception as error:  # of the caller's: a full disk, say
            submission.fail(error)
            self._line.send(Cancel(message.number))
        else:
            if retract is not None:
                self._parts[message.part] = retract

    def _status(self) -> str:
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "it does not say how"
        killed = ": a signal; 9 is often a machine without memory left" if status < 0 else ""
        return f"status {status}{killed}"

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._line.close()


def _again(error: SupervisorError) -> SupervisorError:
    """One for each who is told: raised, an exception keeps where that was."""
    return type(error)(*error.args)


def _log_levels() -> dict[str, int]:
    return {name: logging.getLogger(name or None).getEffectiveLevel() for name in ("", "replug_client")}


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

    Not by ``multiprocessing``: that would run the caller's script once more. In a group of its own: Ctrl-C is for this
    process, which ends that one.

    Raises:
        OSError: it cannot be started.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("where Python lies is not known to this program")
    here, there = socket.socketpair()
    with there:
        module = "replug_client.supervisor.apart_process"
        command = [sys.executable, "-P", "-m", module, str(there.fileno()), str(os.getpid())]
        try:
            process = subprocess.Popen(
                command,
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(),
                process_group=0,
            )
        except BaseException:
            here.close()
            raise
    return process, Connection(here.detach())


def _environment() -> dict[str, str]:
    """This process' own, with its path: a module that is found here is found there."""
    path = os.pathsep.join(entry or os.curdir for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path}

"""One watched server: started, asked until it scores, asked whether it lives, started again when it dies."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from server.diagnose import Diagnosis, diagnose
from server.errors import ServerError
from server.options import WatchOptions
from server.plan import Command
from server.probe import Served, health, probe_scores, served_models
from server.process import ServerProcess
from server.progress import FIRST, later_stage

State = Literal["new", "starting", "ready", "waiting", "failed"]
_STILL = 30.0  # seconds without news after which the screen says that it goes on
_HEALTH_TIMEOUT = 10.0


class Replica:
    """A server and its state; ``step`` is called again and again, and never blocks.

    A server that has never been ready and dies is an error, with its cause: starting it again would end
    alike. One that has been ready is started again, with waits that double, a bounded number of times.
    """

    def __init__(
        self,
        command: Command,
        environ: Mapping[str, str],
        options: WatchOptions,
        log: Path,
        say: Callable[[str], None],
    ) -> None:
        """``log``: the file for its output; ``say``: prints a line on the screen."""
        self.command = command
        self.log = log
        self.state: State = "new"
        self.served: Served | None = None
        self._options = options
        self._say = say
        self._environment = command.full_environment(environ)
        self._key = self._environment.get("VLLM_API_KEY") or None
        self._process: ServerProcess | None = None
        self._question: _Question | None = None
        self._stage = self._shown = FIRST
        self._restarts = 0
        # When (monotonic seconds): it was started, became ready, last answered, the screen last spoke...
        self._started = self._ready_at = self._answered = self._spoke = self._asked = self._next_start = 0.0

    @property
    def pid(self) -> int | None:
        """Of the server's own process, while there is one."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the server; from the main thread.

        Raises:
            ServerError: its port is taken, or its log cannot be written.
        """
        check_port(self.command.host, self.command.port)
        self._stage = self._shown = FIRST
        self._process = ServerProcess(
            self.command.arguments,
            self._environment,
            self.log,
            self._on_line,
            [self._key] if self._key else [],
        )
        self._started = self._answered = self._spoke = time.monotonic()
        self.state = "starting"

    def step(self) -> None:
        """See what has happened since, and act on it.

        Raises:
            ServerError: the server's first start has failed.
        """
        now = time.monotonic()
        if self.state == "waiting" and now >= self._next_start:
            try:
                self.start()
            except ServerError as error:
                self._has_died(Diagnosis(error.cause, error.mend))
        if self._process is None or self.state not in ("starting", "ready"):
            return
        status = self._process.status()
        if status is not None:
            self._has_died(diagnose(self._process.tail(), status))
        elif self.state == "starting":
            self._while_starting(now)
        else:
            self._while_ready(now)

    def ask_to_end(self) -> None:
        """Begin to end the server."""
        if self._process is not None:
            self._process.ask_to_end()

    def has_ended(self) -> bool:
        """Whether the server's own process is gone."""
        return self._process is None or self._process.status() is not None

    def kill(self) -> int | None:
        """End whatever is left of it; the id of its group if some of that cannot be ended, else None."""
        process, self._process, self._question = self._process, None, None
        return None if process is None or process.kill() else process.pid

    def _while_starting(self, now: float) -> None:
        if self._stage != self._shown or now - self._spoke > _STILL:
            still = "still " if self._stage == self._shown else ""
            self._shown = self._stage
            self._tell(f"{still}{self._shown}")
        if now - self._started > self._options.start_timeout:
            found = f"not ready after {self._options.start_timeout:.0f} s (last: {self._shown})"
            return self._has_died(Diagnosis(found, "Give it longer: --start-timeout SECONDS."))
        try:
            self.served = self._answer(now, self._ready)
        except OSError:
            return None  # not yet
        except ServerError as error:
            return self._has_died(Diagnosis(error.cause, error.mend))
        except Exception as error:  # what it says may hold the key, and a traceback helps nobody here
            return self._has_died(Diagnosis(f"the probe of the server failed ({type(error).__name__})", ""))
        if self.served is not None:
            self.state = "ready"
            self._ready_at = self._answered = now
        return None

    def _while_ready(self, now: float) -> None:
        if self._restarts and now - self._ready_at > self._options.steady:
            self._restarts = 0
        try:
            status = self._answer(now, self._health)
        except OSError:
            status = None
        if status == 503:
            self._has_died(diagnose(self._tail(), None))
        elif status is not None:
            self._answered = now
        elif now - self._answered > self._options.hang_timeout:
            silence = f"no answer to /health for {self._options.hang_timeout:.0f} s"
            self._has_died(Diagnosis(silence, ""))

    def _has_died(self, diagnosis: Diagnosis) -> None:
        """End what is left; then an error, or another start."""
        tail = self._tail()
        first = self._ready_at == 0.0
        self.kill()
        if first:
            raise self._failure(diagnosis, tail)
        self._tell(f"the server has died: {_sentence(diagnosis)}")
        self._restarts += 1
        if self._restarts > self._options.restarts:
            self.state = "failed"
            self._tell(f"given up after {self._options.restarts} restarts; its log is {self.log}")
            return
        wait = self._options.wait_before(self._restarts)
        self.state = "waiting"
        self._next_start = time.monotonic() + wait
        self._tell(f"restart {self._restarts} of {self._options.restarts} in {wait:.0f} s")

    def _failure(self, diagnosis: Diagnosis, tail: list[str]) -> ServerError:
        if diagnosis.known:
            evidence = f"\n  vLLM says: {diagnosis.evidence}" if diagnosis.evidence else ""
            return ServerError(
                f"{diagnosis.cause}{evidence}", f"{diagnosis.mend}\n  The whole log: {self.log}".lstrip()
            )
        last = "\n".join(f"    {line}" for line in tail[-8:])
        return ServerError(
            f"vLLM did not start: {_sentence(diagnosis)}\n  its last lines:\n{last}",
            f"The whole log: {self.log}",
        )

    def _answer(self, now: float, call: Callable[[], Any]) -> Any:
        """The result of ``call``, which runs in a thread; None while there is none."""
        if self._question is None:
            if now - self._asked >= self._options.interval:
                self._asked = now
                self._question = _Question(call)
            return None
        if not self._question.done:
            return None
        question, self._question = self._question, None
        return question.result()

    def _ready(self) -> Served | None:
        base_url = self.command.base_url
        if self._health() != 200:
            return None
        models = served_models(base_url, self._key, direct=True)
        if not models:
            return None
        probe_scores(base_url, models[0].name, self._key, direct=True)
        return models[0]

    def _health(self) -> int:
        return health(self.command.base_url, _HEALTH_TIMEOUT, direct=True)

    def _tail(self) -> list[str]:
        return [] if self._process is None else self._process.tail()

    def _on_line(self, line: str) -> None:
        self._stage = later_stage(self._stage, line)

    def _tell(self, text: str) -> None:
        self._spoke = time.monotonic()
        self._say(f"{self.command.port}: {text}")


class _Question:
    """A call in a thread of its own, which nobody has to wait for."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._result: Any = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        try:
            self._result = self._call()
        except Exception as error:
            self._error = error


def check_port(host: str, port: int) -> None:
    """Refuse a port that somebody listens on already.

    Raises:
        ServerError: taken, or not to be had; names one that is free.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            with socket.socket(family) as other:
                try:
                    other.bind((host, 0))
                except OSError:
                    raise ServerError(
                        f"this machine does not listen on {host}: {error.strerror}",
                        "--host takes one of its own addresses, or 0.0.0.0 for all of them.",
                    ) from None
                free = other.getsockname()[1]
            taken = error.errno == errno.EADDRINUSE
            also = ", or end what listens there (ss -ltnp shows it)" if taken else ""
            raise ServerError(
                f"port {port} of {host} cannot be had: {error.strerror}",
                f"Give another (--port {free} is free){also}.",
            ) from None


def _sentence(diagnosis: Diagnosis) -> str:
    evidence = f" ({diagnosis.evidence})" if diagnosis.evidence else ""
    mend = f". {diagnosis.mend}" if diagnosis.mend else ""
    return f"{diagnosis.cause}{evidence}{mend}"

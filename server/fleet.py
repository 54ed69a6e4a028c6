"""Several servers as one: started together, watched together, ended together."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from server.errors import ServerError
from server.options import WatchOptions
from server.plan import Plan
from server.process import cannot_log, end_orphans
from server.replica import Replica, check_port

_TICK = 0.1
Say = Callable[[str], None]


class StopRequest:
    """Whether the user wants all to end (Ctrl-C, SIGTERM), and how urgently."""

    def __init__(self) -> None:
        """Nothing is asked for yet."""
        self.signal: int | None = None
        self.times = 0
        self._event = threading.Event()

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        """As a signal handler: may be called again and again."""
        self.signal = number
        self.times += 1
        self._event.set()

    @property
    def asked(self) -> bool:
        """Whether all is to end."""
        return self._event.is_set()

    def wait(self, seconds: float) -> None:
        """Sleep, unless all is to end."""
        self._event.wait(seconds)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Listen to SIGINT, SIGTERM and, unless ``nohup`` has it ignored, SIGHUP; from the main thread."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Fleet:
    """The servers of a plan. Methods are called from the main thread."""

    def __init__(
        self,
        plan: Plan,
        environ: Mapping[str, str],
        options: WatchOptions,
        say: Say,
        *,
        alone: bool = False,
    ) -> None:
        """Nothing is started yet.

        Args:
            plan: What to start.
            environ: The environment that the servers inherit.
            options: How they are watched.
            say: Prints a line on the screen.
            alone: Every child of this process is a server, or an orphan of one (``adopt_orphans``), so that
                orphans can be told, and killed: what was started in a session of its own.

        Raises:
            ServerError: there is no folder to write the logs to.
        """
        self.options = options
        self._alone = alone
        self._say = say
        folder = _log_folder(options.log_dir)
        self.replicas = [
            Replica(command, environ, options, folder / f"vllm-{command.port}.log", say)
            for command in plan.commands
        ]

    @property
    def ready(self) -> list[Replica]:
        """The servers that score."""
        return [replica for replica in self.replicas if replica.state == "ready"]

    def start(self, stop: StopRequest) -> bool:
        """Start all, and wait until all score, but for those given up meanwhile; False if ``stop`` came first.

        Raises:
            ServerError: a port is taken (then none is started), one of them cannot start, or every one has been
                given up; the cause.
        """
        for replica in self.replicas:
            check_port(replica.command.host, replica.command.port)
        for replica in self.replicas:
            replica.start()
        self._say(f"vLLM's own output: {', '.join(str(replica.log) for replica in self.replicas)}")
        while any(replica.state not in ("ready", "failed") for replica in self.replicas):
            if stop.asked:
                return False
            self._step()
            stop.wait(_TICK)
        self._fail_if_none_is_left()
        return True

    def watch(self, stop: StopRequest) -> None:
        """Keep them alive until ``stop``.

        Raises:
            ServerError: every one of them has been given up.
        """
        states = [replica.state for replica in self.replicas]
        while not stop.asked:
            self._step()
            for position, replica in enumerate(self.replicas):
                if replica.state == "ready" and states[position] != "ready":
                    self._say(f"{replica.command.port}: READY again {replica.command.base_url}")
                if replica.state != "ready" and states[position] == "ready":
                    self._end_orphans()
                states[position] = replica.state
            self._fail_if_none_is_left()
            stop.wait(_TICK)

    def end(self, stop: StopRequest | None = None) -> list[int]:
        """End all, in order within ``grace`` seconds, else by force; a second signal makes haste.

        Returns:
            Ids of processes that are left all the same, since the system does not end them.
        """
        for replica in self.replicas:
            replica.ask_to_end()
        deadline = time.monotonic() + self.options.grace
        while not all(replica.has_ended() for replica in self.replicas) and time.monotonic() < deadline:
            if stop is not None and stop.times > 1:
                break
            time.sleep(_TICK / 2)
        left = [pid for replica in self.replicas if (pid := replica.kill()) is not None]
        return sorted({*left, *self._end_orphans()})

    def _end_orphans(self) -> list[int]:
        living = [replica.pid for replica in self.replicas if replica.pid is not None]
        return end_orphans(living) if self._alone else []

    def _fail_if_none_is_left(self) -> None:
        if all(replica.state == "failed" for replica in self.replicas):
            raise ServerError(
                "no server is left: each died more often than it may be restarted",
                f"Their logs say why: {', '.join(str(replica.log) for replica in self.replicas)}",
            )

    def _step(self) -> None:
        for replica in self.replicas:
            replica.step()


@contextmanager
def serving(
    plan: Plan,
    options: WatchOptions | None = None,
    say: Say = print,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[list[str]]:
    """Servers for a program, such as a benchmark: ready on entry, gone on exit, not watched between.

    Args:
        plan: What to start; ``server.serve.make_plan`` makes one for this machine.
        options: How long the start may take, where the logs go...
        say: Prints a line on the screen.
        environ: The environment that the servers inherit; the one that the plan was made with.

    Yields:
        The base URLs, with ``/v1``, of those that are ready.

    Raises:
        ServerError: one of them cannot start; its cause.
    """
    fleet = Fleet(plan, environ, options or WatchOptions(), say)
    try:
        fleet.start(StopRequest())
        yield [replica.command.base_url for replica in fleet.ready]
    finally:
        fleet.end()


def _log_folder(given: Path | None) -> Path:
    try:
        folder = given or Path(tempfile.mkdtemp(prefix="replug-server-"))
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_log(given or Path(tempfile.gettempdir()), error) from error
    return folder

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
from server.process import end_orphans
from server.replica import Replica

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
        """Listen to SIGINT, SIGTERM and SIGHUP; from the main thread."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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
        """
        self.options = options
        self._alone = alone
        self._say = say
        folder = options.log_dir or Path(tempfile.mkdtemp(prefix="replug-server-"))
        folder.mkdir(parents=True, exist_ok=True)
        self.replicas = [
            Replica(command, environ, options, folder / f"vllm-{command.port}.log", say)
            for command in plan.commands
        ]

    @property
    def ready(self) -> bool:
        """Whether every server is."""
        return all(replica.state == "ready" for replica in self.replicas)

    def start(self, stop: StopRequest) -> bool:
        """Start all, and wait until all score; False if ``stop`` came first.

        Raises:
            ServerError: one of them cannot start; its cause.
        """
        for replica in self.replicas:
            replica.start()
        self._say(f"vLLM's own output: {', '.join(str(replica.log) for replica in self.replicas)}")
        while not self.ready:
            if stop.asked:
                return False
            self._step()
            stop.wait(_TICK)
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
            if all(state == "failed" for state in states):
                raise ServerError(
                    "no server is left: each died more often than it may be restarted",
                    f"Their logs say why: {', '.join(str(replica.log) for replica in self.replicas)}",
                )
            stop.wait(_TICK)

    def end(self, stop: StopRequest | None = None) -> None:
        """End all, in order within ``grace`` seconds, else by force; a second signal makes haste."""
        for replica in self.replicas:
            replica.ask_to_end()
        deadline = time.monotonic() + self.options.grace
        while not all(replica.has_ended() for replica in self.replicas) and time.monotonic() < deadline:
            if stop is not None and stop.times > 1:
                break
            time.sleep(_TICK / 2)
        for replica in self.replicas:
            replica.kill()
        self._end_orphans()

    def _end_orphans(self) -> None:
        if self._alone:
            end_orphans([replica.pid for replica in self.replicas if replica.pid is not None])

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
        Their base URLs, with ``/v1``.

    Raises:
        ServerError: one of them cannot start; its cause.
    """
    fleet = Fleet(plan, environ, options or WatchOptions(), say)
    try:
        fleet.start(StopRequest())
        yield plan.base_urls
    finally:
        fleet.end()

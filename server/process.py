"""One server's processes: started so that none is left behind, their output read line by line, ended as a group."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from server.errors import ServerError

KILL_SECONDS = 10.0
"""How long a killed process may take to be gone; one that hangs in the kernel takes for ever."""
_TAIL = 400
_PR_SET_CHILD_SUBREAPER = 36
# Runs in the place of the server, and becomes it: Linux then sends SIGTERM (15) when the launcher dies, however
# it does. Not as a preexec_fn, which may deadlock where there are threads.
_SHIM = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the launcher is gone")
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error}")
"""


class ServerProcess:
    """A server and whatever it starts: a process group of its own.

    Its output goes to a file, with the secrets struck out, and line by line to a listener.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        on_line: Callable[[str], None] = lambda line: None,
        secrets: Sequence[str] = (),
    ) -> None:
        """Start it. Call from the main thread: Linux ties the death signal to the thread that starts.

        Args:
            arguments: Program and arguments.
            environment: The whole of it.
            log: Appended to.
            on_line: Called for each line, in a thread.
            secrets: Never written anywhere.

        Raises:
            ServerError: the log cannot be written.
        """
        self._tail: deque[str] = deque(maxlen=_TAIL)
        try:
            file = log.open("a", encoding="utf-8")
        except OSError as error:
            raise cannot_log(log, error) from error
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C is for the launcher alone, which then ends this in order
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, args=(file, on_line, tuple(secrets)), daemon=True)
        self._reader.start()

    def status(self) -> int | None:
        """Exit status of the server itself; None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def tail(self) -> list[str]:
        """Its last lines; all that it wrote, once it has ended."""
        if self.status() is not None:
            self._reader.join(timeout=2.0)  # a process that it left may hold the pipe
        return list(self._tail)

    def ask_to_end(self) -> None:
        """SIGTERM to the server, which ends its own children in order."""
        if self.status() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> bool:
        """SIGKILL to all of its group; whether none of it is left, for which it waits ``KILL_SECONDS`` at most."""
        deadline = time.monotonic() + KILL_SECONDS
        while time.monotonic() < deadline:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
                self._process.wait()
                return True
            self._reap()
            time.sleep(0.02)
        return False

    def _reap(self) -> None:
        """Take the exit status of the group's members: the server's, and those of orphans given to us."""
        if self._process.poll() is None:
            return
        with suppress(ChildProcessError):
            while os.waitpid(-self.pid, os.WNOHANG)[0]:
                pass

    def _read(self, log: TextIO, on_line: Callable[[str], None], secrets: tuple[str, ...]) -> None:
        assert self._process.stdout is not None
        with log as file, self._process.stdout as stream:
            for data in stream:
                line = data.decode("utf-8", "replace").rstrip("\n")
                for secret in secrets:
                    line = line.replace(secret, "***")
                self._tail.append(line)
                with suppress(OSError):  # a full disk must not stop the server, which waits for us to read
                    file.write(line + "\n")
                    file.flush()
                on_line(line)


def adopt_orphans() -> None:
    """Let grandchildren whose parent dies become children of this process (Linux), so that it can end them."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(living: Sequence[int]) -> list[int]:
    """Kill the children of this process other than ``living``: what servers left behind in sessions of their own.

    Killed, they leave children of their own to this process; so it is repeated, for ``KILL_SECONDS`` at most.

    Returns:
        Ids of those that are left.
    """
    deadline = time.monotonic() + KILL_SECONDS
    while orphans := [pid for pid in _children() if pid not in living]:
        if time.monotonic() > deadline:
            return orphans
        for pid in orphans:
            with suppress(ProcessLookupError, PermissionError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
    return []


def cannot_log(path: Path, error: OSError) -> ServerError:
    """What to raise where a log, or its folder, cannot be opened."""
    return ServerError(
        f"the servers' output cannot be written to {path}: {error.strerror or error}",
        "Give a folder that can be written to, on a disk with room: --log-dir FOLDER.",
    )


def _children() -> list[int]:
    own = os.getpid()
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            # pid (name, which may hold spaces and brackets) state ppid ...
            text = path.read_text(errors="replace")
            if int(text.rpartition(")")[2].split()[1]) == own:
                found.append(int(text.partition(" ")[0]))
    return found

"""A server as ``python -m server`` starts it, for as long as a benchmark runs."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.process import ServerProcess

_END_SECONDS = 60.0


@contextlib.contextmanager
def running_server(model: str, arguments: Sequence[str] = ()) -> Iterator[str]:
    """Start it on a free port, show what it says, and give its base URL; it ends with the block, or with us."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ready = threading.Event()

    def listen(line: str) -> None:
        if not ready.is_set():
            print("  " + line, flush=True)
        if " READY " in line:
            ready.set()

    command = [sys.executable, "-m", "server", "--model", model, "--port", str(port), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        process = ServerProcess(command, os.environ, Path(folder) / "server.log", listen)
        try:
            while not ready.wait(0.2):
                if process.status() is not None:
                    raise SystemExit(f"python -m server ended with status {process.status()}; see above")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.ask_to_end()
            deadline = time.monotonic() + _END_SECONDS
            while process.status() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            process.kill()

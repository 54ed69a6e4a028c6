"""A relay before a server that breaks down in the middle of its work, as a server does that is killed."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Relay:
    """Passes connections on until so many completion requests came in; the next one finds it gone.

    Args:
        base_url: Of the server behind it, with ``/v1``.
        requests: How many completion requests are let through.
    """

    def __init__(self, base_url: str, requests: int) -> None:
        host, port = base_url.removeprefix("http://").removesuffix("/v1").split(":")
        self._target = (host, int(port))
        self._left = requests
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._listener]
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._break_down()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                threading.Thread(target=self._pass_on, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if counted and data.startswith(b"POST /v1/completions"):
                    with self._lock:
                        self._left -= 1
                    if self._left < 0:
                        self._break_down()
                        return
                sink.sendall(data)
        # One side has closed: the other learns of it.
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _break_down(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

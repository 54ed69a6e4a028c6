"""An HTTP proxy that stands between a client and a server and breaks what passes: seeded, and counting.

What happens to a request depends on the seed, on its bytes and on how often they came before, not on the
order in which requests arrive: the same client meets the same faults each time, however it is scheduled.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any
from urllib.parse import urlsplit

from tests.faults.faults import ON_THE_CONNECTION, Fault, spoil
from tests.faults.forms import Ids, form_of

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: closing sends RST
_SKIPPED = {"connection", "transfer-encoding", "content-length", "keep-alive", "host"}
_DRIPS, _DRIP_SECONDS = 8, 0.02


@dataclass
class Counts:
    """What the proxy saw and did, in requests and in prompts.

    ``asked`` counts every time that a prompt came by; ``spoiled`` those that a fault left without a score.
    A prompt that was asked more often than 1 + ``spoiled`` was asked for nothing.
    """

    requests: int = 0
    asked: Counter[Ids] = field(default_factory=Counter)
    spoiled: Counter[Ids] = field(default_factory=Counter)
    faults: Counter[Fault] = field(default_factory=Counter)

    def unexplained(self) -> dict[Ids, int]:
        """Prompts that were asked more often than their faults explain, and how much more often."""
        extra = {ids: times - 1 - self.spoiled[ids] for ids, times in self.asked.items()}
        return {ids: times for ids, times in extra.items() if times > 0}


class FaultProxy:
    """Passes HTTP on to a server, and spoils what asks for scores.

    Attributes:
        target: Base URL of the server, with ``/v1``; may be changed between two requests.
        faults: What goes wrong; empty: nothing.
        rate: How often, in [0, 1]; which of ``faults`` it is then is drawn.
        mark: A token id; only requests with a prompt that holds it are hit, and in an answer only that prompt.
        hold: Seconds for which a time-out or an endless drip keeps a connection open; longer than the
            client waits.
        counts: What happened so far.
    """

    def __init__(self, target: str, *, seed: int = 0) -> None:
        """Listen on a free port of this machine, at once."""
        self.target = target
        self.faults: tuple[Fault, ...] = ()
        self.rate = 0.0
        self.mark: int | None = None
        self.hold = 60.0
        self.counts = Counts()
        self._seed = seed
        self._seen: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._released = threading.Event()
        self._port = 0
        self._http: _Server | None = None
        self.up()

    @property
    def base_url(self) -> str:
        """Where it listens, with ``/v1``."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def ended(self) -> bool:
        """Whether nobody waits any longer."""
        return self._released.is_set()

    def inject(self, *faults: Fault, rate: float, mark: int | None = None) -> None:
        """From now on, do this to requests for scores."""
        self.faults, self.rate, self.mark = faults, rate, mark

    def down(self) -> None:
        """As a server that dies: every connection is reset, and the port refuses new ones."""
        with self._lock:
            server, self._http = self._http, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self._lock:  # after the last one was accepted: one that lived on would answer the canary
            connections, self._open = self._open, set()
        for connection in connections:
            reset(connection)

    def up(self) -> None:
        """Listen again, on the same port."""
        server = _Server(("127.0.0.1", self._port), _Handler)
        server.proxy = self
        self._port = server.server_address[1]
        self._http = server
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self.down()

    def draw(self, body: bytes, prompts: list[Ids], used: bool) -> tuple[Fault | None, Random]:
        """Count a request, and decide what happens to it. ``used``: its connection has served one before."""
        with self._lock:
            self._seen[body] += 1
            random = Random(f"{self._seed} {self._seen[body]} {body!r}")
            self.counts.requests += 1
            self.counts.asked.update(prompts)
        hit = self.mark is None or any(self.mark in ids for ids in prompts)
        if not self.faults or not hit or random.random() >= self.rate:
            return None, random
        fault = random.choice(self.faults)
        return (None if fault is Fault.STALE and not used else fault), random

    def record(self, fault: Fault, spoiled: Iterable[Ids]) -> None:
        """Count a fault that has been done."""
        with self._lock:
            self.counts.faults[fault] += 1
            self.counts.spoiled.update(spoiled)

    def opened(self, connection: socket.socket) -> None:
        """A client has connected."""
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """A client's connection has ended."""
        with self._lock:
            self._open.discard(connection)

    def wait(self) -> None:
        """For as long as a time-out takes, or until the proxy ends."""
        self._released.wait(self.hold)


class _Server(ThreadingHTTPServer):
    proxy: FaultProxy
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.proxy.opened(connection)
        return connection, address

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections break here all the time; that is what it is for."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._served = 0

    def finish(self) -> None:
        self.server.proxy.closed(self.connection)
        with suppress(OSError, ValueError):
            super().finish()

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        payload = json.loads(body)
        form = form_of(self.path, payload)
        if form is None:
            self._pass_on(body)
            return
        prompts = form.prompts(payload)
        proxy = self.server.proxy
        fault, random = proxy.draw(body, prompts, used=self._served > 0)
        if fault is None:
            self._pass_on(body)
        elif fault in ON_THE_CONNECTION:
            proxy.record(fault, () if fault is Fault.DRIP else prompts)
            self._break(fault, body, random)
        else:
            status, answer = self._fetch(body)
            marked = [i for i, ids in enumerate(prompts) if proxy.mark is None or proxy.mark in ids]
            reply = spoil(fault, answer, form, len(prompts), marked, random) if status == 200 else None
            if reply is None:
                self._reply(status, answer)
                return
            proxy.record(fault, (prompts[i] for i in reply.spoiled))
            self._reply(reply.status, reply.body)

    def _break(self, fault: Fault, body: bytes, random: Random) -> None:
        if fault is Fault.TIME_OUT:
            self.server.proxy.wait()
        if fault in (Fault.RESET, Fault.STALE, Fault.TIME_OUT):
            self.close_connection = True
            reset(self.connection)
            return
        status, answer = self._fetch(body)
        if fault is Fault.DRIP:
            self._reply(status, answer, pieces=_DRIPS)
            return
        self.close_connection = True
        if fault is Fault.CUT:
            self._reply(status, answer[: random.randrange(len(answer))], promised=len(answer))
        elif fault is Fault.TRICKLE:
            self._trickle(status, answer)

    def _trickle(self, status: int, answer: bytes) -> None:
        """Keep the client reading: it never waits long for a byte, and the last one never comes."""
        end = time.monotonic() + self.server.proxy.hold
        self._reply(status, b"", promised=len(answer))
        for byte in answer[:-1]:
            if time.monotonic() > end or self.server.proxy.ended:
                return
            try:
                self.wfile.write(bytes([byte]))
            except OSError:
                return
            time.sleep(_DRIP_SECONDS)

    def _pass_on(self, body: bytes) -> None:
        self._reply(*self._fetch(body))

    def _fetch(self, body: bytes) -> tuple[int, bytes]:
        """The server's own answer; a server that is not there is a connection that breaks."""
        target = urlsplit(self.server.proxy.target)
        connection = http.client.HTTPConnection(target.hostname or "", target.port or 80, timeout=600)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _SKIPPED}
        try:
            connection.request(self.command, self.path, body or None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            reset(self.connection)
            raise
        finally:
            connection.close()

    def _reply(self, status: int, body: bytes, *, pieces: int = 1, promised: int | None = None) -> None:
        self._served += 1
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        with suppress(OSError):  # the client may have given up by now
            self.end_headers()
            size = max(1, -(-len(body) // pieces))
            for start in range(0, len(body), size):
                if start:
                    time.sleep(_DRIP_SECONDS)
                self.wfile.write(body[start : start + size])

    def log_message(self, format: str, *args: object) -> None:
        pass


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other end reads ``ECONNRESET``, whoever else holds or reads it here."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        connection.shutdown(socket.SHUT_RD)  # wakes a thread that reads; nothing is sent by it
    with suppress(OSError):
        # Not close(): the handler's files share the socket and would keep it open.
        os.close(connection.detach())

"""A local web server with ranges that can break off, change its file, or answer with errors."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What it serves under any name, and how; ``seen`` are the Range headers of its requests, in order."""

    body: bytes
    ranges: bool = True
    validator: bool = True
    cut_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    seen: list[str | None] = field(default_factory=list)
    url: str = ""

    @property
    def etag(self) -> str:
        return f'"{hashlib.md5(self.body).hexdigest()}"'


@contextlib.contextmanager
def serving(server: FileServer) -> Iterator[FileServer]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            server.seen.append(asked)
            self.close_connection = True
            if server.statuses and (status := server.statuses.pop(0)) != 200:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
            if self.headers.get("If-Range") not in (None, server.etag):
                start = 0
            if start >= len(server.body) > 0:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = server.body[start:]
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
            self.send_header("Content-Length", str(len(body)))
            if server.validator:
                self.send_header("ETag", server.etag)
            self.end_headers()
            sent = body[: server.cut_after.pop(0)] if server.cut_after else body
            self.wfile.write(sent)

        def log_message(self, format: str, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()

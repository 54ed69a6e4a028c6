"""`replug compare --serve`: one page and one endpoint on this machine; it reads, and writes nothing.

Who may ask: the page itself, and programs that are no browser. A page of another site may not: neither under
its own name (its requests say that they come from elsewhere) nor under a name that it made point here (DNS
rebinding: the Host is then neither an address, nor ``localhost``, nor the one that was asked for).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from replug_client.errors import OptionError, ReplugError
from replug_client.evaluation.appraisal import Appraiser
from replug_client.evaluation.comparison_view import query_data
from replug_client.evaluation.retrieval import Opened, compare_retrievers
from replug_client.evaluation.tuned_run import Query
from replug_client.pages.document import cleaned

logger = logging.getLogger(__name__)

MOST_PASSAGES = 100
LONGEST = 20_000
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# Only what the page itself asks for, and what a person types into the address bar.
_FETCH_SITES = (None, "same-origin", "none")
_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Searcher:
    """Answers one query at a time, in the values that the page draws.

    Attributes:
        opened: Corpus and retrievers.
        k: Passages a list, where a request does not say.
        appraiser: The LM's scores; None where there is no supervisor.
        common: Words that are not marked.
    """

    opened: Opened
    k: int
    appraiser: Appraiser | None = None
    common: frozenset[str] = frozenset()
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def search(self, query: Query, k: int, *, scored: bool = True) -> dict[str, Any]:
        """Both lists for ``query``; ``scored`` asks the supervisor, where there is one.

        Raises:
            SupervisorError: it gives no scores.
        """
        with self._lock:  # the encoders' forward passes; the supervisor takes many callers
            compared = compare_retrievers([query], self.opened.base, self.opened.tuned, k, quiet=True)
        if scored and self.appraiser is not None:
            compared = self.appraiser.appraise(compared, self.opened.store)
        return query_data(compared[0], self.opened.passages_of(compared), self.common)


class ComparisonServer(ThreadingHTTPServer):
    """Serves ``page`` at ``/`` and ``searcher`` at ``/api/search``.

    Args:
        host: Address or name to listen at.
        port: 0 takes a free one.
        page: The HTML.
        searcher: What answers.

    Raises:
        OptionError: it cannot listen there.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, page: str, searcher: Searcher) -> None:
        self.page = page.encode("utf-8", "replace")
        self.searcher = searcher
        self.host = host
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise OptionError(
                f"cannot listen at {host}:{port} ({error}). Give another --port (0: any free one) or --host."
            ) from error

    @property
    def url(self) -> str:
        """Where the page is, for a browser on this machine."""
        host = "127.0.0.1" if self.host in ("", "0.0.0.0") else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def allows(self, host: str | None) -> bool:
        """Whether a request may name this Host: an address, ``localhost``, or what was asked for with --host."""
        name = urlsplit(f"//{host or ''}").hostname or ""
        if name in ("localhost", self.host.lower()):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


class _RefusedError(ReplugError):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: ComparisonServer
    server_version = "replug"
    sys_version = ""
    timeout = _SECONDS

    def do_GET(self) -> None:
        """The page, or an answer to a query."""
        try:
            self._check()
            target = urlsplit(self.path)
            if target.path == "/":
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
            elif target.path == "/api/search":
                self._json(HTTPStatus.OK, self._search(parse_qs(target.query, keep_blank_values=True)))
            else:
                raise _RefusedError(HTTPStatus.NOT_FOUND, "there is / and /api/search")
        except _RefusedError as error:
            self._json(error.status, {"error": str(error)})
        except ReplugError as error:  # the supervisor's, as a rule: what it says is what mends it
            logger.warning("%s", error)
            self._json(HTTPStatus.BAD_GATEWAY, {"error": str(error)})

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are of interest to a debugger only; whatever a client sent is shown as its escapes."""
        logger.debug("%s %r", self.address_string(), format % args)

    def _check(self) -> None:
        if not self.server.allows(self.headers.get("Host")):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "this Host is not served here; see --host")
        if self.headers.get("Sec-Fetch-Site") not in _FETCH_SITES:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "pages of other sites may not ask")

    def _search(self, parameters: Mapping[str, list[str]]) -> dict[str, Any]:
        unknown = set(parameters) - {"query", "continuation", "k", "lm"}
        if unknown:
            raise _RefusedError(
                HTTPStatus.BAD_REQUEST, f"unknown: {sorted(unknown)}; query, continuation, k, lm"
            )
        given = {name: values[-1] for name, values in parameters.items()}
        query, continuation = given.get("query", ""), given.get("continuation", "")
        if not query.strip():
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "query is empty: expected the text to retrieve for")
        if len(query) > LONGEST or len(continuation) > LONGEST:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"a text of more than {LONGEST:,} characters")
        k = given.get("k", str(self.server.searcher.k))
        if not (k.isascii() and k.isdigit() and len(k) < 6 and 1 <= int(k) <= MOST_PASSAGES):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"k: expected 1 to {MOST_PASSAGES}, found {k[:20]!r}")
        if (scored := given.get("lm", "1")) not in ("0", "1"):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, f"lm: expected 0 or 1, found {scored[:20]!r}")
        return self.server.searcher.search(Query(query, continuation or None), int(k), scored=scored == "1")

    def _json(self, status: HTTPStatus, value: Mapping[str, Any]) -> None:
        body = json.dumps(cleaned(value), ensure_ascii=True, allow_nan=False).encode("ascii")
        self._send(status, "application/json", body)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        try:
            self.send_response(status)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            if kind == "application/json":
                self.send_header("Content-Security-Policy", "default-src 'none'; sandbox")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            logger.debug("the browser did not wait for the answer")

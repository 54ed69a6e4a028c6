"""Requests that score: posted over connections that stay open, at little CPU time.

Where a request holds a single pair (``vllm-generate``), what it costs on this side decides how many pairs a second one
process can ask for. Through the ``openai`` client that is several times what everything else of a pair costs, most
of it in headers, events and connection lists in Python; aiohttp reads HTTP in C (``benchmarks/sending.py``).
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp

# vLLM closes idle connections after 5 s; ours go earlier, so that none is reset under a request.
KEEP_ALIVE_SECONDS = 3.0
CONNECT_SECONDS = 10.0


class Sender:
    """POSTs JSON; the connections belong to the event loop that posts first."""

    def __init__(self, headers: Mapping[str, str], context: ssl.SSLContext | None = None) -> None:
        """Nothing is opened yet.

        Args:
            headers: Sent with each request.
            context: Which certificates are trusted; aiohttp's own when None.
        """
        self._headers = dict(headers)
        self._context = context
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, payload: Mapping[str, Any]) -> tuple[int, bytes]:
        """Status and body of the answer; without a limit of time but for the connection.

        Raises:
            aiohttp.ClientError, TimeoutError: no connection, or one that broke.
        """
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        if self._session is None:
            self._session = self._open()
        async with self._session.post(url, data=body) as answer:
            return answer.status, await answer.read()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS, ssl=self._context or True
        )
        # The caller limits the whole answer's time: only it knows how much it asked for.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)

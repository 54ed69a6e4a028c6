"""The leanest load on a server: requests whose bytes are made beforehand, answers that nobody looks into."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2

from replug_client.supervisor.address import api_key
from replug_client.supervisor.formats import WireFormat
from replug_client.supervisor.protocol import Prompt


@dataclass(slots=True)
class Load:
    """What came of it: wall and CPU seconds (of this process), bytes of bodies, and bodies if they were kept."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    received: int = 0
    bodies: dict[int, bytes] = field(default_factory=dict)


def request_bytes(base_url: str, wire_format: WireFormat, model: str, prompts: Sequence[Prompt]) -> bytes:
    """Head and body of one request, as the client would send it."""
    root = base_url.removesuffix("/v1") if wire_format.beside_v1 else base_url
    request = httpx2.Request(
        "POST",
        root + wire_format.path,
        json=wire_format.build(model, prompts),
        headers={"Authorization": f"Bearer {api_key()}"},
    )
    head = b"".join(b"%s: %s\r\n" % item for item in request.headers.raw)
    return b"POST %s HTTP/1.1\r\n%s\r\n%s" % (request.url.raw_path, head, request.content)


def run_load(base_url: str, requests: Sequence[bytes], at_once: int, *, keep: bool = False) -> Load:
    """Send all of them, ``at_once`` in flight, each worker over a connection of its own."""
    return asyncio.run(_run(base_url, requests, at_once, keep))


async def _run(base_url: str, requests: Sequence[bytes], at_once: int, keep: bool) -> Load:
    url = urlsplit(base_url)
    if url.scheme != "http" or url.hostname is None:
        raise SystemExit(f"the load generator speaks plain http only, not {base_url!r}")
    connections = [await asyncio.open_connection(url.hostname, url.port or 80) for _ in range(at_once)]
    waiting = deque(enumerate(requests))
    load = Load()

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while waiting:
            number, request = waiting.popleft()
            writer.write(request)
            body = await _answer(reader)
            load.received += len(body)
            if keep:
                load.bodies[number] = body
        writer.close()

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(work(*connection) for connection in connections))
    load.seconds, load.cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return load


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0].strip()
    if not length.isdigit():
        raise SystemExit(f"the load generator needs a Content-Length, found {head[:200]!r}")
    body = await reader.readexactly(int(length))
    if not head.startswith(b"http/1.1 200"):
        raise SystemExit(f"the server refuses the load: {head[:15].decode()} {body[:300]!r}")
    return body

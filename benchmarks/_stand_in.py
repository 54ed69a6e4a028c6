"""A server of fixed latency and parallelism, in a process of its own: answers as vLLM does, and computes nothing.

python -m benchmarks._stand_in PORT SECONDS PARALLEL [generate]

With ``generate`` it also has ``/inference/v1/generate``, as vLLM on a GPU with --enable-scale-out has.

It has PARALLEL places; a prompt keeps one for SECONDS, so that PARALLEL / SECONDS prompts a second is the most
it can do. What does not get a place waits in a queue, as in vLLM.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import heapify, heapreplace
from itertools import accumulate

MODEL = "stand-in"
MAX_MODEL_LEN = 4096
_START_SECONDS = 30.0
_STATES = 4099
# Made beforehand: the less this process computes, the less it takes from what is measured beside it.
_ROWS = [f'":{{"logprob":{-state / 512},"rank":1,"decoded_token":"x"}}}}' for state in range(_STATES)]
_METRICS = (
    'vllm:num_requests_running{{model_name="{name}"}} {running}\n'
    'vllm:num_requests_waiting{{model_name="{name}"}} {waiting}\n'
)


class Places:
    """When each prompt will be done: times are planned, so that late timers do not add up."""

    def __init__(self, seconds: float, parallel: int) -> None:
        self._seconds = seconds
        self._free = [0.0] * parallel
        self._ends: list[float] = []
        heapify(self._free)

    def take(self, count: int) -> float:
        """Seconds until ``count`` prompts that came just now are all done."""
        now = time.monotonic()
        end = now
        for _ in range(count):
            end = max(now, self._free[0]) + self._seconds
            heapreplace(self._free, end)
            self._ends.append(end)
        return end - now

    def load(self) -> tuple[int, int]:
        """Prompts that have a place, and prompts that wait for one."""
        now = time.monotonic()
        self._ends = [end for end in self._ends if end > now]
        running = sum(end > now for end in self._free)
        return running, max(0, len(self._ends) - running)


class StandIn:
    """The routes of vLLM that a client asks for scores."""

    def __init__(self, seconds: float, parallel: int, generate: bool = False) -> None:
        self._places = Places(seconds, parallel)
        self._generate = generate

    def answer(self, method: str, path: str, body: bytes) -> tuple[float, int, bytes]:
        """Seconds that one request takes, and the status and the body of its answer."""
        if path == "/v1/models":
            entry = {"id": MODEL, "root": MODEL, "max_model_len": MAX_MODEL_LEN}
            return 0.0, 200, json.dumps({"data": [entry]}).encode()
        if path == "/metrics":
            running, waiting = self._places.load()
            return 0.0, 200, _METRICS.format(name=MODEL, running=running, waiting=waiting).encode()
        if path == "/health":
            return 0.0, 200, b""
        if path == "/inference/v1/generate" and self._generate:
            ready = generated(body)
            return self._places.take(1), 200, ready
        if method != "POST" or path != "/v1/completions":
            return (
                0.0,
                404,
                b'{"error": {"message": "no such route", "type": "NotFoundError", "code": 404}}',
            )
        payload = json.loads(body)
        if "prompt_logprobs" not in payload:
            return 0.0, 400, b'{"error": {"message": "only prompt_logprobs is known here", "code": 400}}'
        prompts: list[list[int]] = payload["prompt"]
        ready = completion(prompts).encode()
        return self._places.take(len(prompts)), 200, ready


class Connection(asyncio.Protocol):
    """One connection, for as long as it is kept; no task and no stream, which would take CPU from what is measured."""

    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in
        self._received = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it to answer through."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is here as a whole, when its time has passed."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n") + 4) >= 4:
            head = bytes(self._received[:end])
            length = head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
            whole = end + int(length or 0)
            if len(self._received) < whole:
                return
            body = bytes(self._received[end:whole])
            del self._received[:whole]
            method, path, _ = head.decode("latin-1").split(" ", 2)
            seconds, status, answer = self._stand_in.answer(method, path, body)
            headers = f"Content-Type: application/json\r\nContent-Length: {len(answer)}\r\n\r\n"
            ready = f"HTTP/1.1 {status} -\r\n{headers}".encode("latin-1") + answer
            asyncio.get_running_loop().call_later(seconds, self._write, ready)

    def _write(self, ready: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(ready)


def completion(prompts: list[list[int]]) -> str:
    """The answer to ``prompt_logprobs: 0``, as vLLM writes it; a log-prob depends on the ids up to its token."""
    choices = []
    for index, ids in enumerate(prompts):
        states = list(accumulate(ids, lambda state, token: (state * 31 + token) % _STATES))
        rows = "".join(
            [f',{{"{token}{_ROWS[state]}' for token, state in zip(ids[1:], states[1:], strict=True)]
        )
        choices.append(
            f'{{"index":{index},"text":"x","finish_reason":"length","prompt_logprobs":[null{rows}]}}'
        )
    usage = f'{{"prompt_tokens":{sum(map(len, prompts))},"completion_tokens":{len(prompts)}}}'
    return f'{{"choices":[{",".join(choices)}],"usage":{usage}}}'


def generated(body: bytes) -> bytes:
    """The answer to ``prompt_logprob_token_ids``: float32 for the continuation alone.

    A log-prob depends on its token and where that stands: with less than all tokens before it, as in a model, but the
    same whatever follows, which the client's probe asks for.
    """
    payload = json.loads(body)
    ids = payload["token_ids"]
    rows = len(payload["sampling_params"]["prompt_logprob_token_ids"])
    first = len(ids) - rows
    values = array(
        "f", [-((token * 31 + first + row) % _STATES) / 512 for row, token in enumerate(ids[first:])]
    )
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, 1), }}".encode("latin-1")
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + values.tobytes()
    usage = f'{{"prompt_tokens":{len(ids)},"completion_tokens":1}}'
    choice = '{"index":0,"finish_reason":"length","token_ids":[7],"logprobs":null}'
    encoded = base64.b64encode(npy).decode()
    return f'{{"choices":[{choice}],"usage":{usage},"prompt_token_id_logprobs":"{encoded}"}}'.encode()


@contextmanager
def running(seconds: float, parallel: int, *, generate: bool = False) -> Iterator[str]:
    """Start one in a process of its own; its base URL. It ends with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "benchmarks._stand_in", str(port), str(seconds), str(parallel)]
    command += ["generate"] if generate else []
    process = subprocess.Popen(command)
    try:
        _wait_until_ready(process, port)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the stand-in server ended with status {process.returncode}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    raise SystemExit(f"the stand-in server was not ready after {_START_SECONDS:.0f} s")


async def _main(port: int, seconds: float, parallel: int, generate: bool) -> None:
    stand_in = StandIn(seconds, parallel, generate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stand_in), "127.0.0.1", port, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] == ["generate"]))

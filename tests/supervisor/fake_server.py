"""A strict stand-in for vLLM's HTTP server, in this process: answers as the real one does, or says 500."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from replug_client.supervisor.fake import LogProbs, hashed_log_probs
from replug_client.supervisor.protocol import Prompt

MODEL = "fake-lm"
MAX_MODEL_LEN = 257

Body = dict[str, Any] | str | None
Mischief = Callable[["FakeServer", dict[str, Any], Body], tuple[int, Body] | None]
"""May replace the answer to a completion request by another status and body; a body of None hangs up."""

_FIELDS = {"model", "prompt", "max_tokens", "temperature"}
_VLLM = _FIELDS | {"prompt_logprobs"}
_ECHO = _FIELDS | {"echo", "logprobs", "return_tokens_as_token_ids"}


@dataclass
class FakeServer:
    """What the server is, and what it has seen.

    ``formats``: what it understands; other servers ignore ``prompt_logprobs``, as vLLM ignores unknown
    fields. ``complaints``: what a strict server found wrong; a test ends by asserting that it is empty.
    """

    formats: set[str] = field(default_factory=lambda: {"vllm", "openai-echo"})
    log_probs: LogProbs = hashed_log_probs
    mischief: Mischief | None = None
    max_model_len: int | None = MAX_MODEL_LEN
    key: str | None = None
    base_url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    complaints: list[str] = field(default_factory=list)
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def models(self) -> tuple[int, Body]:
        return 200, {"data": [{"id": MODEL, "root": "/models/fake", "max_model_len": self.max_model_len}]}

    def tokenize(self, payload: dict[str, Any]) -> tuple[int, Body]:
        """Bytes as tokens, from id 100 on, and a BOS (id 1) if special tokens are asked for."""
        data = payload["prompt"].encode()
        table = gpt2_characters()
        special = payload["add_special_tokens"]
        tokens = ([1] if special else []) + [100 + byte for byte in data]
        strings = (["<s>"] if special else []) + [table[byte] for byte in data]
        return 200, {"count": len(tokens), "tokens": tokens, "token_strs": strings}

    def detokenize(self, payload: dict[str, Any]) -> tuple[int, Body]:
        data = bytes(token - 100 for token in payload["tokens"])
        return 200, {"prompt": data.decode("utf-8", "replace")}

    def complete(self, payload: dict[str, Any]) -> tuple[int, Body]:
        with self._lock:
            self.requests.append(payload)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            status, body = self._complete(payload)
            replaced = self.mischief(self, payload, body) if self.mischief else None
            return replaced or (status, body)
        finally:
            with self._lock:
                self._at_once -= 1

    def _complete(self, payload: dict[str, Any]) -> tuple[int, Body]:
        fields, prompts = set(payload), payload.get("prompt")
        if fields not in (_VLLM, _ECHO) or payload["max_tokens"] != 1 or payload["temperature"] != 0:
            return self._complain(f"unexpected payload fields or values: {sorted(fields)}")
        if not isinstance(prompts, list) or not all(isinstance(p, list) and p for p in prompts):
            return self._complain(f"prompt must be a list of lists of ids, is {prompts!r}")
        if not all(type(token) is int for prompt in prompts for token in prompt):
            return self._complain("a token id is no int")
        if payload["model"] != MODEL:
            return 404, _error(f"The model `{payload['model']}` does not exist.", "NotFoundError", 404)
        for prompt in prompts:
            if self.max_model_len is not None and len(prompt) > self.max_model_len - 1:
                return 400, _error(
                    f"maximum context length is {self.max_model_len} tokens", "BadRequestError", 400
                )
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": len(prompts)}
        return 200, {"choices": [self._choice(payload, i, p) for i, p in enumerate(prompts)], "usage": usage}

    def _choice(self, payload: dict[str, Any], index: int, ids: list[int]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "text": "x", "finish_reason": "length"}
        values = [None, *self.log_probs(Prompt(tuple(ids), len(ids) - 1))]
        if "prompt_logprobs" in payload and "vllm" in self.formats:
            choice["prompt_logprobs"] = [
                None if value is None else {str(token): {"logprob": value, "rank": 1, "decoded_token": "x"}}
                for token, value in zip(ids, values, strict=True)
            ]
        if "echo" in payload and "openai-echo" in self.formats:
            tokens = [f"token_id:{token}" for token in (*ids, 7)]
            choice["logprobs"] = {"token_logprobs": [*values, -0.5], "tokens": tokens}
        return choice

    def _complain(self, text: str) -> tuple[int, Body]:
        self.complaints.append(text)
        return 500, _error(text, "InternalServerError", 500)


@contextmanager
def running(server: FakeServer) -> Iterator[FakeServer]:
    """Serve on a free port of this machine until the block ends."""

    class Handler(_Handler):
        fake = server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.base_url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a small answer goes out at once

    def do_GET(self) -> None:
        if self._refused():
            return
        self._reply(
            *(self.fake.models() if self.path == "/v1/models" else (404, _error("no route", "", 404)))
        )

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/v1") and self._refused():
            return
        routes = {
            "/v1/completions": self.fake.complete,
            "/tokenize": self.fake.tokenize,
            "/detokenize": self.fake.detokenize,
        }
        route = routes.get(self.path)
        self._reply(*(route(payload) if route else (404, _error("no route", "NotFoundError", 404))))

    def _refused(self) -> bool:
        wrong = self.fake.key is not None and self.headers.get("Authorization") != f"Bearer {self.fake.key}"
        if wrong:
            self._reply(401, {"error": "Unauthorized"})
        return wrong

    def _reply(self, status: int, body: Body) -> None:
        if body is None:
            self.close_connection = True
            return
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        with suppress(BrokenPipeError, ConnectionResetError):  # the client may be closed by now
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def gpt2_characters() -> list[str]:
    """The character that stands for each byte in the vocabulary of a byte-level BPE."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) if byte in kept else chr(256 + moved.index(byte)) for byte in range(256)]


def _error(message: str, kind: str, code: int) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}

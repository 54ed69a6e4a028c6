"""A strict stand-in for vLLM's HTTP server, in this process: answers as the real one does, or says 500."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from replug_client.supervisor.fake import LogProbs, hashed_log_probs
from replug_client.supervisor.protocol import Prompt

MODEL = "fake-lm"
MAX_MODEL_LEN = 257

Body = dict[str, Any] | list[Any] | str | None
Answer = Callable[[dict[str, Any]], tuple[int, Body]]
Mischief = Callable[["FakeServer", dict[str, Any], Body], tuple[int, Body] | None]
"""May replace the answer to a completion request by another status and body; a body of None hangs up."""

_FIELDS = {"model", "prompt", "max_tokens", "temperature"}
_VLLM = _FIELDS | {"prompt_logprobs"}
_ECHO = _FIELDS | {"echo", "logprobs", "return_tokens_as_token_ids"}
_SAMPLING = {"max_tokens": 1, "temperature": 0, "detokenize": False, "skip_reading_prefix_cache": True}


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

    def tokenizer_info(self) -> tuple[int, Body]:
        """Switched on with --enable-tokenizer-info-endpoint."""
        return 404, {"detail": "Not Found"}

    def detokenize(self, payload: dict[str, Any]) -> tuple[int, Body]:
        data = bytes(token - 100 for token in payload["tokens"])
        return 200, {"prompt": data.decode("utf-8", "replace")}

    def generate(self, payload: dict[str, Any]) -> tuple[int, Body]:
        """VLLM's ``/inference/v1/generate``, which is refused where it is not switched on."""
        if "vllm-generate" in self.formats:
            return self.complete(payload, self._generate)
        return 403, _error("Scale-out endpoints are disabled.", "PermissionDeniedError", 403)

    def native(self, payload: dict[str, Any]) -> tuple[int, Body]:
        """SGLang's ``/generate``."""
        if "sglang" in self.formats:
            return self.complete(payload, self._native)
        return 404, {"detail": "Not Found"}

    def complete(self, payload: dict[str, Any], answer: Answer | None = None) -> tuple[int, Body]:
        with self._lock:
            self.requests.append(payload)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            status, body = (answer or self._complete)(payload)
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
        if (refused := self._refuse(payload["model"], prompts)) is not None:
            return refused
        usage = {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": len(prompts)}
        return 200, {"choices": [self._choice(payload, i, p) for i, p in enumerate(prompts)], "usage": usage}

    def _generate(self, payload: dict[str, Any]) -> tuple[int, Body]:
        params = dict(payload["sampling_params"])
        start, rows = params.pop("prompt_logprob_start"), params.pop("prompt_logprob_token_ids")
        ids = payload["token_ids"]
        if set(payload) != {"model", "token_ids", "sampling_params"} or params != _SAMPLING:
            return self._complain(f"unexpected payload fields or values: {payload}")
        if rows != [[token] for token in ids[start + 1 :]]:
            return self._complain(f"rows {rows} are not those of the tokens after {start}")
        if (refused := self._refuse(payload["model"], [ids])) is not None:
            return refused
        buffer = io.BytesIO()
        values = self.log_probs(Prompt(tuple(ids), len(rows)))
        np.save(buffer, np.array(values, dtype=np.float32)[:, None], allow_pickle=False)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        choice = {"index": 0, "finish_reason": "length", "token_ids": [7], "logprobs": None}
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return 200, {"choices": [choice], "usage": usage, "prompt_token_id_logprobs": encoded}

    def _native(self, payload: dict[str, Any]) -> tuple[int, Body]:
        prompts, starts = payload["input_ids"], payload["logprob_start_len"]
        if len(prompts) != len(starts) or not payload["return_logprob"]:
            return self._complain(f"{len(prompts)} prompts, {len(starts)} starts")
        if (refused := self._refuse(MODEL, prompts)) is not None:
            return refused
        answers = []
        for ids, start in zip(prompts, starts, strict=True):
            values = [None, *self.log_probs(Prompt(tuple(ids), len(ids) - start - 1))]
            rows = [[value, token, None] for value, token in zip(values, ids[start:], strict=True)]
            meta = {"prompt_tokens": len(ids), "finish_reason": {"type": "length", "length": 0}}
            answers.append({"text": "", "meta_info": {**meta, "input_token_logprobs": rows}})
        return 200, answers

    def _refuse(self, model: str, prompts: list[list[int]]) -> tuple[int, Body] | None:
        if model != MODEL:
            return 404, _error(f"The model `{model}` does not exist.", "NotFoundError", 404)
        for prompt in prompts:
            if self.max_model_len is not None and len(prompt) > self.max_model_len - 1:
                return 400, _error(
                    f"maximum context length is {self.max_model_len} tokens", "BadRequestError", 400
                )
        return None

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

    http = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.base_url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that ends hangs up on what it still waits for; anything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a small answer goes out at once

    def do_GET(self) -> None:
        if self._refused():
            return
        routes = {"/v1/models": self.fake.models, "/tokenizer_info": self.fake.tokenizer_info}
        route = routes.get(self.path)
        self._reply(*(route() if route else (404, _error("no route", "", 404))))

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path.startswith("/v1") and self._refused():
            return
        routes = {
            "/v1/completions": self.fake.complete,
            "/inference/v1/generate": self.fake.generate,
            "/generate": self.fake.native,
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
        data = (body if isinstance(body, str) else json.dumps(body, separators=(",", ":"))).encode()
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

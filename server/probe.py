"""Questions to a server over HTTP, with Python alone: is it up, what does it serve, does it score."""

from __future__ import annotations

import http.client
import json
import math
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from server.errors import ServerError

PROMPT = (5, 6, 7, 8)
"""Low token ids, which every vocabulary has."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Served:
    """A model as a server lists it; ``max_model_len`` in tokens, None where it is not told."""

    name: str
    max_model_len: int | None


def ask(
    url: str,
    payload: dict[str, Any] | None = None,
    *,
    key: str | None = None,
    timeout: float = 10.0,
    direct: bool = False,
) -> tuple[int, bytes]:
    """GET, or POST as JSON; the status and the body, whatever the status.

    Args:
        url: Of the route.
        payload: What is sent, if anything.
        key: The API key; it goes to this URL only, and not to where a redirection leads.
        timeout: Seconds without a byte.
        direct: Whatever the host, it is this machine's own, and no proxy of the environment is asked.

    Raises:
        OSError: no answer, or half of one: refused, reset, timed out.
    """
    if not url.startswith(("http://", "https://")):
        raise ServerError(f"--base_url must begin with http:// or https://, not {url!r}")
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    if key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    # A proxy of the environment knows nothing of this machine's own address.
    local = direct or urlsplit(url).hostname in _LOOPBACK
    handlers = [urllib.request.ProxyHandler({})] if local else []
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=timeout) as response:
            return int(response.status), response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except http.client.HTTPException as error:  # no HTTP, or half an answer
        raise ConnectionError(f"{url}: {type(error).__name__}: {error}") from error


def health(base_url: str, timeout: float = 10.0, *, direct: bool = False) -> int:
    """Status of ``/health``: 200 where all is well, 503 where vLLM's engine is dead.

    Raises:
        OSError: no answer.
    """
    return ask(root_of(base_url) + "/health", timeout=timeout, direct=direct)[0]


def served_models(base_url: str, key: str | None = None, *, direct: bool = False) -> list[Served]:
    """What the server lists at ``/models``.

    Raises:
        OSError: no answer.
        ServerError: an answer of another kind.
    """
    status, body = ask(base_url.rstrip("/") + "/models", key=key, timeout=30.0, direct=direct)
    if status in (401, 403):
        raise ServerError(
            f"{base_url} wants another API key (status {status})",
            "The key is read from the environment: VLLM_API_KEY where the server starts, OPENAI_API_KEY at clients.",
        )
    answer = _json(body)
    entries = answer.get("data") if isinstance(answer, dict) else None
    if status != 200 or not isinstance(entries, list):
        raise ServerError(
            f"{base_url}/models: status {status}: {body[:120].decode('utf-8', 'replace')!r} lists no models",
            "Is this the base URL of an OpenAI-compatible server, with the /v1?",
        )
    return [
        Served(str(entry["id"]), length if isinstance(length := entry.get("max_model_len"), int) else None)
        for entry in entries
        if isinstance(entry, dict) and "id" in entry
    ]


def probe_scores(
    base_url: str, model: str, key: str | None = None, timeout: float = 300.0, *, direct: bool = False
) -> None:
    """One real request as training sends it: log-probs of a prompt. The first one may take long.

    Raises:
        OSError: no answer.
        ServerError: an answer without log-probs; several ports of vLLM give none, with status 200.
    """
    payload = {
        "model": model,
        "prompt": [list(PROMPT)],
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 0,
    }
    status, body = ask(base_url + "/completions", payload, key=key, timeout=timeout, direct=direct)
    answer = _json(body)
    rows = None
    if status == 200 and isinstance(answer, dict):
        choices = answer.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        rows = first.get("prompt_logprobs") if isinstance(first, dict) else None
    if not (isinstance(rows, list) and len(rows) == len(PROMPT) and rows[0] is None):
        raise _no_scores(base_url, status, body)
    for token, row in zip(PROMPT[1:], rows[1:], strict=True):
        entry = row.get(str(token)) if isinstance(row, dict) else None
        value = entry.get("logprob") if isinstance(entry, dict) else None
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise _no_scores(base_url, status, body)


def root_of(base_url: str) -> str:
    """Where ``/health`` and ``/metrics`` lie: beside ``/v1``."""
    return base_url.rstrip("/").removesuffix("/v1")


def _no_scores(base_url: str, status: int, body: bytes) -> ServerError:
    return ServerError(
        f"{base_url} answers (status {status}), but gives no log-probs of prompts:"
        f" {body[:200].decode('utf-8', 'replace')!r}",
        "This build or backend of vLLM cannot score; serve the model with vLLM for CUDA or for CPUs.",
    )


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None

"""One OpenAI-compatible server: what it serves, and requests whose failures have types."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai

from replug_client.errors import OptionError, SupervisorRequestError, SupervisorUnavailableError

DEFAULT_BASE_URL = "http://localhost:8000/v1"

_REFUSED_PROMPT = (400, 413, 422)
_TRANSIENT = (408, 425, 429)
# vLLM closes idle connections after 5 s; ours go earlier, so that none is reset under a request.
_KEEP_ALIVE_SECONDS = 3.0


class PromptRefusedError(SupervisorRequestError):
    """The server refused what a request holds (400, 413, 422): one bad prompt may have done it."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of a model.

    Attributes:
        name: Its id in requests.
        root: Where its weights come from, if told.
        max_model_len: Longest prompt and answer together, in tokens, if told.
    """

    name: str
    root: str | None
    max_model_len: int | None


def default_base_url() -> str:
    """``OPENAI_BASE_URL``, or the place where vLLM listens by default."""
    return os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL


def api_key() -> str:
    """``OPENAI_API_KEY``; a server that asks for none takes anything."""
    return os.environ.get("OPENAI_API_KEY") or "none"


def make_client(base_url: str, *, timeout: float = 600.0) -> openai.AsyncOpenAI:
    """An ``openai`` client for a server; its own retries are off, ours are bounded and typed.

    Args:
        base_url: With the ``/v1``.
        timeout: Seconds for an answer; generous, since vLLM throws away the work of a dropped request.
    """
    if not base_url.startswith(("http://", "https://")):
        raise OptionError(f"--base_url must begin with http:// or https://, not {base_url!r}")
    limits = httpx2.Limits(
        max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_ALIVE_SECONDS
    )
    seconds = httpx2.Timeout(timeout, connect=10.0)
    transport = openai.DefaultAsyncHttpxClient(limits=limits, timeout=seconds)
    return openai.AsyncOpenAI(
        base_url=base_url, api_key=api_key(), max_retries=0, timeout=seconds, http_client=transport
    )


class Endpoint:
    """Asks one server, through a client that the caller has set up. No retries here."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client.with_options(max_retries=0)
        self.base_url = str(client.base_url).rstrip("/")
        self._root = self.base_url.removesuffix("/v1")

    async def served_model(self, model: str) -> ServedModel:
        """Find ``model`` among what is served, by id, by root, or by being the same folder.

        Raises:
            OptionError: it is not served; names what is.
            SupervisorError: the server cannot be asked.
        """
        answer = await self.get("/models")
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list) or not all(isinstance(entry, dict) and "id" in entry for entry in data):
            raise SupervisorRequestError(
                f"{self.base_url}/models does not list models, but answers {str(answer)[:200]}."
                " Is this the base URL of an OpenAI-compatible server (with the /v1)?"
            )
        for entry in data:
            names = [name for name in (entry["id"], entry.get("root")) if isinstance(name, str)]
            if model in names or any(_same_folder(model, name) for name in names):
                length = entry.get("max_model_len")
                root = entry.get("root")
                return ServedModel(
                    str(entry["id"]),
                    root if isinstance(root, str) else None,
                    length if isinstance(length, int) and length > 0 else None,
                )
        served = ", ".join(repr(entry["id"]) for entry in data) or "nothing"
        raise OptionError(
            f"{self.base_url} does not serve {model!r}; it serves {served}. Give one with --model."
        )

    async def get(self, path: str) -> Any:
        """GET a path below the base URL; the JSON of the answer."""
        url = self.base_url + path
        content = await self._ask(url, None)
        try:
            return json.loads(content)
        except ValueError as error:
            beginning = content[:80].decode("utf-8", "replace")
            raise SupervisorUnavailableError(f"{url}: an answer, but no JSON: {beginning!r}") from error

    async def post(self, path: str, payload: dict[str, Any], *, beside_v1: bool = False) -> bytes:
        """POST a JSON payload below the base URL, or below the server's root; the body of the answer.

        Raises:
            SupervisorUnavailableError: no answer, a broken one, 5xx or 429; may work later.
            PromptRefusedError: 400, 413, 422.
            SupervisorRequestError: any other refusal.
        """
        return await self._ask((self._root if beside_v1 else self.base_url) + path, payload)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, url: str, payload: dict[str, Any] | None) -> bytes:
        try:
            if payload is None:
                response = await self._client.get(url, cast_to=httpx2.Response)
            else:
                response = await self._client.post(url, cast_to=httpx2.Response, body=payload)
        except openai.APIStatusError as error:
            raise _status_error(url, error.response) from error
        except openai.APITimeoutError as error:
            raise SupervisorUnavailableError(
                f"{url}: no answer in time. Is the server overloaded? Lower --concurrency."
            ) from error
        except (openai.APIConnectionError, httpx2.HTTPError) as error:
            cause = error.__cause__ or error
            raise SupervisorUnavailableError(
                f"{url}: no connection ({type(cause).__name__}: {cause}). Is the server running there?"
                " Start one with: python -m vllm.entrypoints.openai.api_server --model NAME_OR_FOLDER"
            ) from error
        return response.content


def _status_error(url: str, response: httpx2.Response) -> SupervisorRequestError | SupervisorUnavailableError:
    status = response.status_code
    text = f"{url}: status {status}: {_reason(response)}"
    if status >= 500 or status in _TRANSIENT:
        return SupervisorUnavailableError(text)
    if status in _REFUSED_PROMPT:
        return PromptRefusedError(text)
    if status in (401, 403):
        return SupervisorRequestError(
            f"{text}. The key is read from the environment variable OPENAI_API_KEY."
        )
    return SupervisorRequestError(text)


def _reason(response: httpx2.Response) -> str:
    """The server's own words: ``error.message``, a plain ``error``, or the body's beginning."""
    try:
        error = json.loads(response.content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return repr(response.text[:200])


def _same_folder(first: str, second: str) -> bool:
    return Path(first).is_dir() and Path(second).is_dir() and Path(first).samefile(second)

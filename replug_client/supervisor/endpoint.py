"""One OpenAI-compatible server: what it serves, and requests whose failures have types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai

from replug_client.errors import (
    OptionError,
    SupervisorRequestError,
    SupervisorUnavailableError,
    UnreadableAnswerError,
)
from replug_client.supervisor.address import api_key, check_url, is_loopback, is_proxied
from replug_client.supervisor.sender import CONNECT_SECONDS, KEEP_ALIVE_SECONDS, Sender

# The server has seen nothing of the request.
_UNSEEN = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
)
_REFUSED_PROMPT = (400, 413, 422)
TRANSIENT = (408, 425, 429)
# What a proxy says while the server behind it is gone.
_GATEWAY = (502, 504)
_UNAVAILABLE = 503


class PromptRefusedError(SupervisorRequestError):
    """The server refused what a request holds (400, 413, 422): one bad prompt may have done it."""


class LostConnectionError(SupervisorUnavailableError):
    """Refused, reset, cut off, or 502 to 504: the server may be gone, and another may come in its place."""


class NoConnectionError(LostConnectionError):
    """Refused: the server has not seen the request."""


class BusyError(SupervisorUnavailableError):
    """408, 425, 429: the server has too much to do, and says so."""


class RefusedForNowError(LostConnectionError):
    """503: too much to do, or shutting down; it does not say which."""


class TimedOutError(SupervisorUnavailableError):
    """No whole answer within the time; less work in one request may get one."""


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


def roots_of(served: Sequence[ServedModel]) -> list[str]:
    """Where the weights come from, of all that serve them: the same texts however they are listed and spelled."""
    roots = {entry.root or entry.name for entry in served}
    return sorted({str(Path(root).resolve()) if Path(root).is_dir() else root for root in roots})


def make_client(base_url: str, *, timeout: float = 600.0) -> openai.AsyncOpenAI:
    """An ``openai`` client for a server; its own retries are off, ours are bounded and typed.

    Args:
        base_url: With the ``/v1``.
        timeout: Seconds for an answer; generous, since vLLM throws away the work of a dropped request.

    Raises:
        OptionError: it is no URL.
    """
    check_url(base_url)
    limits = httpx2.Limits(
        max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEP_ALIVE_SECONDS
    )
    seconds = httpx2.Timeout(timeout, connect=CONNECT_SECONDS)
    transport = openai.DefaultAsyncHttpxClient(
        limits=limits, timeout=seconds, trust_env=not is_loopback(base_url)
    )
    return openai.AsyncOpenAI(
        base_url=base_url, api_key=api_key(), max_retries=0, timeout=seconds, http_client=transport
    )


class Endpoint:
    """Asks one server. No retries here."""

    def __init__(self, client: openai.AsyncOpenAI, sender: Sender | None = None) -> None:
        """Ask through a client that the caller has set up; :meth:`open` sets one up.

        Args:
            client: For everything, unless there is a ``sender``.
            sender: What is posted goes through it, in a small part of the CPU time; streams do not.
        """
        self._client = client.with_options(max_retries=0)
        self._sender = sender
        url = client.base_url
        self._name = f"{url.userinfo.decode()}@" if url.userinfo else ""
        # Without the name and the password, for what is said of it.
        self.base_url = str(url).replace(f"//{self._name}", "//", 1).rstrip("/")
        self._root = self.base_url.removesuffix("/v1")
        self._timeout = _seconds(client.timeout)

    @classmethod
    def open(cls, base_url: str, *, timeout: float = 600.0) -> Endpoint:
        """A server by its address, asked in the cheapest way; the key is :func:`api_key`.

        Args:
            base_url: With the ``/v1``.
            timeout: Seconds for an answer; generous, since vLLM throws away the work of a dropped request.

        Raises:
            OptionError: it is no URL, or the key can be in no header.
        """
        client = make_client(base_url, timeout=timeout)
        url = httpx2.URL(base_url)
        # openai's HTTP library knows all kinds of proxies, and names in a URL: then everything goes through it.
        if is_proxied(base_url) or url.userinfo:
            return cls(client)
        trust_env = not is_loopback(base_url)
        context = httpx2.create_ssl_context(trust_env=trust_env) if url.scheme == "https" else None
        return cls(client, Sender(_headers(client), context))

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

    async def metrics(self) -> str:
        """The server's ``/metrics``, in the text form of Prometheus."""
        return (await self._ask(self._root + "/metrics", None)).decode("utf-8", "replace")

    async def post(
        self, path: str, payload: dict[str, Any], *, beside_v1: bool = False, timeout: float | None = None
    ) -> bytes:
        """POST a JSON payload below the base URL, or below the server's root; the body of the answer.

        Args:
            path: From the base URL, or the root, on.
            payload: What is sent.
            beside_v1: The path lies at the root.
            timeout: Seconds for the whole answer, if less than the client's.

        Raises:
            LostConnectionError: no connection, a broken one, or a gateway without a server.
            TimedOutError: not all of the answer came in time.
            BusyError: 429 and the like.
            SupervisorUnavailableError: any other 5xx; may work later.
            PromptRefusedError: 400, 413, 422.
            SupervisorRequestError: any other refusal.
        """
        return await self._ask((self._root if beside_v1 else self.base_url) + path, payload, timeout)

    async def close(self) -> None:
        """Close the connections."""
        if self._sender is not None:
            await self._sender.close()
        await self._client.close()

    async def stream(self, path: str, payload: dict[str, Any], on_event: Callable[[Any], None]) -> None:
        """POST a JSON payload below the base URL, and hand out the server-sent events of the answer as they come.

        Args:
            path: From the base URL on.
            payload: What is sent; it asks for a stream.
            on_event: Gets the JSON of each event; what it raises ends the stream.

        Raises:
            UnreadableAnswerError: an event that is no JSON.
            SupervisorError: as :meth:`post`.
        """
        async with self._typed_errors(self.base_url + path, self._timeout):
            stream = await self._client.post(
                self._address(self.base_url + path),
                cast_to=object,
                body=payload,
                stream=True,
                stream_cls=openai.AsyncStream[object],
            )
            async with stream:
                async for event in stream:
                    on_event(event)

    async def _ask(self, url: str, payload: dict[str, Any] | None, timeout: float | None = None) -> bytes:
        async with self._typed_errors(url, min(timeout or self._timeout, self._timeout)):
            if payload is not None and self._sender is not None:
                status, content = await self._sender.post(url, payload)
                if not 200 <= status < 300:
                    raise _status_error(url, status, content)
                return content
            if payload is None:
                response = await self._client.get(self._address(url), cast_to=httpx2.Response)
            else:
                response = await self._client.post(self._address(url), cast_to=httpx2.Response, body=payload)
            return response.content

    def _address(self, url: str) -> str:
        """With the name again that is not to be said."""
        return url.replace("//", f"//{self._name}", 1)

    @asynccontextmanager
    async def _typed_errors(self, url: str, seconds: float) -> AsyncIterator[None]:
        try:
            # The transport's own limit is for each piece of an answer: one that drips would never end.
            async with asyncio.timeout(seconds):
                yield
        except openai.APIStatusError as error:
            raise _status_error(url, error.response.status_code, error.response.content) from error
        except (openai.APITimeoutError, TimeoutError) as error:
            if _is_unseen(error):
                raise _lost(url, error) from error
            raise TimedOutError(
                f"{url}: no answer in {seconds:g} s. Is the server overloaded? Lower --concurrency."
            ) from error
        except (openai.APIConnectionError, httpx2.HTTPError, aiohttp.ClientError) as error:
            raise _lost(url, error) from error
        except openai.APIError as error:  # an error told within a stream
            raise SupervisorUnavailableError(f"{url}: {error.message}") from error
        except json.JSONDecodeError as error:
            raise UnreadableAnswerError(f"{url}: an event of a stream is no JSON ({error})") from error


def _headers(client: openai.AsyncOpenAI) -> dict[str, str]:
    """What the client would say of itself and of the caller, its statistics left out."""
    said = httpx2.Headers({"Authorization": f"Bearer {client.api_key}"})
    for name, value in client.default_headers.items():
        if isinstance(value, str) and not name.lower().startswith("x-stainless"):
            said[name] = value
    return dict(said)


def _seconds(timeout: float | httpx2.Timeout | None) -> float:
    """What an answer may take, of a client's setting."""
    value = timeout.read if isinstance(timeout, httpx2.Timeout) else timeout
    return float("inf") if value is None else float(value)


def _is_unseen(error: Exception) -> bool:
    """Openai's errors have its HTTP library's as their cause; aiohttp's are what they are."""
    return isinstance(error, _UNSEEN) or isinstance(error.__cause__, _UNSEEN)


def _lost(url: str, error: Exception) -> LostConnectionError:
    # aiohttp's causes are its parser's, of several lines.
    cause = error if isinstance(error, aiohttp.ClientError) else error.__cause__ or error
    return (NoConnectionError if _is_unseen(error) else LostConnectionError)(
        f"{url}: no connection ({type(cause).__name__}: {cause}). Is the server running there?"
        " Start one with: python -m server --model NAME_OR_FOLDER"
    )


def _status_error(
    url: str, status: int, content: bytes
) -> SupervisorRequestError | SupervisorUnavailableError:
    text = f"{url}: status {status}: {_reason(content)}"
    if status in _GATEWAY:
        return LostConnectionError(text)
    if status == _UNAVAILABLE:
        return RefusedForNowError(text)
    if status in TRANSIENT:
        return BusyError(text)
    if status >= 500:
        return SupervisorUnavailableError(text)
    if status in _REFUSED_PROMPT:
        return PromptRefusedError(text)
    if status in (401, 403):
        return SupervisorRequestError(
            f"{text}. The key is read from the environment variable OPENAI_API_KEY."
        )
    return SupervisorRequestError(text)


def _reason(content: bytes) -> str:
    """The server's own words: ``error.message``, a plain ``error``, or the body's beginning."""
    try:
        error = json.loads(content)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return repr(content[:800].decode("utf-8", "replace")[:200])


def _same_folder(first: str, second: str) -> bool:
    return Path(first).is_dir() and Path(second).is_dir() and Path(first).samefile(second)

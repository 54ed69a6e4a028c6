"""What is posted through the sender, against the same through the openai client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import httpx2
import openai
import pytest

from replug_client.errors import SupervisorError, SupervisorRequestError, SupervisorUnavailableError
from replug_client.supervisor.address import is_proxied
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import (
    BusyError,
    Endpoint,
    LostConnectionError,
    NoConnectionError,
    PromptRefusedError,
    RefusedForNowError,
    TimedOutError,
    make_client,
)
from tests.supervisor.fake_server import MODEL, FakeServer, running

OPEN: dict[str, Callable[[str, float], Endpoint]] = {
    "sender": lambda url, seconds: Endpoint.open(url, timeout=seconds),
    "openai": lambda url, seconds: Endpoint(make_client(url, timeout=seconds)),
}
Answer = bytes | None
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@contextmanager
def raw_server(answers: list[Answer]) -> Iterator[tuple[str, list[tuple[int, bytes]]]]:
    """A server that answers with given bytes (None: nothing at all), and its URL.

    Also gives what came: the number of the connection and the whole request.
    """
    requests: list[tuple[int, bytes]] = []
    left = list(answers)

    def serve(number: int, connection: socket.socket) -> None:
        with closing(connection), connection.makefile("rb") as stream:
            while left:
                head = b""
                while (line := stream.readline()) not in (b"\r\n", b""):
                    head += line
                if not head:
                    return
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                requests.append((number, head + b"\r\n" + stream.read(length)))
                answer = left.pop(0)
                if answer is None:
                    stream.read(1)  # until the client goes away
                    return
                connection.sendall(answer)
                if not answer.endswith(b"{}"):
                    return

    def accept() -> None:
        for number in range(100):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(number, connection), daemon=True).start()

    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", requests


def post(kind: str, url: str, times: int = 1, seconds: float = 60.0) -> list[bytes | SupervisorError]:
    async def run() -> list[bytes | SupervisorError]:
        endpoint, found = OPEN[kind](url, seconds), list[bytes | SupervisorError]()
        for _ in range(times):
            try:
                found.append(await endpoint.post("/completions", {"prompt": [1, 2], "text": "\u00e9"}))
            except SupervisorError as error:
                found.append(error)
        await endpoint.close()
        return found

    return asyncio.run(run())


def clear_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def status(code: int) -> bytes:
    body = b'{"error": {"message": "because"}}'
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (code, len(body), body)


@pytest.mark.parametrize("kind", OPEN)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (status(400), PromptRefusedError),
        (status(401), SupervisorRequestError),
        (status(404), SupervisorRequestError),
        (status(429), BusyError),
        (status(500), SupervisorUnavailableError),
        (status(502), LostConnectionError),
        (status(503), RefusedForNowError),
        (b"HTTP/1.1 304 X\r\nContent-Length: 0\r\n\r\n", SupervisorRequestError),
        (b"", LostConnectionError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", LostConnectionError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", LostConnectionError),
        (b"not even HTTP\r\n\r\n", LostConnectionError),
        (None, TimedOutError),
    ],
)
def test_what_goes_wrong_has_the_same_type_either_way(
    kind: str, answer: Answer, expected: type[SupervisorError]
) -> None:
    with raw_server([answer]) as (url, _):
        (error,) = post(kind, url, seconds=0.5 if answer is None else 60.0)
    assert type(error) is expected, error
    assert url in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("kind", OPEN)
def test_a_server_that_is_not_there_has_seen_nothing(kind: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    (error,) = post(kind, f"http://127.0.0.1:{port}/v1")
    assert type(error) is NoConnectionError
    assert "Is the server running there?" in str(error)


@pytest.mark.parametrize("kind", OPEN)
def test_a_connection_is_kept_for_the_next_request(kind: str) -> None:
    with raw_server([OK, OK, OK]) as (url, requests):
        assert post(kind, url, 3) == [b"{}"] * 3
    assert [number for number, _ in requests] == [0, 0, 0]


def test_both_say_the_same_of_the_caller_and_send_the_same_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setenv("OPENAI_ORG_ID", "an-organisation")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "user-agent: mine")
    seen, heads = {}, {}
    for kind in OPEN:
        with raw_server([OK]) as (url, requests):
            post(kind, url)
        head, _, body = requests[0][1].partition(b"\r\n\r\n")
        heads[kind] = head.lower()
        lines = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        wanted = (b"authorization", b"openai-organization", b"content-type", b"accept", b"user-agent")
        seen[kind] = ([lines[name] for name in wanted], body)
    assert seen["sender"] == seen["openai"]
    assert b"x-stainless" in heads["openai"]
    assert b"x-stainless" not in heads["sender"], "the sender was not asked"
    assert heads["sender"].count(b"user-agent: mine") == heads["sender"].count(b"user-agent") == 1
    assert seen["sender"][0][:2] == [b"bearer sk-test", b"an-organisation"]
    assert json.loads(seen["sender"][1])["text"] == "\u00e9"


def test_a_name_in_the_url_is_said_to_the_server_and_not_lost() -> None:
    with raw_server([OK]) as (url, requests):
        assert post("sender", url.replace("//", "//me:secret@")) == [b"{}"]
    assert b"authorization: basic " in requests[0][1].lower()


def test_a_password_is_in_no_message() -> None:
    with raw_server([status(400)]) as (url, _):
        (error,) = post("sender", url.replace("//", "//me:secret@"))
    assert url in str(error)
    assert "secret" not in str(error)


def test_certificates_are_not_looked_for_where_none_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/a/file/that/is/gone.pem")
    with raw_server([OK]) as (url, _):
        assert post("sender", url) == [b"{}"]


def test_a_proxy_counts_where_it_leads_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_proxies(monkeypatch)
    assert not is_proxied("http://gpu:8000/v1")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    assert is_proxied("https://gpu:8000/v1")
    assert not is_proxied("http://gpu:8000/v1")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    assert is_proxied("http://gpu:8000/v1")
    assert not is_proxied("http://localhost:8000/v1")
    monkeypatch.setenv("NO_PROXY", "gpu,.inside.example")
    assert not is_proxied("http://gpu:8000/v1")
    assert not is_proxied("http://a.inside.example:8000/v1")
    assert is_proxied("http://elsewhere:8000/v1")
    assert is_proxied("http://inside.example:8000/v1"), "a leading dot means what is below it"
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8, inside.example")
    assert not is_proxied("http://inside.example:8000/v1")
    assert is_proxied("http://notinside.example:8000/v1")


def test_a_client_with_a_transport_of_its_own_is_asked_for_everything() -> None:
    asked: list[str] = []

    class Transport(httpx2.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            asked.append(request.url.path)
            return await super().handle_async_request(request)

    with running(FakeServer()) as server:
        own = httpx2.AsyncClient(transport=Transport())
        client = openai.AsyncOpenAI(base_url=server.base_url, api_key="none", http_client=own)
        with RemoteSupervisor(client, MODEL):
            pass
    assert "/v1/models" in asked
    assert "/v1/completions" in asked


def test_where_a_proxy_leads_to_the_server_nothing_goes_past_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clear_proxies(monkeypatch)

    async def ask() -> bytes:
        endpoint = Endpoint.open("http://a-host-that-is-not.invalid/v1", timeout=5.0)
        try:
            return await endpoint.post("/completions", {"prompt": [1]})
        finally:
            await endpoint.close()

    through = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"through": {}'
    with raw_server([through]) as (url, requests):
        monkeypatch.setenv("ALL_PROXY", url.removesuffix("/v1"))
        assert asyncio.run(ask()) == b'{"through": {}'
    assert requests[0][1].startswith(b"POST http://a-host-that-is-not.invalid/v1/completions ")

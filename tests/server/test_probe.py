"""The questions that the launcher asks, put to a strict stand-in of vLLM's HTTP side."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from server.errors import ServerError
from server.probe import Served, ask, health, probe_scores, root_of, served_models
from tests.server.conftest import free_port
from tests.supervisor.fake_server import MODEL, FakeServer, running


def test_a_server_that_scores_passes() -> None:
    with running(FakeServer()) as server:
        assert served_models(server.base_url) == [Served(MODEL, 257)]
        probe_scores(server.base_url, MODEL)
        assert not server.complaints


def test_the_key_is_sent_and_a_wrong_one_is_told() -> None:
    with running(FakeServer(key="secret")) as server:
        probe_scores(server.base_url, MODEL, key="secret")
        with pytest.raises(ServerError, match="another API key"):
            served_models(server.base_url, key="other")


def test_an_answer_without_log_probs_is_refused() -> None:
    def nulls(server: object, payload: object, body: object) -> tuple[int, str]:
        return 200, '{"choices": [{"prompt_logprobs": [null]}]}'

    def infinite(server: object, payload: object, body: object) -> tuple[int, str]:
        rows = ", ".join(f'{{"{token}": {{"logprob": NaN}}}}' for token in (6, 7, 8))
        return 200, f'{{"choices": [{{"prompt_logprobs": [null, {rows}]}}]}}'

    for mischief in (nulls, infinite):
        with (
            running(FakeServer(mischief=mischief)) as server,
            pytest.raises(ServerError, match="gives no log-probs"),
        ):
            probe_scores(server.base_url, MODEL)
    with running(FakeServer(formats=set())) as server, pytest.raises(ServerError, match="gives no log-probs"):
        probe_scores(server.base_url, MODEL)


def test_something_else_at_the_url_is_told() -> None:
    with running(FakeServer()) as server, pytest.raises(ServerError, match="with the /v1"):
        served_models(root_of(server.base_url))
    with pytest.raises(ServerError, match="http://"):
        ask("localhost:8000/v1")


def test_nobody_there_is_an_os_error() -> None:
    with pytest.raises(OSError, match="refused"):
        served_models(f"http://127.0.0.1:{free_port()}/v1")


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf", b""]
)
def test_half_an_answer_is_an_os_error(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(OSError, match=r"."):
            health(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
        thread.join()


def test_a_proxy_of_the_environment_is_not_asked_about_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with running(FakeServer()) as server:
        assert served_models(server.base_url)


def test_a_redirection_does_not_take_the_key_along() -> None:
    seen: list[tuple[str, str | None]] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append((self.path, self.headers["Authorization"]))
            self.send_response(302 if self.path == "/v1/models" else 200)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Redirecting) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        ask(f"http://127.0.0.1:{http.server_port}/v1/models", key="secret")
        http.shutdown()
        thread.join()
    assert seen == [("/v1/models", "Bearer secret"), ("/elsewhere", None)]

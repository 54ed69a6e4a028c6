"""The question to the hub that is asked before vLLM starts, against a small hub on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from server.errors import ServerError
from server.hub import check_on_hub, token_of
from server.options import ServeOptions
from server.serve import check_model
from tests.server.conftest import free_port

STATUS = {"here/model": 200, "no/model": 401, "gone/model": 404, "gated/model": 403, "broken/hub": 500}


class Hub(BaseHTTPRequestHandler):
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/")
        self.asked.append((name, self.headers["Authorization"]))
        self.send_response(STATUS.get(name, 404))
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, str | None]]]]:
    asked: list[tuple[str, str | None]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["here/model", "broken/hub"])
def test_what_is_there_and_what_cannot_be_told_is_left_to_vllm(
    hub: tuple[str, list[tuple[str, str | None]]], name: str
) -> None:
    check_on_hub(name, {"HF_ENDPOINT": hub[0], "HF_TOKEN": "hf_secret"})
    assert hub[1] == [(name, "Bearer hf_secret")]


@pytest.mark.parametrize(
    ("name", "token", "cause", "mend"),
    [
        ("no/model", "", "has no model no/model", "Check the name"),
        ("gone/model", "hf_x", "has no model gone/model", "Check the name"),
        ("no/model", "hf_x", "does not give no/model to you", "HF_TOKEN"),
        ("gated/model", "", "does not give gated/model to you", "licence"),
    ],
)
def test_a_refusal_ends_at_once_with_the_cause_and_the_mend(
    hub: tuple[str, list[tuple[str, str | None]]], name: str, token: str, cause: str, mend: str
) -> None:
    with pytest.raises(ServerError) as refused:
        check_on_hub(name, {"HF_ENDPOINT": hub[0], "HF_TOKEN": token, "HF_HOME": "/no/such/folder"})
    assert cause in refused.value.cause and mend in refused.value.mend
    assert "hf_x" not in str(refused.value)


def test_a_login_counts_as_the_hubs_own_library_counts_it(
    hub: tuple[str, list[tuple[str, str | None]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / ".cache" / "huggingface", tmp_path / "elsewhere"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token_of({}) is None
    (home / "token").write_text("hf_login\n")
    elsewhere.write_text("hf_path")
    check_on_hub("here/model", {"HF_ENDPOINT": hub[0]})
    assert hub[1] == [("here/model", "Bearer hf_login")]
    assert token_of({"HF_HOME": str(home)}) == "hf_login"
    assert token_of({"XDG_CACHE_HOME": str(tmp_path / ".cache"), "HOME": "/none"}) == "hf_login"
    assert token_of({"HF_TOKEN_PATH": str(elsewhere)}) == "hf_path"
    assert token_of({"HF_TOKEN_PATH": str(elsewhere), "HF_TOKEN": " hf_own "}) == "hf_own"


def test_a_hub_whose_certificate_is_not_known_is_left_to_vllm(
    hub: tuple[str, list[tuple[str, str | None]]],
) -> None:
    check_on_hub("no/model", {"HF_ENDPOINT": hub[0].replace("http:", "https:")})  # no TLS there: ssl.SSLError
    assert hub[1] == []


def test_no_hub_is_said_with_what_else_can_be_done() -> None:
    with pytest.raises(ServerError, match=r"cannot be asked for it .*refused") as refused:
        check_on_hub("here/model", {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}"})
    assert "give a folder" in refused.value.mend


def test_only_what_would_be_fetched_is_asked_for(
    hub: tuple[str, list[tuple[str, str | None]]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    cached = tmp_path / "home" / "hub" / "models--in--cache" / "snapshots" / "1"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    environ = {"HF_ENDPOINT": hub[0], "HF_HOME": str(tmp_path / "home")}
    for name in (str(tmp_path), "in/cache"):
        check_model(ServeOptions(name), environ)
    assert hub[1] == []
    with pytest.raises(ServerError):
        check_model(ServeOptions("no/model"), environ)
    assert [name for name, _ in hub[1]] == ["no/model"]

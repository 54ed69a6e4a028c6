"""A hub that cannot be reached is not tried for a minute."""

from __future__ import annotations

import os
import socket
from typing import Any

import huggingface_hub.constants
import pytest

from replug_client.hub import spare_attempts


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HF_HUB_OFFLINE",
        "HF_ENDPOINT",
        "http_proxy",
        "https_proxy",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def refused(asked: list[Any]) -> Any:
    def connect(address: Any, timeout: float) -> Any:
        asked.append((address, timeout))
        raise OSError("Name or service not known")

    return connect


def test_without_a_connection_its_library_looks_into_its_cache_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", refused(asked))
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example:8080")
    spare_attempts()
    assert asked == [(("hub.example", 8080), 3.0)]
    assert os.environ["HF_HUB_OFFLINE"] == "1" and huggingface_hub.constants.HF_HUB_OFFLINE
    assert "no connection to hub.example (Name or service not known)" in caplog.text
    spare_attempts()
    assert len(asked) == 1, "known by now"


def test_with_one_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        spare_attempts()
    assert "HF_HUB_OFFLINE" not in os.environ and not huggingface_hub.constants.HF_HUB_OFFLINE


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "ALL_PROXY"])
def test_behind_a_proxy_nothing_is_asked(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "create_connection", refused(asked))
    monkeypatch.setenv(variable, "http://proxy:3128")
    spare_attempts()
    assert asked == [] and "HF_HUB_OFFLINE" not in os.environ

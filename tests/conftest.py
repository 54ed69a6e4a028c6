"""What all tests share: no model hub, few threads, and the marks that follow from a test's fixtures."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes with a thread for every core each spend their time waiting for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

SERVER_FIXTURE = "vllm_server"
BROWSER_FIXTURE = "browser"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the real server is marked so, and runs in one process, so that it starts once.

    What starts a vLLM of its own runs beside it in another, one after the other: two at a time is what memory bears.
    """
    for item in items:
        if BROWSER_FIXTURE in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
        if SERVER_FIXTURE in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)
            item.add_marker(pytest.mark.xdist_group("the server"))
        elif item.get_closest_marker("server"):
            item.add_marker(pytest.mark.xdist_group("servers of their own"))

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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever uses the real server is marked so: `make test` runs it in one process, so that it starts once."""
    for item in items:
        if SERVER_FIXTURE in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)

"""What all tests share: no model hub, few threads, and the marks that follow from a test's fixtures."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes with a thread for every core each spend their time waiting for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

WAIT_POLICY = {name: value for name, value in os.environ.items() if name == "OMP_WAIT_POLICY"}
SERVER_FIXTURE = "vllm_server"
BROWSER_FIXTURE = "browser"


THE_SERVER, OWN_SERVERS = "the server", "servers of their own"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests run in one process (``--dist loadgroup``), and in which order the groups are handed out.

    Whatever uses the real server is marked so, and is one group, so that it starts once. What starts a vLLM of its own
    is another, and runs beside it, one after the other: two at a time is what memory bears. The rest goes by file.
    The longest come first, so that no process is left alone with one at the end.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    order = {}
    for item in items:
        names = getattr(item, "fixturenames", ())
        if BROWSER_FIXTURE in names:
            item.add_marker(pytest.mark.browser)
        if SERVER_FIXTURE in names:
            item.add_marker(pytest.mark.server)
            group, rank = THE_SERVER, 0
        elif item.get_closest_marker("server"):
            group, rank = OWN_SERVERS, 1
        else:
            group, rank = item.nodeid.partition("::")[0], 2 if item.path in slow else 3
        item.add_marker(pytest.mark.xdist_group(group))
        order[item] = rank
    items.sort(key=order.__getitem__)


@pytest.fixture(autouse=True)
def _wait_policy() -> Iterator[None]:
    """`replug train`, run in this process, must not say to what comes after it how threads wait."""
    yield
    os.environ.pop("OMP_WAIT_POLICY", None)
    os.environ.update(WAIT_POLICY)

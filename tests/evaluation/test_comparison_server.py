"""Who may ask the served page's server, and what it answers to what it cannot use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from replug_client.errors import OptionError, SupervisorUnavailableError
from replug_client.evaluation.comparison_server import ComparisonServer
from replug_client.evaluation.tuned_run import Query


class Recorder:
    """Stands for a Searcher: answers what it was asked."""

    k = 7

    def search(self, query: Query, k: int, *, scored: bool = True) -> dict[str, Any]:
        if query.text == "down":
            raise SupervisorUnavailableError("no server at http://localhost:8000/v1")
        return {"query": query.text, "continuation": query.continuation, "k": k, "scored": scored}


@pytest.fixture(scope="module")
def server() -> Iterator[ComparisonServer]:
    searcher: Any = Recorder()
    with ComparisonServer("127.0.0.1", 0, "<p>the page</p>", searcher) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: ComparisonServer, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(
        server.url + path, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )


def test_the_page_and_the_endpoint(server: ComparisonServer) -> None:
    page = get(server, "")
    assert (page.status_code, page.text) == (200, "<p>the page</p>")
    assert page.headers["x-frame-options"] == "DENY"
    answer = get(server, "api/search?query=a%26b&continuation=c&k=3&lm=0")
    assert answer.json() == {"query": "a&b", "continuation": "c", "k": 3, "scored": False}
    assert answer.headers["content-type"] == "application/json"
    assert get(server, "api/search?query=a").json() == {
        "query": "a", "continuation": None, "k": 7, "scored": True,
    }  # fmt: skip


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_a_name_that_somebody_made_point_here_is_refused(server: ComparisonServer, host: str) -> None:
    for path in ("", "api/search?query=a"):
        assert get(server, path, Host=host).status_code == 403


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1", "[::1]:8765", "192.168.0.7:8765"])
def test_addresses_and_this_machine_are_served(server: ComparisonServer, host: str) -> None:
    assert get(server, "", Host=host).status_code == 200


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
def test_pages_of_other_sites_may_not_ask(server: ComparisonServer, site: str, status: int) -> None:
    assert get(server, "api/search?query=a", Sec_Fetch_Site=site).status_code == status


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("api/search", 400, "query is empty"),
        ("api/search?query=+", 400, "query is empty"),
        ("api/search?query=a&k=0", 400, "expected 1 to 100, found '0'"),
        ("api/search?query=a&k=٣", 400, "expected 1 to 100"),
        ("api/search?query=a&lm=yes", 400, "expected 0 or 1, found 'yes'"),
        ("api/search?query=a&n_docs=3", 400, "unknown: ['n_docs']"),
        ("api/search?query=" + "a" * 20_001, 400, "more than 20,000 characters"),
        ("etc/passwd", 404, "/api/search"),
        ("api/search?query=down", 502, "no server at http://localhost:8000/v1"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_says_why(
    server: ComparisonServer, path: str, status: int, said: str
) -> None:
    answer = get(server, path)
    assert answer.status_code == status
    assert said in answer.json()["error"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_there_is_nothing_to_write(server: ComparisonServer, method: str) -> None:
    assert httpx2.request(method, server.url + "api/search").status_code == 501


def test_a_port_that_is_taken_says_what_to_do(server: ComparisonServer) -> None:
    searcher: Any = Recorder()
    with pytest.raises(OptionError, match="Give another --port"):
        ComparisonServer("127.0.0.1", server.server_address[1], "", searcher)

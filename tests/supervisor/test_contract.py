"""Every supervisor that needs no server of its own, through the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from replug_client.errors import SupervisorError
from replug_client.supervisor.apart import SupervisorApart
from replug_client.supervisor.cache import ScoreCache
from replug_client.supervisor.cached import CachedSupervisor
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor, Server
from replug_client.supervisor.endpoint import Endpoint, make_client
from replug_client.supervisor.fake import FakeSupervisor, hashed_log_probs
from replug_client.supervisor.formats import FORMATS
from replug_client.supervisor.local import LocalSupervisor
from replug_client.supervisor.options import LocalOptions
from replug_client.supervisor.protocol import Prompt, StreamingSupervisor
from tests.supervisor.contract import Subject, SupervisorContract
from tests.supervisor.fake_server import MODEL, FakeServer, running
from tests.supervisor.reference import DEMO_LM, reference_log_probs

_OWN = ("vllm", "vllm-generate")
_EXACT = 1e-5  # nats per token: float32, whatever the batch


def fake(_: ExitStack) -> Subject:
    return Subject(FakeSupervisor(max_prompt_tokens=256), hashed_log_probs)


def apart(stack: ExitStack, format_name: str) -> Subject:
    server = stack.enter_context(running(FakeServer(formats={format_name})))
    stack.callback(lambda: _expect_no_complaints(server))
    options = ClientOptions(concurrency=3, prompts_per_request=4)
    supervisor = SupervisorApart([server.base_url], MODEL, options)
    assert supervisor.format == format_name
    return Subject(supervisor, hashed_log_probs)


def remote(stack: ExitStack, format_name: str, client: Callable[[str], Server] = Endpoint.open) -> Subject:
    server = stack.enter_context(running(FakeServer(formats={format_name})))
    stack.callback(lambda: _expect_no_complaints(server))
    options = ClientOptions(concurrency=3, prompts_per_request=4)
    supervisor = RemoteSupervisor(client(server.base_url), MODEL, options)
    assert supervisor.format == format_name
    return Subject(supervisor, hashed_log_probs)


def local(_: ExitStack, share_prefixes: bool) -> Subject:
    options = LocalOptions(dtype="float32", device="cpu", batch_tokens=512, share_prefixes=share_prefixes)
    return Subject(LocalSupervisor.load(str(DEMO_LM), options), reference_log_probs, _EXACT)


KINDS: dict[str, Callable[[ExitStack], Subject]] = {
    "fake": fake,
    **{f"remote-{f.name}": lambda stack, name=f.name: remote(stack, name) for f in FORMATS},  # type: ignore[misc]
    # With a client of the caller's own.
    **{f"remote-openai-{name}": lambda stack, name=name: remote(stack, name, make_client) for name in _OWN},  # type: ignore[misc]
    **{f"apart-{name}": lambda stack, name=name: apart(stack, name) for name in _OWN},  # type: ignore[misc]
    "local": lambda stack: local(stack, share_prefixes=False),
    "local-sharing": lambda stack: local(stack, share_prefixes=True),
}


@pytest.fixture(
    scope="module", params=[(kind, cached) for kind in KINDS for cached in (False, True)], ids=str
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    kind, cached = request.param
    with ExitStack() as stack:
        made = KINDS[kind](stack)
        supervisor: StreamingSupervisor = made.supervisor
        if cached:
            path: Path = tmp_path_factory.mktemp("cache") / "scores.sqlite"
            supervisor = CachedSupervisor(supervisor, ScoreCache(path))
        stack.callback(supervisor.close)
        yield Subject(supervisor, made.expected, made.tolerance)


class TestContract(SupervisorContract):
    """All of it, for each kind, plain and behind a cache."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "local"])
def test_a_closed_supervisor_refuses(kind: str) -> None:
    with ExitStack() as stack:
        supervisor = KINDS[kind](stack).supervisor
        supervisor.close()
        supervisor.close()
        with pytest.raises(SupervisorError, match="closed"):
            supervisor.submit([Prompt((1, 2), 1)])


def _expect_no_complaints(server: FakeServer) -> None:
    assert server.complaints == []

"""A client and a fake server for it, as the tests of both halves of the client want them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.protocol import Prompt, Score
from tests.supervisor.fake_server import MODEL, Body, FakeServer, running

Reply = tuple[int, Body] | None
QUICK = ClientOptions(
    concurrency=4, prompts_per_request=4, attempts=3, first_wait=0.01, longest_wait=0.02, server_wait=0.3
)


def start(stack: ExitStack, server: FakeServer) -> FakeServer:
    stack.enter_context(running(server))
    return server


def connect(stack: ExitStack, server: FakeServer, options: ClientOptions = QUICK) -> RemoteSupervisor:
    return stack.enter_context(RemoteSupervisor(Endpoint.open(server.base_url), MODEL, options))


def check(prompts: Sequence[Prompt], scores: Sequence[Score]) -> None:
    for prompt, score in zip(prompts, scores, strict=True):
        assert score.log_likelihood == pytest.approx(sum(hashed_log_probs(prompt)), abs=1e-4)

"""The remote client under faults: what is asked again, what is halved, and what ends in a typed error."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from replug_client.errors import (
    SupervisorRequestError,
    SupervisorUnavailableError,
    UnreadableAnswerError,
    WrongAnswerError,
)
from replug_client.supervisor.canary import CANARY
from replug_client.supervisor.client import RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.protocol import Prompt, Score
from tests.supervisor.client_tools import QUICK, Reply, check, connect, start
from tests.supervisor.contract import random_prompts
from tests.supervisor.fake_server import MODEL, Body, FakeServer, Mischief


def is_canary(payload: dict[str, Any]) -> bool:
    return any(tuple(ids) == CANARY.ids for ids in payload["prompt"])


def of_pairs(server: FakeServer) -> list[dict[str, Any]]:
    """The requests for pairs: not the probe's, and not those that hold a server against its canary."""
    return [request for request in server.requests if not is_canary(request)]


def times(count: int, reply: Callable[[], tuple[int, Body]], *, canaries_too: bool = False) -> Mischief:
    """Spoil the first ``count`` answers to requests for pairs; then the canaries' from then on, too."""
    lock = threading.Lock()
    seen = 0

    def spoil(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        nonlocal seen
        with lock:
            if is_canary(payload):
                return reply() if canaries_too and seen else None
            seen += 1
            return reply() if seen <= count else None

    return spoil


TRANSIENT: dict[str, tuple[int, Body]] = {
    "hang up": (0, None),
    "500": (500, {"error": {"message": "EngineCore encountered an issue"}}),
    "502 in HTML": (502, "<html>Bad Gateway</html>"),
    "503": (503, {"error": {"message": "queue full", "type": "Service Unavailable"}}),
    "503 with a text": (503, {"error": "scaling"}),
    "504": (504, ""),
    "429": (429, {"error": {"message": "slow down"}}),
    "408": (408, ""),
    "200 in HTML": (200, "<html>maintenance</html>"),
    "truncated JSON": (200, '{"choices": [{"ind'),
}


@pytest.mark.parametrize("reply", TRANSIENT.values(), ids=TRANSIENT)
def test_what_is_transient_is_asked_again(stack: ExitStack, reply: tuple[int, Body]) -> None:
    server = start(stack, FakeServer(mischief=times(2, lambda: reply)))
    prompts = random_prompts(4)
    supervisor = connect(stack, server)
    check(prompts, supervisor.score(prompts))
    assert len(of_pairs(server)) == 3


@pytest.mark.parametrize("reply", TRANSIENT.values(), ids=TRANSIENT)
def test_what_stays_broken_ends_in_a_typed_error_with_pair_server_and_mend(
    stack: ExitStack, reply: tuple[int, Body]
) -> None:
    server = start(stack, FakeServer(mischief=times(1000, lambda: reply)))
    supervisor = connect(stack, server)
    (prompt,) = random_prompts(1)
    with pytest.raises((SupervisorUnavailableError, UnreadableAnswerError)) as caught:
        supervisor.score([replace(prompt, label="example 3, passage 'p'")])
    for part in ("example 3, passage 'p'", server.base_url, "3 times", "python -m server check --base_url"):
        assert part in str(caught.value)
    assert len(of_pairs(server)) == QUICK.attempts


def test_no_server_at_all_says_how_to_start_one() -> None:
    with pytest.raises(SupervisorUnavailableError, match=r"127.0.0.1:1/v1/models.*python -m server --model"):
        RemoteSupervisor(Endpoint.open("http://127.0.0.1:1/v1"), MODEL, QUICK)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_the_request_itself_is_final(stack: ExitStack, status: int) -> None:
    server = start(stack, FakeServer(mischief=times(1000, lambda: (status, {"error": "Unauthorized"}))))
    supervisor = connect(stack, server)
    with pytest.raises(SupervisorRequestError, match=f"status {status}: Unauthorized"):
        supervisor.score(random_prompts(4))
    assert len(of_pairs(server)) == 1


def test_a_poisoned_prompt_is_named_and_its_neighbours_are_scored(stack: ExitStack) -> None:
    def refuse(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        poisoned = any(666 in ids for ids in payload["prompt"])
        return (400, {"error": {"message": "Token id 666 is out of vocabulary"}}) if poisoned else None

    supervisor = connect(stack, start(stack, FakeServer(mischief=refuse)))
    clean = [Prompt((0, 1, number), 1, f"clean {number}") for number in range(5, 16)]
    prompts = [*clean[:6], Prompt((0, 666, 7), 1, "example 9, passage 'p'"), *clean[6:]]
    handed: dict[int, Score] = {}

    def take(positions: Sequence[int], scores: Sequence[Score]) -> None:
        handed.update(zip(positions, scores, strict=True))

    with pytest.raises(SupervisorRequestError, match=r"example 9, passage 'p': .*Token id 666"):
        supervisor.submit(prompts, take).result()
    assert sorted(handed) == [position for position in range(12) if position != 6]
    check(clean, [handed[position] for position in sorted(handed)])


def wrong(body: Body, kind: str) -> Body:
    """The answer with what is wrong in its last choice alone."""
    assert isinstance(body, dict)
    choice = body["choices"][-1]
    rows = choice["prompt_logprobs"]
    if kind == "[null]":
        choice["prompt_logprobs"] = [None]
    elif kind == "NaN":
        rows[-1] = {token: entry | {"logprob": float("nan")} for token, entry in rows[-1].items()}
    elif kind == "length":
        del rows[-1]
    elif kind == "ids":
        rows[-1] = {"99999": {"logprob": -1.0}}
    elif kind == "abort":
        choice["finish_reason"] = "abort"
    return body


@pytest.mark.parametrize("kind", ["[null]", "NaN", "length", "ids", "abort"])
def test_a_wrong_answer_that_passes_costs_one_more_question_for_that_prompt_alone(
    stack: ExitStack, kind: str
) -> None:
    spoilt: list[list[int]] = []

    def spoil(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if is_canary(payload) or spoilt:
            return None
        spoilt.append(payload["prompt"][-1])
        return 200, wrong(body, kind)

    server = start(stack, FakeServer(mischief=spoil))
    prompts = random_prompts(4)
    check(prompts, connect(stack, server).score(prompts))
    assert [request["prompt"] for request in of_pairs(server)][1:] == [spoilt]


def test_a_time_out_is_asked_for_again_in_halves(stack: ExitStack) -> None:
    release = threading.Event()
    stack.callback(release.set)

    def hang(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if len(payload["prompt"]) == 4:
            release.wait(20)
        return None

    server = start(stack, FakeServer(mischief=hang))
    client = Endpoint.open(server.base_url, timeout=0.5)
    supervisor = stack.enter_context(RemoteSupervisor(client, MODEL, QUICK))
    prompts = random_prompts(4)
    check(prompts, supervisor.score(prompts))
    assert [len(request["prompt"]) for request in of_pairs(server)] == [4, 2, 2]


def test_what_fails_again_and_again_is_halved_until_the_culprit_stands_alone(stack: ExitStack) -> None:
    def choke(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        return (500, {"error": "KeyError"}) if any(666 in ids for ids in payload["prompt"]) else None

    server = start(stack, FakeServer(mischief=choke))
    supervisor = connect(stack, server, replace(QUICK, attempts=6))
    prompts = [Prompt((0, 666, 7), 1, "example 9, passage 'p'"), *random_prompts(3)]
    handed: list[int] = []
    with pytest.raises(SupervisorUnavailableError, match=r"example 9, passage 'p'.*KeyError"):
        supervisor.submit(prompts, lambda positions, _: handed.extend(positions)).result()
    assert sorted(handed) == [1, 2, 3]


def test_a_server_that_does_nothing_right_ends_a_submission_before_all_of_it_is_asked_for(
    stack: ExitStack,
) -> None:
    server = start(stack, FakeServer(mischief=times(10**6, lambda: (500, {"error": "broken"}))))
    supervisor = connect(stack, server)
    with pytest.raises(SupervisorUnavailableError, match="broken"):
        supervisor.score(random_prompts(1000))  # while one waits to be asked again, others go on
    asked = {json.dumps(ids) for request in of_pairs(server) for ids in request["prompt"]}
    assert len(asked) < 500


def test_a_wrong_answer_for_one_prompt_leaves_the_others(stack: ExitStack) -> None:
    def spoil(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if isinstance(body, dict):
            for choice, ids in zip(body["choices"], payload["prompt"], strict=True):
                if 666 in ids:
                    choice["prompt_logprobs"][-1] = {"7": {"logprob": float("nan")}}
            return 200, body
        return None

    supervisor = connect(stack, start(stack, FakeServer(mischief=spoil)))
    prompts = [Prompt((0, 666, 7), 1, "the spoilt pair"), *random_prompts(5)]
    handed: list[int] = []
    with pytest.raises(WrongAnswerError, match="the spoilt pair: nan is no log-prob"):
        supervisor.submit(prompts, lambda positions, _: handed.extend(positions)).result()
    assert sorted(handed) == [1, 2, 3, 4, 5]


def test_only_the_aborted_prompts_of_a_request_are_asked_again(stack: ExitStack) -> None:
    aborted: list[list[int]] = []

    def abort(server: FakeServer, payload: dict[str, Any], body: Body) -> Reply:
        if isinstance(body, dict) and len(payload["prompt"]) == 4 and not aborted:
            body["choices"][2]["finish_reason"] = "abort"
            aborted.append(payload["prompt"][2])
        return 200, body

    server = start(stack, FakeServer(mischief=abort))
    supervisor = connect(stack, server)
    prompts = random_prompts(4)
    check(prompts, supervisor.score(prompts))
    assert server.requests[-1]["prompt"] == aborted

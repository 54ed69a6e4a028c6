"""What the fault tests share: a client with short waits, and what they hold scores against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from replug_client.supervisor.apart import SupervisorApart
from replug_client.supervisor.canary import CANARY
from replug_client.supervisor.client import ClientOptions, RemoteSupervisor
from replug_client.supervisor.endpoint import Endpoint
from replug_client.supervisor.fake import hashed_log_probs
from replug_client.supervisor.protocol import Prompt, Score
from tests.faults.faults import ON_THE_CONNECTION, Fault
from tests.faults.proxy import Counts
from tests.supervisor.fake_server import MODEL

MARK = 666  # the token by which a prompt is singled out
PROMPTS_PER_REQUEST, CONCURRENCY = 4, 4
IN_FLIGHT = PROMPTS_PER_REQUEST * CONCURRENCY
TIMEOUT = 3.0  # seconds; a busy machine answers within it


def quick(**changes: object) -> ClientOptions:
    """The default number of attempts, but waits that a test can wait for."""
    defaults: dict[str, object] = {
        "concurrency": CONCURRENCY,
        "prompts_per_request": PROMPTS_PER_REQUEST,
        "first_wait": 0.01,
        "longest_wait": 0.05,
    }
    return ClientOptions(**(defaults | changes))  # type: ignore[arg-type]


def connect(base_url: str, options: ClientOptions | None = None) -> RemoteSupervisor:
    """A client of the server at ``base_url``."""
    return RemoteSupervisor(Endpoint.open(base_url, timeout=TIMEOUT), MODEL, options or quick())


def connect_apart(base_url: str) -> SupervisorApart:
    """The same in a process of its own."""
    return SupervisorApart([base_url], MODEL, quick(), timeout=TIMEOUT)


def check_exact(prompts: Sequence[Prompt], scores: Sequence[Score]) -> None:
    """Bit for bit what a server without faults says."""
    assert len(scores) == len(prompts)
    for prompt, score in zip(prompts, scores, strict=True):
        expected = np.asarray(hashed_log_probs(prompt), dtype=np.float32)
        assert score.token_log_probs.tobytes() == expected.tobytes(), prompt.label


def check_explained(counts: Counts) -> None:
    """No prompt was asked for nothing; the canary once for each sign that a server is gone, and if it was spoilt."""
    unexplained = counts.unexplained()
    unexplained.pop(CANARY.ids, None)
    assert unexplained == {}
    gone = sum(counts.faults[fault] for fault in (*ON_THE_CONNECTION, Fault.STATUS_502, Fault.STATUS_503))
    assert counts.asked[CANARY.ids] <= gone + counts.spoiled[CANARY.ids]

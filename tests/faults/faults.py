"""What can go wrong between a client and a server, one name each, and how an answer is spoiled. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from tests.faults.forms import Form


class Fault(StrEnum):
    """One way in which a request for scores goes wrong."""

    RESET = "connection reset"
    HANG_UP = "closed without an answer"
    STALE = "stale keep-alive"  # an idle connection that the server has given up, found out by using it
    TIME_OUT = "no answer in time"
    CUT = "answer cut off"  # fewer bytes than its Content-Length
    STATUS_500 = "status 500"
    STATUS_502 = "status 502"
    STATUS_503 = "status 503"
    HTML = "HTML page with status 200"
    TRUNCATED = "truncated JSON"
    INVALID = "invalid JSON"
    NULL = "[null] log-probs"
    NAN = "NaN"
    LENGTH = "wrong length"
    IDS = "wrong token ids"
    ABORT = "aborted request"
    DRIP = "slow drip"  # late, but whole and right: costs time alone
    TRICKLE = "endless drip"  # always another byte, never the end
    POISON = "refused prompt"  # status 400: the one that never passes


ON_THE_CONNECTION = {
    Fault.RESET,
    Fault.HANG_UP,
    Fault.STALE,
    Fault.TIME_OUT,
    Fault.CUT,
    Fault.DRIP,
    Fault.TRICKLE,
}
"""Done to the connection; all others replace the answer."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back instead of the server's answer.

    Attributes:
        status: HTTP status.
        body: The body; whole.
        spoiled: Positions of the prompts that get no score from it; the others are answered well.
    """

    status: int
    body: bytes
    spoiled: tuple[int, ...]


TRANSIENT = tuple(fault for fault in Fault if fault is not Fault.POISON)
"""What may be gone when the same is asked again."""

Victims = Sequence[int]
_Page = tuple[int, bytes]

_HTML = b"<!DOCTYPE html><html><head><title>Bad Gateway</title></head><body>nginx</body></html>"
_PAGES: dict[Fault, _Page] = {
    Fault.STATUS_500: (500, b'{"error": {"message": "EngineCore encountered an issue", "code": 500}}'),
    Fault.STATUS_502: (502, _HTML),
    Fault.STATUS_503: (503, b'{"error": {"message": "queue full", "type": "Service Unavailable"}}'),
    Fault.HTML: (200, _HTML),
    Fault.POISON: (400, b'{"error": {"message": "Token id 666 is out of vocabulary", "code": 400}}'),
    Fault.INVALID: (200, b'{"choices": [{"index": 0, "prompt_logprobs": [null, {]]}'),
}


def spoil(
    fault: Fault, body: bytes, form: Form, num_prompts: int, victims: Victims, random: Random
) -> Reply | None:
    """Replace the server's answer.

    Args:
        fault: One that is not ``ON_THE_CONNECTION``.
        body: The server's answer.
        form: Whose it is.
        num_prompts: How many prompts were asked.
        victims: Prompts of which one is hit, where a fault hits one prompt and not the whole answer.
        random: Chooses among them.

    Returns:
        What goes back, or None where the answer has nothing that this fault could spoil (an error, say; or token ids
        of a form without any).
    """
    everyone = tuple(range(num_prompts))
    if fault in _PAGES:
        return Reply(*_PAGES[fault], everyone)
    if fault is Fault.TRUNCATED:
        return Reply(200, body[: random.randrange(1, len(body))], everyone)
    try:
        answer = json.loads(body)
    except ValueError:
        return None
    parts = form.parts(answer)
    hurt = form.hurts.get(fault.value)
    if parts is None or hurt is None:
        return None
    # A runner that never fills prompt log-probs says null of every prompt.
    hit = everyone if fault is Fault.NULL else (random.choice(list(victims)),)
    for place in hit:
        hurt(parts[place])
    return Reply(200, json.dumps(answer).encode(), hit)

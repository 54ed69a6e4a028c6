"""The canary: a fixed prompt whose score tells one model from another behind the same name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from replug_client.supervisor.protocol import Prompt, Score

CANARY = Prompt(ids=tuple(range(5, 53)), num_continuation=32, label="the canary prompt")
"""48 low token ids: in every vocabulary, whatever the tokenizer. What they mean as text does not matter."""

_DIGITS = 2


def fingerprint_of(parts: Mapping[str, str], canary: Score) -> str:
    """SHA-256 over what identifies a supervisor and its canary's log-probs, rounded to 0.01 nats.

    The canary is sent alone, so that it meets the same kernels and shapes each time: then even bfloat16
    repeats itself, and float32 noise (about 1e-5) hardly ever crosses a rounding step. Another model, or
    the same one at another precision, moves some of the 32 numbers by more than a step. Where noise does
    cross one, scores are computed anew: it costs time, and never gives a wrong number.
    """
    rounded = [f"{float(value):.{_DIGITS}f}" for value in canary.token_log_probs]
    text = json.dumps({**parts, "canary": rounded}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

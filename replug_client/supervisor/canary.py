"""The canary: a fixed prompt whose score tells one model from another behind the same name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from replug_client.supervisor.protocol import Prompt, Score

CANARY = Prompt(ids=tuple(range(5, 53)), num_continuation=32, label="the canary prompt")
"""48 low token ids: in every vocabulary, whatever the tokenizer. What they mean as text does not matter."""

MEAN_TOLERANCE = 0.03
"""Nats per token, of the mean absolute difference of two canaries of one model.

Between the noise and the next model. Measured with the demo LM, mean (largest) of the 32 differences:
bfloat16 against float32 0.011 (0.034), which is more than two kernels or two GPUs differ at the same
precision; float16 0.0015 (0.004). Another model: weights rounded to fp8 0.059 (0.16), ten training steps
at 1e-4 0.17 (0.61). What stays below cannot be told from noise (int8 weights 0.013, ten steps at 1e-5
0.021), and taking it for the same moves a token's log-prob by no more than the noise does.

That is one small model on one CPU. Other models and kernels were not measured, so a canary that differs is asked for
again before it decides anything (``proof``).
"""

MAX_TOLERANCE = 0.15
"""Nats, of the largest single difference: a model that differs in a few tokens only is another one."""

_DIGITS = 2


@dataclass(frozen=True, slots=True)
class Identity:
    """What a supervisor says it is, and what it answers to the canary prompt.

    Attributes:
        parts: What must be equal: for a server its kind and the model's root or name, for a local LM its
            kind and the hash of its weights. Not the wire format: all of them give the same numbers.
        canary: Score of ``CANARY``, sent alone, so that it meets the same kernels and shapes each time.
        others: What it is called as well: replicas may have the same weights in different places.
    """

    parts: Mapping[str, str]
    canary: Score
    others: tuple[Mapping[str, str], ...] = ()

    @property
    def key(self) -> str:
        """The parts as one text."""
        return _text(self.parts)

    @property
    def other_keys(self) -> list[str]:
        """The same of ``others``."""
        return [_text(parts) for parts in self.others]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the parts and the canary rounded to 0.01 nats.

        A name for a supervisor met for the first time, the one that earlier versions gave it. Noise may
        cross a rounding step, so whether two supervisors are the same is for ``difference`` to say.
        """
        rounded = [f"{float(value):.{_DIGITS}f}" for value in self.canary.token_log_probs]
        text = json.dumps({**self.parts, "canary": rounded}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _text(parts: Mapping[str, str]) -> str:
    return json.dumps(dict(parts), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two canaries are apart, in nats per token."""

    mean: float
    largest: float

    @property
    def is_noise(self) -> bool:
        """Whether one model at one precision may well show it."""
        return self.mean <= MEAN_TOLERANCE and self.largest <= MAX_TOLERANCE

    def __str__(self) -> str:
        return (
            f"{self.mean:.3f} nats per token in the mean and {self.largest:.3f} at most (noise stays below"
            f" {MEAN_TOLERANCE} and {MAX_TOLERANCE})"
        )


def difference(first: Score, second: Score) -> Difference:
    """Compare two canaries, or parts of them of the same length."""
    values = np.abs(first.token_log_probs.astype(np.float64) - second.token_log_probs)
    return Difference(float(values.mean()), float(values.max()))

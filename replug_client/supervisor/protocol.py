"""The supervisor seam: prompts in, log-likelihoods out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from replug_client.supervisor.canary import Identity


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of the supervisor, of which the last ``num_continuation`` are scored.

    Attributes:
        ids: The whole prompt: BOS (if any) + passage + separator + query + continuation.
        num_continuation: How many ids at the end are the continuation; at least 1, and at least one
            id stands before them.
        label: What names the pair in error messages, for example ``example 12, passage 'os.py#3'``.
            It takes no part in equality or in the cache's key.
    """

    ids: tuple[int, ...]
    num_continuation: int
    label: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """Log-likelihood of a continuation given what stands before it.

    Attributes:
        token_log_probs: ``(num_tokens,)`` float32, natural logarithms (nats), one per continuation
            token in order.
    """

    token_log_probs: npt.NDArray[np.float32]

    @property
    def log_likelihood(self) -> float:
        """Sum over the continuation's tokens, in nats (float64 sum of float32 terms)."""
        return float(self.token_log_probs.sum(dtype=np.float64))

    @property
    def num_tokens(self) -> int:
        """Length of the continuation in the supervisor's tokens."""
        return len(self.token_log_probs)


@runtime_checkable
class Supervisor(Protocol):
    """A black-box LM that scores continuations. Implementations are safe to call from several threads.

    Example:
        >>> from replug_client.training import Prompt, Supervisor
        >>> from replug_client.training.toy import toy
        >>> _, supervisor, tokenizer = toy(["to be or not"])  # open_supervisor gives a real one
        >>> isinstance(supervisor, Supervisor)
        True
        >>> (score,) = supervisor.score([Prompt(tuple(tokenizer.encode("to be or not to")), num_continuation=2)])
        >>> [round(float(value), 1) for value in score.token_log_probs]  # "not" is new, "to" stood before
        [-3.0, -0.1]
        >>> supervisor.close()
    """

    @property
    def name(self) -> str:
        """The model's name as its server (or folder) gives it."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies what would change a score: model, format-independent, with a canary score in it."""
        ...

    @property
    def max_prompt_tokens(self) -> int:
        """Longest prompt (continuation included) that can be scored."""
        ...

    def score(self, prompts: Sequence[Prompt]) -> list[Score]:
        """Score every prompt, in order. All or an exception; what was scored before it is kept by a cache.

        Raises:
            PromptTooLongError: before anything is sent.
            SupervisorError: and its subclasses, naming the pair.
        """
        ...

    def submit(self, prompts: Sequence[Prompt]) -> Future[list[Score]]:
        """The same without waiting: several submissions are scored concurrently, within bounds."""
        ...

    def close(self) -> None:
        """Release connections and threads."""
        ...


Retract = Callable[[], None]
"""Takes scores back that were handed out: another model than the supervisor has given them. Called from any thread."""

OnScores = Callable[[Sequence[int], Sequence[Score]], Retract | None]
"""Told of scores as they come: positions in the submission, and their scores. Called from any thread.

It may return how to take them back, and is then asked to where they prove to be of another model.
"""


@runtime_checkable
class StreamingSupervisor(Supervisor, Protocol):
    """A supervisor that hands out each part of a submission as soon as it is scored; what a cache wraps."""

    def submit(self, prompts: Sequence[Prompt], on_scores: OnScores | None = None) -> Future[list[Score]]:
        """As ``Supervisor.submit``; ``on_scores`` is called for every prompt that got a score.

        It is called before the future ends, also where the future ends in an exception.
        """
        ...


@runtime_checkable
class RecognisableSupervisor(Protocol):
    """A supervisor that a score cache can tell from others, though noise moves its scores a little."""

    @property
    def identity(self) -> Identity:
        """What it says it is, and what it answers to the canary prompt."""
        ...

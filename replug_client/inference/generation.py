"""What generates, and how: options, and the narrow interface to a language model that answers are made with."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from replug_client.errors import OptionError
from replug_client.inference.mixing import Candidates

Ids = tuple[int, ...]
FinishReason = Literal["end", "stop", "length"]
"""Why a text ended: the model's own end token, a stop string, or ``max_tokens``."""


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How tokens are chosen, and when to stop.

    Attributes:
        max_tokens: Most tokens generated, the end token included.
        temperature: 0 takes the most probable token (greedy); above it, probabilities are raised to ``1 / temperature``
            and one is drawn.
        top_p: Draw among the fewest tokens that hold this much probability; 1 draws among all.
        stop: Texts that end the answer, or one; none of them becomes part of it.
        seed: The same seed gives the same text; None draws anew each time.
    """

    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if self.max_tokens < 1:
            raise OptionError(f"--max_tokens must be at least 1, not {self.max_tokens}")
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise OptionError(f"--temperature must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"--top_p must be above 0 and at most 1, not {self.top_p}")
        stop: object = self.stop
        if isinstance(stop, str):  # one text, and not the letters of it
            object.__setattr__(self, "stop", (stop,))
        if not all(self.stop):
            raise OptionError(f"--stop takes texts that are not empty, not {self.stop!r}")


class Token(NamedTuple):
    """One generated token.

    Attributes:
        id: In the vocabulary of the supervisor.
        log_prob: Nats, under the model itself: before temperature and top-p.
        ends: It is the model's end token, and no text.
    """

    id: int
    log_prob: float
    ends: bool


class Contexts(Protocol):
    """Several contexts that grow by the same tokens: the K prompts of one mixture."""

    def candidates(self) -> Candidates:
        """What may come next, with its log-prob behind each context; see :class:`Candidates`."""
        ...

    def log_probs(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """``(K, n)`` nats: the exact log-probs of these tokens as the next one behind each context."""
        ...

    def append(self, token: int) -> None:
        """Put a token behind all contexts."""
        ...

    def ends(self, token: int) -> bool:
        """Whether the token is one of those with which the model ends a text."""
        ...


class LanguageModel(Protocol):
    """A causal LM that is asked for next tokens: a server, or a model in this process. Safe for several threads."""

    @property
    def max_prompt_tokens(self) -> int:
        """Longest context behind which one more token can be had."""
        ...

    def contexts(self, prompts: Sequence[Ids]) -> Contexts:
        """Begin a mixture behind these prompts."""
        ...

    def continuations(
        self, prompts: Sequence[Ids], options: GenerationOptions
    ) -> Generator[tuple[int, Token], None, None]:
        """Plain generation behind each prompt by itself: pairs of the prompt's position and its next token.

        They come as soon as they are there, those of one prompt in order, at most ``max_tokens``, an end token last.
        Where a stop string is complete the model may go on a little; the caller looks for them, and may stop
        listening at any time.
        """
        ...

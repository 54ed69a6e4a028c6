"""What an answer says of itself, and how one is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from replug_client.errors import OptionError
from replug_client.inference.generation import FinishReason


class Combination(StrEnum):
    """How several passages make one answer; see docs/inference.md."""

    CONCAT = "concat"
    ENSEMBLE = "ensemble"
    ENSEMBLE_ANSWERS = "ensemble-answers"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Weight:
    """What a passage carried: its λ before anything was generated, and behind the whole text.

    Attributes:
        prior: λ_d, the softmax of the similarities.
        posterior: ``λ_d p(y | d, x) / sum_e λ_e p(y | e, x)``; None where it was not asked for.
    """

    prior: float
    posterior: float | None


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the whole answers of ``ensemble-answers``, and its share of the weight."""

    text: str
    share: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A generated text.

    Attributes:
        text: Without the end token, and without the stop string that ended it.
        weights: One for each passage, in the order given.
        tokens: Ids of every token generated, the end token or those of a stop string included.
        log_probs: Nats, one a token, under what the text was drawn from (the mixture, for ``ensemble``), before
            temperature and top-p.
        dropped_mass: One a token: the probability mass of the mixture that nothing is known of, since it lies outside
            the top log-probs that the server gives. 0 where the whole vocabulary is known (in process), and where
            the server itself chose (``concat``, ``none``, ``ensemble-answers``).
        certain: One a token: whether the whole vocabulary would have given this token, too.
        finish_reason: ``end`` (the model's end token), ``stop`` (a stop string) or ``length``.
        choices: Of ``ensemble-answers``: the distinct answers, the one with the largest share first.
    """

    text: str
    weights: tuple[Weight, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    dropped_mass: tuple[float, ...]
    certain: tuple[bool, ...]
    finish_reason: FinishReason
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswererOptions:
    """How prompts are built and mixed.

    Attributes:
        temperature_score: γ of λ, the softmax of the similarities over the passages.
        retrieved_max_length: A passage keeps this many of its first tokens.
        separator: Behind each passage.
        top_log_probs: N, the most probable tokens that a server is asked for behind each passage (vLLM's
            ``--max-logprobs``, 20 by default, is the most).
        look_ahead: Tokens that a server generates in advance behind each passage; those that the mixture
            takes, too, cost no further request.
        posterior: Find out what each passage alone would give the text. Free with ``ensemble``, one more request of
            scores otherwise.
        answer_weights: Of ``ensemble-answers``: ``prior`` adds up the λ of the passages that give an answer,
            ``likelihood`` takes the answer's probability under the mixture.
    """

    temperature_score: float = 1.0
    retrieved_max_length: int = 128
    separator: str = "\n"
    top_log_probs: int = 20
    look_ahead: int = 4
    posterior: bool = True
    answer_weights: Literal["prior", "likelihood"] = "prior"

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if not (np.isfinite(self.temperature_score) and self.temperature_score > 0):
            raise OptionError(f"--temperature_score must be above 0, not {self.temperature_score}")
        if self.top_log_probs < 1:
            raise OptionError(f"--top_log_probs must be at least 1, not {self.top_log_probs}")
        if self.look_ahead < 0:
            raise OptionError(f"--look_ahead must be 0 or more, not {self.look_ahead}")
        if self.answer_weights not in ("prior", "likelihood"):
            raise OptionError(f"--answer_weights must be prior or likelihood, not {self.answer_weights!r}")

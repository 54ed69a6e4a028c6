"""What ``SupervisorApart`` and its process say to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replug_client.supervisor.canary import Identity
from replug_client.supervisor.options import ClientOptions
from replug_client.supervisor.protocol import Score

Packed = tuple[list[int], npt.NDArray[np.float32]]
"""Scores on their way: how many tokens each has, and the log-probs of all of them one after another."""


@dataclass(frozen=True, slots=True)
class Begin:
    """To the process, first: what it connects to, and from which levels on log records are wanted, by logger."""

    base_urls: Sequence[str]
    model: str
    timeout: float
    options: ClientOptions
    log_levels: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Ready:
    """From the process, first: what :class:`RemoteSupervisor` has found out."""

    name: str
    format: str
    max_prompt_tokens: int
    identity: Identity


@dataclass(frozen=True, slots=True)
class Submit:
    """To the process: score this. Prompts as tuples, which travel faster."""

    number: int
    prompts: Sequence[tuple[tuple[int, ...], int, str]]


@dataclass(frozen=True, slots=True)
class CheckText:
    """To the process: see ``RemoteSupervisor.check_text``; answered with :class:`Done`."""

    number: int
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """To the process: nobody waits for this any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Close:
    """To the process: close, and say how that went with :class:`Closed`."""


@dataclass(frozen=True, slots=True)
class Scored:
    """From the process: a part of a submission, and a number by which it may be taken back."""

    number: int
    positions: Sequence[int]
    scores: Packed
    part: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """From the process: that part's scores were another model's."""

    part: int


@dataclass(frozen=True, slots=True)
class Settled:
    """From the process: that part's scores will not be taken back any more."""

    part: int


@dataclass(frozen=True, slots=True)
class Done:
    """From the process: this has ended, with an error or without, or was cancelled."""

    number: int
    error: BaseException | None = None
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """From the process, last; or first, where it could not connect."""

    error: BaseException | None = None


def packed(scores: Sequence[Score]) -> Packed:
    """Scores as one array."""
    values = [score.token_log_probs for score in scores]
    return [len(value) for value in values], np.concatenate(values)


def unpacked(scores: Packed) -> list[Score]:
    """The reverse of :func:`packed`."""
    lengths, values = scores
    return [Score(part) for part in np.split(values, np.cumsum(lengths)[:-1])]

"""Mixing the next-token distributions of several contexts, of which only the tops may be known. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Tokens that may come next, with what is known of them behind each of K contexts.

    Attributes:
        ids: ``(C,)`` ascending, distinct.
        log_probs: ``(K, C)`` nats; NaN where it is not known behind that context.
        bounds: ``(K,)`` nats: no token that is not known behind a context is more probable there; ``-inf`` where
            every token of the vocabulary is known.
    """

    ids: Tokens
    log_probs: Floats
    bounds: Floats
